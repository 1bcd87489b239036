"""Position ids, rows of the relative position tables, and the biases looked up in them.

OFA keeps positions out of the embeddings (TUPE, Ke et al. 2021). Each pair of a query q and a key k
gets a bias per head from one of two tables, by indices that are static under jit:

* text-text: a 1-D table over q - k, exact within `bucket_size / 2`, logarithmic beyond (as in T5);
* patch-patch, code-code: a 2-D table over (row difference, column difference), with three more rows
  for position 0, which is not part of the image (the decoder's bos): as query, as key, as both.

An image position id is `row * image_bucket_size + column + 1`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float, Int

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
      query_ids, key_ids: int arrays (numpy or jax) that broadcast; 0 is the position outside of
        the image.
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


def grid_position_ids(rows: int, columns: int, bucket_size: int) -> Int[np.ndarray, "rows*columns"]:
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


def toeplitz(values: Float[Array, "*rest 2*n-1"]) -> Float[Array, "*rest n n"]:
    """Builds the matrix M[..., q, k] = values[..., n - 1 + q - k] of a vector over differences.

    It only repeats and reshapes. A gather would give the same, but its gradient is a scatter, which
    is slow on accelerators; the gradient of this function is a reshape and a sum.

    Args:
      values: entry n - 1 + d belongs to the difference d.

    Returns:
      The matrices.

    Example:
      >>> toeplitz(jnp.array([-1, 0, 1])).tolist()
      [[0, -1], [1, 0]]
    """
    n = (values.shape[-1] + 1) // 2
    flipped = values[..., ::-1]
    # A period of 2n read in rows of 2n - 1 starts one place earlier each row.
    period = jnp.concatenate(
        [flipped[..., n - 1 :], jnp.zeros_like(values[..., :1]), flipped[..., : n - 1]], axis=-1
    )
    rows = jnp.broadcast_to(period[..., None, :], (*values.shape[:-1], n, 2 * n))
    flat = rows.reshape(*values.shape[:-1], 2 * n * n)[..., : n * (2 * n - 1)]
    return flat.reshape(*values.shape[:-1], n, 2 * n - 1)[..., :n]


def text_bias(
    table: Float[Array, "buckets heads"],
    length: int,
    bucket_size: int,
    position: Int[Array, ""] | None = None,
) -> Float[Array, "heads queries length"]:
    """Computes the relative bias between the positions of a text.

    Args:
      table: the 1-D relative table.
      length: number of tokens.
      bucket_size: see `token_buckets`.
      position: position of the only query; None if all positions are queries.

    Returns:
      The bias; `queries` is 1 or `length`.
    """
    buckets = token_buckets(bucket_size, np.arange(1 - length, length))
    if position is None:
        return toeplitz(table[buckets].T)
    # The distances q - 0, q - 1, ... are adjacent in the reversed vector.
    row = jax.lax.dynamic_slice(jnp.asarray(buckets[::-1]), (length - 1 - position,), (length,))
    return table[row].T[:, None]


def grid_bias(
    table: Float[Array, "relations heads"], rows: int, columns: int, bucket_size: int
) -> Float[Array, "heads rows*columns rows*columns"]:
    """Computes the relative bias between all patches of a grid.

    Args:
      table: the 2-D relative table, [(2 * bucket_size - 1) ** 2 + 3, heads].
      rows, columns: the grid, within `bucket_size`.
      bucket_size: side of the largest grid.

    Returns:
      The bias, [heads, query, key].
    """
    side, heads = 2 * bucket_size - 1, table.shape[-1]
    differences = table[: side * side].reshape(side, side, heads)
    differences = differences[
        bucket_size - rows : bucket_size + rows - 1,
        bucket_size - columns : bucket_size + columns - 1,
    ]
    by_column = toeplitz(differences.transpose(2, 0, 1))  # [heads, 2 rows - 1, column, column]
    both = toeplitz(by_column.transpose(0, 2, 3, 1))  # [heads, column, column, row, row]
    return both.transpose(0, 3, 1, 4, 2).reshape(heads, rows * columns, rows * columns)


def patch_bias(
    table: Float[Array, "relations heads"],
    indices: Int[Array, "batch patches"],
    grid: tuple[int, int],
    bucket_size: int,
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "batch heads patches patches"]:
    """Computes the relative bias between patches that are sampled per example.

    Args:
      table: the 2-D relative table, [(2 * bucket_size - 1) ** 2 + 3, heads].
      indices: sampled patches of the grid, counted row by row.
      grid: rows and columns, within `bucket_size`.
      bucket_size: side of the largest grid.
      dtype: dtype that accelerators may round the table to.

    Returns:
      The bias, [batch, heads, query, key].
    """
    return _patch_bias(table, indices, grid, bucket_size, jnp.dtype(dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _patch_bias(
    table: Array, indices: Array, grid: tuple[int, int], bucket_size: int, dtype: jnp.dtype
) -> Array:
    return jax.lax.platform_dependent(
        table,
        indices,
        cpu=functools.partial(_patch_bias_by_lookup, grid=grid, bucket_size=bucket_size),
        default=functools.partial(
            _patch_bias_by_matmul, grid=grid, bucket_size=bucket_size, dtype=dtype
        ),
    )


def _patch_bias_forward(
    table: Array, indices: Array, grid: tuple[int, int], bucket_size: int, dtype: jnp.dtype
) -> tuple[Array, tuple[Array, Array]]:
    return _patch_bias(table, indices, grid, bucket_size, dtype), (table, indices)


def _patch_bias_backward(
    grid: tuple[int, int],
    bucket_size: int,
    dtype: jnp.dtype,
    residuals: tuple[Array, Array],
    gradient: Array,
) -> tuple[Array, None]:
    def table_gradient(function: Callable[..., Array], **options: Any) -> Callable[..., Array]:
        return lambda table, indices, gradient: jax.vjp(
            lambda table: function(table, indices, grid, bucket_size, **options), table
        )[1](gradient)[0]

    return jax.lax.platform_dependent(
        *residuals,
        gradient,
        cpu=table_gradient(_patch_bias_by_lookup),
        default=table_gradient(_patch_bias_by_matmul, dtype=dtype),
    ), None


_patch_bias.defvjp(_patch_bias_forward, _patch_bias_backward)


def _patch_bias_by_lookup(
    table: Array, indices: Array, grid: tuple[int, int], bucket_size: int
) -> Array:
    """Looks up a row of the table for every pair of patches."""
    ids = jnp.asarray(grid_position_ids(*grid, bucket_size))[indices]
    buckets = image_buckets(ids[:, :, None], ids[:, None, :], bucket_size)
    return jnp.take(table, buckets, axis=0, mode="clip").transpose(0, 3, 1, 2)


def _patch_bias_by_matmul(
    table: Array, indices: Array, grid: tuple[int, int], bucket_size: int, dtype: jnp.dtype
) -> Array:
    """Computes the bias of the whole grid, then selects rows of queries and columns of keys.

    On an accelerator, looking up N * N short rows of the table per example is slow. This copies N
    long rows and selects the columns by a product with one-hot vectors (2 N N heads P operations
    for a grid of P patches), which costs little on a matrix unit.
    """
    whole = grid_bias(table, *grid, bucket_size).astype(dtype)
    queries = whole.transpose(1, 0, 2)[indices]  # [B, N, heads, P]
    selection = jax.nn.one_hot(indices, math.prod(grid), dtype=dtype)
    # Exact: every sum has a single nonzero term, and float32 uses the highest precision.
    return jnp.einsum(
        "bqhp,bkp->bhqk",
        queries,
        selection,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def code_bias(
    table: Float[Array, "relations heads"],
    length: int,
    code_grid: int,
    bucket_size: int,
    position: Int[Array, ""] | None = None,
) -> Float[Array, "heads queries length"]:
    """Computes the relative bias within a decoder row of image codes.

    Args:
      table: the 2-D relative table, [(2 * bucket_size - 1) ** 2 + 3, heads].
      length: number of tokens: bos, the codes, then fillers.
      code_grid: side of the grid of codes.
      bucket_size: side of the largest grid.
      position: position of the only query; None if all positions are queries.

    Returns:
      The bias; `queries` is 1 or `length`.
    """
    num_codes = code_grid**2
    if position is not None:
        ids = jnp.asarray(code_position_ids(code_grid, bucket_size, length))
        return table[image_buckets(ids[position], ids, bucket_size)].T[:, None]
    if length > num_codes + 1:
        # A longer text is in the same batch: fillers follow the grid.
        return _append_filler_bias(
            code_bias(table, num_codes + 1, code_grid, bucket_size),
            table,
            length,
            code_grid,
            bucket_size,
        )
    query_bos, key_bos, both_bos = table[-3], table[-2], table[-1]
    rows = -(-max(length - 1, 1) // code_grid)
    grid = grid_bias(table, rows, code_grid, bucket_size)[:, : length - 1, : length - 1]
    heads = table.shape[-1]
    first_row = jnp.concatenate(
        [both_bos[:, None], jnp.broadcast_to(query_bos[:, None], (heads, length - 1))], axis=1
    )
    first_column = jnp.broadcast_to(key_bos[:, None, None], (heads, length - 1, 1))
    return jnp.concatenate(
        [first_row[:, None], jnp.concatenate([first_column, grid], axis=2)], axis=1
    )


def _append_filler_bias(
    bias: Float[Array, "heads n n"],
    table: Float[Array, "relations heads"],
    length: int,
    code_grid: int,
    bucket_size: int,
) -> Float[Array, "heads length length"]:
    """Extends a bias by filler positions, which all have the same id."""
    heads, n = bias.shape[:2]
    all_ids = code_position_ids(code_grid, bucket_size, n + 1)
    ids, filler, count = all_ids[:-1], all_ids[-1:], length - n
    as_key = table[image_buckets(ids, filler, bucket_size)].T[:, :, None]
    as_query = table[image_buckets(filler, all_ids, bucket_size)].T
    as_query = jnp.concatenate(
        [as_query[:, :-1], jnp.broadcast_to(as_query[:, -1:], (heads, count))], axis=1
    )
    rows = jnp.concatenate([bias, jnp.broadcast_to(as_key, (heads, n, count))], axis=2)
    return jnp.concatenate(
        [rows, jnp.broadcast_to(as_query[:, None], (heads, count, length))], axis=1
    )


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
      rows, columns: size of the new grid.

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
