"""The decoder: over a whole answer at once, or one position of several beams with a cache."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.model import positions
from ofa_jax.model.attention import as_keys, head_projection
from ofa_jax.model.cache import DecoderCache, ProjectedPositions
from ofa_jax.model.config import OFAConfig
from ofa_jax.model.encoder import EncoderOutput
from ofa_jax.model.layers import Embed, dtype_of, layer_norm, linear_rates, with_activation_sharding
from ofa_jax.model.transformer import DecoderLayer, choose_rows, layer_stack


class Decoder(nn.Module):
    """Embeds the tokens so far and runs the decoder layers over them and the encoder's output."""

    config: OFAConfig

    @nn.compact
    def __call__(
        self,
        encoded: EncoderOutput | None,
        tokens: jax.Array,
        token_embeddings: jax.Array,
        is_image_code: jax.Array | None,
        train: bool,
        cache: DecoderCache | None = None,
        position: jax.Array | None = None,
    ) -> tuple[jax.Array, DecoderCache | None]:
        """Decodes all positions at once or, with a cache, one position of G beams.

        Args:
          encoded: what the encoder made; None where the cache has seen it.
          tokens: int32 [B, T], the targets shifted right; with a cache [B, G].
          token_embeddings: [B, T or G, d], already scaled.
          is_image_code: bool [B], whose targets are image codes; None for no one's.
          train: whether dropout and stochastic depth are on.
          cache: of the positions before `position`.
          position: int32 [], which one the tokens are at; only with a cache.

        Returns:
          [B, T or G, d], after the final LayerNorm, and the cache with this position in it.
        """
        c, dtype = self.config, dtype_of(self.config)
        length = tokens.shape[1] if cache is None else cache.length
        if encoded is not None:
            places = self._project_positions(encoded, is_image_code, length)
            hidden, encoder_mask = encoded.hidden, encoded.mask
        else:
            places, hidden, encoder_mask = cache.positions, None, cache.encoder_mask
        if cache is None:
            causal = np.tril(np.ones((1, length, length), bool))
            self_mask = causal & (tokens != c.pad_id)[:, None, :]
        else:
            cache, caches = cache.replace(positions=places), list(cache.layers)
            self_mask = (np.arange(length) <= position)[None, None]
            places = places.at(position)

        x = token_embeddings
        if c.entangle_decoder_positions:
            raw = places.embeddings
            x = x + (raw if is_image_code is None else choose_rows(*raw, is_image_code)).astype(
                dtype
            )
        if c.text_norm:
            text = layer_norm(dtype, "text_norm")(x)
            if is_image_code is None or not c.code_norm:
                x = text
            else:
                x = jnp.where(is_image_code[:, None, None], layer_norm(dtype, "code_norm")(x), text)
        x = nn.Dropout(c.dropout_rate)(x, deterministic=not train)
        x = with_activation_sharding(x, "batch", "length", "embed")

        where = places.biases(is_image_code).replace(position=position)
        if cache is None:
            rates = linear_rates(c.decoder_drop_path_rate, c.decoder_layers)
            x = layer_stack(
                DecoderLayer, c, rates, x, hidden, where, self_mask, encoder_mask, train=train
            )
        else:
            for i, layer_cache in enumerate(caches):
                x, caches[i] = DecoderLayer(c, name=f"layer_{i}")(
                    x, hidden, where, self_mask, encoder_mask, 0.0, train, layer_cache
                )
            cache = cache.replace(layers=tuple(caches))
        return layer_norm(dtype, "final_norm")(x), cache

    def _project_positions(self, encoded, is_image_code, length) -> ProjectedPositions:
        """Embeds and projects all positions of the decoder and of the encoder's output."""
        c, dtype = self.config, dtype_of(self.config)
        # Position embeddings of text rows and, where there may be any, of code rows: [V, T, d].
        raw = [
            Embed(
                c.max_target_positions + 2,
                c.width,
                ("positions", "embed"),
                name="position_embedding",
            )(np.arange(length))
        ]
        norms = ["position_norm"]
        if is_image_code is not None:
            raw.append(
                Embed(
                    c.image_bucket_size**2 + 1,
                    c.width,
                    ("positions", "embed"),
                    name="image_position_embedding",
                )(positions.code_position_ids(c.code_grid, c.image_bucket_size, length))
            )
            norms.append("image_position_norm")
        embeddings = jnp.stack(
            [layer_norm(dtype, norm)(x) for norm, x in zip(norms, raw, strict=True)]
        )
        scale = jnp.asarray(c.attention_scale, dtype)
        cross_key = head_projection(c, "cross_position_key")(encoded.position_embeddings)
        indices = encoded.position_indices
        return ProjectedPositions(
            self_query=head_projection(c, "self_position_query")(embeddings) * scale,
            cross_query=head_projection(c, "cross_position_query")(embeddings) * scale,
            self_key=as_keys(head_projection(c, "self_position_key")(embeddings)),
            cross_key=as_keys(cross_key[None] if indices is None else cross_key[indices]),
            embeddings=jnp.stack(raw) if c.entangle_decoder_positions else None,
        )
