"""The decoder: all positions of a target at once, or one position of several beams with a cache."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ofa_jax.model import positions
from ofa_jax.model.attention import head_projection, to_key_layout
from ofa_jax.model.attention_positions import DecoderPositions, select_per_example
from ofa_jax.model.attention_terms import AttentionMask
from ofa_jax.model.cache import DecoderCache, ProjectedPositions
from ofa_jax.model.config import OFAConfig
from ofa_jax.model.encoder import EncoderOutput
from ofa_jax.model.layers import (
    Embed,
    attention_implementation,
    dtype_of,
    layer_norm,
    linear_drop_path_rates,
    with_activation_sharding,
)
from ofa_jax.model.transformer import DecoderLayer, layer_stack


class _LayerInputs(NamedTuple):
    """Arguments that every decoder layer gets between x and its drop path rate."""

    encoded: Array | None
    decoder_positions: DecoderPositions
    self_mask: Array | np.ndarray | AttentionMask
    encoder_mask: Array


class Decoder(nn.Module):
    """Embeds the tokens so far and runs the decoder layers over them and the encoder's output."""

    config: OFAConfig

    @nn.compact
    def __call__(
        self,
        encoded: EncoderOutput | None,
        tokens: Int[Array, "batch length"],
        token_embeddings: Float[Array, "batch length width"],
        is_image_code: Bool[Array, " batch"] | None,
        train: bool,
        cache: DecoderCache | None = None,
        position: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch length width"], DecoderCache | None]:
        """Decodes all positions at once or, with a cache, one position of several beams.

        Args:
          encoded: the encoder's output; None if the cache holds its projections.
          tokens: the targets shifted right; with a cache the last tokens, [batch, beams].
          token_embeddings: scaled embeddings of the tokens.
          is_image_code: which examples have image codes as targets; None for none of them.
          train: whether dropout and stochastic depth are on; they are off with a cache.
          cache: cache of the positions before `position`.
          position: position of the tokens; only with a cache.

        Returns:
          Hidden states after the final LayerNorm, and the cache including this position.
        """
        c = self.config
        length = tokens.shape[1] if cache is None else cache.length
        if encoded is not None:
            projected = self._project_positions(encoded, is_image_code, length)
            hidden, encoder_mask = encoded.hidden, encoded.mask
        else:
            assert cache is not None and cache.positions is not None
            projected, hidden, encoder_mask = cache.positions, None, cache.encoder_mask
        self_mask: Array | np.ndarray | AttentionMask
        as_factors = cache is None and attention_implementation(c) != "bias"
        if as_factors:
            self_mask = AttentionMask(tokens != c.pad_id, causal=True)
        elif cache is None:
            causal = np.tril(np.ones((1, length, length), bool))
            self_mask = causal & (tokens != c.pad_id)[:, None, :]
        else:
            assert position is not None
            cache = cache.replace(positions=projected)
            self_mask = (np.arange(length) <= position)[None, None]
            projected = projected.at(position)

        x = self._embed(token_embeddings, projected.embeddings, is_image_code, train)
        make_positions = projected.factors if as_factors else projected.biases
        decoder_positions = make_positions(is_image_code).replace(position=position)
        inputs = _LayerInputs(hidden, decoder_positions, self_mask, encoder_mask)
        if cache is None:
            rates = linear_drop_path_rates(c.decoder_drop_path_rate, c.decoder_layers)
            x = layer_stack(DecoderLayer, c, rates, x, *inputs, train=train)
        else:
            x, cache = self._run_cached_layers(x, inputs, cache)
        return layer_norm(dtype_of(c), "final_norm")(x), cache

    def _embed(
        self,
        x: Array,
        position_embeddings: Array | None,
        is_image_code: Array | None,
        train: bool,
    ) -> Array:
        """Adds position embeddings (if entangled), normalises and applies dropout: [B, T, d]."""
        c, dtype = self.config, dtype_of(self.config)
        if position_embeddings is not None:
            if is_image_code is not None:
                text, code = position_embeddings
                position_embeddings = select_per_example(text, code, is_image_code)
            x = x + position_embeddings.astype(dtype)
        if c.text_norm:
            text = layer_norm(dtype, "text_norm")(x)
            if is_image_code is None or not c.code_norm:
                x = text
            else:
                x = jnp.where(is_image_code[:, None, None], layer_norm(dtype, "code_norm")(x), text)
        x = nn.Dropout(c.dropout_rate)(x, deterministic=not train)
        return with_activation_sharding(x, "batch", "length", "embed")

    def _run_cached_layers(
        self, x: Array, inputs: _LayerInputs, cache: DecoderCache
    ) -> tuple[Array, DecoderCache]:
        """Runs the layers over one position of each beam and updates their caches."""
        layers = []
        for i, layer_cache in enumerate(cache.layers):
            layer = DecoderLayer(self.config, name=f"layer_{i}")
            x, new_cache = layer(x, *inputs, 0.0, False, layer_cache)
            layers.append(new_cache)
        return x, cache.replace(layers=tuple(layers))

    def _project_positions(
        self, encoded: EncoderOutput, is_image_code: Array | None, length: int
    ) -> ProjectedPositions:
        """Embeds and projects all positions of the decoder and of the encoder's output."""
        c, dtype = self.config, dtype_of(self.config)
        axes = ("positions", "embed")
        # Position embeddings [T, d] of text rows and, where there may be any, of code rows.
        table = Embed(c.max_target_positions + 2, c.width, axes, name="position_embedding")
        raw = [table(np.arange(length))]
        norms = ["position_norm"]
        if is_image_code is not None:
            ids = positions.code_position_ids(c.code_grid, c.image_bucket_size, length)
            image_table = Embed(
                c.image_bucket_size**2 + 1, c.width, axes, name="image_position_embedding"
            )
            raw.append(image_table(ids))
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
            self_key=to_key_layout(head_projection(c, "self_position_key")(embeddings)),
            cross_key=to_key_layout(cross_key[None] if indices is None else cross_key[indices]),
            embeddings=jnp.stack(raw) if c.entangle_decoder_positions else None,
        )
