"""Trains a VQGAN, the tokenizer of images, as gin files say.

    python -m tools.train_image_tokenizer --gin_file=gin_configs/runs/image_tokenizer_scenes.gin

Checkpoints, resuming, events, validation and report are those of pretraining. The run ends with
MODEL_DIR/image_tokenizer.npz, which any run takes as its image tokenizer, and with the same in the
official layout, MODEL_DIR/image_tokenizer.ckpt. See docs/guides/image_tokenizer.md.
"""

import functools
import sys
from collections.abc import Sequence

import gin
import jax

from ofa_jax.cli import common, errors, gin_registry, training_run
from ofa_jax.tokenizers.vqgan import VQGANConfig
from ofa_jax.training.image_tokenizer.build import export
from ofa_jax.training.run import Run
from ofa_jax.utils import distributed

from .command import user_command


@user_command
def main(arguments: Sequence[str]) -> int:
    """Runs the command line `arguments` (without the program); returns the exit code."""
    build = functools.partial(_build, arguments)
    training_run.run_training("train_image_tokenizer", build, _describe, _export)
    return 0


def _build(arguments: Sequence[str]) -> Run:
    """Returns the run that a command line describes; nothing is written."""
    gin_registry.register({})
    common.parse_arguments("python -m tools.train_image_tokenizer", __doc__ or "", arguments)
    run: Run = gin.get_configurable("train_image_tokenizer")()
    return run


def _export(run: Run) -> None:
    """Writes the trained VQGAN, unless the run was stopped before its first checkpoint."""
    if jax.process_index() > 0:
        return
    try:
        for path in export(run, VQGANConfig(**run.run_fingerprint["vqgan"])):
            training_run.print_line(run, f"Wrote {path}.")
    except FileNotFoundError:
        training_run.print_line(
            run, "There is no checkpoint yet, so no image tokenizer was written."
        )
    except OSError as error:
        errors.fail(error, errors.FAILURE)


def _describe(run: Run) -> str:
    """Returns the sizes of the networks, the devices and the batch."""
    sizes = {
        name: sum(x.size for x in jax.tree.leaves(part))
        for name, part in run.abstract_state.params.items()
    }
    parameters = ", ".join(f"{name} {size:,} parameters" for name, size in sizes.items())
    devices = training_run.describe_devices(run)
    return f"{parameters}; {devices}; {run.examples_per_step} images per step."


if __name__ == "__main__":
    with distributed.crashes_end_at_once():
        sys.exit(main(sys.argv[1:]))
