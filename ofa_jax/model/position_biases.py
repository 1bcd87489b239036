"""Relative position biases, looked up in the 1-D and 2-D tables of a layer.

`positions` defines which row of a table belongs to a pair of positions.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float, Int

from ofa_jax.model.positions import (
    code_position_ids,
    grid_position_ids,
    image_buckets,
    token_buckets,
)


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
      rows: rows of the grid, at most `bucket_size`.
      columns: columns of the grid, at most `bucket_size`.
      bucket_size: side of the largest grid.

    Returns:
      The bias, [heads, query, key].
    """
    heads = table.shape[-1]
    by_column = _bias_by_column(table, rows, columns, bucket_size)
    both = toeplitz(by_column.transpose(0, 2, 3, 1))  # [heads, column, column, row, row]
    return both.transpose(0, 3, 1, 4, 2).reshape(heads, rows * columns, rows * columns)


def _bias_by_column(
    table: Float[Array, "relations heads"], rows: int, columns: int, bucket_size: int
) -> Float[Array, "heads 2*rows-1 columns columns"]:
    """Computes the bias by row difference (ascending), column of the query, column of the key."""
    side, heads = 2 * bucket_size - 1, table.shape[-1]
    differences = table[: side * side].reshape(side, side, heads)
    differences = differences[
        bucket_size - rows : bucket_size + rows - 1,
        bucket_size - columns : bucket_size + columns - 1,
    ]
    return toeplitz(differences.transpose(2, 0, 1))


def grid_bands(
    table: Float[Array, "relations heads"], rows: int, columns: int, bucket_size: int
) -> Float[Array, "heads columns (2*rows-1)*columns"]:
    """Arranges a table so that the bias of every row of patches is a slice of it.

    The bias between the patches of row r and all patches of the grid (`grid_bias`) is
    `bands[:, :, start : start + rows * columns]` with `start = (rows - 1 - r) * columns`.

    Args:
      table: the 2-D relative table, [(2 * bucket_size - 1) ** 2 + 3, heads].
      rows: rows of the grid, at most `bucket_size`.
      columns: columns of the grid, at most `bucket_size`.
      bucket_size: side of the largest grid.

    Returns:
      The bands: [heads, column of the query, position of the key].
    """
    by_column = _bias_by_column(table, rows, columns, bucket_size)[:, ::-1]
    return by_column.transpose(0, 2, 1, 3).reshape(table.shape[-1], columns, -1)


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
    """Computes `patch_bias` by the method of the platform."""
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
    """Computes the gradient of the table by the method of the platform."""

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
