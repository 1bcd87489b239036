"""The decoder's cache for decoding one token at a time.

The beams of an example share everything that comes from the encoder: it is projected once per
example and never copied per beam.
"""

import flax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ofa_jax.model.attention_ops import attention_scores, from_key_layout
from ofa_jax.model.attention_positions import DecoderPositions, select_per_example
from ofa_jax.model.attention_terms import PositionFactors
from ofa_jax.model.transformer import LayerCache


class ProjectedPositions(flax.struct.PyTreeNode):
    """Position embeddings after the projections that all decoder layers share.

    The axis `kinds` has size 1 for text rows only, or 2 for text rows (0) and code rows (1).

    Attributes:
      self_query, cross_query: scaled projections of the decoder's positions.
      self_key: projection of the decoder's positions.
      cross_key: projection of the encoder's positions; `#batch` is 1 if they are the same for all
        examples.
      embeddings: what an entangled decoder adds to its token embeddings; None in other decoders.
    """

    self_query: Float[Array, "kinds length heads head_dim"]
    cross_query: Float[Array, "kinds length heads head_dim"]
    self_key: Float[Array, "kinds heads head_dim length"]
    cross_key: Float[Array, "#batch heads head_dim encoder_length"]
    embeddings: Float[Array, "kinds length width"] | None = None

    def at(self, position: Int[Array, ""]) -> "ProjectedPositions":
        """Returns a copy with the queries and embeddings of one position and the keys of all."""

        def slice_position(x: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(x, position, 1, axis=1)

        return self.replace(
            self_query=slice_position(self.self_query),
            cross_query=slice_position(self.cross_query),
            embeddings=None if self.embeddings is None else slice_position(self.embeddings),
        )

    def biases(self, is_image_code: Bool[Array, " batch"] | None) -> DecoderPositions:
        """Computes the absolute position biases of self-attention and cross-attention.

        Args:
          is_image_code: which examples have image codes as targets; None for none of them.

        Returns:
          DecoderPositions without a `position`.
        """
        query = self.cross_query
        if self.cross_key.shape[0] == 1:
            cross_bias = attention_scores(query, self.cross_key)
            if is_image_code is not None:
                cross_bias = select_per_example(cross_bias[0], cross_bias[1], is_image_code)
        else:
            if is_image_code is not None:
                query = select_per_example(query[0], query[1], is_image_code)
            cross_bias = attention_scores(query, self.cross_key)
        self_bias = attention_scores(self.self_query, self.self_key)
        return DecoderPositions(self_bias, cross_bias, is_image_code)

    def factors(self, is_image_code: Bool[Array, " batch"] | None) -> DecoderPositions:
        """Returns the factors of these biases; the arguments are those of `biases`."""

        def select(x: Array) -> Array:
            """Selects by the first axis, of size 1 or 2, for every example."""
            return x if is_image_code is None else select_per_example(x[0], x[1], is_image_code)

        cross_key = from_key_layout(self.cross_key)
        return DecoderPositions(
            PositionFactors(select(self.self_query), select(from_key_layout(self.self_key))),
            PositionFactors(select(self.cross_query), cross_key),
            is_image_code,
        )


class DecoderCache(flax.struct.PyTreeNode):
    """Cache that `OFA.start_cache` creates and `OFA.decode_step` updates.

    Attributes:
      layers: the cache of each decoder layer.
      encoder_mask: False on padding of the encoder's output.
      is_image_code: which examples generate image codes; None for none of them.
      positions: None until the decoder has projected the encoder's output.
    """

    layers: tuple[LayerCache, ...]
    encoder_mask: Bool[Array, "batch encoder_length"]
    is_image_code: Bool[Array, " batch"] | None = None
    positions: ProjectedPositions | None = None

    @property
    def length(self) -> int:
        """Number of positions that the cache can hold."""
        return self.layers[0].past.key.shape[-1]

    def reorder(self, parents: Int[Array, "batch new_beams"]) -> "DecoderCache":
        """Returns the cache of new beams that continue from the past of their parents.

        Args:
          parents: for each new beam the index of the beam of the same example that it continues.

        Returns:
          A cache of `new_beams` beams.
        """

        def gather_beams(x: Array) -> Array:
            return jnp.take_along_axis(x, parents[..., None, None, None], axis=1)

        return self.replace(
            layers=tuple(
                layer.replace(past=jax.tree.map(gather_beams, layer.past)) for layer in self.layers
            )
        )
