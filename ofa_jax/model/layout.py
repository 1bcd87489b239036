"""Two options change how parameters are laid out, and nothing else; here is the way between.

    scan_layers      encoder/layer_0 ... layer_<n-1>  <->  encoder/layers, stacked on a first axis;
                     resnet/stage_1_block_1 ...       <->  resnet/stage_1_blocks, likewise
    vocab_multiple   the embedding's rows             <->  the same and zeros that nothing reads

*Plain* is the layout without either: that of checkpoints of others, and of a default `OFAConfig`.
Leaves may be numpy arrays or jax arrays (under jit too); boxes must have been taken off.
"""

from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.model.config import OFAConfig

_EMBEDDING = ("token_embedding", "embedding")

LAYOUT_FIELDS = ("scan_layers", "vocab_multiple")
"""Fields of `OFAConfig` that change the layout."""


def same_layout(one: OFAConfig, other: OFAConfig) -> bool:
    """Whether variables of one configuration are also those of the other, as far as layout goes."""
    return (one.scan_layers, one.padded_vocab_size) == (other.scan_layers, other.padded_vocab_size)


def plain(variables: Mapping[str, Any], config: OFAConfig) -> tuple[Mapping[str, Any], OFAConfig]:
    """Variables and configuration in the plain layout; as they are, where they are so already."""
    ordinary = config.replace(scan_layers=False, vocab_multiple=1)
    if same_layout(config, ordinary):
        return variables, config
    return to_plain(variables, config), ordinary


def to_plain(variables: Mapping[str, Any], config: OFAConfig) -> dict[str, Any]:
    """Variables of a configuration to the plain layout.

    Args:
      variables: {"params": ..., ...}.
      config: what they are of.
    """
    flat = flax.traverse_util.flatten_dict(dict(variables))
    places = {stacked: single for single, stacked in _places(config).items()}
    plain = {}
    for path, leaf in flat.items():
        depth = next((n for n in (3, 4) if path[1:n] in places), None)
        if depth:
            for i, single in enumerate(places[path[1:depth]]):
                plain[(path[0], *single, *path[depth:])] = leaf[i]
        elif path[1:] == _EMBEDDING:
            plain[path] = leaf[: config.vocab_size]
        else:
            plain[path] = leaf
    return flax.traverse_util.unflatten_dict(plain)


def from_plain(variables: Mapping[str, Any], config: OFAConfig) -> dict[str, Any]:
    """The inverse of `to_plain`.

    Args:
      variables: of the plain layout.
      config: what they shall be of.
    """
    flat = flax.traverse_util.flatten_dict(dict(variables))
    places = {}
    for singles, stacked in _places(config).items():
        places |= {single: (singles, stacked) for single in singles}
    result = {}
    for path, leaf in flat.items():
        depth = next((n for n in (3, 4) if path[1:n] in places), None)
        if depth:
            singles, stacked = places[path[1:depth]]
            if path[1:depth] == singles[0]:
                parts = [flat[(path[0], *single, *path[depth:])] for single in singles]
                stack = np.stack if isinstance(leaf, np.ndarray) else jnp.stack
                result[(path[0], *stacked, *path[depth:])] = stack(parts)
        elif path[1:] == _EMBEDDING:
            pad = np.pad if isinstance(leaf, np.ndarray) else jnp.pad
            result[path] = pad(leaf, ((0, config.padded_vocab_size - len(leaf)), (0, 0)))
        else:
            result[path] = leaf
    return flax.traverse_util.unflatten_dict(result)


def convert(variables: Mapping[str, Any], theirs: OFAConfig, ours: OFAConfig) -> dict[str, Any]:
    """Variables of one configuration to those of another that differs in layout only."""
    return from_plain(to_plain(variables, theirs), ours)


def convert_shapes(variables: Any, theirs: OFAConfig, ours: OFAConfig) -> Any:
    """The same for a tree of jax.ShapeDtypeStruct."""
    return jax.eval_shape(lambda tree: convert(tree, theirs, ours), variables)


def _places(config: OFAConfig) -> dict[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    """Modules that are stacked, within a collection -> the module of their stack."""
    if not config.scan_layers:
        return {}
    places = {}
    for side, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        places[tuple((side, f"layer_{i}") for i in range(layers))] = (side, "layers")
    for stage, blocks in enumerate(config.resnet_layers, 1):
        if blocks > 1:
            # The first has another stride and a shortcut of its own.
            root = ("encoder", "resnet")
            places[tuple((*root, f"stage_{stage}_block_{i}") for i in range(1, blocks))] = (
                *root,
                f"stage_{stage}_blocks",
            )
    return places
