"""The arrows between the rooms point one way, measured by what an import really loads."""

import subprocess
import sys

import pytest

HEAVY = {"tensorflow", "seqio", "gin"}


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("ofa_jax.model", HEAVY | {"ofa_jax.data", "ofa_jax.training"}),
        ("ofa_jax.decoding", HEAVY | {"ofa_jax.data", "ofa_jax.training"}),
        ("ofa_jax.interop", HEAVY | {"ofa_jax.data", "ofa_jax.training"}),
        ("ofa_jax.training", HEAVY | {"ofa_jax.data", "tasks"}),
        ("ofa_jax.vocabulary", HEAVY | {"jax", "ofa_jax.data", "ofa_jax.model"}),
        ("ofa_jax.data.objectives", HEAVY | {"jax", "ofa_jax.model", "tasks"}),
        ("ofa_jax.data.scenes", HEAVY | {"jax", "ofa_jax.model", "tasks"}),
        ("ofa_jax.data.ofa_tsv", HEAVY | {"jax", "ofa_jax.model", "tasks"}),
        ("ofa_jax.data.ofa_array_records", HEAVY | {"jax", "ofa_jax.model", "tasks"}),
        ("ofa_jax.data.features", HEAVY | {"jax", "ofa_jax.model", "tasks"}),
        ("ofa_jax.data.instructions", HEAVY | {"jax", "ofa_jax.model", "tasks"}),
        ("ofa_jax.inference.predictor", HEAVY | {"tasks"}),
        ("ofa_jax", HEAVY | {"jax", "numpy", "ofa_jax.model", "ofa_jax.inference"}),
    ],
)
def test_importing_a_room_loads_nothing_it_must_not_know(module, forbidden):
    program = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.split()
    assert not forbidden & set(loaded)
