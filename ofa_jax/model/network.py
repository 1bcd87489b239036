"""OFA: one encoder over [image patches, text], one decoder, one vocabulary.

    images [B,H,W,3] -> ResNet -> grid [B,G,C] -> patches [B,N,C] -> [B,N,d] --+
                                                                             encoder [B,N+S,d]
    instruction [B,S] -> shared embedding -> [B,S,d] --------------------------+    |
                                                                                    v
    answer so far [B,T] -> shared embedding -> [B,T,d] ------------------------> decoder [B,T,d]
                                                                                    |
    logits [B,T,V] <- the same embedding, transposed -------------------------------+
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.model import positions
from ofa_jax.model.attention import MASKED_SCORE, KeyValues, as_keys, head_projection, score
from ofa_jax.model.cache import DecoderCache, ProjectedPositions
from ofa_jax.model.checks import check_batch, check_length, check_tokens
from ofa_jax.model.config import PATCH_STRIDE, OFAConfig
from ofa_jax.model.layers import (
    Dense,
    Table,
    bert_init,
    constrain,
    dtype_of,
    layer_norm,
    linear_rates,
)
from ofa_jax.model.resnet import ResNet, normalise_images
from ofa_jax.model.transformer import (
    DecoderLayer,
    EncoderLayer,
    EncoderPositions,
    LayerCache,
    PatchPositions,
    choose_rows,
    run_layers,
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

        text_positions = Table(
            c.max_source_positions + 2, c.width, ("positions", "embed"),
            name="position_embedding")(np.arange(length))
        types = self._types()
        norm = layer_norm(dtype, "text_norm") if c.text_norm else None
        x = self._embed(token_embeddings, text_positions, types[0], norm, train)
        mask = jnp.asarray(tokens != c.pad_id)
        embeddings = layer_norm(dtype, "position_norm")(text_positions)
        indices = np.broadcast_to(np.arange(length), (batch_size, length))

        pictures = self._pictures(batch, types[1:], train) if "encoder_images" in batch else []
        for picture in pictures:
            # What is there moves back: [second image, image, text].
            x = jnp.concatenate([picture.hidden, x], axis=1)
            mask = jnp.concatenate([picture.mask, mask], axis=1)
            indices = _join(picture.indices, indices + len(picture.position_embeddings))
            embeddings = jnp.concatenate([picture.position_embeddings, embeddings])

        x = constrain(x * mask[..., None].astype(dtype), "batch", "length", "embed")
        # Without sampling place i of every example has position i.
        indices = None if isinstance(indices, np.ndarray) else indices
        query = head_projection(c, "position_query")(embeddings) * jnp.asarray(
            c.attention_scale, dtype)
        key = head_projection(c, "position_key")(embeddings)
        # Project each position once, then spread over the examples that sampled it.
        query, key = (h[None] if indices is None else h[indices] for h in (query, key))
        where = EncoderPositions(
            score(query, as_keys(key)), tuple(picture.where for picture in reversed(pictures)),
            length)
        rates = linear_rates(c.encoder_drop_path_rate, c.encoder_layers)
        x = run_layers(EncoderLayer, c, rates, x, where, mask, train=train)
        return EncoderOutput(layer_norm(dtype, "final_norm")(x), mask, embeddings, indices)

    def _types(self) -> list[jax.Array | None]:
        """The type vectors of text, image and second image, each [d] or None."""
        c = self.config
        if not c.type_embedding:
            return [None, None]
        types = list(Table(2, c.width, ("types", "embed"), name="type_embedding")())
        if c.second_image:
            types.append(self.param("second_image_type", nn.with_logical_partitioning(
                bert_init, ("embed",)), (c.width,)))
        return types

    def _embed(self, x, position, kind, norm, train) -> jax.Array:
        """Adds positions (if entangled) and type, normalises, drops out: [B, L, d]."""
        c, dtype = self.config, dtype_of(self.config)
        if c.entangle_encoder_positions:
            x = x + position.astype(dtype)
        if kind is not None:
            x = x + kind.astype(dtype)
        if norm is not None:
            x = norm(x)
        return nn.Dropout(c.dropout_rate)(x, deterministic=not train)

    def _pictures(self, batch: Batch, types: list, train: bool) -> list["_Picture"]:
        """Embeds the image and, where there is one, the second; the same weights see both."""
        c, dtype = self.config, dtype_of(self.config)
        resnet = ResNet(c, name="resnet")
        project = Dense((c.patch_channels,), (c.width,), ("conv_out",), ("embed",), dtype,
                        name="image_projection")
        norm = layer_norm(dtype, "patch_norm") if c.patch_norm else None
        table = Table(c.image_bucket_size**2 + 1, c.width, ("positions", "embed"),
                      name="image_position_embedding")
        position_norm = layer_norm(dtype, "image_position_norm")
        batch_size = len(batch["encoder_input_tokens"])
        has_image = jnp.asarray(batch.get("encoder_image_mask", np.ones(batch_size, bool)))

        def embed(prefix: str, kind: jax.Array | None) -> _Picture:
            images = normalise_images(
                jnp.asarray(batch[f"{prefix}images"]), batch.get(f"{prefix}image_blank_boxes"))
            patches = resnet(images, train)
            grid = patches.shape[1:3]
            patches = patches.reshape(batch_size, -1, c.patch_channels)
            sampled = batch.get(f"{prefix}patch_indices")
            num_patches = patches.shape[1] if sampled is None else sampled.shape[1]
            position = entangled = self._image_positions(table, grid, num_patches)
            ids, indices = None, np.broadcast_to(
                np.arange(num_patches), (batch_size, num_patches))
            if sampled is not None:
                patches = jnp.take_along_axis(patches, sampled[..., None], axis=1)
                ids = jnp.asarray(positions.grid_position_ids(*grid, c.image_bucket_size))[sampled]
                entangled, indices = position[sampled], jnp.asarray(sampled)
            x = project(patches) * jnp.asarray(c.embedding_scale, dtype)
            return _Picture(
                hidden=self._embed(x, entangled, kind, norm, train),
                mask=jnp.broadcast_to(has_image[:, None], (batch_size, num_patches)),
                position_embeddings=position_norm(position),
                indices=indices,
                where=PatchPositions(ids, grid),
            )

        pictures = [embed("encoder_", types[0])]
        if "encoder_second_images" in batch:
            pictures.append(embed("encoder_second_", types[1]))
        return pictures

    def _image_positions(self, table, grid: tuple[int, int], num_patches: int) -> jax.Array:
        """Position embeddings of the whole grid, float32 [rows * columns, d]."""
        c = self.config
        side = c.interpolation_image_size // PATCH_STRIDE
        if c.interpolate_positions and num_patches > side**2:
            small = table(positions.grid_position_ids(side, side, c.image_bucket_size))
            return positions.interpolate_positions(small.reshape(side, side, c.width), *grid)
        return table(positions.grid_position_ids(*grid, c.image_bucket_size))


@dataclasses.dataclass(frozen=True)
class _Picture:
    """An embedded picture.

    Attributes:
      hidden: [B, N, d].
      mask: bool [B, N].
      position_embeddings: [rows * columns, d], of its whole grid, after their LayerNorm.
      indices: int [B, N], the row of position_embeddings of each patch; numpy where it is the same
        for all examples.
      where: for the relative bias.
    """

    hidden: jax.Array
    mask: jax.Array
    position_embeddings: jax.Array
    indices: np.ndarray | jax.Array
    where: PatchPositions


def _join(before, after):
    """Index arrays [B, N] and [B, L] one after the other; numpy as long as both are."""
    both_known = isinstance(before, np.ndarray) and isinstance(after, np.ndarray)
    return (np if both_known else jnp).concatenate([before, after], axis=1)


class Decoder(nn.Module):
    """Embeds the tokens so far and runs the decoder layers over them and the encoder's output."""

    config: OFAConfig

    @nn.compact
    def __call__(self, encoded: EncoderOutput | None, tokens: jax.Array,
                 token_embeddings: jax.Array, code_rows: jax.Array | None, train: bool,
                 cache: DecoderCache | None = None, position: jax.Array | None = None
                 ) -> tuple[jax.Array, DecoderCache | None]:
        """Decodes all positions at once or, with a cache, one position of G beams.

        Args:
          encoded: what the encoder made; None where the cache has seen it.
          tokens: int32 [B, T], the targets shifted right; with a cache [B, G].
          token_embeddings: [B, T or G, d], already scaled.
          code_rows: bool [B], whose targets are image codes; None for no one's.
          train: whether dropout and stochastic depth are on.
          cache: of the positions before `position`.
          position: int32 [], which one the tokens are at; only with a cache.

        Returns:
          [B, T or G, d], after the final LayerNorm, and the cache with this position in it.
        """
        c, dtype = self.config, dtype_of(self.config)
        length = tokens.shape[1] if cache is None else cache.length
        if encoded is not None:
            places = self._project_positions(encoded, code_rows, length)
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
            x = x + (raw if code_rows is None else choose_rows(*raw, code_rows)).astype(dtype)
        if c.text_norm:
            text = layer_norm(dtype, "text_norm")(x)
            if code_rows is None or not c.code_norm:
                x = text
            else:
                x = jnp.where(code_rows[:, None, None], layer_norm(dtype, "code_norm")(x), text)
        x = nn.Dropout(c.dropout_rate)(x, deterministic=not train)
        x = constrain(x, "batch", "length", "embed")

        where = places.biases(code_rows).replace(position=position)
        if cache is None:
            rates = linear_rates(c.decoder_drop_path_rate, c.decoder_layers)
            x = run_layers(
                DecoderLayer, c, rates, x, hidden, where, self_mask, encoder_mask, train=train)
        else:
            for i, layer_cache in enumerate(caches):
                x, caches[i] = DecoderLayer(c, name=f"layer_{i}")(
                    x, hidden, where, self_mask, encoder_mask, 0.0, train, layer_cache)
            cache = cache.replace(layers=tuple(caches))
        return layer_norm(dtype, "final_norm")(x), cache

    def _project_positions(self, encoded, code_rows, length) -> ProjectedPositions:
        """Embeds and projects all positions of the decoder and of the encoder's output."""
        c, dtype = self.config, dtype_of(self.config)
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
        scale = jnp.asarray(c.attention_scale, dtype)
        cross_key = head_projection(c, "cross_position_key")(encoded.position_embeddings)
        indices = encoded.position_indices
        return ProjectedPositions(
            self_query=head_projection(c, "self_position_query")(embeddings) * scale,
            cross_query=head_projection(c, "cross_position_query")(embeddings) * scale,
            self_key=as_keys(head_projection(c, "self_position_key")(embeddings)),
            cross_key=as_keys(cross_key[None] if indices is None else cross_key[indices]),
            embeddings=jnp.stack(raw) if c.entangle_decoder_positions else None)


class OFA(nn.Module):
    """The whole model; see `ofa_jax.model` for how to call it.

    Attributes:
      config: sizes and options.
    """

    config: OFAConfig

    def setup(self):
        c = self.config
        self.token_embedding = Table(c.padded_vocab_size, c.width, ("vocab", "embed"))
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
            batch = _with_every_input(batch, self.config)
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
        x, _ = self.decoder(encoder_output, decoder_input_tokens,
                            self._embed(decoder_input_tokens), decoder_code_mask, train)
        return self._logits(x)

    def start_cache(self, encoder_output: EncoderOutput, length: int, beams: int = 1,
                    decoder_code_mask: jax.Array | None = None) -> DecoderCache:
        """An empty cache, for decoding token by token.

        Args:
          encoder_output: of `encode`.
          length: number of decoder positions to make room for.
          beams: hypotheses of each example that will grow side by side, G.
          decoder_code_mask: bool [B], rows that will write image codes.

        Returns:
          The cache for `decode_step` at position 0.

        Raises:
          ValueError: the layers are stacked.
        """
        c, batch_size = self.config, encoder_output.hidden.shape[0]
        if c.scan_layers:
            raise ValueError("OFAConfig.scan_layers stacks the layers, and token by token they are "
                             "run one by one: see ofa_jax.model.layout.plain.")
        check_length(length, "the decoder's cache", c.max_target_positions, "decode fewer tokens")
        nothing = jnp.zeros((batch_size, beams), jnp.int32)
        past = constrain(
            jnp.zeros((batch_size, beams, c.num_heads, c.head_dim, length), dtype_of(c)),
            "batch", None, "heads", "kv", "length")
        empty = DecoderCache((LayerCache(KeyValues(past, past)),) * c.decoder_layers,
                             encoder_output.mask, decoder_code_mask)
        # Of this step only what the layers project of the encoder's output is kept; the compiler
        # drops the rest.
        _, seen = self.decoder(encoder_output, nothing, self._embed(nothing), decoder_code_mask,
                               False, empty, jnp.zeros((), jnp.int32))
        return seen.replace(layers=tuple(
            layer.replace(past=before.past) for layer, before in zip(
                seen.layers, empty.layers, strict=True)))

    def decode_step(self, tokens: jax.Array, cache: DecoderCache, position: jax.Array
                    ) -> tuple[jax.Array, DecoderCache]:
        """Scores the next token of every beam.

        Args:
          tokens: int32 [B, G], the newest of each beam: bos at position 0.
          cache: of `start_cache`, or of the step before.
          position: int32 [], how many tokens came before these.

        Returns:
          float32 [B, G, V], logits, and the cache for the next step.
        """
        x, cache = self.decoder(None, tokens, self._embed(tokens), cache.code_rows, False, cache,
                                position)
        return self._logits(x), cache

    def _logits(self, x: jax.Array) -> jax.Array:
        table = constrain(self.token_embedding().astype(x.dtype), "vocab", "embed")
        logits = jnp.einsum("btd,vd->btv", x, table, preferred_element_type=jnp.float32)
        if logits.shape[-1] > self.config.vocab_size:
            # Finite, so that sums and differences of what is never predicted stay numbers.
            ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2)
            logits = jnp.where(ids < self.config.vocab_size, logits, MASKED_SCORE)
        return constrain(logits, "batch", "length", "vocab")

    def _embed(self, tokens: jax.Array) -> jax.Array:
        c = self.config
        # Whole rows on every device: a look-up in columns would spread ids and results over all.
        # In float32, for its gradient adds up the tokens that share a row.
        table = constrain(self.token_embedding(), "vocab", "embed")
        return jnp.take(table, tokens, axis=0, mode="clip").astype(dtype_of(c)) * jnp.asarray(
            c.embedding_scale, dtype_of(c))


def _with_every_input(batch: Batch, config: OFAConfig) -> Batch:
    """A batch that reaches every parameter: `init` must make them all, whatever it is shown."""
    batch_size = batch["encoder_input_tokens"].shape[0]
    pixels = 2 * PATCH_STRIDE
    images = jnp.zeros((batch_size, pixels, pixels, 3))
    missing = {"encoder_images": images, "decoder_code_mask": jnp.zeros((batch_size,), bool)}
    if config.second_image:
        missing["encoder_second_images"] = images
    return missing | dict(batch)
