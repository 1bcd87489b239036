"""One program of the attention kernel: a block of queries of one example and head, in VMEM."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float, Int

from ofa_jax.model.attention_ops import MASKED_SCORE
from ofa_jax.model.attention_random import keeps


@dataclasses.dataclass(frozen=True)
class KernelSpec:
    """What a kernel is compiled for, beside the shapes of its arguments.

    Attributes:
      causal: whether keys after the query are hidden.
      prefix: number of keys without a position before the others.
      grids: rows and columns of the patch grid of each image with sampled patches.
      dropout_rate: of the weights.
      num_heads: of all devices together, which the random bits depend on.
      queries: number of queries without padding, which the random bits depend on.
      block: queries of a program.
      interpret: runs as ordinary operations, on any platform.
    """

    causal: bool = False
    prefix: int = 0
    grids: tuple[tuple[int, int], ...] = ()
    dropout_rate: float = 0.0
    num_heads: int = 1
    queries: int = 1
    block: int = 512
    interpret: bool = False


def _dot(x: Array, y: Array, contract_x: int, contract_y: int) -> Array:
    """Multiplies two matrices over an axis of each, with float32 sums."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    dimensions = (((contract_x,), (contract_y,)), ((), ()))
    return jax.lax.dot_general(
        x, y, dimensions, precision=precision, preferred_element_type=jnp.float32
    )


def _one_hot(codes: Int[Array, "1 n"], size: int, dtype: Any) -> Float[Array, "size n"]:
    """Returns a column for each code; zeros for -1."""
    places = jax.lax.broadcasted_iota(jnp.int32, (size, codes.shape[1]), 0)
    return jnp.where(places == codes, 1.0, 0.0).astype(dtype)


class Program:
    """A program of the grid (heads, examples, blocks of queries)."""

    def __init__(self, spec: KernelSpec, refs: Mapping[str, Any], shared: frozenset[str]):
        """Finds out which program this is.

        Args:
          spec: of the kernel.
          refs: arguments, results ("d_" before the argument of a gradient) and scratch, by name.
          shared: results that all examples add to.
        """
        self.spec, self.refs, self.shared = spec, refs, shared
        self.head, self.example, self.block = (pl.program_id(axis) for axis in range(3))
        self.dtype = refs["query"].dtype
        self.head_dim = refs["query"].shape[1]
        self.keys = refs["key"].shape[0]
        self.first_block = self.block == 0
        self.last_block = self.block == pl.num_programs(2) - 1
        self.first = (self.example == 0) & self.first_block
        self.last = (self.example == pl.num_programs(1) - 1) & self.last_block
        start = self.block * spec.block
        self.rows = pl.ds(pl.multiple_of(start, spec.block), spec.block)

    def forward(self) -> None:
        """Computes the mixed values."""
        pl.when(self.first)(self._unroll_tables)
        weights, _ = self._weights()
        mixed = _dot(self._drop(weights).astype(self.dtype), self.refs["value"][...], 1, 0)
        self.refs["mixed"][...] = (mixed * self.refs["head_scale"][self.head]).astype(self.dtype)

    def backward(self) -> None:
        """Computes gradients, and adds those of what several programs share."""
        refs, dtype, head_dim = self.refs, self.dtype, self.head_dim
        pl.when(self.first)(self._clear_sums_of_head)
        pl.when(self.first_block)(self._clear_sums_of_example)

        weights, visible = self._weights()
        gradient, scale = refs["mixed"][...], refs["head_scale"][self.head]
        kept = self._drop(weights)
        slope = _dot(gradient, refs["value"][...], 1, 1)
        refs["d_head_scale"][...] += jnp.sum(kept * slope)
        refs["sum_value"][...] += _dot((kept * scale).astype(dtype), gradient, 0, 0)
        slope = self._drop(slope * scale)
        slope = weights * (slope - (weights * slope).sum(axis=1, keepdims=True))
        slope = jnp.where(visible, slope, 0.0)

        if "relative" in refs:
            refs["d_relative"][refs["kinds"][self.example], self.rows, :] += slope
        slope = slope.astype(dtype)
        for image in range(len(self.spec.grids)):
            queries, keys = self._one_hots(image)
            selected = _dot(slope, keys, 1, 1).astype(dtype)
            refs[f"sum_grid{image}"][...] += _dot(queries, selected, 1, 0)
        d_query = _dot(slope, self._columns("key"), 1, 0)
        refs["d_query"][...] = d_query[:, :head_dim].astype(dtype)
        if "d_position_query" in self.shared:
            refs["d_position_query"][self.rows, :] += d_query[:, head_dim:]
        else:
            refs["d_position_query"][...] = d_query[:, head_dim:].astype(dtype)
        refs["sum_key"][...] += _dot(slope, self._columns("query"), 0, 0)
        pl.when(self.last_block)(self._write_sums_of_example)
        pl.when(self.last)(self._write_tables)

    def _columns(self, side: str) -> Float[Array, "length columns"]:
        """Returns content and position columns of "query" or "key"."""
        return jnp.concatenate([self.refs[side][...], self.refs[f"position_{side}"][...]], axis=1)

    def _weights(self) -> tuple[Float[Array, "block keys"], Bool[Array, "block keys"]]:
        """Returns the softmax of the scores, and which pairs count."""
        spec, refs = self.spec, self.refs
        scores = _dot(self._columns("query"), self._columns("key"), 1, 1)
        if "relative" in refs:
            scores += refs["relative"][refs["kinds"][self.example], self.rows, :]
        for image in range(len(spec.grids)):
            queries, keys = self._one_hots(image)
            # Exact: every sum has a single nonzero term, which is rounded to the dtype already.
            selected = _dot(refs[f"grid{image}"][...], keys, 1, 0).astype(self.dtype)
            scores += _dot(queries, selected, 0, 0)
        visible = jnp.broadcast_to(refs["mask"][...], scores.shape) != 0
        if spec.causal:
            visible = visible & (self._number(1) <= self._number(0) + spec.prefix)
        scores = jnp.where(visible, scores, MASKED_SCORE)
        powers = jnp.exp(scores - scores.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True), visible

    def _number(self, axis: int) -> Int[Array, "block keys"]:
        """Returns the number of the query (axis 0) or key (axis 1) of each pair."""
        numbers = jax.lax.broadcasted_iota(jnp.int32, (self.spec.block, self.keys), axis)
        return numbers if axis else numbers + self.block * self.spec.block

    def _drop(self, x: Float[Array, "block keys"]) -> Float[Array, "block keys"]:
        """Applies dropout, with the same bits in the forward and in the backward pass."""
        spec, refs, rate = self.spec, self.refs, self.spec.dropout_rate
        if not rate:
            return x
        example, head = refs["examples"][self.example], refs["heads"][self.head]
        seed = (refs["seed"][0], refs["seed"][1])
        row = (example * spec.num_heads + head) * spec.queries + self._number(0)
        kept = keeps(seed, row, self._number(1), self.keys, 1.0 - rate)
        return jnp.where(kept, x / (1.0 - rate), 0.0)

    def _one_hots(self, image: int) -> list[Float[Array, "patches length"]]:
        """Returns the patch of each query, and of each key, of an image."""
        patches = math.prod(self.spec.grids[image])
        return [
            _one_hot(self.refs[f"{side}_codes{image}"][...], patches, self.dtype)
            for side in ("query", "key")
        ]

    def _unroll_tables(self) -> None:
        """Makes the bias between all patches of each grid; a row of patches is a slice of bands."""
        for image, (rows, columns) in enumerate(self.spec.grids):
            unrolled, bands = self.refs[f"unrolled{image}"], self.refs[f"bands{image}"]
            for row in range(rows):
                start = (rows - 1 - row) * columns
                unrolled[row * columns : (row + 1) * columns, :] = bands[
                    :, start : start + rows * columns
                ]
            self.refs[f"grid{image}"][...] = unrolled[...].astype(self.dtype)

    def _clear_sums_of_head(self) -> None:
        """Prepares a head: tables and sums over its examples."""
        self._unroll_tables()
        names = [f"sum_grid{image}" for image in range(len(self.spec.grids))]
        for name in (*self.shared, *names):
            self.refs[name][...] = jnp.zeros_like(self.refs[name])

    def _clear_sums_of_example(self) -> None:
        """Prepares the sums over the blocks of an example."""
        for name in ("sum_key", "sum_value"):
            self.refs[name][...] = jnp.zeros_like(self.refs[name])

    def _write_sums_of_example(self) -> None:
        """Writes the gradients of keys and values."""
        refs, dtype = self.refs, self.dtype
        d_key = refs["sum_key"][...]
        refs["d_value"][...] = refs["sum_value"][...].astype(dtype)
        refs["d_key"][...] = d_key[:, : self.head_dim].astype(dtype)
        if "d_position_key" in self.shared:
            refs["d_position_key"][...] += d_key[:, self.head_dim :]
        else:
            refs["d_position_key"][...] = d_key[:, self.head_dim :].astype(dtype)

    def _write_tables(self) -> None:
        """Writes the gradients of the bands: the inverse of `_unroll_tables`."""
        for image, (rows, columns) in enumerate(self.spec.grids):
            total, target = self.refs[f"sum_grid{image}"], self.refs[f"d_bands{image}"]
            target[...] = jnp.zeros_like(target)
            for row in range(rows):
                start = (rows - 1 - row) * columns
                target[:, start : start + rows * columns] += total[
                    row * columns : (row + 1) * columns, :
                ]
