"""The command line of `python -m ofa_jax.train`; see there."""

import functools
from collections.abc import Sequence

import gin
import jax

from ofa_jax.cli import common, gin_registry, gin_unread, training_run
from ofa_jax.data import task_registry
from ofa_jax.model.named_config import model_config
from ofa_jax.training.build import build_run
from ofa_jax.training.run import Run


def run_command(description: str, arguments: Sequence[str]) -> None:
    """Trains as the command line says.

    Args:
      description: for `--help`.
      arguments: the command line without the program.
    """
    training_run.run_training("train", functools.partial(_build, description, arguments), _describe)


def _build(description: str, arguments: Sequence[str]) -> Run:
    """Returns the run that a command line describes; nothing is written."""
    gin_registry.register({"train": build_run, "model_config": model_config})
    common.parse_arguments("python -m ofa_jax.train", description, arguments)
    task_registry.forget_cache_dirs()
    run: Run = gin.get_configurable("train")()
    gin_unread.warn_of_unread()
    return run


def _describe(run: Run) -> str:
    """Returns the size of the model, the devices and the batch."""
    parameters = sum(x.size for x in jax.tree.leaves(run.abstract_state.params))
    streams = ", ".join(
        f"{stream['name']} {stream['batch_size']}" for stream in run.run_fingerprint["streams"]
    )
    devices = training_run.describe_devices(run)
    return f"{parameters:,} parameters on {devices}; examples per step: {streams}."
