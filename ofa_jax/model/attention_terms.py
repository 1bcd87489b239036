"""Attention whose position bias is given by its terms, and never as one array.

The absolute bias of OFA is a product of position queries and position keys. Written as further
columns of the query and the key, it is part of the one product that makes the scores:

    [content query | position query] [content key | position key]^T
        = content query content key^T + position query position key^T

Both sides sum the same products of the same rounded numbers in float32, in another order. With n =
2 head_dim columns and unit roundoff u = 2^-24, each sum differs from the exact one by at most
n u / (1 - n u) times the sum of the products' magnitudes (Higham 2002, Accuracy and Stability,
section 3.1). So the two sides differ by at most twice that, and by the rounding of the one addition
on the right.
"""

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from ofa_jax.model import position_biases
from ofa_jax.model.attention_ops import MASKED_SCORE, attention_scores, softmax, to_key_layout


class PositionFactors(flax.struct.PyTreeNode):
    """The two factors of an absolute position bias; `#batch` is 1 if all examples have the same.

    Attributes:
      query: scaled projections of the queries' positions.
      key: projections of the keys' positions.
    """

    query: Float[Array, "#batch queries heads head_dim"]
    key: Float[Array, "#batch keys heads head_dim"]

    def bias(self) -> Float[Array, "#batch heads queries keys"]:
        """Multiplies the factors: the absolute bias in float32."""
        return attention_scores(self.query, to_key_layout(self.key))


class SampledPatches(flax.struct.PyTreeNode):
    """The relative bias between the patches of an image that are sampled per example.

    Attributes:
      table: the 2-D relative table, [(2 * bucket_size - 1) ** 2 + 3, heads].
      indices: sampled patches of the grid, counted row by row.
      grid: rows and columns of the full patch grid.
      start: position of the first patch among queries and keys.
      bucket_size: side of the largest grid.
    """

    table: Float[Array, "relations heads"]
    indices: Int[Array, "batch patches"]
    grid: tuple[int, int] = flax.struct.field(pytree_node=False)
    start: int = flax.struct.field(pytree_node=False, default=0)
    bucket_size: int = flax.struct.field(pytree_node=False, default=42)

    def bias(self, dtype: DTypeLike) -> Float[Array, "batch heads patches patches"]:
        """Looks the bias up; accelerators may round the table to `dtype`."""
        return position_biases.patch_bias(
            self.table, self.indices, self.grid, self.bucket_size, dtype
        )

    def codes(self, length: int, before: int = 0) -> Int[Array, "batch length"]:
        """Returns the sampled patch at each of `length` positions after `before` others; else -1.

        Args:
          length: number of positions, those before included.
          before: number of keys without a position, such as a learned prefix.
        """
        return self._place(self.indices, length, before)

    def places(self, length: int) -> tuple[Int[Array, "batch length"], Int[Array, "batch length"]]:
        """Returns the row and the column of the sampled patch at each position; -1 for none."""
        rows, columns = jnp.divmod(self.indices, self.grid[1])
        return self._place(rows, length), self._place(columns, length)

    @property
    def end(self) -> int:
        """Position after the last patch."""
        return self.start + self.indices.shape[1]

    def _place(self, x: Array, length: int, before: int = 0) -> Int[Array, "batch length"]:
        """Puts one number for each patch where the patch is."""
        widths = (before + self.start, length - before - self.end)
        return jnp.pad(x, ((0, 0), widths), constant_values=-1)


class AttentionMask(flax.struct.PyTreeNode):
    """Which keys a query may attend to.

    Attributes:
      keys: False hides the key from all queries of the example.
      causal: whether keys after the query are hidden too.
    """

    keys: Bool[Array, "batch keys"]
    causal: bool = flax.struct.field(pytree_node=False, default=False)

    def dense(self, queries: int, prefix: int = 0) -> Bool[Array, "batch 1 #queries prefix+keys"]:
        """Returns the mask as an array; `prefix` keys come before the others and are visible."""
        keys = jnp.pad(self.keys, ((0, 0), (prefix, 0)), constant_values=True)[:, None, None]
        if not self.causal:
            return keys
        before = np.tri(queries, keys.shape[-1], prefix, dtype=bool)
        return keys & before


class ScoreTerms(flax.struct.PyTreeNode):
    """What is added to the products of content queries and content keys.

    Attributes:
      positions: factors of the absolute bias.
      relative: relative bias without a batch axis, float32; one for every kind of example. None
        for cross-attention.
      kinds: which of them belongs to an example; None if there is one kind.
      patches: relative biases of images whose patches are sampled.
      prefix: number of keys before the others that have no position; `relative` and the factors
        do not contain them.
    """

    positions: PositionFactors
    relative: Float[Array, "kinds heads queries keys"] | None = None
    kinds: Int[Array, " batch"] | None = None
    patches: tuple[SampledPatches, ...] = ()
    prefix: int = flax.struct.field(pytree_node=False, default=0)

    def position_key(self) -> Float[Array, "#batch prefix+keys heads head_dim"]:
        """Returns the position keys with zeros for the prefix."""
        return jnp.pad(self.positions.key, ((0, 0), (self.prefix, 0), (0, 0), (0, 0)))

    def padded_relative(self) -> Float[Array, "kinds heads queries prefix+keys"] | None:
        """Returns the relative bias without a batch axis, with zeros for the prefix."""
        if self.relative is None:
            return None
        return jnp.pad(self.relative, ((0, 0), (0, 0), (0, 0), (self.prefix, 0)))

    def relative_bias(
        self, dtype: DTypeLike
    ) -> Float[Array, "#batch heads queries prefix+keys"] | None:
        """Returns the whole relative bias, with a batch axis only where it depends on the example.

        Args:
          dtype: see `SampledPatches.bias`.
        """
        bias = self.padded_relative()
        if bias is None:
            return None
        if self.kinds is not None:
            bias = jnp.where(self.kinds[:, None, None, None] == 1, bias[1], bias[0])
        queries, keys = bias.shape[-2:]
        for image in self.patches:
            block = image.bias(dtype)
            end = image.start + block.shape[-1]
            rows = (image.start, queries - end)
            columns = (self.prefix + image.start, keys - self.prefix - end)
            bias = bias + jnp.pad(block, ((0, 0), (0, 0), rows, columns))
        return bias


class WeightDropout(flax.struct.PyTreeNode):
    """Dropout of attention weights, with the random bits that `flax.linen.Dropout` draws.

    Attributes:
      key: of `jax.random`.
      rate: the probability that a weight is dropped.
    """

    key: Array
    rate: float = flax.struct.field(pytree_node=False)

    def __call__(self, weights: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Drops weights and scales the others up."""
        keep = jax.random.bernoulli(self.key, 1.0 - self.rate, weights.shape)
        return jnp.where(keep, weights / (1.0 - self.rate), jnp.zeros_like(weights))


def attend(
    query: Float[Array, "batch queries heads head_dim"],
    key: Float[Array, "batch keys heads head_dim"],
    value: Float[Array, "batch keys heads head_dim"],
    terms: ScoreTerms,
    mask: AttentionMask,
    dropout: WeightDropout | None = None,
    head_scale: Float[Array, " heads"] | None = None,
) -> Float[Array, "batch queries heads head_dim"]:
    """Attends with the position factors as further columns of query and key.

    Args:
      query: scaled content queries.
      key: content keys, after those of a learned prefix.
      value: values, likewise.
      terms: position terms of the scores.
      mask: which keys count; a prefix always does.
      dropout: of the weights; None for none.
      head_scale: factor of each head; None for none.

    Returns:
      The mixed values.
    """
    columns = jnp.broadcast_to(terms.positions.query, query.shape).astype(query.dtype)
    key_columns = jnp.broadcast_to(terms.position_key(), key.shape).astype(key.dtype)
    scores = attention_scores(
        jnp.concatenate([query, columns], axis=-1),
        to_key_layout(jnp.concatenate([key, key_columns], axis=-1)),
    )
    relative = terms.relative_bias(query.dtype)
    if relative is not None:
        scores = scores + relative
    scores = jnp.where(mask.dense(query.shape[1], terms.prefix), scores, MASKED_SCORE)
    weights = softmax(scores, value.dtype)
    if dropout is not None:
        weights = dropout(weights)
    mixed = jnp.einsum("...hqk,...hdk->...qhd", weights, to_key_layout(value))
    if head_scale is not None:
        mixed = mixed * head_scale.astype(mixed.dtype)[:, None]
    return mixed
