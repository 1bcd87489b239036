"""One program of an attention kernel: a block of queries and one of keys, of one example and head.

If one block holds all keys, the softmax needs one pass. If there are several blocks, the forward
pass keeps each query's largest score and its sum of exponentials so far (Milakov and Gimelshein
2018, Online normalizer calculation for softmax, section 3). The backward pass computes the
attention weights from their final values, and its sums over all keys from the attention's result
(Dao et al. 2022, FlashAttention, appendix B.4).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float, Int

from ofa_jax.model.attention_patches import ImagePatches, PatchSpec, dot
from ofa_jax.model.attention_random import keeps

HIDDEN = -(2.0**99)
"""Score of masked pairs, like `attention_ops.MASKED_SCORE`."""

_ABSENT = -(2.0**100)
"""Score of keys that only fill up a block: vanishes beside masked pairs too."""

STATISTICS = 8
"""Rows of the statistics of a block of queries: the largest score, the sum of exponentials, the
sum of weights times their gradients, and unused rows: a TPU needs a multiple of eight."""


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
      keys: number of keys without padding, likewise.
      block: queries of a program.
      key_block: keys of a program.
      interpret: runs as ordinary operations, on any platform.
    """

    causal: bool = False
    prefix: int = 0
    images: tuple[PatchSpec, ...] = ()
    dropout_rate: float = 0.0
    num_heads: int = 1
    queries: int = 1
    keys: int = 1
    block: int = 512
    key_block: int = 512
    interpret: bool = False

    @property
    def one_pass(self) -> bool:
        """Whether a program sees all keys."""
        return self.key_block >= self.keys


class Program:
    """A program of the grid (heads, blocks, examples, blocks).

    The blocks of queries come first, so that the bias of a head is fetched once for all examples;
    or the blocks of keys, so that its gradient is summed over examples in VMEM.
    """

    def __init__(
        self, spec: KernelSpec, refs: Mapping[str, Any], shared: Mapping[str, str], by_key: bool
    ):
        """Finds out which program this is.

        Args:
          spec: of the kernel.
          refs: arguments, results ("d_" before the argument of a gradient) and scratch, by name.
          shared: results that all examples add to -> "head" for those of all blocks of a head,
            "outer" for those of one block of the outer axis.
          by_key: whether blocks of keys are the outer axis.
        """
        self.spec, self.refs, self.shared, self.by_key = spec, refs, shared, by_key
        self.head, outer, self.example, inner = (pl.program_id(axis) for axis in range(4))
        self.block, self.key_block = (inner, outer) if by_key else (outer, inner)
        self.dtype = refs["query"].dtype
        self.head_dim = refs["query"].shape[1]
        self.images = [
            ImagePatches(number, image, refs, self.dtype)
            for number, image in enumerate(spec.images)
        ]
        self.first_inner = inner == 0
        self.last_inner = inner == pl.num_programs(3) - 1
        self.first_outer = (self.example == 0) & self.first_inner
        self.first = (outer == 0) & self.first_outer
        # The compiler wants static slices where lengths are odd.
        self.rows: Any = slice(None)
        self.columns: Any = slice(None)
        if by_key and spec.queries > spec.block:
            self.rows = pl.ds(pl.multiple_of(self.block * spec.block, spec.block), spec.block)
        if not by_key and not spec.one_pass:
            start = pl.multiple_of(self.key_block * spec.key_block, spec.key_block)
            self.columns = pl.ds(start, spec.key_block)

    # ------------------------------------------------------------------------------- programs

    def forward(self) -> None:
        """Computes the mixed values from all keys."""
        weights, _ = self._weights()
        mixed = dot(self._drop(weights).astype(self.dtype), self.refs["value"][...], 1, 0)
        self.refs["mixed"][...] = (mixed * self.refs["head_scale"][self.head]).astype(self.dtype)

    def forward_block(self) -> None:
        """Adds a block of keys, and computes the mixed values after the last one."""
        refs = self.refs
        pl.when(self.first_inner)(self._clear_pass)
        scores, _ = self._scores()
        before = refs["largest"][...]
        largest = jnp.maximum(before, scores.max(axis=1, keepdims=True))
        rescale = jnp.exp(before - largest)
        powers = jnp.exp(scores - largest)
        refs["largest"][...] = largest
        refs["total"][...] = refs["total"][...] * rescale + powers.sum(axis=1, keepdims=True)
        mixed = dot(self._drop(powers).astype(self.dtype), refs["value"][...], 1, 0)
        refs["sum_mixed"][...] = refs["sum_mixed"][...] * rescale + mixed
        pl.when(self.last_inner)(self._write_pass)

    def backward(self) -> None:
        """Computes gradients from all keys, and adds those of what several programs share."""
        self._clear()
        weights, visible = self._weights()
        kept, slope = self._value_slopes(weights)
        self._add_head_scale(kept, slope)
        slope = self._drop(slope * self.refs["head_scale"][self.head])
        slope = weights * (slope - (weights * slope).sum(axis=1, keepdims=True))
        slope = jnp.where(visible, slope, 0.0)
        self._add_keys(kept, slope)
        self._write_queries(dot(slope.astype(self.dtype), self._columns("key"), 1, 0))
        pl.when(self.last_inner)(self._write_keys)

    def backward_queries(self) -> None:
        """Adds what a block of keys adds to the gradients of queries and factors of heads."""
        self._clear()
        kept, slope, raw = self._block_slopes()
        self._add_head_scale(kept, raw)
        sums = self.refs["sum_query"]
        sums[...] += dot(slope.astype(self.dtype), self._columns("key"), 1, 0)
        pl.when(self.last_inner)(lambda: self._write_queries(sums[...]))

    def backward_keys(self) -> None:
        """Adds what a block of queries adds to the gradients of keys, values and biases."""
        self._clear()
        kept, slope, _ = self._block_slopes()
        self._add_keys(kept, slope)
        pl.when(self.last_inner)(self._write_keys)

    # --------------------------------------------------------------------------------- scores

    def _columns(self, side: str) -> Float[Array, "length columns"]:
        """Returns content and position columns of "query" or "key"."""
        return jnp.concatenate([self.refs[side][...], self.refs[f"position_{side}"][...]], axis=1)

    def _scores(self) -> tuple[Float[Array, "block keys"], Bool[Array, "block keys"]]:
        """Returns the scores, and which pairs count."""
        spec, refs = self.spec, self.refs
        scores = dot(self._columns("query"), self._columns("key"), 1, 1)
        if "relative" in refs:
            scores += refs["relative"][refs["kinds"][self.example], self.rows, self.columns]
        for image in self.images:
            scores += image.bias(scores.shape)
        visible = jnp.broadcast_to(refs["mask"][...], scores.shape) != 0
        if spec.causal:
            visible = visible & (self._number(1) <= self._number(0) + spec.prefix)
        scores = jnp.where(visible, scores, HIDDEN)
        if spec.keys % spec.key_block:
            scores = jnp.where(self._number(1) < spec.keys, scores, _ABSENT)
        return scores, visible

    def _weights(self) -> tuple[Float[Array, "block keys"], Bool[Array, "block keys"]]:
        """Returns the softmax of the scores over all keys, and which pairs count."""
        scores, visible = self._scores()
        powers = jnp.exp(scores - scores.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True), visible

    def _number(self, axis: int) -> Int[Array, "block keys"]:
        """Returns the number of the query (axis 0) or key (axis 1) of each pair."""
        sizes = (self.spec.block, self.spec.key_block)
        numbers = jax.lax.broadcasted_iota(jnp.int32, sizes, axis)
        return numbers + (self.key_block, self.block)[1 - axis] * sizes[axis]

    def _drop(self, x: Float[Array, "block keys"]) -> Float[Array, "block keys"]:
        """Applies dropout, with the same bits in the forward and in the backward pass."""
        spec, refs, rate = self.spec, self.refs, self.spec.dropout_rate
        if not rate:
            return x
        example, head = refs["examples"][self.example], refs["heads"][self.head]
        seed = (refs["seed"][0], refs["seed"][1])
        row = (example * spec.num_heads + head) * spec.queries + self._number(0)
        kept = keeps(seed, row, self._number(1), spec.keys, 1.0 - rate)
        return jnp.where(kept, x / (1.0 - rate), 0.0)

    # ------------------------------------------------------------------------------- gradients

    def _value_slopes(
        self, weights: Float[Array, "block keys"]
    ) -> tuple[Float[Array, "block keys"], Float[Array, "block keys"]]:
        """Returns weights that were kept, and their gradients without the factor of the head."""
        slope = dot(self.refs["mixed"][...], self.refs["value"][...], 1, 1)
        return self._drop(weights), slope

    def _block_slopes(self) -> tuple[Array, Array, Array]:
        """Returns weights that were not dropped, gradients of scores, and those of the weights."""
        scores, visible = self._scores()
        statistics = jnp.transpose(self.refs["statistics"][...])
        largest, total, inner = (statistics[:, n : n + 1] for n in range(3))
        weights = jnp.exp(scores - largest) / total
        kept, raw = self._value_slopes(weights)
        slope = self._drop(raw * self.refs["head_scale"][self.head])
        return kept, jnp.where(visible, weights * (slope - inner), 0.0), raw

    def _add_head_scale(self, kept: Array, slope: Array) -> None:
        """Adds to the gradient of the head's factor."""
        self.refs["d_head_scale"][...] += jnp.sum(kept * slope)

    def _add_keys(
        self, kept: Float[Array, "block keys"], slope: Float[Array, "block keys"]
    ) -> None:
        """Adds to the gradients of keys, values and relative biases.

        Args:
          kept: weights that were not dropped.
          slope: gradients of the scores.
        """
        refs, dtype = self.refs, self.dtype
        scale = refs["head_scale"][self.head]
        refs["sum_value"][...] += dot((kept * scale).astype(dtype), refs["mixed"][...], 0, 0)
        if "relative" in refs:
            refs["d_relative"][refs["kinds"][self.example], self.rows, :] += slope
        slope = slope.astype(dtype)
        for image in self.images:
            refs[image.name("d_bands")][...] += image.gradient(slope)
        refs["sum_key"][...] += dot(slope, self._columns("query"), 0, 0)

    # ------------------------------------------------------------------------------------ sums

    def _clear(self) -> None:
        """Prepares the sums over several programs before the first of them."""
        pl.when(self.first)(lambda: self._clear_shared("head"))
        pl.when(self.first_outer)(lambda: self._clear_shared("outer"))

        @pl.when(self.first_inner)
        def _() -> None:
            for name in ("sum_key", "sum_value", "sum_query"):
                if name in self.refs:
                    self.refs[name][...] = jnp.zeros_like(self.refs[name])

    def _clear_shared(self, scope: str) -> None:
        """Prepares the sums over examples of "head" or "outer"."""
        for name, of in self.shared.items():
            if of == scope:
                self.refs[name][...] = jnp.zeros_like(self.refs[name])

    def _clear_pass(self) -> None:
        """Prepares the online softmax of a block of queries."""
        self.refs["largest"][...] = jnp.full_like(self.refs["largest"], _ABSENT)
        for name in ("total", "sum_mixed"):
            self.refs[name][...] = jnp.zeros_like(self.refs[name])

    def _write_pass(self) -> None:
        """Writes the mixed values and the statistics of a block of queries."""
        refs = self.refs
        total = refs["total"][...]
        mixed = refs["sum_mixed"][...] / total * refs["head_scale"][self.head]
        refs["mixed"][...] = mixed.astype(self.dtype)
        column = jax.lax.broadcasted_iota(jnp.int32, (len(total), STATISTICS), 1)
        statistics = jnp.where(column == 0, refs["largest"][...], total)
        refs["statistics"][...] = jnp.transpose(statistics)

    def _write_queries(self, d_query: Float[Array, "block columns"]) -> None:
        """Writes the gradients of queries."""
        refs, dtype = self.refs, self.dtype
        refs["d_query"][...] = d_query[:, : self.head_dim].astype(dtype)
        if "d_position_query" in self.shared:
            rows = self.rows if self.by_key else slice(None)
            refs["d_position_query"][rows, :] += d_query[:, self.head_dim :]
        else:
            refs["d_position_query"][...] = d_query[:, self.head_dim :].astype(dtype)

    def _write_keys(self) -> None:
        """Writes the gradients of keys and values."""
        refs, dtype = self.refs, self.dtype
        d_key = refs["sum_key"][...]
        refs["d_value"][...] = refs["sum_value"][...].astype(dtype)
        refs["d_key"][...] = d_key[:, : self.head_dim].astype(dtype)
        if "d_position_key" in self.shared:
            refs["d_position_key"][...] += d_key[:, self.head_dim :]
        else:
            refs["d_position_key"][...] = d_key[:, self.head_dim :].astype(dtype)
