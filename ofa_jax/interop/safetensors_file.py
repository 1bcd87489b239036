"""Reads and writes safetensors files: a header in JSON, and the tensors behind it.

The format (https://huggingface.co/docs/safetensors) has no checksums; everything else that its
header says is compared with the file. Nothing is copied when a file is read. The same tensors give
the same bytes as `save_file` of the library: wider types first, then names in order.
"""

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from ofa_jax.interop.lazy_tensors import Tensor, content_of
from ofa_jax.interop.mapped_file import open_mapped
from ofa_jax.utils import wrong_files
from ofa_jax.utils.files import atomic_path
from ofa_jax.utils.progress import substage
from ofa_jax.utils.text_files import DamagedFileError
from ofa_jax.utils.wrong_files import shorten

_MAX_HEADER_BYTES = 16 * 2**20
_MAX_DIMENSIONS = 32
_ALIGNMENT = 8
_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8,
    "BOOL": np.bool_,
}  # fmt: skip
_ORDER = ("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL")
"""The order in which the library writes tensors of these types."""


def load(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Loads the tensors of a file.

    Args:
      path: of a `.safetensors` file.

    Returns:
      Read-only views of the mapped file, by name.

    Raises:
      FileNotFoundError: the file does not exist.
      DamagedFileError: it is damaged, or something else.
    """
    path = pathlib.Path(path)
    with open_mapped(path) as opened:
        head, content = opened.head, memoryview(opened.content)
    try:
        return _read(content)
    except _FormatError as error:
        known = None if head[8:9] == b"{" else wrong_files.describe_bytes(head)
        what = f"is not a whole safetensors file: {error}; copy or download it again"
        raise DamagedFileError(f"{path} {known or what}.") from error


class _FormatError(ValueError):
    """A clause that says what is wrong."""


def _read(content: memoryview) -> dict[str, np.ndarray]:
    """Returns the tensors of a file's content. Raises _FormatError."""
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > len(content) - 8:
        raise _FormatError("its header is cut off")
    if size > _MAX_HEADER_BYTES:
        raise _FormatError(f"its header has {size:,} bytes")
    try:
        header = json.loads(bytes(content[8 : 8 + size]), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise _FormatError("its header is not valid JSON") from error
    if not isinstance(header, dict):
        raise _FormatError("its header does not list tensors")
    header.pop("__metadata__", None)
    data = content[8 + size :]
    places = {name: _place(name, entry) for name, entry in header.items()}
    end = 0
    # The format has no holes, and nothing twice.
    for name, (_, _, first, last) in sorted(places.items(), key=lambda item: item[1][2:]):
        if first != end:
            raise _FormatError(f"{shorten(name)} does not begin where the tensor before it ends")
        end = last
    if end != len(data):
        raise _FormatError(f"its tensors have {end:,} bytes, and the file {len(data):,} for them")
    return {
        name: np.frombuffer(data[first:last], dtype).reshape(shape)
        for name, (dtype, shape, first, last) in places.items()
    }


def _place(name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """Returns dtype, shape, and first and last byte of a tensor. Raises _FormatError."""
    if not isinstance(entry, dict):
        raise _FormatError(f"it says nothing of {shorten(name)}")
    shape, offsets = _sizes(entry.get("shape")), _sizes(entry.get("data_offsets"))
    kind = entry.get("dtype")
    if shape is None or offsets is None or len(offsets) != 2:
        raise _FormatError(f"{shorten(name)} has no shape and place of whole numbers")
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise _FormatError(f"{shorten(name)} has the type {shorten(kind)}, which OFA does not use")
    dtype = np.dtype(_DTYPES[kind])
    if len(shape) > _MAX_DIMENSIONS or math.prod(max(n, 1) for n in shape) > 2**48:
        raise _FormatError(f"{shorten(name)} has an absurd shape")
    if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise _FormatError(f"{shorten(name)} has another shape than its bytes")
    return dtype, shape, offsets[0], offsets[1]


def _sizes(values: Any) -> tuple[int, ...] | None:
    """Returns whole numbers as a tuple; None for anything else."""
    if not isinstance(values, list) or not all(type(n) is int and n >= 0 for n in values):
        return None
    return tuple(values)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name occurs twice")
    return dict(pairs)


def save(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Writes a file, one tensor at a time; it appears only when it is complete.

    Args:
      path: the file.
      tensors: by name. A tensor under two names is written twice: the format shares nothing.

    Raises:
      ValueError: a tensor of a type that the format does not have.
    """
    kinds = {np.dtype(dtype): kind for kind, dtype in _DTYPES.items()}
    for name, tensor in tensors.items():
        if tensor.dtype not in kinds:
            raise ValueError(f"safetensors has no tensors of {tensor.dtype}, the type of {name}.")
    names = sorted(tensors, key=lambda name: (_ORDER.index(kinds[tensors[name].dtype]), name))
    # `transformers` reads only files that say which library their tensors are of.
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": kinds[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with (
        substage("writing tensors", end, "bytes") as stage,
        atomic_path(path) as temporary,
        temporary.open("wb") as file,
    ):
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(content_of(tensors[name]))
            stage.advance(tensors[name].nbytes)
