"""What the decoder remembers while it writes one token after another.

G is the number of beams: hypotheses of one example that grow side by side. They share all that
comes from the encoder, which is projected once per example and never copied per beam.
"""

import flax
import jax
import jax.numpy as jnp

from ofa_jax.model.attention import score
from ofa_jax.model.transformer import DecoderPositions, LayerCache, choose_rows


@flax.struct.dataclass
class ProjectedPositions:
    """Position embeddings after the projections that all decoder layers share.

    V is 1 for text rows alone, 2 where there may be code rows (the second).

    Attributes:
      self_query, cross_query: [V, T, heads, head_dim], of the decoder's positions, scaled.
      self_key: [V, heads, head_dim, T], of the decoder's positions.
      cross_key: [B or 1, heads, head_dim, K], of the encoder's positions.
      embeddings: [V, T, d], what an entangled decoder adds to its tokens; None in others.
    """

    self_query: jax.Array
    cross_query: jax.Array
    self_key: jax.Array
    cross_key: jax.Array
    embeddings: jax.Array | None = None

    def at(self, position: jax.Array) -> "ProjectedPositions":
        """With the queries and embeddings of one position, T = 1, and the keys of all."""

        def row(x):
            return None if x is None else jax.lax.dynamic_slice_in_dim(x, position, 1, axis=1)

        return self.replace(
            self_query=row(self.self_query),
            cross_query=row(self.cross_query),
            embeddings=row(self.embeddings),
        )

    def biases(self, is_image_code: jax.Array | None) -> DecoderPositions:
        """The absolute biases of self- and cross-attention; is_image_code is bool [B] or None."""
        query = self.cross_query
        if self.cross_key.shape[0] == 1:
            cross_bias = score(query, self.cross_key)
            if is_image_code is not None:
                cross_bias = choose_rows(*cross_bias, is_image_code)
        else:
            if is_image_code is not None:
                query = choose_rows(*query, is_image_code)
            cross_bias = score(query, self.cross_key)
        return DecoderPositions(score(self.self_query, self.self_key), cross_bias, is_image_code)


@flax.struct.dataclass
class DecoderCache:
    """Made by `OFA.start_cache`, carried on by `OFA.decode_step`.

    Attributes:
      layers: one per decoder layer.
      encoder_mask: bool [B, K].
      is_image_code: bool [B], rows that write image codes; None for no one.
      positions: None until the decoder has seen the encoder's output.
    """

    layers: tuple[LayerCache, ...]
    encoder_mask: jax.Array
    is_image_code: jax.Array | None = None
    positions: ProjectedPositions | None = None

    @property
    def length(self) -> int:
        """Number of positions there is room for."""
        return self.layers[0].past.key.shape[-1]

    def reorder(self, parents: jax.Array) -> "DecoderCache":
        """Every beam goes on from the past of its parent.

        Args:
          parents: int32 [B, G'], the beam of the same example that each new beam continues.

        Returns:
          A cache of G' beams.
        """

        def pick(x):
            return jnp.take_along_axis(x, parents[..., None, None, None], axis=1)

        return self.replace(
            layers=tuple(
                layer.replace(past=jax.tree.map(pick, layer.past)) for layer in self.layers
            )
        )
