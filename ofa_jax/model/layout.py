"""Two options change how parameters are laid out, and nothing else; here is the way between.

    scan_layers      encoder/layer_0 ... layer_<n-1>  <->  encoder/layers, stacked on a first axis
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

_STACKED = "layers"
_EMBEDDING = ("token_embedding", "embedding")

LAYOUT_FIELDS = ("scan_layers", "vocab_multiple")
"""Fields of `OFAConfig` that change the layout."""


def same_layout(one: OFAConfig, other: OFAConfig) -> bool:
    """Whether variables of one configuration are also those of the other, as far as layout goes."""
    return (one.scan_layers, one.padded_vocab_size) == (other.scan_layers, other.padded_vocab_size)


def to_plain(variables: Mapping[str, Any], config: OFAConfig) -> dict[str, Any]:
    """Variables of a configuration to the plain layout.

    Args:
      variables: {"params": ..., ...}.
      config: what they are of.
    """
    flat = flax.traverse_util.flatten_dict(dict(variables))
    plain = {}
    for path, leaf in flat.items():
        place = _side(path)
        if config.scan_layers and place and path[place] == _STACKED:
            for i in range(_num_layers(path, config)):
                plain[(*path[:place], f"layer_{i}", *path[place + 1 :])] = leaf[i]
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
    result = {}
    for path, leaf in flat.items():
        place = _side(path)
        if config.scan_layers and place and path[place].startswith("layer_"):
            if path[place] == "layer_0":
                parts = [
                    flat[(*path[:place], f"layer_{i}", *path[place + 1 :])]
                    for i in range(_num_layers(path, config))
                ]
                stack = np.stack if isinstance(leaf, np.ndarray) else jnp.stack
                result[(*path[:place], _STACKED, *path[place + 1 :])] = stack(parts)
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


def _side(path: tuple[str, ...]) -> int | None:
    """Where in a path the layer stands: collection / encoder or decoder / layer / ..."""
    return 2 if len(path) > 3 and path[1] in ("encoder", "decoder") else None


def _num_layers(path: tuple[str, ...], config: OFAConfig) -> int:
    return config.encoder_layers if path[1] == "encoder" else config.decoder_layers
