"""Conversion between the parameter layouts that two options of `OFAConfig` lead to.

    scan_layers      encoder/layer_0 ... layer_<n-1>  <->  encoder/layers, stacked on a first axis;
                     resnet/stage_1_block_1 ...       <->  resnet/stage_1_blocks, likewise
    vocab_multiple   the embedding's rows             <->  the same rows, then zeros that are unused

The *plain* layout has neither: it is that of converted checkpoints and of a default `OFAConfig`.
Leaves may be numpy or jax arrays (also under jit); boxes must have been removed.
"""

from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.model.config import OFAConfig

_EMBEDDING = ("token_embedding", "embedding")

PLAIN_FIELDS: dict[str, Any] = {"scan_layers": False, "vocab_multiple": 1}
"""Fields of `OFAConfig` that change the layout, with their values for the plain one."""

LAYOUT_FIELDS = tuple(PLAIN_FIELDS)

_Path = tuple[str, ...]


def same_layout(one: OFAConfig, other: OFAConfig) -> bool:
    """Returns whether two configurations lay out their variables alike."""
    return (one.scan_layers, one.padded_vocab_size) == (other.scan_layers, other.padded_vocab_size)


def ensure_plain(
    variables: Mapping[str, Any], config: OFAConfig
) -> tuple[Mapping[str, Any], OFAConfig]:
    """Converts to the plain layout unless the variables have it already.

    Args:
      variables: {"params": ..., ...}.
      config: their configuration.

    Returns:
      The variables in the plain layout and their configuration.
    """
    plain_config = config.replace(**PLAIN_FIELDS)
    if same_layout(config, plain_config):
        return variables, config
    return to_plain(variables, config), plain_config


def to_plain(variables: Mapping[str, Any], config: OFAConfig) -> dict[str, Any]:
    """Converts variables to the plain layout.

    Args:
      variables: {"params": ..., ...}.
      config: their configuration.

    Returns:
      The variables in the plain layout.
    """
    flat = flax.traverse_util.flatten_dict(dict(variables))
    modules_of = {stacked: modules for modules, stacked in _stacked_modules(config).items()}
    plain = {}
    for path, leaf in flat.items():
        depth = next((n for n in (3, 4) if path[1:n] in modules_of), None)
        if depth:
            for i, module in enumerate(modules_of[path[1:depth]]):
                plain[(path[0], *module, *path[depth:])] = leaf[i]
        elif path[1:] == _EMBEDDING:
            plain[path] = leaf[: config.vocab_size]
        else:
            plain[path] = leaf
    return flax.traverse_util.unflatten_dict(plain)


def from_plain(variables: Mapping[str, Any], config: OFAConfig) -> dict[str, Any]:
    """Converts variables from the plain layout; inverts `to_plain`.

    Args:
      variables: {"params": ..., ...} in the plain layout.
      config: the configuration whose layout they get.

    Returns:
      The variables in the layout of `config`.
    """
    flat = flax.traverse_util.flatten_dict(dict(variables))
    stack_of: dict[_Path, tuple[tuple[_Path, ...], _Path]] = {}
    for modules, stacked in _stacked_modules(config).items():
        stack_of |= {module: (modules, stacked) for module in modules}
    result = {}
    for path, leaf in flat.items():
        depth = next((n for n in (3, 4) if path[1:n] in stack_of), None)
        if depth:
            modules, stacked = stack_of[path[1:depth]]
            if path[1:depth] == modules[0]:
                parts = [flat[(path[0], *module, *path[depth:])] for module in modules]
                stack: Any = np.stack if isinstance(leaf, np.ndarray) else jnp.stack
                result[(path[0], *stacked, *path[depth:])] = stack(parts)
        elif path[1:] == _EMBEDDING:
            pad: Any = np.pad if isinstance(leaf, np.ndarray) else jnp.pad
            result[path] = pad(leaf, ((0, config.padded_vocab_size - len(leaf)), (0, 0)))
        else:
            result[path] = leaf
    return flax.traverse_util.unflatten_dict(result)


def convert(variables: Mapping[str, Any], source: OFAConfig, target: OFAConfig) -> dict[str, Any]:
    """Converts variables between configurations that differ only in layout."""
    return from_plain(to_plain(variables, source), target)


def convert_shapes(variables: Any, source: OFAConfig, target: OFAConfig) -> Any:
    """Converts a tree of jax.ShapeDtypeStruct as `convert` does arrays."""
    return jax.eval_shape(lambda tree: convert(tree, source, target), variables)


def _stacked_modules(config: OFAConfig) -> dict[tuple[_Path, ...], _Path]:
    """Returns the paths of modules that are stacked -> the path of their stack."""
    if not config.scan_layers:
        return {}
    stacks: dict[tuple[_Path, ...], _Path] = {}
    for side, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        stacks[tuple((side, f"layer_{i}") for i in range(layers))] = (side, "layers")
    for stage, blocks in enumerate(config.resnet_layers, 1):
        if blocks > 1:
            # The first block has another stride and a shortcut, so it is not stacked.
            modules = (("encoder", "resnet", f"stage_{stage}_block_{i}") for i in range(1, blocks))
            stacks[tuple(modules)] = ("encoder", "resnet", f"stage_{stage}_blocks")
    return stacks
