"""Encoder and decoder layers: pre-LN with the NormFormer additions, and their position biases.

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
from jaxtyping import Array, Bool, Float, Int

from ofa_jax.model import position_biases, positions
from ofa_jax.model.attention import Attention, KeyValues
from ofa_jax.model.config import OFAConfig
from ofa_jax.model.layers import (
    Dense,
    DropPath,
    Embed,
    dtype_of,
    layer_norm,
    remat,
    with_activation_sharding,
    with_logical_axes,
)


class PatchPositions(flax.struct.PyTreeNode):
    """Positions of the patches of an image.

    Attributes:
      indices: sampled patches of the grid, counted row by row; None for all patches.
      grid: rows and columns of the full patch grid.
    """

    indices: Int[Array, "batch patches"] | None
    grid: tuple[int, int] = flax.struct.field(pytree_node=False)

    def bias(
        self, table: Float[Array, "relations heads"], config: OFAConfig
    ) -> Float[Array, "#batch heads patches patches"]:
        """Computes the relative position bias between the patches in float32."""
        bucket_size = config.image_bucket_size
        if self.indices is None:
            return position_biases.grid_bias(table, *self.grid, bucket_size)[None]
        return position_biases.patch_bias(
            table, self.indices, self.grid, bucket_size, dtype_of(config)
        )


class EncoderPositions(flax.struct.PyTreeNode):
    """Positions that all encoder layers share.

    Attributes:
      absolute_bias: float32 bias over all patches, then the text.
      images: positions of each image, in the order of their patches.
      text_length: number of text tokens.
    """

    absolute_bias: Float[Array, "#batch heads length length"]
    images: tuple[PatchPositions, ...] = ()
    text_length: int = flax.struct.field(pytree_node=False, default=0)


class DecoderPositions(flax.struct.PyTreeNode):
    """Positions that all decoder layers share.

    The axis `kinds` has size 1 for text rows only, or 2 where `is_image_code` selects between text
    rows (0) and code rows (1). The axis `queries` has the size of `length` when all positions are
    scored at once, and 1 when they are decoded one at a time.

    Attributes:
      self_bias: float32 absolute bias of self-attention.
      cross_bias: float32 absolute bias of cross-attention.
      is_image_code: which examples have image codes as targets; None for none of them.
      position: position of the only query; None if all positions are queries.
    """

    self_bias: Float[Array, "kinds heads queries length"]
    cross_bias: Float[Array, "#batch heads queries encoder_length"]
    is_image_code: Bool[Array, " batch"] | None = None
    position: Int[Array, ""] | None = None


class LayerCache(flax.struct.PyTreeNode):
    """Cache of a decoder layer.

    Attributes:
      past: keys and values of the positions so far, [B, beams, heads, head_dim, T].
      encoded: keys and values of the encoder's output, [B, heads, head_dim, K], which all beams
        share; None until the layer has projected that output.
    """

    past: KeyValues
    encoded: KeyValues | None = None


def select_per_example(
    text: Float[Array, "*shape"],
    code: Float[Array, "*shape"],
    is_image_code: Bool[Array, " batch"],
) -> Float[Array, " batch *shape"]:
    """Selects `code` for the examples with image codes and `text` for the others."""
    return jnp.where(is_image_code.reshape(-1, *[1] * text.ndim), code, text)


class RelativePositions(nn.Module):
    """The 1-D and 2-D relative position tables of a layer, and the biases computed from them."""

    config: OFAConfig

    def setup(self) -> None:
        """Creates the tables."""
        c = self.config
        self.tokens = Embed(2 * c.token_bucket_size - 1, c.num_heads, ("relpos", "heads"))
        self.images = Embed(
            positions.num_image_relations(c.image_bucket_size), c.num_heads, ("relpos", "heads")
        )

    def encoder_bias(
        self, encoder_positions: EncoderPositions
    ) -> Float[Array, "#batch heads length length"]:
        """Adds the relative biases within the text and within each image to the absolute bias.

        There is no relative bias between text and images, or between two images.
        """
        c, bias, start = self.config, encoder_positions.absolute_bias, 0
        blocks = [image.bias(self.images(), c) for image in encoder_positions.images]
        text_bias = position_biases.text_bias(
            self.tokens(), encoder_positions.text_length, c.token_bucket_size
        )
        blocks.append(text_bias[None])
        for block in blocks:
            end = start + block.shape[-1]
            bias = bias + _pad_last_two_axes(block, before=start, after=bias.shape[-1] - end)
            start = end
        return bias

    def decoder_bias(
        self, decoder_positions: DecoderPositions
    ) -> Float[Array, "#batch heads queries length"]:
        """Adds the relative bias of self-attention to its absolute bias."""
        c, length = self.config, decoder_positions.self_bias.shape[-1]
        text = decoder_positions.self_bias[0] + position_biases.text_bias(
            self.tokens(), length, c.token_bucket_size, decoder_positions.position
        )
        if decoder_positions.is_image_code is None:
            return text[None]
        code = decoder_positions.self_bias[1] + position_biases.code_bias(
            self.images(), length, c.code_grid, c.image_bucket_size, decoder_positions.position
        )
        return select_per_example(text, code, decoder_positions.is_image_code)


def _pad_last_two_axes(
    bias: Float[Array, "batch heads n n"], before: int, after: int
) -> Float[Array, "batch heads m m"]:
    """Pads the last two axes with zeros, m = before + n + after."""
    return jnp.pad(bias, ((0, 0), (0, 0), (before, after), (before, after)))


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
        self_mask: Bool[Array | np.ndarray, "#batch #queries length"],
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
        self_mask = jnp.asarray(self_mask)[:, None]
        y, attention = self._norm_and_attention("self_attention", x, c.prefix_length)
        if cache is None:
            attended = attention(y, y, bias, self_mask, train)
        else:
            assert decoder_positions.position is not None
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
        attended = attention(
            y, memory, decoder_positions.cross_bias, encoder_mask[:, None, None, :], train
        )
        x = self._add_attention("cross_attention", x, attended, drop_path_rate, train)
        return self._add_feed_forward(x, drop_path_rate, train), cache
