"""Writes torch's checkpoint files without torch; `torch_file` reads them."""

import collections
import io
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

from ofa_jax.interop.lazy_tensors import LazyTensor, Tensor, content_of
from ofa_jax.interop.torch_dtypes import STORAGE_OF
from ofa_jax.utils.files import atomic_path
from ofa_jax.utils.progress import substage

__all__ = ["save"]


class _Global:
    """A name that the reader looks up, written without importing it."""

    def __init__(self, module: str, name: str):
        self.line = f"c{module}\n{name}\n".encode()


class _Storage:
    """A reference to a raw storage of the archive."""

    def __init__(self, key: str, dtype: np.dtype, length: int):
        self.reference = ("storage", _Global("torch", STORAGE_OF[dtype]), key, "cpu", length)


class _Pickler(pickle._Pickler):
    """The pickler written in Python, which can be extended with names and tensors."""

    write: Callable[[bytes], None]  # set by pickle._Pickler, whose stubs are incomplete

    def __init__(self, file: io.BytesIO):
        super().__init__(file, protocol=2)
        self.arrays: list[Tensor] = []
        self._storages: dict[int, _Storage] = {}

    def persistent_id(self, obj: Any) -> Any:
        """Returns the reference of a storage; None for anything else."""
        return obj.reference if isinstance(obj, _Storage) else None

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        """Writes an object."""
        if isinstance(obj, _Global):
            self.write(obj.line)
        elif isinstance(obj, np.ndarray | LazyTensor):
            self._save_tensor(obj)
        elif isinstance(obj, np.generic):
            super().save(obj.item())  # type: ignore[misc]
        else:
            super().save(obj, save_persistent_id)  # type: ignore[misc]

    def _save_tensor(self, array: Tensor) -> None:
        if array.dtype not in STORAGE_OF:
            raise ValueError(f"torch has no tensors of {array.dtype}.")
        # An array that occurs twice (tied weights) is stored once.
        storage = self._storages.get(id(array))
        if storage is None:
            storage = _Storage(str(len(self.arrays)), array.dtype, array.size)
            self._storages[id(array)] = storage
            self.arrays.append(array)
        strides = tuple(
            int(np.prod(array.shape[k + 1 :], dtype=np.int64)) for k in range(array.ndim)
        )
        self.save(_Global("torch._utils", "_rebuild_tensor_v2"))
        self.save((storage, 0, tuple(array.shape), strides, False, collections.OrderedDict()))
        self.write(pickle.REDUCE)


def save(path: str | pathlib.Path, value: Any) -> None:
    """Writes a file for `torch.load` and `torch_file.load`; it appears only when it is complete.

    Args:
      path: the file.
      value: containers of plain values, namespaces, and arrays or `LazyTensor`s, which become
        tensors. One tensor at a time is in memory.

    Raises:
      ValueError: an array of a type that torch does not have.
    """
    path = pathlib.Path(path)
    pickled = io.BytesIO()
    pickler = _Pickler(pickled)
    pickler.dump(value)
    size = sum(array.nbytes for array in pickler.arrays)
    with (
        substage("writing tensors", size, "bytes") as stage,
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as archive,
    ):
        archive.writestr("archive/data.pkl", pickled.getvalue())
        archive.writestr("archive/byteorder", "little")
        for key, array in enumerate(pickler.arrays):
            with archive.open(f"archive/data/{key}", "w", force_zip64=True) as member:
                member.write(content_of(array))
            stage.advance(array.nbytes)
        archive.writestr("archive/version", "3\n")
