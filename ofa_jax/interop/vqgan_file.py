"""Reads and writes the official VQGAN as a torch file, as taming-transformers trains it.

Names in the file are like encoder.down.0.block.1.conv1.weight; what only training needs (the
discriminator, `loss.*`) is ignored. The configuration follows from the arrays.

A quantiser that takes the nearest code is written like the Gumbel one: its scores are linear in the
latent vector z, since the code e with the least |z - e|^2 has the largest z.e - |e|^2 / 2.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.interop import torch_file
from ofa_jax.tokenizers.vqgan import VQGAN, Network, VQGANConfig
from ofa_jax.utils import options
from ofa_jax.utils.option_checks import checked

_MAX_LEVELS = 10
_NAMES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}


@checked
def read(path: options.PathLike) -> VQGAN:
    """Reads the VQGAN of a checkpoint.

    Args:
      path: of a state dict, or of a file that holds it as "state_dict" (`last.ckpt`).

    Raises:
      FileNotFoundError, ValueError: there is none, or it is something else.
    """
    held = torch_file.load_state_dict(os.fspath(path), "VQGAN")
    try:
        return from_state_dict(held)
    except ValueError as error:
        raise ValueError(f"{path} is not an official VQGAN: {error}") from error


def from_state_dict(arrays: Mapping[str, Any]) -> VQGAN:
    """Returns the VQGAN of official arrays by name.

    Raises:
      ValueError: an array is missing, or its shape does not fit the others.
    """
    config = config_of(arrays)
    side = config.pixels_per_code
    shapes = jax.eval_shape(Network(config).init, jax.random.key(0), jnp.zeros((1, side, side, 3)))[
        "params"
    ]
    params = {}
    for path, like in flax.traverse_util.flatten_dict(shapes).items():
        key = official_name(path)
        if key not in arrays:
            raise ValueError(f"{key} is missing.")
        array = np.asarray(arrays[key], np.float32)
        array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
        if array.shape != like.shape:
            raise ValueError(f"{key} has the shape {np.shape(arrays[key])}, which does not fit.")
        params[path] = array
    return VQGAN(config, flax.traverse_util.unflatten_dict(params))


def write(path: options.PathLike, vqgan: VQGAN) -> None:
    """Writes a VQGAN in the official layout, as {"state_dict": ...}; `read` gives the same bits.

    Args:
      path: of the new file.
      vqgan: any.
    """
    torch_file.save(os.fspath(path), {"state_dict": to_state_dict(vqgan)})


def to_state_dict(vqgan: VQGAN) -> dict[str, np.ndarray]:
    """Returns the official arrays by name; inverts `from_state_dict` bit for bit."""
    flat = flax.traverse_util.flatten_dict(dict(vqgan.params))
    return {
        official_name(path): np.ascontiguousarray(
            array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
        )
        for path, array in ((path, np.asarray(array)) for path, array in flat.items())
    }


def config_of(arrays: Mapping[str, Any]) -> VQGANConfig:
    """Returns the configuration of the model that arrays belong to.

    Raises:
      ValueError: arrays that determine it are missing.
    """

    def indices_of(pattern: str) -> list[int]:
        found = (re.match(pattern, name) for name in arrays)
        return sorted({int(match[1]) for match in found if match})

    levels = indices_of(r"encoder\.down\.(\d{1,3})\.block\.0\.conv1\.weight$")
    needed = (
        "encoder.conv_in.weight",
        "encoder.conv_out.weight",
        "quantize.embed.weight",
        "quantize.proj.weight",
    )
    if missing := [name for name in needed if name not in arrays]:
        raise ValueError(f"{missing[0]} is missing.")
    if levels != list(range(len(levels))) or not 0 < len(levels) <= _MAX_LEVELS:
        raise ValueError(f"it has the levels {levels[:_MAX_LEVELS]} of an encoder.")
    for name in (*needed, *(f"encoder.down.{level}.block.0.conv1.weight" for level in levels)):
        if np.ndim(arrays[name]) not in (2, 4) or not np.size(arrays[name]):
            raise ValueError(f"{name} has the shape {np.shape(arrays[name])}, which does not fit.")
    if np.ndim(arrays["quantize.embed.weight"]) != 2:
        raise ValueError("quantize.embed.weight is no table of codes.")
    width = len(arrays["encoder.conv_in.weight"])
    num_codes, code_width = np.shape(arrays["quantize.embed.weight"])
    return VQGANConfig(
        width=width,
        multipliers=tuple(
            len(arrays[f"encoder.down.{level}.block.0.conv1.weight"]) // width for level in levels
        ),
        num_blocks=len(indices_of(r"encoder\.down\.0\.block\.(\d{1,3})\.conv1\.weight$")),
        attention_levels=tuple(indices_of(r"encoder\.down\.(\d{1,3})\.attn\.0\.q\.weight$")),
        latent_width=len(arrays["encoder.conv_out.weight"]),
        code_width=int(code_width),
        num_codes=int(num_codes),
        block_size=_block_size(arrays["encoder.conv_in.weight"]),
    )


def _block_size(kernel: Any) -> int:
    """Returns the side of the blocks of the first layer. Raises ValueError if there are none."""
    channels = np.shape(kernel)[1]
    side = round((channels / 3) ** 0.5)
    if 3 * side**2 != channels:
        raise ValueError(f"encoder.conv_in.weight takes {channels} channels, which are no colours.")
    return side


def official_name(path: tuple[str, ...]) -> str:
    """Returns the official name of a parameter.

    ("encoder", "down_0", "block_1", "conv1", "kernel") becomes
    encoder.down.0.block.1.conv1.weight. The middle blocks have a number in their official name.
    """
    parts = [part if "mid" in path else re.sub(r"_(\d+)$", r".\1", part) for part in path[:-1]]
    return ".".join([*parts, _NAMES[path[-1]]])
