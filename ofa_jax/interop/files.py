"""Reads and writes official checkpoint files: fairseq's `.pt`, and Hugging Face folders.

A file is read to a state dict with fairseq's names and the official arguments. Its *origin* (what
our variables do not hold: layout, types, counters) is kept, so that writing it again gives the same
tensors bit for bit.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ofa_jax.interop import (
    averages,
    huggingface,
    huggingface_folder,
    huggingface_processor,
    torch_file,
)
from ofa_jax.interop.arguments import config_from_fairseq
from ofa_jax.interop.fairseq import to_fairseq_lazily
from ofa_jax.interop.writer import LAYOUTS, WriteOptions, write_tensors
from ofa_jax.model.config import OFAConfig
from ofa_jax.tokenizers.vocabulary_files import CHINESE
from ofa_jax.utils.text_files import read_json
from ofa_jax.utils.wrong_files import shorten

__all__ = [
    "LAYOUTS",
    "WEIGHTS",
    "OfficialCheckpoint",
    "find_folder",
    "is_official",
    "read",
    "read_origin",
    "write",
]

WEIGHTS = huggingface_folder.TORCH_WEIGHTS
_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
_EMBEDDING = "encoder.embed_tokens.weight"
_MAX_NAME = 200


@dataclasses.dataclass(frozen=True)
class OfficialCheckpoint:
    """An official checkpoint.

    Attributes:
      state_dict: arrays by fairseq's names, views of the file.
      args: the official arguments.
      origin: {"layout", "args", "types": {name in the file: dtype}, "counters": {name: int}}, as
        JSON.
      weights: where the state dict is in the file: "model", or the place of averaged weights.
      other_weights: where the file has further sets of weights, such as "extra_state.ema".
      unread: what else it holds, such as "last_optimizer_state".
      bpe: fairseq's arguments of the vocabulary (`bpe`, `bpe_dir`), as far as it holds them.
    """

    state_dict: Mapping[str, np.ndarray]
    args: Mapping[str, Any]
    origin: Mapping[str, Any]
    weights: str = averages.MODEL
    other_weights: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    bpe: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def is_chinese(self) -> bool:
        """Whether its text is in the vocabulary of the Chinese models, `BERT_CN_dict`."""
        return self.bpe.get("bpe") == "bert" or CHINESE in str(self.bpe.get("bpe_dir"))

    @property
    def config(self) -> OFAConfig:
        """The configuration that arguments and embedding describe."""
        return config_from_fairseq(self.args, len(self.state_dict[_EMBEDDING]))

    def describe_weights(self, path: object, option: str = "weights") -> str | None:
        """Returns a sentence about which weights were taken; None if the file has only those.

        Args:
          path: of the file.
          option: what selects other weights, for the sentence, such as "--weights".
        """
        others = ", ".join(self.other_weights)
        if self.weights != averages.MODEL:
            return f"Took the weights {self.weights} of {path}, not those of {others}."
        if not others:
            return None
        return (
            f"{path} holds averaged weights ({others}), which are not taken: {option}="
            f"{averages.EMA} takes them, as the reference implementation's --ema-eval does."
        )


def find_folder(path: str | pathlib.Path) -> pathlib.Path | None:
    """Returns the Hugging Face folder that a path is, or whose file of weights it is, or None."""
    path = pathlib.Path(path)
    if path.is_dir():
        return path
    in_folder = path.suffix == ".safetensors" or path.name in huggingface_folder.WEIGHTS
    return path.parent if in_folder or huggingface_folder.find_index(path) else None


def is_official(path: str | pathlib.Path) -> bool:
    """Returns whether a path looks like an official checkpoint, not one of ours."""
    path = pathlib.Path(path)
    if path.suffix in _SUFFIXES or path.name in huggingface_folder.WEIGHTS:
        return True
    if huggingface_folder.has_weights(path):
        return True
    ours = (path / "checkpoints").is_dir() or (path / "state").is_dir()
    return (path / huggingface_folder.CONFIG).is_file() and not ours


def read(
    path: str | pathlib.Path, weights: str = averages.MODEL, verify: bool = True
) -> OfficialCheckpoint:
    """Reads a `.pt` of fairseq, or a folder with weights and `config.json`.

    Args:
      path: of the file or folder; a file of weights in such a folder stands for the folder.
      weights: which weights to take where a file holds several: "model", "ema" (the averaged
        ones), or where they are, such as "extra_state.ema_fp32_params".
      verify: whether to compare the weights with their checksums, which reads them once; False
        where only the arguments and shapes are needed.

    Raises:
      FileNotFoundError, ValueError: with a sentence, see `torch_file.load`; or the file holds no
        model, no arguments, or not these weights.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        return _read_huggingface(huggingface_folder.find_weights(path), weights, verify)
    if find_folder(path):
        return _read_huggingface(huggingface_folder.find_index(path) or path, weights, verify)
    opened = torch_file.open_file(path)
    content = opened.content
    if not isinstance(content, Mapping) or not isinstance(content.get("model"), Mapping):
        raise ValueError(_describe_no_model(path, content))
    args = _arguments(path, content)
    if not args:
        raise ValueError(
            f"{path} lacks the arguments of its model ('args' or 'cfg'), which are needed to "
            "build it."
        )
    found = averages.find(content)
    place, tensors = averages.select(found, weights, path)
    if verify:
        opened.verify(tensors.values())
    return dataclasses.replace(
        _checkpoint(path, "fairseq", tensors, tensors, args),
        weights=place,
        other_weights=tuple(name for name in found if name != place),
        unread=averages.describe_rest(content, found),
        bpe=_bpe_arguments(content, args),
    )


def _describe_no_model(path: pathlib.Path, content: Any) -> str:
    """Returns the sentence about a file of torch's that has no model."""
    held = torch_file.describe(content)
    names = content if isinstance(content, Mapping) else ()
    if any("optim" in str(name) for name in names) and "model" not in names:
        held += ", the state of an optimiser"
    if "shard_metadata" in names:
        held += ", one of several shards of a model"
    return (
        f"{path} has no 'model' ({held}): give a checkpoint that fairseq wrote, or a folder with "
        f"{WEIGHTS} and config.json."
    )


def _read_huggingface(path: pathlib.Path, weights: str, verify: bool) -> OfficialCheckpoint:
    """Reads a file of weights, and the config.json beside it."""
    config_file = path.parent / huggingface_folder.CONFIG
    if not config_file.is_file():
        raise FileNotFoundError(f"There is no {config_file}, which describes the model: add it.")
    if weights != averages.MODEL:
        raise ValueError(f"{path} does not hold the weights {shorten(weights)}: it has one set.")
    opened = huggingface_folder.open_file(path)
    config = read_json(config_file)
    if not isinstance(config, dict):
        raise ValueError(f"{config_file} does not describe a model: it is no JSON object.")
    try:
        args = huggingface.args_from_huggingface(config)
    except ValueError as error:
        raise ValueError(f"{config_file}: {error}") from error
    args |= huggingface_processor.read_sizes(path.parent)
    held = torch_file.tensors_of(opened.content)
    if verify:
        opened.verify(held.values())
    return _checkpoint(path, "huggingface", held, huggingface.from_huggingface(held), args)


def _arguments(path: pathlib.Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments, wherever this version of fairseq keeps them."""
    try:
        cfg = torch_file.plain(content.get("cfg"))
        places = torch_file.plain(content.get("args")), _get(cfg, "model")
    except torch_file.ContentError as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error
    for found in places:
        if isinstance(found, Mapping) and "encoder_layers" in found:
            return dict(found)
    return {}


def _bpe_arguments(content: Mapping[str, Any], args: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments that say which vocabulary the text of a checkpoint is in."""
    cfg = torch_file.plain(content.get("cfg"))
    found = {"bpe": _get(_get(cfg, "bpe"), "_name")}
    for name in ("bpe", "bpe_dir"):
        for place in (_get(cfg, "task"), args):
            if isinstance(value := _get(place, name), str) and value:
                found[name] = value
    return {name: value for name, value in found.items() if isinstance(value, str)}


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, Mapping) else None


def _checkpoint(
    path: pathlib.Path,
    layout: str,
    tensors: Mapping[str, np.ndarray],
    state_dict: Mapping[str, np.ndarray],
    args: Mapping[str, Any],
) -> OfficialCheckpoint:
    """Returns a checkpoint with its origin.

    Args:
      path: of the file, for the error.
      layout: of the file.
      tensors: by their names in the file.
      state_dict: the same by fairseq's names.
      args: the official arguments.
    """
    if wrong := [name for name in state_dict if len(name) > _MAX_NAME or not name.isprintable()]:
        raise ValueError(f"{path} is damaged: it has a tensor named {shorten(wrong[0])}.")
    if _EMBEDDING not in state_dict or state_dict[_EMBEDDING].ndim != 2:
        raise ValueError(
            f"{path}: the checkpoint has no {_EMBEDDING}: it is not an OFA model "
            f"(it has {', '.join(list(state_dict)[:3])} ...)."
        )
    origin = {
        "layout": layout,
        "args": {name: value for name, value in args.items() if _is_json(value)},
        "types": {key: str(array.dtype) for key, array in tensors.items()},
        "counters": {
            key: int(array)
            for key, array in state_dict.items()
            if key.endswith("num_batches_tracked") and array.size == 1 and array.dtype.kind == "i"
        },
    }
    return OfficialCheckpoint(state_dict, args, origin)


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def read_origin(path: str | pathlib.Path) -> dict[str, Any]:
    """Reads the origin of converted variables, which stands beside them as JSON.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is damaged.
    """
    origin = read_json(path)
    kinds = {"layout": str, "args": dict, "types": dict, "counters": dict}
    if not isinstance(origin, dict) or not all(
        isinstance(origin.get(name), kind) for name, kind in kinds.items()
    ):
        raise ValueError(f"{path} is damaged: delete it to write float32 without the old counters.")
    for name in origin["types"].values():
        torch_file.dtype_of(name)
    if not all(type(count) is int and abs(count) < 2**63 for count in origin["counters"].values()):
        raise ValueError(f"{path} is damaged: it has counters that are no whole numbers.")
    return origin


def write(
    path: str | pathlib.Path,
    variables: Mapping[str, Any],
    config: OFAConfig,
    origin: Mapping[str, Any] | None = None,
    layout: str = "fairseq",
    options: WriteOptions | None = None,
) -> None:
    """Writes our variables as an official checkpoint, one tensor at a time.

    Args:
      path: a file `.pt`, or a folder for the layout "huggingface".
      variables: {"params", "batch_stats"}.
      config: of the model.
      origin: of the checkpoint that the variables came from, for its types, counters and further
        arguments; float32 and what the configuration says without it.
      layout: one of LAYOUTS.
      options: which files of weights a folder gets, and their type; `pytorch_model.bin` when None.

    Raises:
      ValueError: the layout cannot hold the model.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"There is no layout {layout!r}: choose from {', '.join(LAYOUTS)}.")
    tensors = to_fairseq_lazily(variables, config)
    write_tensors(path, tensors, config, origin, layout, options or WriteOptions())
