"""One program of the attention kernel: a block of queries of one example and head, in VMEM."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float, Int

from ofa_jax.model.attention_ops import MASKED_SCORE
from ofa_jax.model.attention_patches import ImagePatches, PatchSpec, dot
from ofa_jax.model.attention_random import keeps


@dataclasses.dataclass(frozen=True)
class KernelSpec:
    """What a kernel is compiled for, beside the shapes of its arguments.

    Attributes:
      causal: whether keys after the query are hidden.
      prefix: number of keys without a position before the others.
      images: of each image with sampled patches.
      dropout_rate: of the weights.
      num_heads: of all devices together, which the random bits depend on.
      queries: number of queries without padding, which the random bits depend on.
      block: queries of a program.
      interpret: runs as ordinary operations, on any platform.
    """

    causal: bool = False
    prefix: int = 0
    images: tuple[PatchSpec, ...] = ()
    dropout_rate: float = 0.0
    num_heads: int = 1
    queries: int = 1
    block: int = 512
    interpret: bool = False


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
        self.images = [
            ImagePatches(number, image, refs, self.dtype)
            for number, image in enumerate(spec.images)
        ]
        self.first = (self.example == 0) & self.first_block
        start = pl.multiple_of(self.block * spec.block, spec.block)
        # The compiler wants static slices where lengths are odd.
        self.rows = slice(None) if spec.queries <= spec.block else pl.ds(start, spec.block)

    def forward(self) -> None:
        """Computes the mixed values."""
        weights, _ = self._weights()
        mixed = dot(self._drop(weights).astype(self.dtype), self.refs["value"][...], 1, 0)
        self.refs["mixed"][...] = (mixed * self.refs["head_scale"][self.head]).astype(self.dtype)

    def backward(self) -> None:
        """Computes gradients, and adds those of what several programs share."""
        refs, dtype, head_dim = self.refs, self.dtype, self.head_dim
        pl.when(self.first)(self._clear_sums_of_head)
        pl.when(self.first_block)(self._clear_sums_of_example)

        weights, visible = self._weights()
        gradient, scale = refs["mixed"][...], refs["head_scale"][self.head]
        kept = self._drop(weights)
        slope = dot(gradient, refs["value"][...], 1, 1)
        refs["d_head_scale"][...] += jnp.sum(kept * slope)
        refs["sum_value"][...] += dot((kept * scale).astype(dtype), gradient, 0, 0)
        slope = self._drop(slope * scale)
        slope = weights * (slope - (weights * slope).sum(axis=1, keepdims=True))
        slope = jnp.where(visible, slope, 0.0)

        if "relative" in refs:
            refs["d_relative"][refs["kinds"][self.example], self.rows, :] += slope
        slope = slope.astype(dtype)
        for image in self.images:
            refs[image.name("d_bands")][...] += image.gradient(slope)
        d_query = dot(slope, self._columns("key"), 1, 0)
        refs["d_query"][...] = d_query[:, :head_dim].astype(dtype)
        if "d_position_query" in self.shared:
            refs["d_position_query"][self.rows, :] += d_query[:, head_dim:]
        else:
            refs["d_position_query"][...] = d_query[:, head_dim:].astype(dtype)
        refs["sum_key"][...] += dot(slope, self._columns("query"), 0, 0)
        pl.when(self.last_block)(self._write_sums_of_example)

    def _columns(self, side: str) -> Float[Array, "length columns"]:
        """Returns content and position columns of "query" or "key"."""
        return jnp.concatenate([self.refs[side][...], self.refs[f"position_{side}"][...]], axis=1)

    def _weights(self) -> tuple[Float[Array, "block keys"], Bool[Array, "block keys"]]:
        """Returns the softmax of the scores, and which pairs count."""
        spec, refs = self.spec, self.refs
        scores = dot(self._columns("query"), self._columns("key"), 1, 1)
        if "relative" in refs:
            scores += refs["relative"][refs["kinds"][self.example], self.rows, :]
        for image in self.images:
            scores += image.bias(scores.shape)
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

    def _clear_sums_of_head(self) -> None:
        """Prepares the sums over the examples of a head."""
        for name in self.shared:
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
