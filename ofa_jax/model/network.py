"""OFA: one encoder over [image patches, text], one decoder, one vocabulary.

    images [B,H,W,3] -> ResNet -> grid [B,G,C] -> patches [B,N,C] -> [B,N,d] --+
                                                                             encoder [B,N+S,d]
    instruction [B,S] -> shared embedding -> [B,S,d] --------------------------+    |
                                                                                    v
    answer so far [B,T] -> shared embedding -> [B,T,d] ------------------------> decoder [B,T,d]
                                                                                    |
    logits [B,T,V] <- the same embedding, transposed -------------------------------+
"""

from collections.abc import Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.model import positions
from ofa_jax.model.attention import head_projection, score
from ofa_jax.model.checks import check_batch, check_tokens
from ofa_jax.model.config import PATCH_STRIDE, OFAConfig
from ofa_jax.model.layers import Dense, Table, constrain, dtype_of, layer_norm, linear_rates
from ofa_jax.model.resnet import ResNet, normalise_images
from ofa_jax.model.transformer import (
    DecoderLayer,
    DecoderPositions,
    EncoderLayer,
    EncoderPositions,
    choose_rows,
)

Batch = Mapping[str, Any]


@flax.struct.dataclass
class EncoderOutput:
    """What the decoder reads. L is patches plus text tokens, patches first.

    Attributes:
      hidden: [B, L, d], after the final LayerNorm.
      mask: bool [B, L], False on padding and on the patches of examples without an image.
      position_embeddings: [P, d], after their LayerNorm; they are the same for all examples.
      position_indices: int32 [B, L], the row of position_embeddings of each place, where patches
        are chosen per example; None where place i has row i (P = L).
    """

    hidden: jax.Array
    mask: jax.Array
    position_embeddings: jax.Array
    position_indices: jax.Array | None = None

    def select(self, rows: jax.Array) -> "EncoderOutput":
        """Picks, repeats or reorders examples (beams): int [B'] to an output of B' examples."""
        indices = self.position_indices
        return self.replace(
            hidden=jnp.take(self.hidden, rows, axis=0), mask=jnp.take(self.mask, rows, axis=0),
            position_indices=None if indices is None else jnp.take(indices, rows, axis=0))

    def positions_per_example(self) -> jax.Array:
        """[B, L, d], the position embeddings spelled out."""
        if self.position_indices is None:
            return jnp.broadcast_to(self.position_embeddings, self.hidden.shape)
        return self.position_embeddings[self.position_indices]


class Encoder(nn.Module):
    """Embeds patches and text and runs the encoder layers over both."""

    config: OFAConfig

    @nn.compact
    def __call__(self, batch: Batch, token_embeddings: jax.Array, train: bool) -> EncoderOutput:
        """Encodes.

        Args:
          batch: see `OFA`.
          token_embeddings: [B, S, d], already scaled.
          train: whether dropout, stochastic depth and batch statistics are on.

        Returns:
          EncoderOutput.
        """
        c, dtype = self.config, dtype_of(self.config)
        tokens = batch["encoder_input_tokens"]
        batch_size, length = tokens.shape
        types = Table(2, c.width, ("types", "embed"), name="type_embedding")() if (
            c.type_embedding) else None

        def embed(x, kind, entangled, norm):
            """Adds positions (if entangled) and type, normalises, drops out: [B, L, d]."""
            if c.entangle_encoder_positions:
                x = x + entangled.astype(dtype)
            if types is not None:
                x = x + types[kind].astype(dtype)
            if norm is not None:
                x = layer_norm(dtype, norm)(x)
            return nn.Dropout(c.dropout_rate)(x, deterministic=not train)

        text_positions = Table(
            c.max_source_positions + 2, c.width, ("positions", "embed"),
            name="position_embedding")(np.arange(length))
        x = embed(token_embeddings, 0, text_positions, "text_norm" if c.text_norm else None)
        mask = jnp.asarray(tokens != c.pad_id)
        embeddings = layer_norm(dtype, "position_norm")(text_positions)
        indices = patch_ids = grid = None

        if "encoder_images" in batch:
            images = normalise_images(
                jnp.asarray(batch["encoder_images"]), batch.get("encoder_image_blank_boxes"))
            patches = ResNet(c, name="resnet")(images, train)
            grid = patches.shape[1:3]
            patches = patches.reshape(batch_size, -1, c.patch_channels)
            sampled = batch.get("encoder_patch_indices")
            num_patches = patches.shape[1] if sampled is None else sampled.shape[1]
            image_positions = self._image_positions(grid, num_patches)
            entangled = image_positions
            image_embeddings = layer_norm(dtype, "image_position_norm")(image_positions)
            embeddings = jnp.concatenate([image_embeddings, embeddings])
            if sampled is not None:
                patches = jnp.take_along_axis(patches, sampled[..., None], axis=1)
                ids = positions.grid_position_ids(*grid, c.image_bucket_size)
                patch_ids, entangled = jnp.asarray(ids)[sampled], image_positions[sampled]
                text_indices = image_positions.shape[0] + jnp.arange(length)
                indices = jnp.concatenate(
                    [sampled, jnp.broadcast_to(text_indices, (batch_size, length))], axis=1)
            patches = Dense((c.patch_channels,), (c.width,), ("conv_out",), ("embed",), dtype,
                            name="image_projection")(patches)
            patches = embed(patches * jnp.asarray(c.embedding_scale, dtype), 1, entangled,
                            "patch_norm" if c.patch_norm else None)
            has_image = batch.get("encoder_image_mask")
            has_image = jnp.ones(batch_size, bool) if has_image is None else has_image
            mask = jnp.concatenate(
                [jnp.broadcast_to(has_image[:, None], (batch_size, num_patches)), mask], axis=1)
            x = jnp.concatenate([patches, x], axis=1)

        x = constrain(x * mask[..., None].astype(dtype), "batch", "length", "embed")
        query = head_projection(c, "position_query")(embeddings) * jnp.asarray(
            c.attention_scale, dtype)
        key = head_projection(c, "position_key")(embeddings)
        # Project each position once, then spread over the examples that sampled it.
        query, key = (h[None] if indices is None else h[indices] for h in (query, key))
        where = EncoderPositions(score(query, key), patch_ids, grid, length)
        for i, rate in enumerate(linear_rates(c.encoder_drop_path_rate, c.encoder_layers)):
            x = EncoderLayer(c, name=f"layer_{i}")(x, where, mask, rate, train)
        return EncoderOutput(layer_norm(dtype, "final_norm")(x), mask, embeddings, indices)

    def _image_positions(self, grid: tuple[int, int], num_patches: int) -> jax.Array:
        """Position embeddings of the whole grid, float32 [rows * columns, d]."""
        c = self.config
        table = Table(c.image_bucket_size**2 + 1, c.width, ("positions", "embed"),
                      name="image_position_embedding")
        side = c.interpolation_image_size // PATCH_STRIDE
        if c.interpolate_positions and num_patches > side**2:
            small = table(positions.grid_position_ids(side, side, c.image_bucket_size))
            return positions.interpolate_positions(small.reshape(side, side, c.width), *grid)
        return table(positions.grid_position_ids(*grid, c.image_bucket_size))


class Decoder(nn.Module):
    """Embeds the tokens so far and runs the decoder layers over them and the encoder's output."""

    config: OFAConfig

    @nn.compact
    def __call__(self, encoded: EncoderOutput, tokens: jax.Array, token_embeddings: jax.Array,
                 code_rows: jax.Array | None, train: bool) -> jax.Array:
        """Decodes all positions at once.

        Args:
          encoded: what the encoder made.
          tokens: int32 [B, T], the targets shifted right.
          token_embeddings: [B, T, d], already scaled.
          code_rows: bool [B], whose targets are image codes; None for no one's.
          train: whether dropout and stochastic depth are on.

        Returns:
          [B, T, d], after the final LayerNorm.
        """
        c, dtype, length = self.config, dtype_of(self.config), tokens.shape[1]

        # Position embeddings of text rows and, where there may be any, of code rows: [V, T, d].
        raw = [Table(c.max_target_positions + 2, c.width, ("positions", "embed"),
                     name="position_embedding")(np.arange(length))]
        norms = ["position_norm"]
        if code_rows is not None:
            raw.append(Table(
                c.image_bucket_size**2 + 1, c.width, ("positions", "embed"),
                name="image_position_embedding")(
                    positions.code_position_ids(c.code_grid, c.image_bucket_size, length)))
            norms.append("image_position_norm")
        embeddings = jnp.stack(
            [layer_norm(dtype, norm)(x) for norm, x in zip(norms, raw, strict=True)])

        x = token_embeddings
        if c.entangle_decoder_positions:
            x = x + (raw[0][None] if code_rows is None else choose_rows(*raw, code_rows)).astype(
                dtype)
        if c.text_norm:
            text = layer_norm(dtype, "text_norm")(x)
            if code_rows is None or not c.code_norm:
                x = text
            else:
                x = jnp.where(code_rows[:, None, None], layer_norm(dtype, "code_norm")(x), text)
        x = nn.Dropout(c.dropout_rate)(x, deterministic=not train)
        x = constrain(x, "batch", "length", "embed")

        where = self._positions(embeddings, encoded, code_rows)
        causal = np.tril(np.ones((1, length, length), bool))
        self_mask = causal & (tokens != c.pad_id)[:, None, :]
        for i, rate in enumerate(linear_rates(c.decoder_drop_path_rate, c.decoder_layers)):
            x = DecoderLayer(c, name=f"layer_{i}")(
                x, encoded.hidden, where, self_mask, encoded.mask, rate, train)
        return layer_norm(dtype, "final_norm")(x)

    def _positions(self, embeddings, encoded, code_rows) -> DecoderPositions:
        """The absolute biases of self- and cross-attention from [V, T, d]."""
        c = self.config
        scale = jnp.asarray(c.attention_scale, dtype_of(c))
        self_bias = score(head_projection(c, "self_position_query")(embeddings) * scale,
                          head_projection(c, "self_position_key")(embeddings))
        query = head_projection(c, "cross_position_query")(embeddings) * scale
        key = head_projection(c, "cross_position_key")(encoded.position_embeddings)
        if encoded.position_indices is None:
            cross_bias = score(query, key[None])
            if code_rows is not None:
                cross_bias = choose_rows(cross_bias[0], cross_bias[1], code_rows)
        else:
            if code_rows is not None:
                query = choose_rows(query[0], query[1], code_rows)
            cross_bias = score(query, key[encoded.position_indices])
        return DecoderPositions(self_bias, cross_bias, code_rows)


class OFA(nn.Module):
    """The whole model; see `ofa_jax.model` for how to call it.

    Attributes:
      config: sizes and options.
    """

    config: OFAConfig

    def setup(self):
        c = self.config
        self.token_embedding = Table(c.vocab_size, c.width, ("vocab", "embed"))
        self.encoder = Encoder(c)
        self.decoder = Decoder(c)

    def __call__(self, batch: Batch, train: bool = False) -> jax.Array:
        """Scores every next token.

        Args:
          batch: arrays by name, see `ofa_jax.model`.
          train: with dropout (rngs={"dropout": key}) and batch statistics
            (mutable=["batch_stats"]).

        Returns:
          float32 [B, T, V], logits.

        Raises:
          ValueError: for a batch that the configuration cannot take.
        """
        if self.is_initializing():
            batch = _with_every_input(batch)
        return self.decode(self.encode(batch, train), batch["decoder_input_tokens"],
                           batch.get("decoder_code_mask"), train)

    def encode(self, batch: Batch, train: bool = False) -> EncoderOutput:
        """Runs the encoder on the batch's encoder_* arrays."""
        check_batch(batch, self.config)
        return self.encoder(batch, self._embed(batch["encoder_input_tokens"]), train)

    def decode(self, encoder_output: EncoderOutput, decoder_input_tokens: jax.Array,
               decoder_code_mask: jax.Array | None = None, train: bool = False) -> jax.Array:
        """Scores every next token given the encoder's output.

        Args:
          encoder_output: of `encode`.
          decoder_input_tokens: int32 [B, T], the targets shifted right behind bos.
          decoder_code_mask: bool [B], rows whose targets are image codes.
          train: whether dropout and stochastic depth are on.

        Returns:
          float32 [B, T, V], logits.
        """
        check_tokens(decoder_input_tokens, "decoder_input_tokens",
                     self.config.max_target_positions, self.config)
        x = self.decoder(encoder_output, decoder_input_tokens, self._embed(decoder_input_tokens),
                         decoder_code_mask, train)
        logits = jnp.einsum("btd,vd->btv", x, self.token_embedding().astype(x.dtype),
                            preferred_element_type=jnp.float32)
        return constrain(logits, "batch", "length", "vocab")

    def _embed(self, tokens: jax.Array) -> jax.Array:
        c = self.config
        return self.token_embedding(tokens).astype(dtype_of(c)) * jnp.asarray(
            c.embedding_scale, dtype_of(c))


def _with_every_input(batch: Batch) -> Batch:
    """A batch that reaches every parameter: `init` must make them all, whatever it is shown."""
    batch_size = batch["encoder_input_tokens"].shape[0]
    pixels = 2 * PATCH_STRIDE
    missing = {
        "encoder_images": jnp.zeros((batch_size, pixels, pixels, 3)),
        "decoder_code_mask": jnp.zeros((batch_size,), bool),
    }
    return missing | dict(batch)
