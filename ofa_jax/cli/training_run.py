"""What every command that trains does around the loop: sentences for errors, Ctrl-C, the report."""

import dataclasses
import functools
from collections.abc import Callable

import gin
import jax
from absl import flags, logging

from ofa_jax.checkpoints.manager import SaveError
from ofa_jax.cli import errors
from ofa_jax.data.loader import LoaderError
from ofa_jax.training import loop
from ofa_jax.training.run import Run


def run_training(
    name: str,
    build: Callable[[], Run],
    describe: Callable[[Run], str],
    at_end: Callable[[Run], None] = lambda run: None,
) -> None:
    """Builds a run, trains it and writes its report; a user's mistake ends the program.

    Args:
      name: of the command.
      build: parses the command line and builds the run; writes nothing.
      describe: returns a line about the run, printed before it starts.
      at_end: is called after the training, before the report is written.
    """
    flags.FLAGS([name])  # grain reads its options from absl
    logging.set_verbosity(logging.WARNING)
    with errors.interruptible("Run the same command to resume from the newest checkpoint."):
        with errors.user_errors():
            # The loop writes the configuration, once it has accepted the run.
            run = dataclasses.replace(build(), config_text=gin.operative_config_str())
            print_line(run, describe(run))
        try:
            loop.train(run)
        except (loop.RunError, FloatingPointError) as error:
            errors.fail(error)
        except (SaveError, LoaderError) as error:
            errors.fail(error, errors.FAILURE)
        at_end(run)
        # Imported only now: the curves need plotly, which the first step does not.
        from ofa_jax.reports import run_report

        run_report.write_at_end(run.model_dir, functools.partial(print_line, run))


def print_line(run: Run, message: str) -> None:
    """Prints a message without colors and line breaks."""
    run.console.print(message, highlight=False, soft_wrap=True)


def describe_devices(run: Run) -> str:
    """Returns number and kind of the devices, and the mesh."""
    mesh = " x ".join(f"{name} {size}" for name, size in run.partitioner.mesh.shape.items())
    return f"{jax.device_count()} {jax.default_backend()} device(s), mesh {mesh}"
