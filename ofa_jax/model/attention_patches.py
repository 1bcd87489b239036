"""The relative bias of sampled patches from the 2-D table, within the attention kernel.

With a grid of R x C patches, the bias of a query in row r and column c towards all patches is a
slice of `position_biases.grid_bands`, as long as the grid: that of band c from (R - 1 - r) C on. So
a program

1. takes the band of each query's column: a product with one-hot vectors of C entries;
2. moves each query's band by its multiple of C: for each binary digit of R - 1 - r, a rotation of
   the whole array, of which the queries with that digit take their rows;
3. takes each key's column of the result: a product with one-hot vectors of R C entries.

All three only copy entries of the table. The gradient goes the same way back.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

LANES = 128
"""Width of a vector register: what is rotated has a multiple of it."""

_MOST_DIGITS = 8


def round_up(size: int, multiple: int = LANES) -> int:
    """Rounds up to a multiple."""
    return -(-size // multiple) * multiple


def dot(x: Array, y: Array, contract_x: int, contract_y: int) -> Array:
    """Multiplies two matrices over an axis of each, with float32 sums."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    dimensions = (((contract_x,), (contract_y,)), ((), ()))
    return jax.lax.dot_general(
        x, y, dimensions, precision=precision, preferred_element_type=jnp.float32
    )


@dataclasses.dataclass(frozen=True)
class PatchSpec:
    """An image with sampled patches.

    Attributes:
      rows: of the patch grid.
      columns: of the patch grid.
      queries: number of queries of a program that may be patches: the first ones.
      keys: number of keys that may be patches: the first ones.
    """

    rows: int
    columns: int
    queries: int
    keys: int

    @property
    def patches(self) -> int:
        """Patches of the whole grid."""
        return self.rows * self.columns

    @property
    def width(self) -> int:
        """Width of the bands."""
        return round_up((2 * self.rows - 1) * self.columns)

    @property
    def multiply_adds(self) -> int:
        """Of the products of the bias in a program, or of its gradient, without the digits."""
        return self.queries * (self.columns * self.width + self.patches * self.keys)

    @property
    def digits_multiply_adds(self) -> int:
        """Of the product that finds the binary digits, once in a program."""
        return self.rows * self.queries * _MOST_DIGITS

    def moves(self) -> Iterator[tuple[int, int, int]]:
        """Yields (digit, lanes to move by, lanes that matter before), the highest digit first."""
        for digit in reversed(range((self.rows - 1).bit_length())):
            before = self.patches + self.columns * (2 ** (digit + 1) - 1)
            yield digit, self.columns * 2**digit, min(self.width, round_up(before))


class ImagePatches:
    """An image with sampled patches in a program of the kernel."""

    def __init__(self, number: int, spec: PatchSpec, refs: Mapping[str, Any], dtype: Any):
        """Takes the number of the image, its sizes, the program's arrays, and their dtype."""
        self.number, self.spec, self.refs, self.dtype = number, spec, refs, dtype

    def name(self, kind: str) -> str:
        """Returns the name of an array of this image."""
        return f"{kind}{self.number}"

    def bias(self, shape: tuple[int, ...]) -> Float[Array, "queries keys"]:
        """Returns the bias of all pairs; zero for what is no patch."""
        spec = self.spec
        bands = self.refs[self.name("bands")][...].astype(self.dtype)
        moved = dot(self._query_columns(), bands, 0, 0)
        for digit, lanes, width in spec.moves():
            moved = moved[:, :width]
            rotated = pltpu.roll(moved, width - lanes, 1)
            moved = jnp.where(self._digits[:, digit : digit + 1] > 0.5, rotated, moved)
        selected = dot(moved[:, : spec.patches].astype(self.dtype), self._keys(), 1, 0)
        return _pad(selected, shape)

    def gradient(self, slope: Float[Array, "queries keys"]) -> Float[Array, "columns width"]:
        """Returns the gradient of the bands from that of the scores."""
        spec = self.spec
        moved = dot(slope[: spec.queries, : spec.keys], self._keys(), 1, 1)
        for digit, lanes, width in reversed(list(spec.moves())):
            moved = _pad(moved, (spec.queries, width))
            rotated = pltpu.roll(moved, lanes, 1)
            moved = jnp.where(self._digits[:, digit : digit + 1] > 0.5, rotated, moved)
        moved = _pad(moved, (spec.queries, spec.width))
        return dot(self._query_columns(), moved.astype(self.dtype), 1, 0)

    def _query_columns(self) -> Float[Array, "columns queries"]:
        """Returns the column of each query's patch as a one-hot vector."""
        codes = self.refs[self.name("query_columns")][...][:, : self.spec.queries]
        return _one_hot(codes, self.spec.columns, self.dtype)

    def _keys(self) -> Float[Array, "patches keys"]:
        """Returns each key's patch as a one-hot vector."""
        codes = self.refs[self.name("key_codes")][...][:, : self.spec.keys]
        return _one_hot(codes, self.spec.patches, self.dtype)

    @functools.cached_property
    def _digits(self) -> Float[Array, "queries digits"]:
        """Returns the binary digits of R - 1 - r for each query, the lowest first."""
        spec = self.spec
        codes = self.refs[self.name("query_rows")][...][:, : spec.queries]
        shape = (spec.rows, _MOST_DIGITS)
        moves = spec.rows - 1 - jax.lax.broadcasted_iota(jnp.int32, shape, 0)
        table = (moves >> jax.lax.broadcasted_iota(jnp.int32, shape, 1)) & 1
        rows = _one_hot(codes, spec.rows, self.dtype)
        return dot(rows, table.astype(jnp.float32).astype(self.dtype), 0, 0)


def _one_hot(codes: Int[Array, "1 n"], size: int, dtype: Any) -> Float[Array, "size n"]:
    """Returns a column for each code; zeros for -1."""
    places = jax.lax.broadcasted_iota(jnp.int32, (size, codes.shape[1]), 0)
    return jnp.where(places == codes, 1.0, 0.0).astype(dtype)


def _pad(x: Float[Array, "n m"], shape: tuple[int, ...]) -> Float[Array, "queries keys"]:
    """Appends zeros."""
    for axis, size in enumerate(shape):
        if x.shape[axis] < size:
            zeros = list(x.shape)
            zeros[axis] = size - x.shape[axis]
            x = jnp.concatenate([x, jnp.zeros(zeros, x.dtype)], axis=axis)
    return x
