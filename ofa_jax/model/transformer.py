"""Encoder and decoder layers: pre-LN with the NormFormer additions.

A layer is LayerNorm, attention with per-head factors, LayerNorm, dropout, stochastic depth and the
residual; then the same around a feed-forward layer that normalises after its activation
(Shleifer et al. 2021, NormFormer). Decoder layers have cross-attention in between.
"""

from collections.abc import Sequence
from typing import Any

import flax
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ofa_jax.model.attention import Attention, KeyValues
from ofa_jax.model.attention_positions import (
    DecoderPositions,
    EncoderPositions,
    RelativePositions,
)
from ofa_jax.model.attention_terms import AttentionMask, PositionFactors, ScoreTerms
from ofa_jax.model.config import OFAConfig
from ofa_jax.model.layers import (
    Dense,
    DropPath,
    dtype_of,
    layer_norm,
    remat,
    with_activation_sharding,
    with_logical_axes,
)


class LayerCache(flax.struct.PyTreeNode):
    """Cache of a decoder layer.

    Attributes:
      past: keys and values of the positions so far, [B, beams, heads, head_dim, T].
      encoded: keys and values of the encoder's output, [B, heads, head_dim, K], which all beams
        share; None until the layer has projected that output.
    """

    past: KeyValues
    encoded: KeyValues | None = None


class FeedForward(nn.Module):
    """Two dense layers with an activation and, with `scale_fc`, a LayerNorm in between."""

    config: OFAConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length width"], train: bool
    ) -> Float[Array, "batch length width"]:
        """Applies the feed-forward layer."""
        c, dtype = self.config, dtype_of(self.config)
        x = Dense((c.width,), (c.ffn_width,), ("embed",), ("mlp",), dtype, name="expand")(x)
        x = nn.gelu(x, approximate=False) if c.activation == "gelu" else nn.relu(x)
        x = with_activation_sharding(x, "batch", "length", "mlp")
        x = nn.Dropout(c.activation_dropout_rate)(x, deterministic=not train)
        if c.scale_fc:
            x = layer_norm(dtype, "norm")(x)
        x = Dense((c.ffn_width,), (c.width,), ("mlp",), ("embed",), dtype, name="contract")(x)
        return with_activation_sharding(x, "batch", "length", "embed")


class Adapter(nn.Module):
    """A residual bottleneck (Houlsby et al. 2019), initialised as the identity."""

    config: OFAConfig

    @nn.compact
    def __call__(self, x: Float[Array, "batch length width"]) -> Float[Array, "batch length width"]:
        """Applies the adapter."""
        c, dtype = self.config, dtype_of(self.config)
        y = Dense((c.width,), (c.adapter_width,), ("embed",), ("mlp",), dtype, name="down")(x)
        up = Dense(
            (c.adapter_width,),
            (c.width,),
            ("mlp",),
            ("embed",),
            dtype,
            kernel_init=nn.initializers.zeros,
            name="up",
        )
        return x + up(nn.relu(y))


class _Layer(nn.Module):
    """Base of encoder and decoder layers: how branches are added to the residual stream."""

    config: OFAConfig

    def _add_branch(
        self, x: Array, branch: Array, drop_path_rate: float | Array, train: bool
    ) -> Array:
        """Adds a branch after dropout and stochastic depth."""
        branch = nn.Dropout(self.config.dropout_rate)(branch, deterministic=not train)
        return x + DropPath()(branch, drop_path_rate, train)

    def _norm_and_attention(
        self, name: str, x: Array, prefix_length: int = 0
    ) -> tuple[Array, Attention]:
        """Returns x after the LayerNorm in front of an attention, and that attention."""
        x = layer_norm(dtype_of(self.config), f"{name}_input_norm")(x)
        return x, Attention(self.config, prefix_length, name=name)

    def _add_attention(
        self, name: str, x: Array, attended: Array, drop_path_rate: float | Array, train: bool
    ) -> Array:
        """Adds the output of an attention after its LayerNorm."""
        if self.config.scale_attn:
            attended = layer_norm(dtype_of(self.config), f"{name}_output_norm")(attended)
        return self._add_branch(x, attended, drop_path_rate, train)

    def _add_feed_forward(self, x: Array, drop_path_rate: float | Array, train: bool) -> Array:
        """Adds the feed-forward branch and applies the adapter, if there is one."""
        c = self.config
        branch = layer_norm(dtype_of(c), "feed_forward_input_norm")(x)
        branch = FeedForward(c, name="feed_forward")(branch, train)
        if c.scale_resids:
            factor = self.param(
                "residual_scale", with_logical_axes(nn.initializers.ones, ("norm",)), (c.width,)
            )
            x = x * factor.astype(x.dtype)
        x = self._add_branch(x, branch, drop_path_rate, train)
        return Adapter(c, name="adapter")(x) if c.adapter_width else x


def layer_stack(
    layer: type[_Layer],
    config: OFAConfig,
    drop_path_rates: Sequence[float],
    x: Float[Array, "batch length width"],
    *inputs: Any,
    train: bool,
) -> Float[Array, "batch length width"]:
    """Runs all layers of a side: modules `layer_<i>`, or one module `layers` in a scan.

    Args:
      layer: EncoderLayer or DecoderLayer.
      config: whether to scan, and what to save for the backward pass.
      drop_path_rates: stochastic depth rate of each layer.
      x: input of the first layer.
      *inputs: further arguments of every layer, between x and its rate.
      train: whether dropout and stochastic depth are on.

    Returns:
      Output of the last layer.
    """
    rates = jnp.asarray(drop_path_rates, jnp.float32) if any(drop_path_rates) else None
    # A scan passes rates as traced arrays; static rates of 0 compile to nothing.
    traced = config.scan_layers and rates is not None
    module = remat(layer, config, ("train",) if traced else ("drop_path_rate", "train"))
    if not config.scan_layers:
        for i, rate in enumerate(drop_path_rates):
            x = _hidden_states(module(config, name=f"layer_{i}")(x, *inputs, rate, train))
        return x

    def step(layers: _Layer, x: Array, rate: Array | None) -> tuple[Array, None]:
        return _hidden_states(layers(x, *inputs, 0.0 if rate is None else rate, train)), None

    scan = nn.scan(
        step,
        variable_axes={"params": 0, "cache": 0},
        length=len(drop_path_rates),
        split_rngs={"params": True, "dropout": True},
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scan(module(config, name="layers"), x, rates)[0]


def _hidden_states(result: Array | tuple[Array, None]) -> Array:
    """Returns the hidden states of a layer's result; decoder layers return a cache (None) too."""
    return result[0] if isinstance(result, tuple) else result


class EncoderLayer(_Layer):
    """Self-attention and feed-forward."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length width"],
        encoder_positions: EncoderPositions,
        mask: Bool[Array, "batch length"],
        drop_path_rate: float | Float[Array, ""],
        train: bool,
    ) -> Float[Array, "batch length width"]:
        """Applies the layer.

        Args:
          x: hidden states.
          encoder_positions: positions of patches and text.
          mask: False on padding and on missing images.
          drop_path_rate: stochastic depth rate of this layer.
          train: whether dropout and stochastic depth are on.

        Returns:
          New hidden states.
        """
        c = self.config
        bias = RelativePositions(c, name="relative_positions").encoder_bias(encoder_positions)
        y, attention = self._norm_and_attention("self_attention", x, c.prefix_length)
        if isinstance(bias, ScoreTerms):
            attended = attention(y, y, bias, AttentionMask(mask), train)
        else:
            attended = attention(y, y, bias, mask[:, None, None, :], train)
        x = self._add_attention("self_attention", x, attended, drop_path_rate, train)
        return self._add_feed_forward(x, drop_path_rate, train)


class DecoderLayer(_Layer):
    """Causal self-attention, cross-attention and feed-forward."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length width"],
        encoded: Float[Array, "batch encoder_length width"] | None,
        decoder_positions: DecoderPositions,
        self_mask: Bool[Array | np.ndarray, "#batch #queries length"] | AttentionMask,
        encoder_mask: Bool[Array, "batch encoder_length"],
        drop_path_rate: float | Float[Array, ""],
        train: bool,
        cache: LayerCache | None = None,
    ) -> tuple[Float[Array, "batch length width"], LayerCache | None]:
        """Applies the layer to all positions or, with a cache, to one position of several beams.

        Args:
          x: hidden states; with a cache [batch, beams, width].
          encoded: the encoder's output; None if the cache holds its projection.
          decoder_positions: positions of the decoder.
          self_mask: which keys each query may attend to.
          encoder_mask: False on padding of the encoder's output.
          drop_path_rate: stochastic depth rate of this layer.
          train: whether dropout and stochastic depth are on.
          cache: cache of the positions before `decoder_positions.position`.

        Returns:
          New hidden states of the shape of x, and the cache including this position.
        """
        c = self.config
        bias = RelativePositions(c, name="relative_positions").decoder_bias(decoder_positions)
        if not isinstance(self_mask, AttentionMask):
            self_mask = jnp.asarray(self_mask)[:, None]
        y, attention = self._norm_and_attention("self_attention", x, c.prefix_length)
        if cache is None:
            attended = attention(y, y, bias, self_mask, train)
        else:
            assert decoder_positions.position is not None and isinstance(bias, Array)
            y = y[:, :, None]  # [B, beams, 1, d]: each beam attends to its own past
            past = cache.past.write(attention.project(y), decoder_positions.position)
            attended = attention(y, past, bias[:, None], self_mask, train)[:, :, 0]
            cache = cache.replace(past=past)
        x = self._add_attention("self_attention", x, attended, drop_path_rate, train)

        y, attention = self._norm_and_attention("cross_attention", x)
        memory: Array | KeyValues | None = encoded
        if cache is not None:
            if cache.encoded is None:
                assert encoded is not None
                cache = cache.replace(encoded=attention.project(encoded))
            memory = cache.encoded
        assert memory is not None
        cross = decoder_positions.cross_bias
        if isinstance(cross, PositionFactors):
            attended = attention(y, memory, ScoreTerms(cross), AttentionMask(encoder_mask), train)
        else:
            attended = attention(y, memory, cross, encoder_mask[:, None, None, :], train)
        x = self._add_attention("cross_attention", x, attended, drop_path_rate, train)
        return self._add_feed_forward(x, drop_path_rate, train), cache
