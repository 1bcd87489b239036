"""Opens the weights in a Hugging Face folder: torch's files or safetensors, in one file or several.

A folder with more than one of them is read in the order of `WEIGHTS`, which is that of
`from_pretrained`.
"""

import pathlib
import re
from typing import Any

import numpy as np

from ofa_jax.interop import safetensors_file, torch_file
from ofa_jax.interop.torch_file import OpenedFile
from ofa_jax.utils.text_files import DamagedFileError, read_json
from ofa_jax.utils.wrong_files import shorten

CONFIG = "config.json"
TORCH_WEIGHTS = "pytorch_model.bin"
SAFETENSORS = "model.safetensors"
INDEX_SUFFIX = ".index.json"
WEIGHTS = (
    SAFETENSORS,
    f"{SAFETENSORS}{INDEX_SUFFIX}",
    TORCH_WEIGHTS,
    f"{TORCH_WEIGHTS}{INDEX_SUFFIX}",
)
"""Names of the files that are read."""
_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-\d{5}(?P<suffix>\.bin|\.safetensors)")


def has_weights(folder: pathlib.Path) -> bool:
    """Returns whether a folder has weights that can be read."""
    return any((folder / name).is_file() for name in WEIGHTS)


def find_weights(folder: pathlib.Path) -> pathlib.Path:
    """Returns the file of weights in a folder, or the index of several.

    Raises:
      FileNotFoundError: there is none.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    names = sorted(path.name for path in folder.iterdir())
    held = ", ".join(map(shorten, names[:8])) + ", ..." * (len(names) > 8)
    if shards := [name for name in names if _SHARD.fullmatch(name)]:
        raise FileNotFoundError(
            f"{folder} has {shorten(shards[0])} but no index, which says what each file holds: "
            f"download {shorten(_index_name(shards[0]))} beside it."
        )
    raise FileNotFoundError(
        f"{folder} has no weights that can be read, which are {TORCH_WEIGHTS} or model.safetensors "
        f"(it has {held}): download them into it."
    )


def find_index(path: pathlib.Path) -> pathlib.Path | None:
    """Returns the index beside one of several files of weights; None for any other file."""
    if not _SHARD.fullmatch(path.name):
        return None
    index = path.parent / _index_name(path.name)
    return index if index.is_file() else None


def _index_name(shard: str) -> str:
    """Returns the name of the index that lists a file such as model-00001-of-00002.safetensors."""
    return _SHARD.sub(r"\g<stem>\g<suffix>", shard) + INDEX_SUFFIX


def open_file(path: pathlib.Path) -> OpenedFile:
    """Opens a file of weights, or all the files that an index lists.

    Returns:
      The state dict, with the names of this layout.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is damaged.
    """
    if path.name.endswith(INDEX_SUFFIX):
        return _open_shards(path)
    if path.suffix == ".safetensors":
        return OpenedFile(safetensors_file.load(path), {})
    opened = torch_file.open_file(path)
    if not isinstance(opened.content, dict):
        raise ValueError(f"{path} is no state dict: {torch_file.describe(opened.content)}.")
    return opened


def _open_shards(index: pathlib.Path) -> OpenedFile:
    """Opens the files that an index lists, as one."""
    content = read_json(index)
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise DamagedFileError(f"{index} has no weight_map that names the file of each tensor.")
    opened = {}
    for name in sorted(set(files.values())):
        path = index.parent / name
        # An index of someone else names no files elsewhere, nor another index.
        if path.name != name or path.suffix not in (".bin", ".safetensors"):
            raise ValueError(f"{index} names {shorten(name)}, which is no file of weights.")
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no {shorten(name)}, which {index} names: download it beside it."
            )
        opened[name] = open_file(path)
    storages: dict[int, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    for key, name in files.items():
        if key not in opened[name].content:
            raise DamagedFileError(f"{index.parent / name} lacks {shorten(key)}, unlike {index}.")
        arrays[key] = opened[name].content[key]
        storages.update(opened[name].storages)
    for name, file in opened.items():
        # A file of another model, or of another division of this one.
        if unlisted := [key for key in torch_file.tensors_of(file.content) if key not in files]:
            raise DamagedFileError(
                f"{index.parent / name} holds {shorten(unlisted[0])}, which {index} does not list: "
                "the files are not of one model; download them again."
            )
        if misplaced := [key for key in torch_file.tensors_of(file.content) if files[key] != name]:
            raise DamagedFileError(
                f"{index.parent / name} holds {shorten(misplaced[0])}, which {index} places in "
                f"{shorten(files[misplaced[0]])}: the files are not of one model; download them "
                "again."
            )
    return OpenedFile(arrays, storages)
