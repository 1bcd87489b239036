"""docs/habits.md: every row names a test that exists, and options that exist."""

import ast
import pathlib
import re

import pytest

from ofa_jax.decoding import DecodingConfig
from ofa_jax.model import OFAConfig
from ofa_jax.sharding import Partitioner
from ofa_jax.training.loop_config import LoopConfig
from ofa_jax.training.metric_writers import WandbWriter

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in (ROOT / "docs" / "habits.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith(("| ---", "| there"))
]
CLASSES = {
    "LoopConfig": LoopConfig, "Partitioner": Partitioner, "model_config": OFAConfig,
    "DecodingConfig": DecodingConfig, "WandbWriter": WandbWriter,
}  # fmt: skip


def names_of(path):
    """Returns the functions of a test file."""
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_each_row_names_what_is_there(row):
    assert len(row) == 3
    path, name = re.fullmatch(r"`(tests/[\w/]+\.py)::(test_\w+)` ?", row[2]).groups()
    assert name in names_of(path)
    for owner, field in re.findall(r"`(\w+)\.(\w+)`", row[1]):
        if owner in CLASSES:
            assert hasattr(CLASSES[owner], "__dataclass_fields__")
            assert field in CLASSES[owner].__dataclass_fields__, f"{owner}.{field}"


def test_every_kind_of_user_is_there():
    text = (ROOT / "docs" / "habits.md").read_text()
    for name in ("t5x", "seqio", "MaxText", "big_vision", "Hugging Face", "fairseq", "Clusters"):
        assert f"\n## {name}" in text
    assert len(ROWS) > 65
