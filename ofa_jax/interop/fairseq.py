"""Converts the official (fairseq's) state dict to our variables and back.

`tensor_layout` lists every tensor once, with the way from one shape to the other.
"""

from collections.abc import Mapping
from typing import Any

import flax
import numpy as np

from ofa_jax.interop.lazy_tensors import LazyTensor, Tensor
from ofa_jax.interop.tensor_layout import TensorEntry, resnet_entries, tensor_entries
from ofa_jax.model import layout, positions
from ofa_jax.model.config import RELATIVE_POSITION_RANGE, OFAConfig
from ofa_jax.utils.progress import substage

_TIED = ("decoder.embed_tokens.weight", "decoder.output_projection.weight")
_EMBEDDING = "encoder.embed_tokens.weight"
_SIDE_BUFFERS = ("version", "token_rp_bucket", "image_rp_bucket")


def _buffers(config: OFAConfig) -> dict[str, np.ndarray]:
    """Returns the other tensors of the official state dict: index tables, versions, step counts."""
    c = config
    buffers = {}
    for side in ("encoder", "decoder"):
        buffers[f"{side}.version"] = np.array([3.0], np.float32)
        buffers[f"{side}.token_rp_bucket"] = positions.token_bucket_table(
            c.token_bucket_size, RELATIVE_POSITION_RANGE
        ).astype(np.int64)
        buffers[f"{side}.image_rp_bucket"] = positions.image_bucket_table(
            c.image_bucket_size
        ).astype(np.int64)
    buffers["decoder.image_position_idx"] = positions.code_position_ids(
        c.code_grid, c.image_bucket_size
    ).astype(np.int64)
    for entry in resnet_entries(c):
        if entry.key.endswith("running_var"):
            buffers[entry.key.replace("running_var", "num_batches_tracked")] = np.array(0, np.int64)
    return buffers


def _buffer_names(config: OFAConfig) -> set[str]:
    """Returns the names of `_buffers`, without computing the tables."""
    names = {f"{side}.{name}" for side in ("encoder", "decoder") for name in _SIDE_BUFFERS}
    counters = (
        entry.key.replace("running_var", "num_batches_tracked")
        for entry in resnet_entries(config)
        if entry.key.endswith("running_var")
    )
    return {*names, "decoder.image_position_idx", *counters}


def from_fairseq(state_dict: Mapping[str, np.ndarray], config: OFAConfig) -> dict[str, Any]:
    """Converts the official state dict to our variables.

    Args:
      state_dict: arrays by official key (torch tensors on the CPU also work); index tables,
        versions, batch counts and the two tied copies of the embedding may be absent.
      config: of the model, see `config_from_fairseq`.

    Returns:
      {"params": ..., "batch_stats": ...} of float32 numpy arrays.

    Raises:
      ValueError: for tensors that are missing, unknown or of the wrong shape.
    """
    entries = _fitting_entries(state_dict, config)
    plain = {}
    with substage("converting tensors", len(entries), "tensors") as stage:
        for entry in entries:
            plain[entry.path] = entry.to_ours(state_dict[entry.key])
            stage.advance()
    return layout.from_plain(flax.traverse_util.unflatten_dict(plain), config)


def complete(state_dict: Mapping[str, np.ndarray], config: OFAConfig) -> dict[str, Tensor]:
    """Returns the whole official state dict of a part of one, without copying its tensors.

    It equals `to_fairseq(from_fairseq(state_dict, config), config)`.

    Args:
      state_dict: as for `from_fairseq`.
      config: of the model.

    Raises:
      ValueError: as `from_fairseq`.
    """
    tensors: dict[str, Tensor] = {}
    for entry in _fitting_entries(state_dict, config):

        def make(key: str = entry.key) -> np.ndarray:
            return np.asarray(state_dict[key], np.float32)

        tensors[entry.key] = LazyTensor(entry.official_shape, np.dtype(np.float32), make)
    return _with_rest(tensors, config)


def _fitting_entries(state_dict: Mapping[str, np.ndarray], config: OFAConfig) -> list[TensorEntry]:
    """Returns the entries of a configuration; raises ValueError unless a state dict has these."""
    entries = list(tensor_entries(config))
    optional = _buffer_names(config) | set(_TIED)
    keys = {entry.key for entry in entries}
    rows = np.shape(state_dict.get(_EMBEDDING, ()))
    if rows and rows[0] != config.vocab_size:
        raise ValueError(
            f"the checkpoint has a vocabulary of {rows[0]} ids, and the model one of "
            f"{config.vocab_size}: give the model the checkpoint's vocabulary, or extend the "
            "checkpoint's embedding (`resize_vocabulary`, or `ofa-convert "
            f"--vocab_size={config.vocab_size}`)."
        )
    problems = [
        ("missing", sorted(keys - state_dict.keys())),
        ("not expected", sorted(state_dict.keys() - keys - optional)),
        (
            "misshapen",
            [
                f"{e.key} {list(np.shape(state_dict[e.key]))} (must be {list(e.official_shape)})"
                for e in entries
                if e.key in state_dict and np.shape(state_dict[e.key]) != e.official_shape
            ],
        ),
    ]
    if any(names for _, names in problems):
        listed = "; ".join(f"{what}: {_names(names)}" for what, names in problems if names)
        raise ValueError(
            "the state dict does not fit this configuration; do the arguments belong to it? "
            f"{listed}."
        )
    for key in _TIED:
        if key in state_dict and not np.array_equal(
            np.asarray(state_dict[key]), np.asarray(state_dict[_EMBEDDING])
        ):
            raise ValueError(f"{key} differs from {_EMBEDDING}; OFA shares one embedding.")
    return entries


def to_fairseq(variables: Mapping[str, Any], config: OFAConfig) -> dict[str, np.ndarray]:
    """Converts our variables to the official state dict: the inverse of `from_fairseq`.

    Args:
      variables: {"params": ..., "batch_stats": ...}, boxed or plain.
      config: of the model.

    Returns:
      Numpy arrays by official key, with tied copies, index tables, versions and batch counts,
      which are 0 because our variables do not keep them.

    Raises:
      ValueError: for variables that do not fit the configuration, or that the official model lacks.
    """
    lazy = to_fairseq_lazily(variables, config)
    made: dict[int, np.ndarray] = {}
    number = sum(isinstance(tensor, LazyTensor) for tensor in lazy.values()) - len(_TIED)
    with substage("converting tensors", number, "tensors") as stage:
        for tensor in lazy.values():
            if isinstance(tensor, LazyTensor) and id(tensor) not in made:
                made[id(tensor)] = tensor.make()
                stage.advance()
    return {
        key: made[id(tensor)] if isinstance(tensor, LazyTensor) else tensor
        for key, tensor in lazy.items()
    }


def to_fairseq_lazily(variables: Mapping[str, Any], config: OFAConfig) -> dict[str, Tensor]:
    """Returns what `to_fairseq` does, but makes each tensor only when it is needed.

    Raises:
      ValueError: as `to_fairseq`, before any tensor is made.
    """
    added = [
        name for name in ("prefix_length", "adapter_width", "second_image") if getattr(config, name)
    ]
    if added:
        raise ValueError(
            f"the official layout has no place for what OFAConfig.{', '.join(added)} adds to the "
            "model: keep this checkpoint in our own layout."
        )
    flat = flax.traverse_util.flatten_dict(
        layout.to_plain(flax.core.unfreeze(flax.linen.meta.unbox(dict(variables))), config)
    )
    entries = list(tensor_entries(config))
    paths = {entry.path for entry in entries}
    missing, unknown = (
        sorted("/".join(p) for p in s) for s in (paths - flat.keys(), flat.keys() - paths)
    )
    if missing or unknown:
        raise ValueError(
            f"the variables do not fit this configuration: {_names(missing)} missing, "
            f"{_names(unknown)} unknown."
        )
    tensors: dict[str, Tensor] = {}
    for entry in entries:
        entry.check_shape(np.shape(flat[entry.path]))

        def make(entry: TensorEntry = entry) -> np.ndarray:
            return entry.to_official(flat[entry.path])

        tensors[entry.key] = LazyTensor(entry.official_shape, np.dtype(np.float32), make)
    return _with_rest(tensors, config)


def _with_rest(tensors: dict[str, Tensor], config: OFAConfig) -> dict[str, Tensor]:
    """Returns tensors with the tied copies of the embedding and the buffers."""
    return tensors | dict.fromkeys(_TIED, tensors[_EMBEDDING]) | _buffers(config)


def resize_vocabulary(
    state_dict: Mapping[str, np.ndarray], vocab_size: int, seed: int = 0
) -> dict[str, np.ndarray]:
    """Returns a state dict whose embedding has more rows, the new ones at the end.

    As in the official code, new rows are drawn from N(0, 1/d). Codes and bins come last in the
    vocabulary, so that bins can be added; rows cannot be removed.

    Args:
      state_dict: the official one.
      vocab_size: the new number of rows.
      seed: of the new rows.

    Raises:
      ValueError: the vocabulary would shrink.
    """
    old = np.asarray(state_dict[_EMBEDDING])
    added = vocab_size - len(old)
    if added < 0:
        raise ValueError(
            f"the checkpoint has a vocabulary of {len(old)} ids: it cannot be cut to {vocab_size}, "
            "because ids would lose their meaning."
        )
    rows = np.random.default_rng(seed).normal(0, old.shape[1] ** -0.5, (added, old.shape[1]))
    embedding = np.concatenate([old, rows.astype(old.dtype)])
    tied = {key: embedding for key in (_EMBEDDING, *_TIED) if key in state_dict}
    return dict(state_dict) | tied


def initialise_from_bart(
    state_dict: Mapping[str, np.ndarray], bart: Mapping[str, np.ndarray], mask_id: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Initialises the text part of a model from BART (Lewis et al. 2020), as the paper does.

    Every tensor of BART with a counterpart of the same name and shape is taken. The first rows of
    the vocabularies agree (bos, pad, eos, unk, then GPT-2's BPE in one order); BART's `<mask>` is
    the last.

    Args:
      state_dict: of a new model, fairseq's names.
      bart: BART's state dict, fairseq's names.
      mask_id: `<mask>` in this model's vocabulary.

    Returns:
      (the state dict, the names of the tensors that were taken).

    Raises:
      ValueError: BART is of another width, or something else.
    """
    if _EMBEDDING not in bart or np.ndim(bart[_EMBEDDING]) != 2:
        raise ValueError(f"BART has no {_EMBEDDING}: give a checkpoint of fairseq's BART.")
    ours, theirs = np.asarray(state_dict[_EMBEDDING]), np.asarray(bart[_EMBEDDING])
    if ours.shape[1] != theirs.shape[1]:
        raise ValueError(
            f"BART is {theirs.shape[1]} wide and this model {ours.shape[1]}: bart.base fits "
            "OFA-base, bart.large fits OFA-large."
        )
    embedding = ours.copy()
    shared = min(len(theirs) - 1, mask_id)
    embedding[:shared] = theirs[:shared]
    embedding[mask_id] = theirs[-1]
    result = dict(state_dict) | {key: embedding for key in (_EMBEDDING, *_TIED)}
    taken = [
        key
        for key, array in bart.items()
        if key in result
        and key not in (_EMBEDDING, *_TIED)
        and "version" not in key
        and np.shape(array) == np.shape(result[key])
    ]
    return result | {key: np.asarray(bart[key], np.float32) for key in taken}, [_EMBEDDING, *taken]


def _names(keys: list[str]) -> str:
    """Returns some of the names, for an error."""
    if not keys:
        return "nothing"
    shown = ", ".join(keys[:5])
    return shown if len(keys) <= 5 else f"{shown} and {len(keys) - 5} more"
