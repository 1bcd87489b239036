"""Checks the gin files and options of commands that a tool runs, without running them."""

import gin

from ofa_jax.cli import gin_files, gin_lint, gin_registry
from ofa_jax.evaluation.build import build_evaluation
from ofa_jax.model.named_config import model_config
from ofa_jax.training.build import build_run


def check_command(command, run="runs/pretrain_scenes.gin"):
    """Raises ConfigError if a gin file or an option of a command does not exist.

    Args:
      command: without the interpreter.
      run: stands for the config.gin of a run.
    """
    assert command[:1] == ["-m"] and command[1] in ("ofa_jax.train", "ofa_jax.evaluate")
    gin.clear_config()
    entry_points = {"train": build_run, "evaluate": build_evaluation, "model_config": model_config}
    gin_registry.register(entry_points)
    files = [part.partition("=")[2] for part in command if part.startswith("--gin_file=")]
    files = [run if name.endswith("/config.gin") else name for name in files]
    bindings = [
        part.removeprefix("--gin.").replace("=", " = ", 1)
        for part in command
        if part.startswith("--gin.")
    ]
    assert len(files) + len(bindings) == len(command) - 2
    paths = [gin_files.find_file(name, ["."]) for name in files]
    gin_lint.check(paths, bindings, ["."], gin.get_configurable, gin_registry.names, ())
