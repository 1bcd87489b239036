"""Multi-head attention with an additive position bias and a learned factor per head."""

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ofa_jax.model import attention_fused, attention_terms
from ofa_jax.model.attention_ops import MASKED_SCORE, attention_scores, softmax, to_key_layout
from ofa_jax.model.attention_terms import AttentionMask, ScoreTerms, WeightDropout
from ofa_jax.model.config import OFAConfig
from ofa_jax.model.layers import (
    Dense,
    attention_implementation,
    bert_init,
    dtype_of,
    with_activation_sharding,
    with_logical_axes,
)


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
        bias: Float[Array, "*#batch heads queries keys"] | ScoreTerms,
        mask: Bool[Array, "*#batch #heads #queries keys"] | AttentionMask,
        train: bool,
    ) -> Float[Array, "*batch queries width"]:
        """Attends from x to memory.

        Args:
          x: queries; the leading axes are the batch, or the batch and the beams of an example.
          memory: states to attend to, or their projection by `project`.
          bias: float32, added to the scores; or its terms, as every implementation but "bias" takes
            it, with an `AttentionMask`.
          mask: False hides the key.
          train: whether dropout is on.

        Returns:
          The attended states, projected to the model width.
        """
        c = self.config
        if isinstance(bias, ScoreTerms):
            assert isinstance(mask, AttentionMask) and not isinstance(memory, KeyValues)
            return self._project_output(self._attend_by_terms(x, memory, bias, mask, train))
        assert not isinstance(mask, AttentionMask)
        if not isinstance(memory, KeyValues):
            memory = self.project(memory)
        key, value = memory.key, memory.value
        query = self._scaled_query(x)
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
        return self._project_output(mixed)

    def _attend_by_terms(
        self, x: Array, memory: Array, terms: ScoreTerms, mask: AttentionMask, train: bool
    ) -> Float[Array, "batch queries heads head_dim"]:
        """Attends without a bias array, by the implementation that the configuration names."""
        c = self.config
        query = self._scaled_query(x)
        key, value = (_with_head_sharding(project(memory)) for project in (self.key, self.value))
        if self.prefix_length:
            key, value = (
                _prepend_lengthwise(*pair)
                for pair in ((self.prefix_key, key), (self.prefix_value, value))
            )
            terms = terms.replace(prefix=self.prefix_length)
        dropout = None
        if train and c.attention_dropout_rate:
            # The key that nn.Dropout would draw from.
            dropout = WeightDropout(self.dropout.make_rng("dropout"), c.attention_dropout_rate)
        arguments = query, key, value, terms, mask, dropout
        head_scale = self.head_scale if c.scale_heads else None
        if attention_implementation(c) == "columns":
            return attention_terms.attend(*arguments, head_scale)
        return attention_fused.attend(*arguments, head_scale)

    def _scaled_query(self, x: Array) -> Float[Array, "*batch queries heads head_dim"]:
        """Projects the queries and scales them."""
        c = self.config
        return _with_head_sharding(self.query(x)) * jnp.asarray(c.attention_scale, dtype_of(c))

    def _project_output(self, mixed: Array) -> Float[Array, "*batch queries width"]:
        """Projects the mixed values to the model width."""
        return with_activation_sharding(
            self.output(mixed), "batch", *[None] * (mixed.ndim - 4), "length", "embed"
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


def _prepend_lengthwise(
    prefix: Float[Array, "prefix heads head_dim"], x: Float[Array, "batch keys heads head_dim"]
) -> Float[Array, "batch prefix+keys heads head_dim"]:
    """Puts learned keys or values before those of a memory in the layout of projections."""
    prefix = jnp.broadcast_to(prefix.astype(x.dtype), (len(x), *prefix.shape))
    return jnp.concatenate([prefix, x], axis=1)


def _pad_front(x: Array, count: int, value: float) -> Array:
    """Inserts `count` values at the start of the last axis."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(count, 0)], constant_values=value)
