"""Tests that preprocessing, scenes and the data sources import no heavy package."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
HEAVY = {"jax", "flax", "tensorflow", "seqio", "gin", "tensorflow_datasets"}


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("ofa_jax.preprocessing", HEAVY | {"ofa_jax.data", "ofa_jax.model", "ofa_jax.scenes"}),
        ("ofa_jax.scenes", HEAVY | {"ofa_jax.data", "ofa_jax.model", "ofa_jax.preprocessing"}),
        ("ofa_jax.data.sources", HEAVY | {"ofa_jax.model", "ofa_jax.scenes"}),
    ],
)
def test_importing_every_module_of_a_package_loads_nothing_heavy(package, forbidden):
    folder = ROOT.joinpath(*package.split("."))
    names = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    program = (
        f"import sys, importlib, {package} as package; assert sorted(package.__all__) == {names}; "
        "[importlib.import_module(f'{package.__name__}.{name}') for name in package.__all__]; "
        "print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout.split()
    assert not forbidden & set(loaded)
