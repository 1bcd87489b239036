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

import flax.linen as nn
import jax
import jax.numpy as jnp

from ofa_jax.model.attention import MASKED_SCORE, KeyValues
from ofa_jax.model.cache import DecoderCache
from ofa_jax.model.checks import check_batch, check_length, check_tokens
from ofa_jax.model.config import PATCH_STRIDE, OFAConfig
from ofa_jax.model.decoder import Decoder
from ofa_jax.model.encoder import Batch, Encoder, EncoderOutput
from ofa_jax.model.layers import Embed, dtype_of, with_activation_sharding
from ofa_jax.model.pack_streams import pack_streams, unpack_streams
from ofa_jax.model.transformer import LayerCache


class OFA(nn.Module):
    """The whole model; see `ofa_jax.model` for how to call it.

    Attributes:
      config: sizes and options.
    """

    config: OFAConfig

    def setup(self):
        c = self.config
        self.token_embedding = Embed(c.padded_vocab_size, c.width, ("vocab", "embed"))
        self.encoder = Encoder(c)
        self.decoder = Decoder(c)

    def __call__(self, batch: Batch, train: bool = False) -> jax.Array:
        """Scores every next token.

        Args:
          batch: arrays by name, see `ofa_jax.model`.
          train: with dropout (rngs={"dropout": key}) and batch statistics
            (mutable=["batch_stats"]).

        Returns:
          float32 [B, T, V], logits; [B, G, T, V] for G answers to each example.

        Raises:
          ValueError: for a batch that the configuration cannot take.
        """
        tokens = batch["decoder_input_tokens"]
        return self.score_streams({"": batch}, train).reshape(*tokens.shape, -1)

    def score_streams(self, batches: Mapping[str, Batch], train: bool = False) -> jax.Array:
        """Scores every next token of several batches, whose shapes may differ.

        As `__call__` on one batch after another (batch statistics go on from each to the next), but
        the tokens of all are looked up at once, and all answers multiplied with the embedding at
        once: the gradient of either is as large as the whole embedding, and is summed over all
        devices.

        Args:
          batches: stream -> its batch.
          train: as of `__call__`.

        Returns:
          float32 [R, L, V], logits of all streams in their order, as `pack_streams` lays them;
          `unpack_streams` gives those of each.

        Raises:
          ValueError: for a batch that the configuration cannot take.
        """
        if self.is_initializing():
            batches = {
                name: _with_every_input(batch, self.config) for name, batch in batches.items()
            }
        for batch in batches.values():
            check_batch(batch, self.config)
            self._check_answers(batch["decoder_input_tokens"])
        sides = ("encoder_input_tokens", "decoder_input_tokens")
        embedded = iter(self._embed(*(batch[side] for batch in batches.values() for side in sides)))
        decoded = []
        for batch in batches.values():
            encoded = self.encoder(batch, next(embedded), train)
            decoded.append(
                self._decode(
                    encoded,
                    batch["decoder_input_tokens"],
                    next(embedded),
                    batch.get("decoder_code_mask"),
                    train,
                )
            )
        shapes = [batch["decoder_input_tokens"].shape for batch in batches.values()]
        return self._logits(pack_streams(decoded, shapes))

    def encode(self, batch: Batch, train: bool = False) -> EncoderOutput:
        """Runs the encoder on the batch's encoder_* arrays."""
        check_batch(batch, self.config)
        (embedded,) = self._embed(batch["encoder_input_tokens"])
        return self.encoder(batch, embedded, train)

    def decode(
        self,
        encoder_output: EncoderOutput,
        decoder_input_tokens: jax.Array,
        decoder_code_mask: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Scores every next token given the encoder's output.

        Args:
          encoder_output: of `encode`.
          decoder_input_tokens: int32 [B, T], the targets shifted right behind bos; [B, G, T] for
            G answers to each example, which the encoder has read once.
          decoder_code_mask: bool [B], rows whose targets are image codes.
          train: whether dropout and stochastic depth are on.

        Returns:
          float32 [B, T, V] or [B, G, T, V], logits.
        """
        self._check_answers(decoder_input_tokens)
        (embedded,) = self._embed(decoder_input_tokens)
        x = self._decode(encoder_output, decoder_input_tokens, embedded, decoder_code_mask, train)
        rows = x.reshape(len(x), -1, x.shape[-1])
        return self._logits(rows).reshape(*decoder_input_tokens.shape, -1)

    def _decode(
        self,
        encoded: EncoderOutput,
        tokens: jax.Array,
        embedded: jax.Array,
        is_image_code: jax.Array | None,
        train: bool,
    ) -> jax.Array:
        """The decoder's output for tokens that have been looked up: [B, T, d] or [B, G, T, d]."""
        *several, length = tokens.shape[1:]
        if several:
            (answers,) = several
            if is_image_code is not None:
                is_image_code = jnp.repeat(is_image_code, answers, axis=0)
            encoded = encoded.repeat(answers)
        flat = tokens.reshape(-1, length)
        x, _ = self.decoder(encoded, flat, embedded.reshape(*flat.shape, -1), is_image_code, train)
        return x.reshape(embedded.shape)

    def _check_answers(self, tokens: jax.Array) -> None:
        """Of [B, T] or [B, G, T]."""
        if tokens.ndim == 3:
            tokens = tokens.reshape(-1, tokens.shape[2])
        check_tokens(tokens, "decoder_input_tokens", self.config.max_target_positions, self.config)

    def start_cache(
        self,
        encoder_output: EncoderOutput,
        length: int,
        beams: int = 1,
        decoder_code_mask: jax.Array | None = None,
    ) -> DecoderCache:
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
            raise ValueError(
                "OFAConfig.scan_layers stacks the layers, and token by token they are "
                "run one by one: see ofa_jax.model.layout.plain."
            )
        check_length(length, "the decoder's cache", c.max_target_positions, "decode fewer tokens")
        nothing = jnp.zeros((batch_size, beams), jnp.int32)
        past = with_activation_sharding(
            jnp.zeros((batch_size, beams, c.num_heads, c.head_dim, length), dtype_of(c)),
            "batch",
            None,
            "heads",
            "kv",
            "length",
        )
        empty = DecoderCache(
            (LayerCache(KeyValues(past, past)),) * c.decoder_layers,
            encoder_output.mask,
            decoder_code_mask,
        )
        # Of this step only what the layers project of the encoder's output is kept; the compiler
        # drops the rest.
        (embedded,) = self._embed(nothing)
        _, seen = self.decoder(
            encoder_output,
            nothing,
            embedded,
            decoder_code_mask,
            False,
            empty,
            jnp.zeros((), jnp.int32),
        )
        return seen.replace(
            layers=tuple(
                layer.replace(past=before.past)
                for layer, before in zip(seen.layers, empty.layers, strict=True)
            )
        )

    def decode_step(
        self, tokens: jax.Array, cache: DecoderCache, position: jax.Array
    ) -> tuple[jax.Array, DecoderCache]:
        """Scores the next token of every beam.

        Args:
          tokens: int32 [B, G], the newest of each beam: bos at position 0.
          cache: of `start_cache`, or of the step before.
          position: int32 [], how many tokens came before these.

        Returns:
          float32 [B, G, V], logits, and the cache for the next step.
        """
        (embedded,) = self._embed(tokens)
        x, cache = self.decoder(None, tokens, embedded, cache.is_image_code, False, cache, position)
        return self._logits(x), cache

    def _logits(self, x: jax.Array) -> jax.Array:
        table = with_activation_sharding(self.token_embedding().astype(x.dtype), "vocab", "embed")
        logits = jnp.einsum("btd,vd->btv", x, table, preferred_element_type=jnp.float32)
        if logits.shape[-1] > self.config.vocab_size:
            # Finite, so that sums and differences of what is never predicted stay numbers.
            ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2)
            logits = jnp.where(ids < self.config.vocab_size, logits, MASKED_SCORE)
        return with_activation_sharding(logits, "batch", "length", "vocab")

    def _embed(self, *tokens: jax.Array) -> list[jax.Array]:
        """Looks up arrays of tokens, int [B, ...] each with a B of its own, as [B, ..., d]."""
        c = self.config
        # Whole rows on every device: a look-up in columns would spread ids and results over all.
        # In float32, for its gradient adds up the tokens that share a row.
        table = with_activation_sharding(self.token_embedding(), "vocab", "embed")
        ids = pack_streams(tokens)
        found = jnp.take(table, ids, axis=0, mode="clip").astype(dtype_of(c))
        found = with_activation_sharding(
            found * jnp.asarray(c.embedding_scale, dtype_of(c)), "batch", "length", "embed"
        )
        return unpack_streams(found, [array.shape for array in tokens])


def _with_every_input(batch: Batch, config: OFAConfig) -> Batch:
    """A batch that reaches every parameter: `init` must make them all, whatever it is shown."""
    batch_size = batch["encoder_input_tokens"].shape[0]
    pixels = 2 * PATCH_STRIDE
    images = jnp.zeros((batch_size, pixels, pixels, 3))
    missing = {"encoder_images": images, "decoder_code_mask": jnp.zeros((batch_size,), bool)}
    if config.second_image:
        missing["encoder_second_images"] = images
    return missing | dict(batch)
