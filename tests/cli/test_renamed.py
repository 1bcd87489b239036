"""Every new name in the table of renamed things exists, and no old one does."""

import importlib.util
import inspect

import gin
import pytest

from ofa_jax.cli import (
    evaluate_command,
    gin_files,
    gin_registry,
    infer_command,
    train_command,
)
from ofa_jax.utils import renamed

ENTRY_POINTS = {
    "train": train_command.build_run,
    "evaluate": evaluate_command.build_evaluation,
    "infer": infer_command.build_job,
}


@pytest.fixture(scope="module", autouse=True)
def registry():
    gin_registry.register(ENTRY_POINTS)


def exists(name):
    configurable, _, parameter = name.partition(".")
    try:
        function = ENTRY_POINTS.get(configurable) or gin.get_configurable(f"ofa_jax.{configurable}")
    except ValueError:
        return False
    return not parameter or parameter in inspect.signature(function).parameters


@pytest.mark.parametrize(("old", "new"), renamed.GIN_NAMES.items())
def test_gin_names(old, new):
    assert exists(new) and not exists(old)


@pytest.mark.parametrize(("old", "new"), renamed.GIN_FILES.items())
def test_gin_files(old, new):
    folder = gin_files.gin_configs_folder()
    assert (folder / new).is_file() and not (folder / old).exists()
    assert gin_files.find_file(f"gin_configs/{old}", ["."]) == folder / new


@pytest.mark.parametrize(("old", "new"), renamed.MODULES.items())
def test_modules(old, new):
    assert importlib.util.find_spec(new) and not importlib.util.find_spec(old)
