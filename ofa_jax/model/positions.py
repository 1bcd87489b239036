"""Positions: which row of a relative table a pair of positions uses, and the biases they give.

OFA keeps positions out of the embeddings (TUPE, Ke et al. 2021). A pair (query q, key k) gets a
score term per head from two sources, both computed here from indices that are static under jit:

* text-text: a 1-D table over q - k, exact within `bucket_size / 2`, logarithmic beyond (as T5's);
* patch-patch, code-code: a 2-D table over (row difference, column difference), and three rows more
  for the position 0 that is no patch (the decoder's bos): as query, as key, as both.

An image position id is `row * image_bucket_size + column + 1`.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.model.config import RELATIVE_POSITION_RANGE

FILLER_POSITION = 1024
"""Image position id that the decoder gives to every token after its last image code."""

FILLER_COUNT = 769
"""How many of them the original's index buffer holds: 1 + 256 + 769 = 1026 for a 16x16 grid."""


def token_buckets(
    bucket_size: int, distances: np.ndarray, max_position: int = RELATIVE_POSITION_RANGE
) -> np.ndarray:
    """Row of the 1-D relative table for each distance q - k.

    With m = bucket_size / 2, a distance d with |d| <= m keeps its own row; beyond, the row grows
    with ceil((m - 1) log(|d| / m) / log((max_position - 1) / m)) + m.

    Args:
      bucket_size: half the number of rows, plus one half: the table has `2 * bucket_size - 1`.
      distances: int [...], query position minus key position, within `max_position`.
      max_position: the distance at which the last row is reached.

    Returns:
      int32 [...] in [0, 2 * bucket_size - 2]; distance 0 is row `bucket_size - 1`.

    Example:
      >>> token_buckets(256, np.array([0, 1, -128, 1023])).tolist()
      [255, 256, 127, 510]
    """
    distances = np.asarray(distances, np.int64)
    middle = bucket_size // 2
    # float32 throughout: the published tables were rounded up from float32 logarithms.
    magnitude = np.maximum(np.abs(distances), middle).astype(np.float32)
    scale = (
        np.float32(np.log((max_position - 1) / middle))
        if middle < max_position - 1
        else (np.float32(1))
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
) -> np.ndarray:
    """`token_buckets` of every pair of positions: int32 [length (query), length (key)]."""
    positions = np.arange(length)
    return token_buckets(bucket_size, positions[:, None] - positions[None, :], max_position)


def num_image_relations(bucket_size: int) -> int:
    """Rows of the 2-D relative table: 83 * 83 + 3 = 6892 for bucket size 42."""
    return (2 * bucket_size - 1) ** 2 + 3


def image_buckets(query_ids, key_ids, bucket_size: int):
    """Row of the 2-D relative table for pairs of image position ids.

    Args:
      query_ids, key_ids: int arrays (numpy or jax) that broadcast; 0 is the position without a
        place in the image.
      bucket_size: places a side.

    Returns:
      int32 of the broadcast shape, in [0, (2 * bucket_size - 1) ** 2 + 2].
    """
    xp = np if isinstance(query_ids, np.ndarray) and isinstance(key_ids, np.ndarray) else jnp
    side = 2 * bucket_size - 1
    query, key = query_ids - 1, key_ids - 1
    row = query // bucket_size - key // bucket_size + bucket_size - 1
    column = query % bucket_size - key % bucket_size + bucket_size - 1
    special = xp.where(query_ids == 0, xp.where(key_ids == 0, 2, 0), 1) + side * side
    nowhere = (query_ids == 0) | (key_ids == 0)
    return xp.where(nowhere, special, row * side + column).astype(xp.int32)


def image_bucket_table(bucket_size: int) -> np.ndarray:
    """`image_buckets` of every pair of ids: int32 [n, n] with n = bucket_size ** 2 + 1."""
    ids = np.arange(bucket_size**2 + 1)
    return image_buckets(ids[:, None], ids[None, :], bucket_size)


def patch_grid(height: int, width: int) -> tuple[int, int]:
    """Patches down and across that the ResNet makes of an image of so many pixels.

    Four layers of stride 2 (stem, pooling, conv3_x, conv4_x), each rounding up.
    """
    for _ in range(4):
        height, width = -(-height // 2), -(-width // 2)
    return height, width


def grid_position_ids(rows: int, columns: int, bucket_size: int) -> np.ndarray:
    """Image position ids of a grid, row by row: int32 [rows * columns].

    Example:
      >>> grid_position_ids(2, 3, bucket_size=42).tolist()
      [1, 2, 3, 43, 44, 45]
    """
    return (
        (np.arange(rows)[:, None] * bucket_size + np.arange(columns) + 1)
        .reshape(-1)
        .astype(np.int32)
    )


def code_position_ids(code_grid: int, bucket_size: int, length: int | None = None) -> np.ndarray:
    """Image position ids of a decoder row of image codes: bos, the grid, then the filler.

    Args:
      code_grid: codes a side.
      bucket_size: places a side of the position table; the filler id is kept inside it.
      length: how many ids; by default the 1 + code_grid ** 2 + 769 of the original's buffer.

    Returns:
      int32 [length].
    """
    ids = np.concatenate([[0], grid_position_ids(code_grid, code_grid, bucket_size)])
    length = len(ids) + FILLER_COUNT if length is None else length
    filler = np.full(max(0, length - len(ids)), min(FILLER_POSITION, bucket_size**2))
    return np.concatenate([ids, filler])[:length].astype(np.int32)


def toeplitz(values: jax.Array) -> jax.Array:
    """The matrix M[..., q, k] = values[..., n - 1 + q - k] of a vector over differences.

    By repeating and reshaping only: a gather would give the same, but its gradient is a scatter,
    the slowest thing an accelerator does; this one's is a reshape and a sum.

    Args:
      values: [..., 2 * n - 1], entry n - 1 + d for the difference d.

    Returns:
      [..., n, n].

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
    table: jax.Array, length: int, bucket_size: int, position: jax.Array | None = None
) -> jax.Array:
    """Relative bias between the positions of a text.

    Args:
      table: [R, heads].
      length: of the text.
      bucket_size: as in `token_buckets`.
      position: of the one query wanted; None for all of them.

    Returns:
      [heads, length or 1 (query), length (key)].
    """
    buckets = token_buckets(bucket_size, np.arange(1 - length, length))
    if position is None:
        return toeplitz(table[buckets].T)
    # The distances q - 0, q - 1, ... lie side by side in the reversed vector.
    row = jax.lax.dynamic_slice(jnp.asarray(buckets[::-1]), (length - 1 - position,), (length,))
    return table[row].T[:, None]


def grid_bias(table: jax.Array, rows: int, columns: int, bucket_size: int) -> jax.Array:
    """Relative bias between all places of a grid.

    Args:
      table: [(2 * bucket_size - 1) ** 2 + 3, heads].
      rows, columns: the grid, within `bucket_size`.
      bucket_size: places a side of the table.

    Returns:
      [heads, rows * columns (query), rows * columns (key)].
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
    table: jax.Array,
    places: jax.Array,
    grid: tuple[int, int],
    bucket_size: int,
    dtype: jnp.dtype = jnp.float32,
) -> jax.Array:
    """Relative bias between patches chosen per example.

    Args:
      table: [(2 * bucket_size - 1) ** 2 + 3, heads].
      places: int32 [B, N], which patches of the grid, counted row by row.
      grid: rows and columns, within `bucket_size`.
      bucket_size: places a side of the table.
      dtype: what an accelerator may round the table to.

    Returns:
      [B, heads, N, N].
    """
    return _patch_bias(table, places, grid, bucket_size, jnp.dtype(dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _patch_bias(table, places, grid, bucket_size, dtype):
    return jax.lax.platform_dependent(
        table,
        places,
        cpu=functools.partial(_by_look_up, grid=grid, bucket_size=bucket_size),
        default=functools.partial(_by_products, grid=grid, bucket_size=bucket_size, dtype=dtype),
    )


def _patch_bias_forward(table, places, grid, bucket_size, dtype):
    return _patch_bias(table, places, grid, bucket_size, dtype), (table, places)


def _patch_bias_backward(grid, bucket_size, dtype, residuals, gradient):
    def transposed(function, **options):
        return lambda table, places, gradient: jax.vjp(
            lambda table: function(table, places, grid, bucket_size, **options), table
        )[1](gradient)[0]

    return jax.lax.platform_dependent(
        *residuals,
        gradient,
        cpu=transposed(_by_look_up),
        default=transposed(_by_products, dtype=dtype),
    ), None


_patch_bias.defvjp(_patch_bias_forward, _patch_bias_backward)


def _by_look_up(table, places, grid, bucket_size):
    """A row of the table for every pair."""
    ids = jnp.asarray(grid_position_ids(*grid, bucket_size))[places]
    index = image_buckets(ids[:, :, None], ids[:, None, :], bucket_size)
    return jnp.take(table, index, axis=0, mode="clip").transpose(0, 3, 1, 2)


def _by_products(table, places, grid, bucket_size, dtype):
    """The bias of the whole grid; then the rows of the queries, and the columns of the keys.

    An accelerator looks up one short row of the table after another, and there are N * N of them in
    every example. Here it copies N long rows, and picks columns by a product with zeros and ones,
    which its matrix unit does on the side (2 N N heads P operations for P places of the grid).
    """
    whole = grid_bias(table, *grid, bucket_size).astype(dtype)
    queries = whole.transpose(1, 0, 2)[places]  # [B, N, heads, P]
    chosen = jax.nn.one_hot(places, math.prod(grid), dtype=dtype)
    # Exact: in float32 as the highest precision has it, and there is one term in every sum.
    return jnp.einsum(
        "bqhp,bkp->bhqk",
        queries,
        chosen,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def code_bias(
    table: jax.Array,
    length: int,
    code_grid: int,
    bucket_size: int,
    position: jax.Array | None = None,
) -> jax.Array:
    """Relative bias within a decoder row of image codes, [heads, length or 1, length].

    As `text_bias`, with the 2-D table.
    """
    num_codes = code_grid**2
    if position is not None:
        ids = jnp.asarray(code_position_ids(code_grid, bucket_size, length))
        return table[image_buckets(ids[position], ids, bucket_size)].T[:, None]
    if length > num_codes + 1:
        # A longer text is in the same batch: filler positions follow the grid.
        return _followed_by_filler(
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


def _followed_by_filler(bias, table, length, code_grid, bucket_size) -> jax.Array:
    """[heads, n, n] to [heads, length, length]: all filler positions have the same id."""
    heads, n = bias.shape[:2]
    *ids, filler = code_position_ids(code_grid, bucket_size, n + 1)
    ids, filler, count = np.array(ids), np.array([filler]), length - n
    as_key = table[image_buckets(ids, filler, bucket_size)].T[:, :, None]
    as_query = table[image_buckets(filler, np.append(ids, filler), bucket_size)].T
    as_query = jnp.concatenate(
        [as_query[:, :-1], jnp.broadcast_to(as_query[:, -1:], (heads, count))], axis=1
    )
    rows = jnp.concatenate([bias, jnp.broadcast_to(as_key, (heads, n, count))], axis=2)
    return jnp.concatenate(
        [rows, jnp.broadcast_to(as_query[:, None], (heads, count, length))], axis=1
    )


@functools.lru_cache(maxsize=64)
def _resize_matrix(source: int, target: int) -> np.ndarray:
    """Weights of a 1-D linear resize with half-pixel centres and no antialiasing."""
    centre = np.maximum((np.arange(target) + 0.5) * (source / target) - 0.5, 0.0)
    low = np.minimum(np.floor(centre).astype(int), source - 1)
    high = np.minimum(low + 1, source - 1)
    weights = np.zeros((target, source))
    np.add.at(weights, (np.arange(target), low), 1 - (centre - low))
    np.add.at(weights, (np.arange(target), high), centre - low)
    return weights.astype(np.float32)


def interpolate_positions(embeddings: jax.Array, rows: int, columns: int) -> jax.Array:
    """Bilinear resize of a square grid of position embeddings.

    Half-pixel centres, edges repeated, no antialiasing: torch's `interpolate(mode="bilinear")`.

    Args:
      embeddings: [n, n, d].
      rows, columns: the grid wanted.

    Returns:
      [rows * columns, d].
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
