"""The command line of `python -m ofa_jax.train`; see there."""

import dataclasses
import functools
from collections.abc import Sequence

import gin
import jax
from absl import flags, logging

from ofa_jax.checkpoints.manager import SaveError
from ofa_jax.cli import common, errors, gin_registry, gin_unread
from ofa_jax.data import task_registry
from ofa_jax.data.loader import LoaderError
from ofa_jax.model.named_config import model_config
from ofa_jax.training import loop
from ofa_jax.training.build import build_run
from ofa_jax.training.run import Run


def run_command(description: str, arguments: Sequence[str]) -> None:
    """Trains as the command line says.

    Args:
      description: for `--help`.
      arguments: the command line without the program.
    """
    flags.FLAGS(["train"])  # grain reads its options from absl
    logging.set_verbosity(logging.WARNING)
    with errors.interruptible("Run the same command to resume from the newest checkpoint."):
        with errors.user_errors():
            run = _build(description, arguments)
            _describe(run)
        try:
            loop.train(run)
        except (loop.RunError, FloatingPointError) as error:
            errors.fail(error)
        except (SaveError, LoaderError) as error:
            errors.fail(error, errors.FAILURE)
        # Imported only now: the curves need plotly, which the first step does not.
        from ofa_jax.reports import run_report

        run_report.write_at_end(run.model_dir, functools.partial(_print_line, run))


def _build(description: str, arguments: Sequence[str]) -> Run:
    """Returns the run that a command line describes; nothing is written."""
    gin_registry.register({"train": build_run, "model_config": model_config})
    common.parse_arguments("python -m ofa_jax.train", description, arguments)
    task_registry.forget_cache_dirs()
    run = gin.get_configurable("train")()
    gin_unread.warn_of_unread()
    # The loop writes it, once it has accepted the run.
    return dataclasses.replace(run, config_text=gin.operative_config_str())


def _print_line(run: Run, message: str) -> None:
    """Prints a message without colors and line breaks."""
    run.console.print(message, highlight=False, soft_wrap=True)


def _describe(run: Run) -> None:
    """Prints the size of the model, the devices and the batch."""
    parameters = sum(x.size for x in jax.tree.leaves(run.abstract_state.params))
    mesh = " x ".join(f"{name} {size}" for name, size in run.partitioner.mesh.shape.items())
    streams = ", ".join(
        f"{stream['name']} {stream['batch_size']}" for stream in run.run_fingerprint["streams"]
    )
    _print_line(
        run,
        f"{parameters:,} parameters on {jax.device_count()} {jax.default_backend()} device(s), "
        f"mesh {mesh}; examples per step: {streams}.",
    )
