"""Packs the tokens of several streams into one array, so that shared work is done once.

The embedding look-up, the logits and their gradients, which are as large as the embedding and
summed over all devices, are paid once per call and not per token.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from ofa_jax.model.layers import with_activation_sharding


def pack_streams(
    arrays: Sequence[Shaped[Array, "..."]], shapes: Sequence[Sequence[int]] | None = None
) -> Shaped[Array, "rows length *rest"]:
    """Concatenates arrays of tokens along the length, in as many rows as divide every batch.

    A batch that is sharded over devices keeps its sharding: the first half of the rows holds the
    first half of every batch.

    Args:
      arrays: [B_i, T_i, ...], or [B_i, G_i, T_i, ...] for several targets per example; the axes
        after the tokens are the same for all.
      shapes: shapes of the tokens, [B_i, T_i] or [B_i, G_i, T_i]; the whole shapes if None.

    Returns:
      [R, L, ...], where R is the greatest common divisor of all B_i.
    """
    shapes = shapes or [array.shape for array in arrays]
    # An export may leave the batch of its only stream open: such a size has no divisors.
    rows = shapes[0][0] if len(shapes) == 1 else math.gcd(*(shape[0] for shape in shapes))
    flat = [
        array.reshape(rows, -1, *array.shape[len(shape) :])
        for array, shape in zip(arrays, shapes, strict=True)
    ]
    if len(flat) == 1:
        return flat[0]
    others = (None,) * (flat[0].ndim - 2)
    return with_activation_sharding(jnp.concatenate(flat, axis=1), "batch", "length", *others)


def unpack_streams(
    packed: Shaped[Array, "rows length *rest"], shapes: Sequence[Sequence[int]]
) -> list[Shaped[Array, "..."]]:
    """Splits a packed array into the arrays of each stream; inverts `pack_streams`.

    Args:
      packed: [R, L, ...].
      shapes: [B_i, T_i] or [B_i, G_i, T_i] of each stream.

    Returns:
      Arrays [B_i, T_i, ...] or [B_i, G_i, T_i, ...].
    """
    widths = [math.prod(shape) // packed.shape[0] for shape in shapes]
    parts = jnp.split(packed, np.cumsum(widths)[:-1], axis=1)
    return [
        part.reshape(*shape, *packed.shape[2:]) for part, shape in zip(parts, shapes, strict=True)
    ]
