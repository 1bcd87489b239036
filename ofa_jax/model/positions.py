"""Position ids, and the rows of the relative position tables for pairs of positions.

OFA keeps positions out of the embeddings (TUPE, Ke et al. 2021). Each pair of a query q and a key k
gets a bias per head from one of two tables, by indices that are static under jit:

* text-text: a 1-D table over q - k, exact within `bucket_size / 2`, logarithmic beyond (as in T5);
* patch-patch, code-code: a 2-D table over (row difference, column difference), with three more rows
  for position 0, which is not part of the image (the decoder's bos): as query, as key, as both.

`position_biases` looks up the biases.

An image position id is `row * image_bucket_size + column + 1`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ofa_jax.model.config import RELATIVE_POSITION_RANGE

FILLER_POSITION = 1024
"""Image position id of all decoder tokens after the last image code."""

FILLER_COUNT = 769
"""Number of fillers in the index buffer of the reference implementation: 1 + 256 + 769 = 1026
positions for a 16x16 grid."""


def token_buckets(
    bucket_size: int,
    distances: Int[np.ndarray, "..."],
    max_position: int = RELATIVE_POSITION_RANGE,
) -> Int[np.ndarray, "..."]:
    """Computes the row of the 1-D relative table for each distance q - k.

    With m = bucket_size / 2, a distance d with |d| <= m has its own row; beyond, the row grows
    with ceil((m - 1) log(|d| / m) / log((max_position - 1) / m)) + m.

    Args:
      bucket_size: size of the buckets; the table has `2 * bucket_size - 1` rows.
      distances: query position minus key position, within `max_position`.
      max_position: the distance at which the last row is reached.

    Returns:
      int32 rows in [0, 2 * bucket_size - 2]; distance 0 is row `bucket_size - 1`.

    Example:
      >>> token_buckets(256, np.array([0, 1, -128, 1023])).tolist()
      [255, 256, 127, 510]
    """
    distances = np.asarray(distances, np.int64)
    middle = bucket_size // 2
    # Float32 as in the reference implementation, because its logarithms are rounded up.
    magnitude = np.maximum(np.abs(distances), middle).astype(np.float32)
    scale = (
        np.float32(np.log((max_position - 1) / middle))
        if middle < max_position - 1
        else np.float32(1)
    )
    logarithmic = (
        np.ceil(np.log(magnitude / np.float32(middle)) / scale * np.float32(middle - 1)) + middle
    )
    far = np.sign(distances) * logarithmic.astype(np.int64)
    return (np.where(np.abs(distances) <= middle, distances, far) + bucket_size - 1).astype(
        np.int32
    )


def token_bucket_table(
    bucket_size: int,
    length: int = RELATIVE_POSITION_RANGE,
    max_position: int = RELATIVE_POSITION_RANGE,
) -> Int[np.ndarray, "length length"]:
    """Computes `token_buckets` of every pair of positions (query, key)."""
    positions = np.arange(length)
    return token_buckets(bucket_size, positions[:, None] - positions[None, :], max_position)


def num_image_relations(bucket_size: int) -> int:
    """Returns the rows of the 2-D relative table: 83 * 83 + 3 = 6892 for bucket size 42."""
    return (2 * bucket_size - 1) ** 2 + 3


def image_buckets(query_ids: Any, key_ids: Any, bucket_size: int) -> Any:
    """Computes the row of the 2-D relative table for pairs of image position ids.

    Args:
      query_ids: int array (numpy or jax); 0 is the position outside of the image.
      key_ids: int array that broadcasts with `query_ids`.
      bucket_size: side of the largest grid.

    Returns:
      int32 rows of the broadcast shape, in [0, (2 * bucket_size - 1) ** 2 + 2]; numpy if both
      arguments are.
    """
    xp: Any = np if isinstance(query_ids, np.ndarray) and isinstance(key_ids, np.ndarray) else jnp
    side = 2 * bucket_size - 1
    query, key = query_ids - 1, key_ids - 1
    row = query // bucket_size - key // bucket_size + bucket_size - 1
    column = query % bucket_size - key % bucket_size + bucket_size - 1
    special = xp.where(query_ids == 0, xp.where(key_ids == 0, 2, 0), 1) + side * side
    outside = (query_ids == 0) | (key_ids == 0)
    return xp.where(outside, special, row * side + column).astype(xp.int32)


def image_bucket_table(bucket_size: int) -> Int[np.ndarray, "ids ids"]:
    """Computes `image_buckets` of every pair of the bucket_size ** 2 + 1 ids."""
    ids = np.arange(bucket_size**2 + 1)
    return image_buckets(ids[:, None], ids[None, :], bucket_size)


def patch_grid(height: int, width: int) -> tuple[int, int]:
    """Returns the rows and columns of the ResNet's patches for an image size in pixels.

    Four layers have stride 2 (stem, pooling, conv3_x, conv4_x), and each rounds up.
    """
    for _ in range(4):
        height, width = -(-height // 2), -(-width // 2)
    return height, width


def grid_position_ids(rows: int, columns: int, bucket_size: int) -> Int[np.ndarray, " patches"]:
    """Returns the image position ids of a grid, row by row.

    Example:
      >>> grid_position_ids(2, 3, bucket_size=42).tolist()
      [1, 2, 3, 43, 44, 45]
    """
    return (
        (np.arange(rows)[:, None] * bucket_size + np.arange(columns) + 1)
        .reshape(-1)
        .astype(np.int32)
    )


def code_position_ids(
    code_grid: int, bucket_size: int, length: int | None = None
) -> Int[np.ndarray, " length"]:
    """Returns the image position ids of a decoder row of image codes: bos, grid, then fillers.

    Args:
      code_grid: side of the grid of codes.
      bucket_size: side of the grid that the position table covers; the filler id is kept within.
      length: number of ids; by default 1 + code_grid ** 2 + 769 as in the reference
        implementation.

    Returns:
      int32 ids.
    """
    ids = np.concatenate([[0], grid_position_ids(code_grid, code_grid, bucket_size)])
    length = len(ids) + FILLER_COUNT if length is None else length
    filler = np.full(max(0, length - len(ids)), min(FILLER_POSITION, bucket_size**2))
    return np.concatenate([ids, filler])[:length].astype(np.int32)


@functools.lru_cache(maxsize=64)
def _resize_matrix(source: int, target: int) -> Float[np.ndarray, "target source"]:
    """Computes the weights of a 1-D linear resize (half-pixel centres, no antialiasing)."""
    centre = np.maximum((np.arange(target) + 0.5) * (source / target) - 0.5, 0.0)
    low = np.minimum(np.floor(centre).astype(int), source - 1)
    high = np.minimum(low + 1, source - 1)
    weights = np.zeros((target, source))
    np.add.at(weights, (np.arange(target), low), 1 - (centre - low))
    np.add.at(weights, (np.arange(target), high), centre - low)
    return weights.astype(np.float32)


def interpolate_positions(
    embeddings: Float[Array, "n n width"], rows: int, columns: int
) -> Float[Array, "rows*columns width"]:
    """Resizes a square grid of position embeddings bilinearly.

    Uses half-pixel centres, repeated edges and no antialiasing, as torch's
    `interpolate(mode="bilinear")` does.

    Args:
      embeddings: the grid.
      rows: rows of the new grid.
      columns: columns of the new grid.

    Returns:
      The new grid, row by row.
    """
    n = embeddings.shape[0]
    resized = jnp.einsum(
        "ri,cj,ijd->rcd",
        _resize_matrix(n, rows),
        _resize_matrix(n, columns),
        embeddings,
        precision=jax.lax.Precision.HIGHEST,
    )
    return resized.reshape(rows * columns, -1)
