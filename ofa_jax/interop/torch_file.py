"""Reads torch's checkpoint files without torch, and without executing their content.

A `.pt` or `.bin` file is a pickle and raw storages. A pickle may call any function; here it is read
as data (`inert_pickle`): tensors, plain containers, argument namespaces, and records of training's
configuration; a file that names anything else is refused. Tensors are views of the mapped file:
reading a checkpoint takes no memory until a tensor is used.
"""

import argparse
import dataclasses
import io
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ofa_jax.interop import inert_pickle
from ofa_jax.interop.inert_pickle import ContentError, ForbiddenNameError, Name, plain
from ofa_jax.interop.mapped_file import open_mapped
from ofa_jax.interop.torch_archive import FindStorage, LegacyFile, Storage, ZipArchive, is_legacy
from ofa_jax.interop.torch_dtypes import STORAGES, dtype_of
from ofa_jax.interop.torch_writer import save
from ofa_jax.utils import wrong_files
from ofa_jax.utils.progress import substage
from ofa_jax.utils.text_files import DamagedFileError
from ofa_jax.utils.wrong_files import shorten

__all__ = [
    "ContentError",
    "OpenedFile",
    "describe",
    "dtype_of",
    "load",
    "load_state_dict",
    "open_file",
    "plain",
    "save",
    "tensors_of",
    "torchscript_tensors",
]

_DTYPES = {Name("torch", name): np.dtype(dtype) for name, dtype in STORAGES.items()}

# Names that may become records: the training configuration, whose plain values alone are needed.
_INERT_PREFIXES = (
    "omegaconf.", "fairseq.dataclass.", "fairseq.meters", "pytorch_lightning.callbacks."
)  # fmt: skip
_INERT = {
    Name(module, name)
    for module, names in {
        "typing": ("Any", "Dict", "List", "Optional"),
        "collections": ("defaultdict",),
        "builtins": ("set", "dict", "list", "int", "long", "str", "float", "bool", "object"),
        "torch": ("device", "Size", "float32", "float16", "bfloat16", "int64"),
        "_codecs": ("encode",),
        "numpy": ("dtype",),
        "numpy.core.multiarray": ("scalar",),
        "numpy._core.multiarray": ("scalar",),
        "copyreg": ("_reconstructor",),
    }.items()
    for name in names
}
_MAX_DIMENSIONS = 32
_MAX_MODULES, _MAX_MODULE_DEPTH = 10_000, 32
_MAX_REPEATED = 2**20
"""Elements of a tensor that is larger than its storage."""


def _is_allowed(name: Name) -> bool:
    return name in _INERT or name in _DTYPES or name.module.startswith(_INERT_PREFIXES)


def _is_allowed_in_torchscript(name: Name) -> bool:
    """Returns whether a name may become a record: also the modules of a TorchScript program."""
    is_module = name.module.startswith("__torch__.") or name.module == "__torch__"
    return is_module or name.module == "torch.jit._pickle" or _is_allowed(name)


class _Reader:
    """Makes the values of a file's pickles, and keeps which storage each tensor is of."""

    def __init__(self, is_allowed: Callable[[Name], bool] = _is_allowed) -> None:
        self.tensors: dict[int, tuple[np.ndarray, Storage]] = {}
        self._is_allowed = is_allowed

    def interpret(
        self, stream: io.BytesIO, find_storage: FindStorage, with_tensors: bool = False
    ) -> Any:
        """Reads a pickle.

        Args:
          stream: at the pickle.
          find_storage: returns the storage of a key, a dtype and a length.
          with_tensors: whether to make tensors; None in their place otherwise.

        Raises:
          ContentError, DamagedFileError: it cannot be read.
        """
        storages: dict[tuple[str, np.dtype], Storage] = {}

        def storage(reference: Any) -> Storage:
            key, dtype, length = _parse_reference(reference)
            if (key, dtype) not in storages:
                storages[key, dtype] = find_storage(key, dtype, length)
            return storages[key, dtype]

        def tensor(args: tuple[Any, ...]) -> np.ndarray | None:
            if len(args) < 4 or not isinstance(args[0], Storage):
                raise ContentError("it makes a tensor of something else than a storage")
            if not with_tensors:
                return None
            array = _rebuild_tensor(args[0].array, *args[1:4])
            self.tensors[id(array)] = array, args[0]
            return array

        makers = {
            Name("torch._utils", "_rebuild_tensor"): tensor,
            Name("torch._utils", "_rebuild_tensor_v2"): tensor,
            Name("torch._utils", "_rebuild_parameter"): _first_argument,
            Name("torch._utils", "_rebuild_parameter_with_state"): _first_argument,
            Name("collections", "OrderedDict"): inert_pickle.make_dict,
            Name("argparse", "Namespace"): _make_namespace,
        }
        return inert_pickle.Interpreter(makers, self._is_allowed, storage).load(stream)


def _make_namespace(args: tuple[Any, ...]) -> argparse.Namespace:
    """Returns a new namespace, whose attributes come as its state."""
    return argparse.Namespace()


def _parse_reference(reference: Any) -> tuple[str, np.dtype, int]:
    """Returns key, dtype and length of the storage that a pickle refers to."""
    # Before torch 1.6, a sixth part says whether the storage is part of another one.
    if type(reference) is not tuple or len(reference) not in (5, 6):
        raise ContentError("it has a reference of an unknown kind")
    what, kind, key, _, length = reference[:5]
    if type(what) is not str or what != "storage":
        raise ContentError("it has a reference of an unknown kind")
    dtype = _DTYPES.get(kind) if isinstance(kind, Name) else None
    if dtype is None or type(key) not in (str, int) or type(length) is not int:
        raise ContentError("it has a reference to something else than a storage")
    if len(reference) == 6 and reference[5] is not None:
        raise ContentError("it has a storage that is part of another one, as torch 0.4 wrote them")
    return str(key), dtype, length


def _first_argument(args: tuple[Any, ...]) -> Any:
    if not args:
        raise ContentError("it makes a parameter of nothing")
    return args[0]


def _rebuild_tensor(storage: np.ndarray, offset: Any, size: Any, stride: Any) -> np.ndarray:
    """Returns a view of a storage with torch's strides.

    Raises:
      ContentError: it would not lie within the storage.
    """
    if type(size) is not tuple or type(stride) is not tuple or len(size) != len(stride):
        raise ContentError("it has a tensor without a shape")
    if len(size) > _MAX_DIMENSIONS or any(type(n) is not int for n in (offset, *size, *stride)):
        raise ContentError("it has a tensor whose shape is not one of numbers")
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min(offset, *size, *stride, 0) < 0 or (count and last >= len(storage)):
        raise ContentError("a tensor reaches beyond its storage")
    # A stride of 0 repeats elements: a copy could take any amount of memory.
    if math.prod(max(n, 1) for n in size) > max(len(storage), _MAX_REPEATED):
        raise ContentError("it has a tensor that repeats its storage too often")
    steps = [step * storage.itemsize * (n > 1) for n, step in zip(size, stride, strict=True)]
    return np.lib.stride_tricks.as_strided(
        storage[offset if count else 0 :], size, steps, writeable=False
    )


@dataclasses.dataclass(frozen=True)
class OpenedFile:
    """A file of torch's.

    Attributes:
      content: as `load` returns it; no bytes of its tensors were compared with a checksum yet.
      storages: the storage of each tensor, by the tensor's id; empty where there are no checksums.
    """

    content: Any
    storages: Mapping[int, tuple[np.ndarray, Storage]]

    def verify(self, arrays: Iterable[np.ndarray] | None = None) -> None:
        """Compares the storages of tensors with their checksums; reads each of them once.

        The cost is one more pass over the bytes that are used, about a second for 2 GB, and none
        over those that are not (an optimizer's state). Using the tensors afterwards finds the bytes
        in memory.

        Args:
          arrays: the tensors; all of the file when None.

        Raises:
          DamagedFileError: the bytes differ.
        """
        names = self.storages if arrays is None else map(id, arrays)
        storages = [self.storages[name][1] for name in names if name in self.storages]
        size = sum(len(storage.content) for storage in storages)
        with substage("comparing checksums", size, "bytes") as stage:
            for storage in storages:
                storage.verify()
                stage.advance(len(storage.content))


def open_file(path: str | os.PathLike[str], torchscript: bool = False) -> OpenedFile:
    """Opens a `.pt`, `.pth` or `.bin` file; see `load`.

    Args:
      path: of the file.
      torchscript: whether it may be a TorchScript program (`torch.jit.save`). Its content is then
        a record with the tensors of its modules, see `torchscript_tensors`; its code is not read.
    """
    path = pathlib.Path(path)
    with open_mapped(path) as opened:
        reader = _Reader(_is_allowed_in_torchscript if torchscript else _is_allowed)
        try:
            archive: ZipArchive | LegacyFile
            if opened.head.startswith(b"PK\x03\x04"):
                archive = ZipArchive(path, opened.file, opened.content, torchscript)
            elif is_legacy(opened.head):
                archive = LegacyFile(path, opened.content, reader.interpret)
            else:
                raise DamagedFileError(_describe_other(path, opened.head))
            content = reader.interpret(archive.pickled(), archive.storage, with_tensors=True)
        except ForbiddenNameError as error:
            raise ValueError(
                f"{path} asks for {error}, which a checkpoint does not need: it is not loaded. If "
                "you trust it, load it with the program that wrote it and save its state dict and "
                "its arguments alone."
            ) from error
        except ContentError as error:
            raise DamagedFileError(
                f"{path} cannot be read: {error}. It is damaged, or torch did not write it."
            ) from error
    return OpenedFile(content, reader.tensors)


def _describe_other(path: pathlib.Path, head: bytes) -> str:
    """Returns the sentence about a file that is in none of torch's formats."""
    if head.startswith(b"\x80"):
        return (
            f"{path} is a pickle, but not a file of torch.save: save the state dict and the "
            "arguments with torch.save."
        )
    known = wrong_files.describe_bytes(head) or "is not a file that torch.save wrote"
    return f"{path} {known}: give the checkpoint as a file of torch.save."


def load(path: str | os.PathLike[str]) -> Any:
    """Loads a `.pt`, `.pth` or `.bin` file, and compares its tensors with their checksums.

    Args:
      path: of a file that `torch.save` wrote, of any version since 0.4.

    Returns:
      Containers with numpy arrays in place of tensors (read-only views of the file; bfloat16 as
      ml_dtypes' type), argparse.Namespaces, and records for training's configuration (`plain`
      turns them into dictionaries).

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: it is not such a file, is damaged, or names something that is not allowed.
    """
    opened = open_file(path)
    opened.verify()
    return opened.content


def load_state_dict(
    path: str | os.PathLike[str], what: str, holders: Sequence[str] = ("state_dict",)
) -> Mapping[str, Any]:
    """Loads the arrays of a file that is a state dict or holds one.

    Args:
      path: of the file.
      what: the kind of model, for the error.
      holders: keys under which a file may hold its state dict.

    Returns:
      Arrays by name, compared with their checksums.

    Raises:
      FileNotFoundError, ValueError: there is none, or it is something else.
    """
    opened = open_file(path)
    held = opened.content
    for name in holders:
        if isinstance(held, Mapping) and isinstance(held.get(name), Mapping):
            held = held[name]
    if not isinstance(held, Mapping) or not any(isinstance(x, np.ndarray) for x in held.values()):
        raise ValueError(f"{path} does not hold the state dict of a {what}: {describe(held)}.")
    tensors = tensors_of(held)
    opened.verify(tensors.values())
    return tensors


def torchscript_tensors(content: Any) -> dict[str, np.ndarray]:
    """Returns the tensors of a TorchScript program by their names in the state dict.

    Raises:
      ContentError: the modules refer to themselves, or are too many.
    """
    found: dict[str, np.ndarray] = {}
    waiting = [("", content, 0)]
    for _ in range(_MAX_MODULES):
        if not waiting:
            return found
        prefix, value, depth = waiting.pop()
        state = value.state if isinstance(value, inert_pickle.Record) else value
        if not isinstance(state, Mapping):
            continue
        if depth > _MAX_MODULE_DEPTH:
            break
        for name, item in state.items():
            if isinstance(item, np.ndarray):
                found[f"{prefix}{name}"] = item
            elif isinstance(item, inert_pickle.Record):
                waiting.append((f"{prefix}{name}.", item, depth + 1))
    raise ContentError("its modules are too many, or refer to themselves")


def tensors_of(held: Mapping[Any, Any]) -> dict[str, np.ndarray]:
    """Returns the entries of a state dict that are tensors with a name."""
    return {
        name: array
        for name, array in held.items()
        if isinstance(name, str) and isinstance(array, np.ndarray)
    }


def describe(content: Any) -> str:
    """Returns what a file holds, for an error."""
    if not isinstance(content, Mapping):
        return f"it holds {shorten(content)}"
    names = ", ".join(shorten(name) for name in list(content)[:5])
    return f"it holds {names}{' ...' * (len(content) > 5)}" if names else "it is empty"
