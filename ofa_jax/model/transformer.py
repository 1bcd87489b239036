"""Encoder and decoder layers: pre-LN with the NormFormer extras, and what positions add.

A layer: LayerNorm, attention with per-head factors, LayerNorm, dropout, drop path, residual; then
the same around a feed-forward layer that normalises after its activation
(Shleifer et al. 2021, NormFormer). Decoder layers have cross-attention in between.
"""

from collections.abc import Sequence
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from ofa_jax.model import positions
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
)


@flax.struct.dataclass
class PatchPositions:
    """Where the patches of an image are.

    Attributes:
      places: int32 [B, N], which patches of the grid, counted row by row, where they are chosen per
        example; None for all.
      grid: rows and columns of the full patch grid.
    """

    places: jax.Array | None
    grid: tuple[int, int] = flax.struct.field(pytree_node=False)

    def bias(self, table: jax.Array, config: OFAConfig) -> jax.Array:
        """The relative bias between these patches, float32 [B or 1, heads, N, N]."""
        size = config.image_bucket_size
        if self.places is None:
            return positions.grid_bias(table, *self.grid, size)[None]
        return positions.patch_bias(table, self.places, self.grid, size, dtype_of(config))


@flax.struct.dataclass
class EncoderPositions:
    """What encoder layers need to know of positions; the layers share it.

    Attributes:
      absolute_bias: float32 [B or 1, heads, L, L], L counting all patches, then the text.
      images: in the order of their patches.
      text_length: S.
    """

    absolute_bias: jax.Array
    images: tuple[PatchPositions, ...] = ()
    text_length: int = flax.struct.field(pytree_node=False, default=0)


@flax.struct.dataclass
class DecoderPositions:
    """What decoder layers need to know of positions; the layers share it.

    V is 1 for text rows alone, 2 where `is_image_code` picks between text (0) and code (1) rows.
    Q is T when all positions are scored at once, 1 when they come one by one.

    Attributes:
      self_bias: float32 [V, heads, Q, T], absolute.
      cross_bias: float32 [B or 1, heads, Q, K].
      is_image_code: bool [B], or None.
      position: int32 [], of the one query where Q is 1; None for all of them.
    """

    self_bias: jax.Array
    cross_bias: jax.Array
    is_image_code: jax.Array | None = None
    position: jax.Array | None = None


@flax.struct.dataclass
class LayerCache:
    """What a decoder layer keeps from one position to the next, for G beams of each example.

    Attributes:
      past: keys and values of the positions so far, [B, G, heads, head_dim, T].
      encoded: those of the encoder's output, [B, heads, head_dim, K]: all beams read the same.
        None until the layer has seen that output.
    """

    past: KeyValues
    encoded: KeyValues | None = None


def choose_rows(text: jax.Array, code: jax.Array, is_image_code: jax.Array) -> jax.Array:
    """Per example one of two arrays [...]: bool [B] to [B, ...]."""
    return jnp.where(is_image_code.reshape(-1, *[1] * text.ndim), code, text)


class RelativePositions(nn.Module):
    """The 1-D and 2-D relative tables of one layer, and the biases made of them."""

    config: OFAConfig

    def setup(self):
        c = self.config
        self.tokens = Embed(2 * c.token_bucket_size - 1, c.num_heads, ("relpos", "heads"))
        self.images = Embed(
            positions.num_image_relations(c.image_bucket_size), c.num_heads, ("relpos", "heads")
        )

    def encoder_bias(self, where: EncoderPositions) -> jax.Array:
        """Absolute plus relative bias; none of the latter between text and images, or images.

        Returns:
          float32 [B or 1, heads, L, L].
        """
        c, bias, start = self.config, where.absolute_bias, 0
        blocks = [image.bias(self.images(), c) for image in where.images]
        blocks.append(
            positions.text_bias(self.tokens(), where.text_length, c.token_bucket_size)[None]
        )
        for block in blocks:
            end = start + block.shape[-1]
            bias = bias + _pad_corner(block, before=start, after=bias.shape[-1] - end)
            start = end
        return bias

    def decoder_bias(self, where: DecoderPositions) -> jax.Array:
        """Absolute plus relative bias of the decoder itself, float32 [B or 1, heads, Q, T]."""
        c, length = self.config, where.self_bias.shape[-1]
        text = where.self_bias[0] + positions.text_bias(
            self.tokens(), length, c.token_bucket_size, where.position
        )
        if where.is_image_code is None:
            return text[None]
        code = where.self_bias[1] + positions.code_bias(
            self.images(), length, c.code_grid, c.image_bucket_size, where.position
        )
        return choose_rows(text, code, where.is_image_code)


def _pad_corner(bias: jax.Array, before: int, after: int) -> jax.Array:
    """Zeros before or after the last two axes."""
    return jnp.pad(bias, ((0, 0), (0, 0), (before, after), (before, after)))


class FeedForward(nn.Module):
    """Two dense layers with an activation and, by `scale_fc`, a LayerNorm in between."""

    config: OFAConfig

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, L, d] to [B, L, d]."""
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
    """A bottleneck with a residual connection (Houlsby et al. 2019); it begins as the identity."""

    config: OFAConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, L, d] to [B, L, d]."""
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
    """What both kinds of layer share: how a branch joins the residual stream."""

    config: OFAConfig

    def _join(self, x, branch, drop_path_rate, train):
        branch = nn.Dropout(self.config.dropout_rate)(branch, deterministic=not train)
        return x + DropPath()(branch, drop_path_rate, train)

    def _attention(self, name, x, prefix_length=0):
        """The attention of that name, and x after the LayerNorm in front of it."""
        x = layer_norm(dtype_of(self.config), f"{name}_input_norm")(x)
        return Attention(self.config, prefix_length, name=name), x

    def _join_attended(self, name, x, attended, drop_path_rate, train):
        if self.config.scale_attn:
            attended = layer_norm(dtype_of(self.config), f"{name}_output_norm")(attended)
        return self._join(x, attended, drop_path_rate, train)

    def _feed_forward(self, x, drop_path_rate, train):
        c = self.config
        branch = layer_norm(dtype_of(c), "feed_forward_input_norm")(x)
        branch = FeedForward(c, name="feed_forward")(branch, train)
        if c.scale_resids:
            factor = self.param(
                "residual_scale",
                nn.with_logical_partitioning(nn.initializers.ones, ("norm",)),
                (c.width,),
            )
            x = x * factor.astype(x.dtype)
        x = self._join(x, branch, drop_path_rate, train)
        return Adapter(c, name="adapter")(x) if c.adapter_width else x


def layer_stack(
    layer: type[_Layer],
    config: OFAConfig,
    drop_path_rates: Sequence[float],
    x: jax.Array,
    *inputs: Any,
    train: bool,
) -> jax.Array:
    """Runs all layers of a side: one module `layer_<i>` each, or one `layers` in a scan.

    Args:
      layer: EncoderLayer or DecoderLayer.
      config: whether to scan, and what to keep for the backward pass.
      drop_path_rates: of each layer.
      x: [B, L, d].
      *inputs: what every layer gets between x and its rate.
      train: whether dropout and stochastic depth are on.

    Returns:
      [B, L, d].
    """
    rates = jnp.asarray(drop_path_rates, jnp.float32) if any(drop_path_rates) else None
    # In a scan the rate is an array, else a number that says at once whether anything is dropped.
    traced = config.scan_layers and rates is not None
    layer = remat(layer, config, ("train",) if traced else ("drop_path_rate", "train"))
    if not config.scan_layers:
        for i, rate in enumerate(drop_path_rates):
            x = _hidden(layer(config, name=f"layer_{i}")(x, *inputs, rate, train))
        return x

    def step(module: _Layer, x: jax.Array, rate: jax.Array | None) -> tuple[jax.Array, None]:
        return _hidden(module(x, *inputs, 0.0 if rate is None else rate, train)), None

    scan = nn.scan(
        step,
        variable_axes={"params": 0, "cache": 0},
        length=len(drop_path_rates),
        split_rngs={"params": True, "dropout": True},
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scan(layer(config, name="layers"), x, rates)[0]


def _hidden(result: jax.Array | tuple[jax.Array, None]) -> jax.Array:
    """What a layer makes; decoder layers return their cache, of which there is none here, too."""
    return result[0] if isinstance(result, tuple) else result


class EncoderLayer(_Layer):
    """Self-attention and feed-forward."""

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        where: EncoderPositions,
        mask: jax.Array,
        drop_path_rate: float | jax.Array,
        train: bool,
    ) -> jax.Array:
        """One layer.

        Args:
          x: [B, L, d].
          where: positions.
          mask: bool [B, L], False on what is not there.
          drop_path_rate: stochastic depth of this layer.
          train: whether dropout and stochastic depth are on.

        Returns:
          [B, L, d].
        """
        c = self.config
        bias = RelativePositions(c, name="relative_positions").encoder_bias(where)
        attention, y = self._attention("self_attention", x, c.prefix_length)
        attended = attention(y, y, bias, mask[:, None, None, :], train)
        x = self._join_attended("self_attention", x, attended, drop_path_rate, train)
        return self._feed_forward(x, drop_path_rate, train)


class DecoderLayer(_Layer):
    """Causal self-attention, cross-attention, feed-forward."""

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        encoded: jax.Array | None,
        where: DecoderPositions,
        self_mask: jax.Array,
        encoder_mask: jax.Array,
        drop_path_rate: float | jax.Array,
        train: bool,
        cache: LayerCache | None = None,
    ) -> tuple[jax.Array, LayerCache | None]:
        """One layer, over all positions at once or, with a cache, over one position of G beams.

        Args:
          x: [B, T, d]; with a cache [B, G, d].
          encoded: [B, K, d], the encoder's output; None where the cache has it projected.
          where: positions.
          self_mask: bool, broadcasts to [B, Q, T]: which key a query may see.
          encoder_mask: bool [B, K].
          drop_path_rate: stochastic depth of this layer.
          train: whether dropout and stochastic depth are on.
          cache: of the positions before `where.position`.

        Returns:
          An array like x, and the cache with this position in it.
        """
        c = self.config
        bias = RelativePositions(c, name="relative_positions").decoder_bias(where)
        self_mask = self_mask[:, None]
        attention, y = self._attention("self_attention", x, c.prefix_length)
        if cache is None:
            attended = attention(y, y, bias, self_mask, train)
        else:
            y = y[:, :, None]  # [B, G, 1, d]: every beam attends to a past of its own
            cache = cache.replace(past=cache.past.write(attention.project(y), where.position))
            attended = attention(y, cache.past, bias[:, None], self_mask, train)[:, :, 0]
        x = self._join_attended("self_attention", x, attended, drop_path_rate, train)

        attention, y = self._attention("cross_attention", x)
        if cache is not None:
            if cache.encoded is None:
                cache = cache.replace(encoded=attention.project(encoded))
            encoded = cache.encoded
        attended = attention(y, encoded, where.cross_bias, encoder_mask[:, None, None, :], train)
        x = self._join_attended("cross_attention", x, attended, drop_path_rate, train)
        return self._feed_forward(x, drop_path_rate, train), cache
