"""Tokens of several streams side by side, so that what all of them share is done once.

What a batch costs that is as large as the embedding (its look-up, the logits, and above all the
gradients of both, which are summed over all devices) is paid per product, not per token.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.model.layers import with_activation_sharding


def pack_streams(
    arrays: Sequence[jax.Array], shapes: Sequence[Sequence[int]] | None = None
) -> jax.Array:
    """Lays arrays of tokens next to each other, in as many rows as divide every batch.

    So a batch that is split over devices stays where it is, and the first half of the rows has the
    first half of every batch.

    Args:
      arrays: [B_i, T_i, ...], or [B_i, G_i, T_i, ...] for several answers to each example; what
        follows the tokens is the same for all.
      shapes: of the tokens, [B_i, T_i] or [B_i, G_i, T_i]; the whole shapes when None.

    Returns:
      [R, L, ...], R the greatest common divisor of all B_i.
    """
    shapes = shapes or [array.shape for array in arrays]
    rows = math.gcd(*(shape[0] for shape in shapes))
    flat = [
        array.reshape(rows, -1, *array.shape[len(shape) :])
        for array, shape in zip(arrays, shapes, strict=True)
    ]
    if len(flat) == 1:
        return flat[0]
    others = (None,) * (flat[0].ndim - 2)
    return with_activation_sharding(jnp.concatenate(flat, axis=1), "batch", "length", *others)


def unpack_streams(laid: jax.Array, shapes: Sequence[Sequence[int]]) -> list[jax.Array]:
    """The other way round.

    Args:
      laid: [R, L, ...].
      shapes: [B_i, T_i] or [B_i, G_i, T_i] of each.

    Returns:
      Arrays [B_i, T_i, ...] or [B_i, G_i, T_i, ...].
    """
    widths = [math.prod(shape) // laid.shape[0] for shape in shapes]
    parts = jnp.split(laid, np.cumsum(widths)[:-1], axis=1)
    return [
        part.reshape(*shape, *laid.shape[2:]) for part, shape in zip(parts, shapes, strict=True)
    ]
