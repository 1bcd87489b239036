"""Multi-head attention with an additive position bias and a learned factor per head."""

import functools

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ofa_jax.model.config import OFAConfig
from ofa_jax.model.layers import (
    Dense,
    bert_init,
    dtype_of,
    with_activation_sharding,
    with_logical_axes,
)

MASKED_SCORE = -1e30
"""Score of masked pairs: vanishes in a float32 softmax, yet fully masked rows stay finite."""


def head_projection(config: OFAConfig, name: str | None = None) -> Dense:
    """Returns the linear layer from [..., width] to [..., heads, head_dim]."""
    return Dense(
        (config.width,),
        (config.num_heads, config.head_dim),
        ("embed",),
        ("heads", "kv"),
        dtype_of(config),
        name=name,
    )


def to_key_layout(
    x: Float[Array, "*batch keys heads head_dim"],
) -> Float[Array, "*batch heads head_dim keys"]:
    """Moves the key axis last, the layout in which attention multiplies keys and values.

    Caches store this layout, so that no decoding step has to transpose them.
    """
    return jnp.moveaxis(x, -3, -1)


def attention_scores(
    query: Float[Array, "*batch queries heads head_dim"],
    key: Float[Array, "*batch heads head_dim keys"],
) -> Float[Array, "*batch heads queries keys"]:
    """Computes the dot products of queries and keys per head, in float32.

    Leading axes broadcast: positions are often the same for all examples.
    """
    batch = jnp.broadcast_shapes(query.shape[:-3], key.shape[:-3])
    # Broadcast explicitly: the CPU backend has no bfloat16 product that broadcasts.
    query, key = (jnp.broadcast_to(x, (*batch, *x.shape[-3:])) for x in (query, key))
    return jnp.einsum("...qhd,...hdk->...hqk", query, key, preferred_element_type=jnp.float32)


def softmax(scores: Float[Array, "*batch keys"], dtype: jnp.dtype) -> Float[Array, "*batch keys"]:
    """Computes a softmax over the last axis in float32 and returns it as `dtype`.

    With a lower-precision `dtype` the backward pass reuses the cast weights; the float32 ones, the
    largest arrays of a layer, are not saved.
    """
    if dtype == jnp.float32:
        return jax.nn.softmax(scores, axis=-1)
    return _low_precision_softmax(scores, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _low_precision_softmax(scores: Array, dtype: jnp.dtype) -> Array:
    return jax.nn.softmax(scores, axis=-1).astype(dtype)


def _low_precision_softmax_forward(scores: Array, dtype: jnp.dtype) -> tuple[Array, Array]:
    weights = _low_precision_softmax(scores, dtype)
    return weights, weights


def _low_precision_softmax_backward(
    dtype: jnp.dtype, weights: Array, gradient: Array
) -> tuple[Array]:
    """Computes the gradient of the scores from the low-precision weights."""
    weights, gradient = weights.astype(jnp.float32), gradient.astype(jnp.float32)
    inner = (weights * gradient).sum(axis=-1, keepdims=True)
    return (weights * (gradient - inner),)


_low_precision_softmax.defvjp(_low_precision_softmax_forward, _low_precision_softmax_backward)


class KeyValues(flax.struct.PyTreeNode):
    """Projected keys and values of a memory."""

    key: Float[Array, "*batch heads head_dim keys"]
    value: Float[Array, "*batch heads head_dim keys"]

    def write(self, new: "KeyValues", position: Int[Array, ""]) -> "KeyValues":
        """Returns a copy with `new` [..., heads, head_dim, 1] at a position of the key axis."""
        return jax.tree.map(
            lambda old, one: jax.lax.dynamic_update_slice_in_dim(old, one, position, axis=-1),
            self,
            new,
        )


class Attention(nn.Module):
    """softmax(q k^T / sqrt(2 head_dim) + bias) v, scaled per head, then the output projection.

    The scale includes `attn_scale_factor` (2) because content and position scores are summed.

    Attributes:
      config: sizes and options.
      prefix_length: number of learned keys and values before the others; they have no position.
    """

    config: OFAConfig
    prefix_length: int = 0

    def setup(self) -> None:
        """Creates the projections, the factors per head and the learned prefix."""
        c = self.config
        self.query, self.key, self.value = (head_projection(c) for _ in range(3))
        self.output = Dense(
            (c.num_heads, c.head_dim), (c.width,), ("heads", "kv"), ("embed",), dtype_of(c)
        )
        self.dropout = nn.Dropout(c.attention_dropout_rate)
        if c.scale_heads:
            self.head_scale = self.param(
                "head_scale", with_logical_axes(nn.initializers.ones, ("heads",)), (c.num_heads,)
            )
        if self.prefix_length:
            shape = (self.prefix_length, c.num_heads, c.head_dim)
            self.prefix_key, self.prefix_value = (
                self.param(name, with_logical_axes(bert_init, (None, "heads", "kv")), shape)
                for name in ("prefix_key", "prefix_value")
            )

    def project(self, memory: Float[Array, "*batch keys width"]) -> KeyValues:
        """Projects a memory to keys and values."""
        return KeyValues(
            to_key_layout(_with_head_sharding(self.key(memory))),
            to_key_layout(_with_head_sharding(self.value(memory))),
        )

    def __call__(
        self,
        x: Float[Array, "*batch queries width"],
        memory: Float[Array, "*batch keys width"] | KeyValues,
        bias: Float[Array, "*#batch heads queries keys"],
        mask: Bool[Array, "*#batch #heads #queries keys"],
        train: bool,
    ) -> Float[Array, "*batch queries width"]:
        """Attends from x to memory.

        Args:
          x: queries; the leading axes are the batch, or the batch and the beams of an example.
          memory: states to attend to, or their projection by `project`.
          bias: float32, added to the scores.
          mask: False hides the key.
          train: whether dropout is on.

        Returns:
          The attended states, projected to the model width.
        """
        c = self.config
        if not isinstance(memory, KeyValues):
            memory = self.project(memory)
        key, value = memory.key, memory.value
        query = _with_head_sharding(self.query(x)) * jnp.asarray(c.attention_scale, dtype_of(c))
        if self.prefix_length:
            key, value = _prepend(self.prefix_key, key), _prepend(self.prefix_value, value)
            bias = _pad_front(bias, self.prefix_length, 0)
            mask = _pad_front(mask, self.prefix_length, True)
        scores = jnp.where(mask, attention_scores(query, key) + bias, MASKED_SCORE)
        weights = softmax(scores, value.dtype)
        weights = self.dropout(weights, deterministic=not train)
        mixed = jnp.einsum("...hqk,...hdk->...qhd", weights, value)
        if c.scale_heads:
            mixed = mixed * self.head_scale.astype(mixed.dtype)[:, None]
        return with_activation_sharding(
            self.output(mixed), "batch", *[None] * (x.ndim - 3), "length", "embed"
        )


def _with_head_sharding(x: Array) -> Array:
    """Constrains the sharding of [batch, ..., length, heads, head_dim]."""
    return with_activation_sharding(x, "batch", *[None] * (x.ndim - 4), "length", "heads", "kv")


def _prepend(
    prefix: Float[Array, "prefix heads head_dim"], x: Float[Array, "*batch heads head_dim keys"]
) -> Float[Array, "*batch heads head_dim prefix+keys"]:
    """Puts learned keys or values before those of a memory."""
    prefix = to_key_layout(prefix.astype(x.dtype))
    prefix = jnp.broadcast_to(prefix, (*x.shape[:-3], *prefix.shape))
    return jnp.concatenate([prefix, x], axis=-1)


def _pad_front(x: Array, count: int, value: float) -> Array:
    """Inserts `count` values at the start of the last axis."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(count, 0)], constant_values=value)
