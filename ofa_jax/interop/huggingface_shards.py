"""Writes the weights of a Hugging Face folder: safetensors or torch's files, one or several.

Files are divided, named and listed as `save_pretrained` does.
"""

import collections
import pathlib
import re
from collections.abc import Callable, Mapping

from ofa_jax.interop import safetensors_file, torch_file
from ofa_jax.interop.huggingface_folder import INDEX_SUFFIX, SAFETENSORS, TORCH_WEIGHTS
from ofa_jax.interop.lazy_tensors import Tensor
from ofa_jax.utils.files import write_json
from ofa_jax.utils.wrong_files import shorten

DEFAULT_SIZE = "5GB"
_UNITS = {"B": 1} | {
    f"{letter}{middle}B": base**power
    for power, letter in enumerate("KMGT", 1)
    for middle, base in (("", 1000), ("I", 1024))
}


def parse_size(text: str) -> int:
    """Returns the number of bytes of a size such as "5GB" (decimal) or "500MiB" (binary).

    Raises:
      ValueError: it is no size.
    """
    match = re.fullmatch(r"(\d{1,15})\s*([A-Z]*)", text.strip().upper())
    number, unit = match.groups() if match else ("0", "")
    if not int(number) or (unit or "B") not in _UNITS:
        raise ValueError(
            f"max_shard_size is {shorten(text)}; give a size such as 5GB, 500MB or 2GiB."
        )
    return int(number) * _UNITS[unit or "B"]


def split(tensors: Mapping[str, Tensor], max_bytes: int) -> list[dict[str, Tensor]]:
    """Divides tensors into files of at most a size, in order; a larger tensor is alone.

    One tensor under several names is counted once, and in one file.

    Args:
      tensors: by name.
      max_bytes: of a file, without its header.
    """
    names: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    shards: list[dict[str, Tensor]] = []
    current: dict[str, Tensor] = {}
    size = 0
    for shared in names.values():
        tensor = tensors[shared[0]]
        if tensor.nbytes > max_bytes:
            shards.append(dict.fromkeys(shared, tensor))
            continue
        if current and size + tensor.nbytes > max_bytes:
            shards.append(current)
            current, size = {}, 0
        current |= dict.fromkeys(shared, tensor)
        size += tensor.nbytes
    return [*shards, current] if current else shards


def write_safetensors(folder: pathlib.Path, tensors: Mapping[str, Tensor], max_bytes: int) -> None:
    """Writes `model.safetensors`, or several files and their index.

    The format shares no tensors: of one under several names, only the first is written, and
    `from_pretrained` ties the others to it.
    """
    firsts: dict[int, str] = {}
    for name, tensor in tensors.items():
        firsts.setdefault(id(tensor), name)
    unique = {name: tensor for name, tensor in tensors.items() if firsts[id(tensor)] == name}
    _write(folder / SAFETENSORS, split(unique, max_bytes), safetensors_file.save)


def write_torch(folder: pathlib.Path, tensors: Mapping[str, Tensor], max_bytes: int) -> None:
    """Writes `pytorch_model.bin`, or several files and their index."""

    def save(path: pathlib.Path, shard: Mapping[str, Tensor]) -> None:
        torch_file.save(path, collections.OrderedDict(shard))

    _write(folder / TORCH_WEIGHTS, split(tensors, max_bytes), save)


def _write(
    path: pathlib.Path,
    shards: list[dict[str, Tensor]],
    save: Callable[[pathlib.Path, Mapping[str, Tensor]], None],
) -> None:
    """Writes shards, and their index if they are several."""
    if len(shards) == 1:
        save(path, shards[0])
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"{path.stem}-{number:05d}-of-{len(shards):05d}{path.suffix}"
        save(path.parent / name, shard)
        weight_map |= dict.fromkeys(shard, name)
    unique = {id(tensor): tensor.nbytes for shard in shards for tensor in shard.values()}
    index = {
        "metadata": {"total_size": sum(unique.values())},
        "weight_map": dict(sorted(weight_map.items())),
    }
    write_json(path.with_name(path.name + INDEX_SUFFIX), index)
