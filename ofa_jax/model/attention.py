"""Multi-head attention with an additive position bias and one learned factor per head."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ofa_jax.model.config import OFAConfig
from ofa_jax.model.layers import Dense, bert_init, constrain, dtype_of

MASKED_SCORE = -1e30
"""Score of a masked pair: vanishes in float32 softmax, yet rows that see nothing stay finite."""


def head_projection(config: OFAConfig, name: str | None = None) -> Dense:
    """The linear layer from the model width into heads: [..., d] to [..., heads, head_dim]."""
    return Dense((config.width,), (config.num_heads, config.head_dim), ("embed",), ("heads", "kv"),
                 dtype_of(config), name=name)


def score(query: jax.Array, key: jax.Array) -> jax.Array:
    """Dot products per head: [B, Q, heads, k] and [B, K, heads, k] to float32 [B, heads, Q, K].

    Either B may be 1: positions are often the same for all examples.
    """
    return jnp.einsum("...qhd,...khd->...hqk", query, key, preferred_element_type=jnp.float32)


class Attention(nn.Module):
    """softmax(q k^T / sqrt(2 head_dim) + bias) v, scaled per head, then the output projection.

    The scale has the factor `attn_scale_factor` because content and position scores are summed.

    Attributes:
      config: sizes and options.
      prefix_length: number of learned keys and values before the others; they have no position.
    """

    config: OFAConfig
    prefix_length: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, memory: jax.Array, bias: jax.Array, mask: jax.Array,
                 train: bool) -> jax.Array:
        """Attends from x to memory.

        Args:
          x: [B, Q, d] queries.
          memory: [B, K, d] keys and values.
          bias: float32 [B or 1, heads, Q, K], added to the scores.
          mask: bool, broadcasts to [B, heads, Q, K]; False hides the key.
          train: whether dropout is on.

        Returns:
          [B, Q, d].
        """
        c = self.config

        def heads(name: str, inputs: jax.Array) -> jax.Array:
            return constrain(head_projection(c, name)(inputs), "batch", "length", "heads", "kv")

        query = heads("query", x) * jnp.asarray(c.attention_scale, dtype_of(c))
        key, value = heads("key", memory), heads("value", memory)
        if self.prefix_length:
            key, value = self._prefixed("key", key), self._prefixed("value", value)
            front = ((0, 0), (0, 0), (0, 0), (self.prefix_length, 0))
            bias, mask = jnp.pad(bias, front), jnp.pad(mask, front, constant_values=True)
        scores = jnp.where(mask, score(query, key) + bias, MASKED_SCORE)
        weights = jax.nn.softmax(scores, axis=-1)
        weights = nn.Dropout(c.attention_dropout_rate)(weights, deterministic=not train)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value)
        if c.scale_heads:
            factor = self.param("head_scale", nn.with_logical_partitioning(
                nn.initializers.ones, ("heads",)), (c.num_heads,))
            mixed = mixed * factor.astype(mixed.dtype)[:, None]
        out = Dense((c.num_heads, c.head_dim), (c.width,), ("heads", "kv"), ("embed",),
                    dtype_of(c), name="output")(mixed)
        return constrain(out, "batch", "length", "embed")

    def _prefixed(self, name: str, x: jax.Array) -> jax.Array:
        """[B, K, heads, k] to [B, prefix_length + K, heads, k]."""
        prefix = self.param(f"prefix_{name}", nn.with_logical_partitioning(
            bert_init, (None, "heads", "kv")), (self.prefix_length, *x.shape[2:]))
        prefix = jnp.broadcast_to(prefix.astype(x.dtype), (x.shape[0], *prefix.shape))
        return jnp.concatenate([prefix, x], axis=1)
