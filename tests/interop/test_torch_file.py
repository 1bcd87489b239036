"""torch's files without torch: what torch wrote is read, what would execute is refused."""

import argparse
import collections
import os
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from ofa_jax.interop import torch_file

BASE = np.arange(24, dtype=np.float32).reshape(4, 6)
WRITTEN = {
    "weight": BASE, "tied": BASE, "transposed": BASE.T, "part": BASE[1:3, 2:5],
    "half": BASE.astype(np.float16), "bfloat16": BASE.astype(ml_dtypes.bfloat16),
    "count": np.array(7), "flags": BASE > 11, "empty": np.zeros((0, 3), np.float32),
}  # fmt: skip


@pytest.fixture(scope="module")
def by_torch(golden):
    return golden / "torch_file" / "written_by_torch.pt"


def assert_equal(loaded, expected):
    assert list(loaded) == list(expected)
    for key, array in expected.items():
        np.testing.assert_array_equal(loaded[key], array, err_msg=key)
        assert loaded[key].dtype == array.dtype


def test_files_written_by_torch_are_read(by_torch):
    content = torch_file.load(by_torch)
    assert_equal(content["model"], WRITTEN)
    assert content["extra_state"] == {"best": 0.5, "epoch": 3} and content["args"] is None
    # Tied tensors are one storage, as torch has them.
    assert np.shares_memory(content["model"]["weight"], content["model"]["transposed"]) is False
    assert np.shares_memory(content["model"]["weight"], content["model"]["tied"])


@pytest.mark.parametrize("name", ["legacy.pt", "protocol_4.pt"])
def test_files_of_other_formats_are_read(golden, name):
    content = torch_file.load(golden / "torch_file" / name)
    assert_equal(content["model"], WRITTEN)
    assert content["args"] == argparse.Namespace(encoder_layers=6)
    assert content["extra_state"] == {"best": 0.5, "epoch": 3}
    assert np.shares_memory(content["model"]["weight"], content["model"]["tied"])


def test_configuration_objects_become_plain_values(by_torch):
    cfg = torch_file.plain(torch_file.load(by_torch)["cfg"])
    assert cfg == {
        "model": {"arch": "ofa_base", "encoder_layers": 6, "dropout": 0.1},
        "task": {"bpe_dir": "bpe", "num_bins": 1000, "nested": {"a": [1, 2]}},
    }


def test_written_files_are_read_back(tmp_path):
    value = {
        "model": collections.OrderedDict(WRITTEN),
        "args": argparse.Namespace(a=1, b=["x"]),
        "number": np.float64(0.5),
        "nothing": None,
    }
    torch_file.save(tmp_path / "x.pt", value)
    loaded = torch_file.load(tmp_path / "x.pt")
    assert_equal(loaded["model"], WRITTEN)
    assert loaded["args"] == value["args"] and loaded["number"] == 0.5 and loaded["nothing"] is None
    assert os.listdir(tmp_path) == ["x.pt"]


def test_tied_arrays_are_written_once(tmp_path):
    big = np.zeros(100_000, np.float32)
    torch_file.save(tmp_path / "x.pt", {"a": big, "b": big})
    assert (tmp_path / "x.pt").stat().st_size < 1.1 * big.nbytes


class Evil:
    """A class whose unpickling would execute code."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def repacked(path, pickled, source):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            new.writestr(
                info.filename, pickled if info.filename.endswith("data.pkl") else old.read(info)
            )


def test_a_file_that_would_execute_code_is_refused(tmp_path, by_torch):
    mark = tmp_path / "executed"
    repacked(tmp_path / "x.pt", pickle.dumps({"model": Evil(mark)}, protocol=2), by_torch)
    with pytest.raises(ValueError, match=r"asks for posix.system.* it is not loaded"):
        torch_file.load(tmp_path / "x.pt")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["eval", "getattr", "__import__", "exec", "open"])
def test_builtins_are_refused(tmp_path, by_torch, name):
    repacked(tmp_path / "x.pt", b"\x80\x02c__builtin__\n" + name.encode() + b"\n.", by_torch)
    with pytest.raises(ValueError, match=f"asks for builtins.{name}"):
        torch_file.load(tmp_path / "x.pt")


def test_inert_globals_do_nothing(tmp_path, by_torch):
    """A class of OmegaConf's by name: it is not imported, and stays a record of its state."""
    pickled = b"\x80\x02comegaconf.nodes\nAnyNode\n)\x81}U\x04_valK\x07sb."
    repacked(tmp_path / "x.pt", pickled, by_torch)
    assert torch_file.plain(torch_file.load(tmp_path / "x.pt")) == 7


def test_damaged_and_foreign_files_are_named(tmp_path, by_torch):
    whole = by_torch.read_bytes()
    cases = {
        "not.pt": (b"\x80\x02}q\x00.", "is a pickle, but not a file of torch.save"),
        "short.pt": (whole[: len(whole) // 2], "is a damaged or cut off zip archive"),
    }
    for name, (content, sentence) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=sentence):
            torch_file.load(tmp_path / name)
    with zipfile.ZipFile(by_torch) as old, zipfile.ZipFile(tmp_path / "lacks.pt", "w") as new:
        for info in old.infolist():
            if not info.filename.endswith("data/0"):
                new.writestr(info.filename, old.read(info))
    with pytest.raises(ValueError, match="lacks the storage 0: it is damaged"):
        torch_file.load(tmp_path / "lacks.pt")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as new:
        new.writestr("a.txt", "hello")
    with pytest.raises(ValueError, match="has no data.pkl"):
        torch_file.load(tmp_path / "other.pt")
    with pytest.raises(FileNotFoundError, match="There is no checkpoint file"):
        torch_file.load(tmp_path / "nowhere.pt")


def test_a_tensor_beyond_its_storage_is_refused():
    storage = np.zeros(6, np.float32)
    with pytest.raises(ValueError, match="reaches beyond its storage"):
        torch_file._rebuild_tensor(storage, 2, (5,), (1,))
    with pytest.raises(ValueError, match="reaches beyond its storage"):
        torch_file._rebuild_tensor(storage, 0, (2, 2), (-1, 1))
