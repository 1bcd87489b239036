"""Reads and writes torch's checkpoint files without torch, and without executing their content.

A `.pt` or `.bin` file is a zip archive of a pickle and of raw storages. A pickle may call any
function; here only tensors, plain containers and argument namespaces are created, and a file that
names anything else is refused. Tensors are views of the mapped file: reading a checkpoint takes no
memory until a tensor is used.
"""

import argparse
import collections
import io
import mmap
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from ofa_jax.utils.files import atomic_path

_STORAGES = {
    "FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32,
    "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}  # fmt: skip
_STORAGE_OF = {np.dtype(dtype): name for name, dtype in _STORAGES.items()}

# Other names that are allowed, and become inert objects: the training configuration, whose plain
# values alone are needed.
_INERT_PREFIXES = ("omegaconf.", "fairseq.dataclass.", "fairseq.meters")
_INERT = {
    ("typing", "Any"), ("typing", "Dict"), ("typing", "List"), ("typing", "Optional"),
    ("collections", "defaultdict"), ("builtins", "set"), ("builtins", "dict"),
    ("builtins", "list"), ("builtins", "int"), ("builtins", "long"), ("builtins", "str"),
    ("builtins", "float"), ("builtins", "bool"), ("torch", "device"), ("torch", "Size"),
    ("_codecs", "encode"),
    ("numpy", "dtype"), ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"), ("copyreg", "_reconstructor"),
}  # fmt: skip


class _InertObject:
    """Stands for an object that is not created: records what the pickle does to it."""

    args: tuple[Any, ...]
    items: dict[Any, Any]

    def __new__(cls, *args: Any) -> "_InertObject":
        # Not __init__, which the pickle need not call.
        made = super().__new__(cls)
        made.args, made.items = args, {}
        return made

    def __init__(self, *args: Any):
        pass

    def __call__(self, *args: Any) -> "_InertObject":
        return _InertObject(*args)

    def __setstate__(self, state: Any) -> None:
        self.items["state"] = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, value: Any) -> None:
        """Stores an item, like a list or a set."""
        self.items[len(self.items)] = value

    def extend(self, values: Any) -> None:
        """Stores items, like a list."""
        for value in values:
            self.append(value)

    add = append


class _Unpickler(pickle.Unpickler):
    """Creates tensors, containers and namespaces, and refuses all other names."""

    def __init__(self, file: io.BufferedIOBase, storage: Callable[..., np.ndarray], path: str):
        super().__init__(file, encoding="utf-8")
        self._storage, self._path = storage, path

    def find_class(self, module: str, name: str) -> Any:
        """Returns what a name stands for. Raises ValueError if it is not allowed."""
        # Protocol 2, torch's, has the names of Python 2.
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("argparse", "Namespace"):
            return argparse.Namespace
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor"):
            return _rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, requires_grad, hooks: data
        if module == "torch" and name in _STORAGES:
            return np.dtype(_STORAGES[name])
        if (
            (module, name) in _INERT
            or module.startswith(_INERT_PREFIXES)
            or (module == "torch" and name in ("float32", "float16", "bfloat16", "int64"))
        ):
            # A class, because the pickle may call __new__ on it.
            return type(name, (_InertObject,), {})
        raise ValueError(
            f"{self._path} asks for {module}.{name}, which a checkpoint does not need: it is not "
            "loaded. If you trust it, load it with the program that wrote it and save its state "
            "dict and its arguments alone."
        )

    def persistent_load(self, identity: tuple[Any, ...]) -> np.ndarray:
        """Returns the storage that a reference names."""
        kind, dtype, key, _, length = identity
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise ValueError(f"{self._path} has a reference of an unknown kind ({kind}).")
        return self._storage(str(key), dtype, int(length))


def _rebuild_tensor(
    storage: np.ndarray, offset: int, size: Any, stride: Any, *_: Any
) -> np.ndarray:
    """Returns a view of a storage with torch's strides."""
    size, stride = tuple(size), tuple(stride)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True) if n)
    if offset < 0 or any(step < 0 for step in stride) or (0 not in size and last >= len(storage)):
        raise ValueError("a tensor reaches beyond its storage: the file is damaged.")
    bytes_per = storage.dtype.itemsize
    return np.lib.stride_tricks.as_strided(
        storage[offset:], size, [step * bytes_per for step in stride], writeable=False
    )


def load(path: str | pathlib.Path) -> Any:
    """Loads a `.pt` or `.bin` file.

    Args:
      path: of a file that `torch.save` wrote (torch 1.6 or later).

    Returns:
      Containers with numpy arrays in place of tensors (read-only views of the file; bfloat16 as
      ml_dtypes' type), argparse.Namespaces, and inert objects for training's configuration
      (`plain` turns them into dictionaries).

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: it is not such a file, is damaged, or names something that is not allowed.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint file {path}.")
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is not in the format of torch 1.6 or later (a zip archive): load and save it "
            "again with a newer torch."
        )
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        (root,) = {name.rsplit("/", 1)[0] for name in members if name.endswith("/data.pkl")} or {""}
        if not root:
            raise ValueError(f"{path} has no data.pkl: torch did not write it.")
        pickled = archive.read(f"{root}/data.pkl")

    def storage(key: str, dtype: np.dtype, length: int) -> np.ndarray:
        info = members.get(f"{root}/data/{key}")
        if info is None or info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{path} lacks the storage {key}: it is damaged.")
        # The local header's extra field differs from the directory's: torch pads with it.
        name_length, extra_length = struct.unpack_from("<HH", mapped, info.header_offset + 26)
        start = info.header_offset + 30 + name_length + extra_length
        if length * dtype.itemsize > info.file_size or start + info.file_size > len(mapped):
            raise ValueError(f"{path}: the storage {key} is cut off; the file is damaged.")
        return np.frombuffer(mapped, dtype, length, start)

    try:
        return _Unpickler(io.BytesIO(pickled), storage, str(path)).load()
    except (pickle.UnpicklingError, EOFError, IndexError, KeyError) as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error


def load_state_dict(
    path: str | pathlib.Path, what: str, holders: Sequence[str] = ("state_dict",)
) -> Mapping[str, Any]:
    """Loads the arrays of a file that is a state dict or holds one.

    Args:
      path: of the file.
      what: the kind of model, for the error.
      holders: keys under which a file may hold its state dict.

    Raises:
      FileNotFoundError, ValueError: there is none, or it is something else.
    """
    held = load(path)
    for name in holders:
        if isinstance(held, Mapping) and isinstance(held.get(name), Mapping):
            held = held[name]
    if not isinstance(held, Mapping):
        raise ValueError(f"{path} does not hold the state dict of a {what}.")
    return held


def plain(value: Any) -> Any:
    """Converts namespaces, OmegaConf nodes and other inert objects to plain containers."""
    if isinstance(value, argparse.Namespace):
        return {key: plain(item) for key, item in vars(value).items()}
    if isinstance(value, _InertObject):
        state = value.items.get("state")
        if isinstance(state, tuple):
            state = state[0] or state[-1]
        if isinstance(state, Mapping) and "_content" in state:
            return plain(state["_content"])
        if isinstance(state, Mapping) and "_val" in state:
            return plain(state["_val"])
        return None
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


# --------------------------------------------------------------------------------------- writing


class _Global:
    """A name that the reader looks up, written without importing it."""

    def __init__(self, module: str, name: str):
        self.line = f"c{module}\n{name}\n".encode()


class _Storage:
    """A reference to a raw storage of the archive."""

    def __init__(self, key: str, dtype: np.dtype, length: int):
        self.identity = ("storage", _Global("torch", _STORAGE_OF[dtype]), key, "cpu", length)


class _Pickler(pickle._Pickler):
    """The pickler written in Python, which can be extended with names and tensors."""

    write: Callable[[bytes], None]  # set by pickle._Pickler, whose stubs are incomplete

    def __init__(self, file: io.BytesIO):
        super().__init__(file, protocol=2)
        self.arrays: list[np.ndarray] = []
        self._storages: dict[int, _Storage] = {}

    def persistent_id(self, obj: Any) -> Any:
        """Returns the reference of a storage; None for anything else."""
        return obj.identity if isinstance(obj, _Storage) else None

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        """Writes an object."""
        if isinstance(obj, _Global):
            self.write(obj.line)
        elif isinstance(obj, np.ndarray):
            self._save_tensor(obj)
        elif isinstance(obj, np.generic):
            super().save(obj.item())  # type: ignore[misc]
        else:
            super().save(obj, save_persistent_id)  # type: ignore[misc]

    def _save_tensor(self, array: np.ndarray) -> None:
        if array.dtype not in _STORAGE_OF:
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
    """Writes a file for `torch.load` and `load`; it appears only when it is complete.

    Args:
      path: the file.
      value: containers of plain values, namespaces and numpy arrays, which become tensors.

    Raises:
      ValueError: an array of a type that torch does not have.
    """
    path = pathlib.Path(path)
    pickled = io.BytesIO()
    pickler = _Pickler(pickled)
    pickler.dump(value)
    with (
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as archive,
    ):
        archive.writestr("archive/data.pkl", pickled.getvalue())
        archive.writestr("archive/byteorder", "little")
        for key, array in enumerate(pickler.arrays):
            with archive.open(f"archive/data/{key}", "w", force_zip64=True) as member:
                # In C order, whatever the array's; one array at a time in memory.
                member.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        archive.writestr("archive/version", "3\n")
