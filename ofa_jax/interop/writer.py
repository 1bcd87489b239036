"""Writes official state dicts: fairseq's `.pt`, and Hugging Face folders."""

import argparse
import collections
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ofa_jax.interop import huggingface, huggingface_folder, huggingface_shards, torch_file
from ofa_jax.interop.arguments import args_for_fairseq
from ofa_jax.interop.lazy_tensors import Tensor, cast
from ofa_jax.interop.torch_dtypes import dtype_of, is_floating
from ofa_jax.model.config import OFAConfig
from ofa_jax.utils.files import write_json

LAYOUTS = ("fairseq", "huggingface")
WEIGHT_FILES = {
    "safetensors": huggingface_shards.write_safetensors,
    "bin": huggingface_shards.write_torch,
}
"""Kind of files of weights in a folder -> what writes them."""
DTYPES = ("float32", "float16", "bfloat16")
_EMBEDDING = "encoder.embed_tokens.weight"


@dataclasses.dataclass(frozen=True)
class WriteOptions:
    """What is written of a checkpoint.

    Attributes:
      weight_files: kinds of files of weights in a Hugging Face folder, keys of WEIGHT_FILES.
      max_shard_bytes: size of one of them, without its header.
      dtype: of floating-point tensors, one of DTYPES; that of the origin when None.
    """

    weight_files: tuple[str, ...] = ("bin",)
    max_shard_bytes: int = 2**63
    dtype: str | None = None

    def __post_init__(self) -> None:
        """Checks the names."""
        for name, allowed, given in (
            ("weight_files", tuple(WEIGHT_FILES), self.weight_files),
            ("dtype", (None, *DTYPES), (self.dtype,)),
        ):
            if not given or not set(given) <= set(allowed):
                raise ValueError(f"{name} is {given}; choose from {', '.join(map(str, allowed))}.")


def write_tensors(
    path: str | pathlib.Path,
    tensors: Mapping[str, Tensor],
    config: OFAConfig,
    origin: Mapping[str, Any] | None,
    layout: str,
    options: WriteOptions,
) -> None:
    """Writes a whole official state dict, one tensor at a time.

    Args:
      path: a file `.pt`, or a folder for the layout "huggingface".
      tensors: by fairseq's names, see `fairseq.complete` and `fairseq.to_fairseq_lazily`.
      config: of the model.
      origin: of the checkpoint that they came from, see `files.OfficialCheckpoint`.
      layout: one of LAYOUTS.
      options: see there.

    Raises:
      ValueError: the layout cannot hold the model.
    """
    origin = dict(origin or {})
    args = args_for_fairseq(config)
    # Two names stand for the same ResNet here; keep the one of the origin.
    if origin.get("args", {}).get("resnet_type"):
        args["resnet_type"] = origin["args"]["resnet_type"]
    args = {**origin.get("args", {}), **args}
    counters = {key: np.array(n, np.int64) for key, n in origin.get("counters", {}).items()}
    tensors = _with_types({**tensors, **counters}, origin, options.dtype)
    path = pathlib.Path(path)
    if layout == "huggingface":
        tensors = _ordered(huggingface.to_huggingface(tensors), origin, layout)
        described = huggingface.huggingface_from_args(args, config.vocab_size)
        described["torch_dtype"] = str(tensors[_EMBEDDING].dtype)
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / huggingface_folder.CONFIG, described)
        for kind in options.weight_files:
            WEIGHT_FILES[kind](path, tensors, options.max_shard_bytes)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    torch_file.save(path, _fairseq_content(args, _ordered(tensors, origin, layout)))


def _with_types(
    tensors: Mapping[str, Tensor], origin: Mapping[str, Any], dtype: str | None
) -> dict[str, Tensor]:
    """Returns tensors with the types that their origin or the options say; tied ones stay tied."""
    types = dict(origin.get("types", {}))
    if origin.get("layout") == "huggingface":
        types = huggingface.from_huggingface(types)
    done: dict[tuple[int, str], Tensor] = {}

    def typed(key: str, tensor: Tensor) -> Tensor:
        # A tied copy that its origin leaves out has the type of the embedding.
        default = types.get(_EMBEDDING) if tensor is tensors[_EMBEDDING] else None
        name = types.get(key, default) or str(tensor.dtype)
        if dtype is not None and is_floating(tensor.dtype):
            name = dtype
        return done.setdefault((id(tensor), name), cast(tensor, dtype_of(name)))

    return {key: typed(key, tensor) for key, tensor in tensors.items()}


def _ordered(
    tensors: Mapping[str, Tensor], origin: Mapping[str, Any], layout: str
) -> dict[str, Tensor]:
    """Returns the tensors of an origin in the same layout, in its order; all for another layout."""
    if origin.get("layout") != layout:
        return dict(tensors)
    held = {key: tensors[key] for key in origin["types"] if key in tensors}
    if layout == "huggingface":
        # Safetensors files leave out the tied copies, which torch's files have.
        held |= {key: x for key, x in tensors.items() if x is tensors[_EMBEDDING]}
    return held


def _fairseq_content(args: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns what fairseq expects of a checkpoint file, with the history of a new run."""
    return {
        "args": argparse.Namespace(**args),
        "cfg": None,
        "model": collections.OrderedDict(tensors),
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
