"""Trains a VQGAN, the tokenizer of images, as gin files say.

    python -m tools.train_image_tokenizer --gin_file=gin_configs/runs/image_tokenizer_scenes.gin

Checkpoints, resuming, events, validation and report are those of pretraining. The run ends with
MODEL_DIR/image_tokenizer.npz, which any run takes as its image tokenizer, and with the same in the
official layout, MODEL_DIR/image_tokenizer.ckpt. See docs/guides/image_tokenizer.md.
"""

import dataclasses
import functools
import sys
from collections.abc import Sequence

import gin
import jax
from absl import flags, logging

from ofa_jax.checkpoints.manager import SaveError
from ofa_jax.cli import common, errors, gin_registry
from ofa_jax.data.loader import LoaderError
from ofa_jax.reports import run_report
from ofa_jax.tokenizers.vqgan import VQGANConfig
from ofa_jax.training import loop
from ofa_jax.training.image_tokenizer.build import export
from ofa_jax.training.run import Run
from ofa_jax.utils import distributed

from .command import user_command


@user_command
def main(arguments: Sequence[str]) -> int:
    """Runs the command line `arguments` (without the program); returns the exit code."""
    flags.FLAGS(["train_image_tokenizer"])  # grain reads its options from absl
    logging.set_verbosity(logging.WARNING)
    with errors.interruptible("Run the same command to resume from the newest checkpoint."):
        with errors.user_errors():
            run = _build(arguments)
            _describe(run)
        try:
            loop.train(run)
        except (loop.RunError, FloatingPointError) as error:
            errors.fail(error)
        except (SaveError, LoaderError) as error:
            errors.fail(error, errors.FAILURE)
        if jax.process_index() == 0:
            _export(run)
        run_report.write_at_end(run.model_dir, functools.partial(_print_line, run))
    return 0


def _build(arguments: Sequence[str]) -> Run:
    """Returns the run that a command line describes; nothing is written."""
    gin_registry.register({})
    common.parse_arguments("python -m tools.train_image_tokenizer", __doc__ or "", arguments)
    run = gin.get_configurable("train_image_tokenizer")()
    # The loop writes it, once it has accepted the run.
    return dataclasses.replace(run, config_text=gin.operative_config_str())


def _export(run: Run) -> None:
    """Writes the trained VQGAN, unless the run was stopped before its first checkpoint."""
    try:
        for path in export(run, VQGANConfig(**run.run_fingerprint["vqgan"])):
            _print_line(run, f"Wrote {path}.")
    except FileNotFoundError:
        _print_line(run, "There is no checkpoint yet, so no image tokenizer was written.")
    except OSError as error:
        errors.fail(error, errors.FAILURE)


def _print_line(run: Run, message: str) -> None:
    """Prints a message without colors and line breaks."""
    run.console.print(message, highlight=False, soft_wrap=True)


def _describe(run: Run) -> None:
    """Prints the size of the networks, the devices and the batch."""
    sizes = {
        name: sum(x.size for x in jax.tree.leaves(part))
        for name, part in run.abstract_state.params.items()
    }
    parameters = ", ".join(f"{name} {size:,} parameters" for name, size in sizes.items())
    mesh = " x ".join(f"{name} {size}" for name, size in run.partitioner.mesh.shape.items())
    _print_line(
        run,
        f"{parameters}; {jax.device_count()} {jax.default_backend()} device(s), mesh {mesh}; "
        f"{run.examples_per_step} images per step.",
    )


if __name__ == "__main__":
    with distributed.crashes_end_at_once():
        sys.exit(main(sys.argv[1:]))
