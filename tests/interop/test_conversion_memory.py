"""Peak memory of conversions at base size.

In files of S bytes, whose largest tensor has L, a conversion holds at once:

* pages of the mapped input: S, which the kernel takes back when it needs them;
* between the official layouts, one tensor at a time: L;
* to a checkpoint of ours, the variables (S), and what Orbax holds while it writes: its own copy of
  them (S), and compressed chunks that are not on disk yet (less than S / 2);
* from a checkpoint of ours, the variables (S) and the chunks that are being read (less than S / 2).

Measured in MB, with S = 796 and L = 183: 906 and 813 between the official layouts, 2540 to ours,
1081 from ours.
"""

import argparse
import sys

import pytest
import recipe
from huggingface_fixtures import assert_same_bytes
from peak_memory import peak_bytes

from ofa_jax.interop import files, torch_file

ALLOWANCE = 64 * 2**20  # for code that is imported late, and Python's own objects


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_a_full_size_checkpoint_goes_through_every_layout_in_little_memory(golden, tmp_path):
    args, state_dict = recipe.official("base", golden)
    torch_file.save(tmp_path / "base.pt", {"args": argparse.Namespace(**args), "model": state_dict})
    size = (tmp_path / "base.pt").stat().st_size
    largest = max(array.nbytes for array in state_dict.values())
    del state_dict
    for source, target, shares, tensors in (
        ("base.pt", "hf", 1, 1),
        ("hf", "back.pt", 1, 1),
        ("hf", "ours", 3.5, 0),
        ("ours", "hf2", 1.5, 1),
    ):
        options = ["--layout=huggingface", "--max_shard_size=300MB"] * target.startswith("hf")
        found = peak_bytes("ofa_jax.convert", tmp_path / source, tmp_path / target, *options)
        # The weights are read or made at the least: the measurement is one.
        assert found > size / 2, (source, target, found)
        assert found < shares * size + tensors * largest + ALLOWANCE, (source, target, found)
    for name in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        one, two = (files.read(tmp_path / path / name).state_dict for path in ("hf", "hf2"))
        assert_same_bytes(dict(one), {key: two[key] for key in one})
