"""Files of safetensors: the bytes of the library, any tensor back, little memory."""

import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from huggingface_fixtures import assert_same_bytes
from hypothesis import given
from hypothesis import strategies as st

from ofa_jax.interop import safetensors_file, torch_file
from ofa_jax.interop.lazy_tensors import LazyTensor

TYPES = (np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.uint8, np.bool_)


def test_the_same_tensors_give_the_bytes_of_the_library(golden, tmp_path):
    written_by_library = golden / "torch_file" / "tensors.safetensors"
    tensors = safetensors_file.load(written_by_library)
    shuffled = {name: tensors[name] for name in sorted(tensors, reverse=True)}
    safetensors_file.save(tmp_path / "x.safetensors", shuffled)
    assert (tmp_path / "x.safetensors").read_bytes() == written_by_library.read_bytes()


@given(st.data())
def test_any_tensors_are_read_as_they_were_written(tmp_path_factory, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    tensors = {}
    for name in data.draw(st.lists(st.text(min_size=1, max_size=9), max_size=5, unique=True)):
        shape = data.draw(st.lists(st.integers(0, 4), max_size=3))
        bytes_ = rng.integers(0, 2, (*shape, 8), np.uint8)
        dtype = np.dtype(data.draw(st.sampled_from(TYPES)))
        tensors[name] = bytes_[..., : dtype.itemsize].copy().view(dtype)[..., 0]
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    tensors.pop("__metadata__", None)
    safetensors_file.save(path, tensors)
    assert_same_bytes(
        dict(sorted(tensors.items())), dict(sorted(safetensors_file.load(path).items()))
    )
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert header % 8 == 0


def test_a_type_without_a_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no tensors of complex64, the type of x"):
        safetensors_file.save(tmp_path / "x.safetensors", {"x": np.zeros(2, np.complex64)})
    assert not list(tmp_path.iterdir())


def test_the_library_reads_what_is_written(tmp_path, tiny):
    library = pytest.importorskip("safetensors", reason="the library safetensors is not installed")
    safetensors_file.save(tmp_path / "x.safetensors", tiny[1])
    with library.safe_open(tmp_path / "x.safetensors", "np") as opened:
        assert opened.metadata() == {"format": "pt"}
        assert_same_bytes({name: opened.get_tensor(name) for name in tiny[1]}, tiny[1])


@pytest.mark.parametrize("save", [safetensors_file.save, torch_file.save])
def test_one_tensor_at_a_time_is_in_memory(tmp_path, save):
    size = 2**20

    def make(number):
        return LazyTensor((size,), np.dtype(np.uint8), lambda: np.full(size, number, np.uint8))

    tensors = {f"{number:02}": make(number) for number in range(40)}
    tracemalloc.start()
    try:
        save(tmp_path / "x.safetensors", tensors)
        assert tracemalloc.get_traced_memory()[1] < 3.5 * size
    finally:
        tracemalloc.stop()
    load = safetensors_file.load if save is safetensors_file.save else torch_file.load
    loaded = load(tmp_path / "x.safetensors")
    assert all((loaded[name] == int(name)).all() for name in tensors)
