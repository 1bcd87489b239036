"""Arrays of files that are not trusted."""

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofa_jax.utils.array_files import load_arrays
from ofa_jax.utils.text_files import DamagedFileError

ARRAYS = {
    "codes": np.arange(12, dtype=np.uint8).reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "text": np.array('{"a": 1}'),
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.array(2.5),
}


def saved(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def test_arrays_are_read_as_numpy_reads_them(tmp_path):
    (tmp_path / "x.npz").write_bytes(saved(**ARRAYS))
    loaded = load_arrays(tmp_path / "x.npz")
    assert list(loaded) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(loaded[name], array)
        assert loaded[name].dtype == array.dtype and loaded[name].flags.writeable


def header(description):
    text = description.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


WRONG = {
    "objects": saved(x=np.array([{}], object)),
    "terabytes": header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}"),
    "negative": header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}"),
    "longer": header("{'descr': '|u1', 'fortran_order': False, 'shape': (1,)}") + b"123",
    "code": header("__import__('os').system('true')"),
    "version": b"\x93NUMPY\x09\x00" + b"\x00" * 20,
    "no array": b"hello",
}


@pytest.mark.parametrize("case", WRONG)
def test_hostile_arrays_are_refused_in_a_sentence(tmp_path, case):
    content = WRONG[case]
    if not content.startswith(b"PK"):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.npy", content)
        content = file.getvalue()
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(DamagedFileError, match="x.npz is damaged") as raised:
        load_arrays(tmp_path / "x.npz")
    assert "\n" not in str(raised.value)


@given(st.integers(0, 600), st.integers(1, 255), st.integers(0, 600))
def test_any_damage_is_found_or_harmless(tmp_path_factory, place, flip, cut):
    content = bytearray(saved(codes=ARRAYS["codes"]))
    content[place % len(content)] ^= flip
    path = tmp_path_factory.getbasetemp() / "mutated.npz"
    path.write_bytes(content if cut % 3 else content[: cut % len(content)])
    try:
        loaded = load_arrays(path)
    except DamagedFileError as error:
        assert "\n" not in str(error)
    else:
        assert all(np.array_equal(array, ARRAYS["codes"]) for array in loaded.values())
