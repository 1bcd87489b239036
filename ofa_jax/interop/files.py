"""Reads and writes official checkpoint files: fairseq's `.pt`, and Hugging Face folders.

A file is read to a state dict with fairseq's names and the official arguments. Its *origin* (what
our variables do not hold: layout, types, counters) is kept, so that writing it again gives the same
tensors bit for bit.
"""

import argparse
import collections
import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from ofa_jax.interop import huggingface, torch_file
from ofa_jax.interop.arguments import args_for_fairseq, config_from_fairseq
from ofa_jax.interop.fairseq import to_fairseq
from ofa_jax.model.config import OFAConfig

LAYOUTS = ("fairseq", "huggingface")
WEIGHTS = "pytorch_model.bin"
_EMBEDDING = "encoder.embed_tokens.weight"


@dataclasses.dataclass(frozen=True)
class OfficialCheckpoint:
    """An official checkpoint.

    Attributes:
      state_dict: arrays by fairseq's names, views of the file.
      args: the official arguments.
      origin: {"layout", "args", "types": {name in the file: dtype}, "counters": {name: int}}, as
        JSON.
    """

    state_dict: Mapping[str, np.ndarray]
    args: Mapping[str, Any]
    origin: Mapping[str, Any]

    @property
    def config(self) -> OFAConfig:
        """The configuration that arguments and embedding describe."""
        return config_from_fairseq(self.args, len(self.state_dict[_EMBEDDING]))


def is_official(path: str | pathlib.Path) -> bool:
    """Returns whether a path looks like an official checkpoint, not one of ours."""
    path = pathlib.Path(path)
    return path.suffix in (".pt", ".bin", ".pth") or (path / WEIGHTS).is_file()


def read(path: str | pathlib.Path) -> OfficialCheckpoint:
    """Reads a `.pt` of fairseq, or a folder with `pytorch_model.bin` and `config.json`.

    Raises:
      FileNotFoundError, ValueError: with a sentence, see `torch_file.load`; or the file holds no
        model, or no arguments.
    """
    path = pathlib.Path(path)
    if path.is_dir() or path.name == WEIGHTS:
        return _read_huggingface(path if path.is_dir() else path.parent)
    content = torch_file.load(path)
    if not isinstance(content, Mapping) or "model" not in content:
        held = ", ".join(list(content)[:5]) if isinstance(content, Mapping) else type(content)
        raise ValueError(
            f"{path} has no 'model' (it holds {held}): give a checkpoint that fairseq wrote, or a "
            f"folder with {WEIGHTS} and config.json."
        )
    args = _arguments(content)
    if not args:
        raise ValueError(
            f"{path} lacks the arguments of its model ('args' or 'cfg'), which are needed to "
            "build it."
        )
    return _checkpoint("fairseq", content["model"], content["model"], args)


def _read_huggingface(folder: pathlib.Path) -> OfficialCheckpoint:
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise FileNotFoundError(f"There is no {config_file}, which describes the model.")
    args = huggingface.args_from_huggingface(json.loads(config_file.read_text()))
    held = torch_file.load(folder / WEIGHTS)
    return _checkpoint("huggingface", held, huggingface.from_huggingface(held), args)


def _arguments(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments, wherever this version of fairseq keeps them."""
    for value in (content.get("args"), _get(torch_file.plain(content.get("cfg")), "model")):
        found = torch_file.plain(value)
        if isinstance(found, Mapping) and "encoder_layers" in found:
            return dict(found)
    return {}


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, Mapping) else None


def _checkpoint(
    layout: str,
    tensors: Mapping[str, Any],
    state_dict: Mapping[str, Any],
    args: Mapping[str, Any],
) -> OfficialCheckpoint:
    """Returns a checkpoint with its origin.

    Args:
      layout: of the file.
      tensors: by their names in the file.
      state_dict: the same by fairseq's names.
      args: the official arguments.
    """
    state_dict = {key: array for key, array in state_dict.items() if isinstance(array, np.ndarray)}
    if _EMBEDDING not in state_dict:
        raise ValueError(
            f"the checkpoint has no {_EMBEDDING}: it is not an OFA model "
            f"(it has {', '.join(list(state_dict)[:3])} ...)."
        )
    origin = {
        "layout": layout,
        "args": {name: value for name, value in args.items() if _is_json(value)},
        "types": {key: str(a.dtype) for key, a in tensors.items() if isinstance(a, np.ndarray)},
        "counters": {
            key: int(array)
            for key, array in state_dict.items()
            if key.endswith("num_batches_tracked")
        },
    }
    return OfficialCheckpoint(state_dict, args, origin)


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def write(
    path: str | pathlib.Path,
    variables: Mapping[str, Any],
    config: OFAConfig,
    origin: Mapping[str, Any] | None = None,
    layout: str = "fairseq",
) -> None:
    """Writes our variables as an official checkpoint.

    Args:
      path: a file `.pt`, or a folder for the layout "huggingface".
      variables: {"params", "batch_stats"}.
      config: of the model.
      origin: of the checkpoint that the variables came from, for its types, counters and further
        arguments; float32 and what the configuration says without it.
      layout: one of LAYOUTS.

    Raises:
      ValueError: the layout cannot hold the model.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"There is no layout {layout!r}: choose from {', '.join(LAYOUTS)}.")
    origin = dict(origin or {})
    args = args_for_fairseq(config)
    # Two names stand for the same ResNet here; keep the one of the origin.
    if origin.get("args", {}).get("resnet_type"):
        args["resnet_type"] = origin["args"]["resnet_type"]
    args = {**origin.get("args", {}), **args}
    state_dict = to_fairseq(variables, config)
    for key, count in origin.get("counters", {}).items():
        state_dict[key] = np.array(count, np.int64)
    path = pathlib.Path(path)
    if layout == "huggingface":
        state_dict = huggingface.to_huggingface(state_dict)
    if origin.get("layout") == layout:
        state_dict = _with_types(state_dict, origin["types"])
    if layout == "huggingface":
        path.mkdir(parents=True, exist_ok=True)
        described = huggingface.huggingface_from_args(args, config.vocab_size)
        (path / "config.json").write_text(json.dumps(described, indent=2) + "\n")
        torch_file.save(path / WEIGHTS, collections.OrderedDict(state_dict))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    torch_file.save(path, _fairseq_content(args, state_dict))


def _fairseq_content(args: Mapping[str, Any], state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what fairseq expects of a checkpoint file, with the history of a new run."""
    return {
        "args": argparse.Namespace(**args),
        "cfg": None,
        "model": collections.OrderedDict(state_dict),
        "optimizer_history": [
            {
                "criterion_name": "AdjustLabelSmoothedCrossEntropyCriterion",
                "optimizer_name": "FairseqAdam",
                "lr_scheduler_state": {"best": None},
                "num_updates": 0,
            }
        ],
        "extra_state": {
            "train_iterator": {"epoch": 1, "iterations_in_epoch": 0},
            "val_loss": None,
        },
        "last_optimizer_state": None,
    }


def _with_types(
    state_dict: dict[str, np.ndarray], types: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """Returns the arrays in the order and with the types of the origin; tied ones stay tied."""
    cast: dict[tuple[int, str], np.ndarray] = {}

    def cast_to(array: np.ndarray, name: str) -> np.ndarray:
        dtype = ml_dtypes.bfloat16 if name == "bfloat16" else np.dtype(name)
        if array.dtype == dtype:
            return array
        return cast.setdefault((id(array), name), array.astype(dtype))

    return {key: cast_to(state_dict[key], name) for key, name in types.items() if key in state_dict}
