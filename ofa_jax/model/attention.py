"""Multi-head attention with an additive position bias and one learned factor per head."""

import functools

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from ofa_jax.model.config import OFAConfig
from ofa_jax.model.layers import Dense, bert_init, dtype_of, with_activation_sharding

MASKED_SCORE = -1e30
"""Score of a masked pair: vanishes in float32 softmax, yet rows that see nothing stay finite."""


def head_projection(config: OFAConfig, name: str | None = None) -> Dense:
    """The linear layer from the model width into heads: [..., d] to [..., heads, head_dim]."""
    return Dense(
        (config.width,),
        (config.num_heads, config.head_dim),
        ("embed",),
        ("heads", "kv"),
        dtype_of(config),
        name=name,
    )


def as_keys(x: jax.Array) -> jax.Array:
    """[..., K, heads, k] to [..., heads, k, K], as the products of attention read keys and values.

    In a cache they stay so: no step has to turn them around.
    """
    return jnp.moveaxis(x, -3, -1)


def score(query: jax.Array, key: jax.Array) -> jax.Array:
    """Dot products per head: [B, Q, heads, k] and [B, heads, k, K] to float32 [B, heads, Q, K].

    Either B may be 1: positions are often the same for all examples.
    """
    batch = jnp.broadcast_shapes(query.shape[:-3], key.shape[:-3])
    # Spelled out: the CPU backend has no bfloat16 product that broadcasts by itself.
    query, key = (jnp.broadcast_to(x, (*batch, *x.shape[-3:])) for x in (query, key))
    return jnp.einsum("...qhd,...hdk->...hqk", query, key, preferred_element_type=jnp.float32)


def softmax(scores: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Softmax along the last axis, computed in float32 and handed on as `dtype`.

    In a narrower type its gradient is computed from what is handed on: the float32 weights, which
    would else be kept for it, are the largest arrays of a layer.
    """
    return jax.nn.softmax(scores, axis=-1) if dtype == jnp.float32 else _narrow(scores, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _narrow(scores: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return jax.nn.softmax(scores, axis=-1).astype(dtype)


def _narrow_forward(scores, dtype):
    weights = _narrow(scores, dtype)
    return weights, weights


def _narrow_backward(dtype, weights, gradient):
    weights, gradient = weights.astype(jnp.float32), gradient.astype(jnp.float32)
    inner = (weights * gradient).sum(axis=-1, keepdims=True)
    return (weights * (gradient - inner),)


_narrow.defvjp(_narrow_forward, _narrow_backward)


@flax.struct.dataclass
class KeyValues:
    """What an attention has projected of its memory.

    Attributes:
      key, value: [..., heads, head_dim, K].
    """

    key: jax.Array
    value: jax.Array

    def write(self, new: "KeyValues", position: jax.Array) -> "KeyValues":
        """With `new` [..., heads, head_dim, 1] at place `position` of the K."""
        return jax.tree.map(
            lambda old, one: jax.lax.dynamic_update_slice_in_dim(old, one, position, axis=-1),
            self,
            new,
        )


class Attention(nn.Module):
    """softmax(q k^T / sqrt(2 head_dim) + bias) v, scaled per head, then the output projection.

    The scale has the factor `attn_scale_factor` because content and position scores are summed.

    Attributes:
      config: sizes and options.
      prefix_length: number of learned keys and values before the others; they have no position.
    """

    config: OFAConfig
    prefix_length: int = 0

    def setup(self):
        c = self.config
        self.query, self.key, self.value = (head_projection(c) for _ in range(3))
        self.output = Dense(
            (c.num_heads, c.head_dim), (c.width,), ("heads", "kv"), ("embed",), dtype_of(c)
        )
        self.dropout = nn.Dropout(c.attention_dropout_rate)
        if c.scale_heads:
            self.head_scale = self.param(
                "head_scale",
                nn.with_logical_partitioning(nn.initializers.ones, ("heads",)),
                (c.num_heads,),
            )
        if self.prefix_length:
            shape = (self.prefix_length, c.num_heads, c.head_dim)
            self.prefix_key, self.prefix_value = (
                self.param(
                    name, nn.with_logical_partitioning(bert_init, (None, "heads", "kv")), shape
                )
                for name in ("prefix_key", "prefix_value")
            )

    def project(self, memory: jax.Array) -> KeyValues:
        """Keys and values of a memory [..., K, d]."""
        return KeyValues(
            as_keys(_constrain_heads(self.key(memory))),
            as_keys(_constrain_heads(self.value(memory))),
        )

    def __call__(
        self,
        x: jax.Array,
        memory: jax.Array | KeyValues,
        bias: jax.Array,
        mask: jax.Array,
        train: bool,
    ) -> jax.Array:
        """Attends from x to memory.

        There may be several leading axes: B, or B and the beams of an example.

        Args:
          x: [B, Q, d] queries.
          memory: [B, K, d], or what `project` made of it.
          bias: float32 [B or 1, heads, Q, K], added to the scores.
          mask: bool, broadcasts to [B, heads, Q, K]; False hides the key.
          train: whether dropout is on.

        Returns:
          [B, Q, d].
        """
        c = self.config
        if not isinstance(memory, KeyValues):
            memory = self.project(memory)
        key, value = memory.key, memory.value
        query = _constrain_heads(self.query(x)) * jnp.asarray(c.attention_scale, dtype_of(c))
        if self.prefix_length:
            key, value = _prepend(self.prefix_key, key), _prepend(self.prefix_value, value)
            bias = _pad_front(bias, self.prefix_length, 0)
            mask = _pad_front(mask, self.prefix_length, True)
        scores = jnp.where(mask, score(query, key) + bias, MASKED_SCORE)
        weights = softmax(scores, value.dtype)
        weights = self.dropout(weights, deterministic=not train)
        mixed = jnp.einsum("...hqk,...hdk->...qhd", weights, value)
        if c.scale_heads:
            mixed = mixed * self.head_scale.astype(mixed.dtype)[:, None]
        return with_activation_sharding(
            self.output(mixed), "batch", *[None] * (x.ndim - 3), "length", "embed"
        )


def _constrain_heads(x: jax.Array) -> jax.Array:
    return with_activation_sharding(x, "batch", *[None] * (x.ndim - 4), "length", "heads", "kv")


def _prepend(prefix: jax.Array, x: jax.Array) -> jax.Array:
    """[prefix_length, heads, k] and [..., heads, k, K] to [..., heads, k, prefix_length + K]."""
    prefix = as_keys(prefix.astype(x.dtype))
    prefix = jnp.broadcast_to(prefix, (*x.shape[:-3], *prefix.shape))
    return jnp.concatenate([prefix, x], axis=-1)


def _pad_front(x: jax.Array, count: int, value: float) -> jax.Array:
    """Values before those of the last axis."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(count, 0)], constant_values=value)
