"""Positions that all layers share, and the biases that a layer computes from them."""

import flax
import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ofa_jax.model import position_biases, positions
from ofa_jax.model.attention_terms import PositionFactors, SampledPatches, ScoreTerms
from ofa_jax.model.config import OFAConfig
from ofa_jax.model.layers import Embed, dtype_of


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
      absolute_bias: float32 bias over all patches, then the text; or its factors, from which every
        implementation of attention but "bias" computes it.
      images: positions of each image, in the order of their patches.
      text_length: number of text tokens.
    """

    absolute_bias: Float[Array, "#batch heads length length"] | PositionFactors
    images: tuple[PatchPositions, ...] = ()
    text_length: int = flax.struct.field(pytree_node=False, default=0)


class DecoderPositions(flax.struct.PyTreeNode):
    """Positions that all decoder layers share.

    The axis `kinds` has size 1 for text rows only, or 2 where `is_image_code` selects between text
    rows (0) and code rows (1). The axis `queries` has the size of `length` when all positions are
    scored at once, and 1 when they are decoded one at a time.

    Attributes:
      self_bias: float32 absolute bias of self-attention; or its factors, of every example if there
        are two kinds.
      cross_bias: float32 absolute bias of cross-attention, or its factors.
      is_image_code: which examples have image codes as targets; None for none of them.
      position: position of the only query; None if all positions are queries.
    """

    self_bias: Float[Array, "kinds heads queries length"] | PositionFactors
    cross_bias: Float[Array, "#batch heads queries encoder_length"] | PositionFactors
    is_image_code: Bool[Array, " batch"] | None = None
    position: Int[Array, ""] | None = None


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
    ) -> Float[Array, "#batch heads length length"] | ScoreTerms:
        """Adds the relative biases within the text and within each image to the absolute bias.

        There is no relative bias between text and images, or between two images.
        """
        c, bias, start = self.config, encoder_positions.absolute_bias, 0
        if isinstance(bias, PositionFactors):
            return self._encoder_terms(encoder_positions, bias)
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

    def _encoder_terms(
        self, encoder_positions: EncoderPositions, factors: PositionFactors
    ) -> ScoreTerms:
        """Returns the terms of the bias; only that of sampled patches depends on the example."""
        c, start = self.config, 0
        length = factors.query.shape[1]
        relative = jnp.zeros((1, c.num_heads, length, length))
        sampled = []
        for image in encoder_positions.images:
            if image.indices is None:
                block = image.bias(self.images(), c)
                end = start + block.shape[-1]
                relative += _pad_last_two_axes(block, before=start, after=length - end)
            else:
                end = start + image.indices.shape[1]
                sampled.append(
                    SampledPatches(
                        self.images(), image.indices, image.grid, start, c.image_bucket_size
                    )
                )
            start = end
        text = position_biases.text_bias(
            self.tokens(), encoder_positions.text_length, c.token_bucket_size
        )
        relative += _pad_last_two_axes(text[None], before=start, after=0)
        return ScoreTerms(factors, relative, patches=tuple(sampled))

    def _decoder_terms(
        self, decoder_positions: DecoderPositions, factors: PositionFactors
    ) -> ScoreTerms:
        """Returns the terms of the bias of self-attention."""
        c, length = self.config, factors.query.shape[1]
        text = position_biases.text_bias(self.tokens(), length, c.token_bucket_size)
        if decoder_positions.is_image_code is None:
            return ScoreTerms(factors, text[None])
        code = position_biases.code_bias(self.images(), length, c.code_grid, c.image_bucket_size)
        kinds = decoder_positions.is_image_code.astype(jnp.int32)
        return ScoreTerms(factors, jnp.stack([text, code]), kinds)

    def decoder_bias(
        self, decoder_positions: DecoderPositions
    ) -> Float[Array, "#batch heads queries length"] | ScoreTerms:
        """Adds the relative bias of self-attention to its absolute bias."""
        if isinstance(decoder_positions.self_bias, PositionFactors):
            return self._decoder_terms(decoder_positions, decoder_positions.self_bias)
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
