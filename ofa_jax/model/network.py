"""OFA: one encoder over [image patches, text], one decoder, one vocabulary.

    images [B,H,W,3] -> ResNet -> grid [B,G,C] -> patches [B,N,C] -> [B,N,d] --+
                                                                             encoder [B,N+S,d]
    instruction [B,S] -> shared embedding -> [B,S,d] --------------------------+    |
                                                                                    v
    answer so far [B,T] -> shared embedding -> [B,T,d] ------------------------> decoder [B,T,d]
                                                                                    |
    logits [B,T,V] <- the same embedding, transposed -------------------------------+
"""


import flax.linen as nn
import jax
import jax.numpy as jnp

from ofa_jax.model.attention import MASKED_SCORE, KeyValues
from ofa_jax.model.cache import DecoderCache
from ofa_jax.model.checks import check_batch, check_length, check_tokens
from ofa_jax.model.config import PATCH_STRIDE, OFAConfig
from ofa_jax.model.decoder import Decoder
from ofa_jax.model.encoder import Batch, Encoder, EncoderOutput
from ofa_jax.model.layers import Table, constrain, dtype_of
from ofa_jax.model.transformer import LayerCache


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
          float32 [B, T, V], logits; [B, G, T, V] for G answers to each example.

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
          decoder_input_tokens: int32 [B, T], the targets shifted right behind bos; [B, G, T] for
            G answers to each example, which the encoder has read once.
          decoder_code_mask: bool [B], rows whose targets are image codes.
          train: whether dropout and stochastic depth are on.

        Returns:
          float32 [B, T, V] or [B, G, T, V], logits.
        """
        if decoder_input_tokens.ndim == 3:
            shape = decoder_input_tokens.shape
            if decoder_code_mask is not None:
                decoder_code_mask = jnp.repeat(decoder_code_mask, shape[1], axis=0)
            logits = self.decode(
                encoder_output.repeat(shape[1]), decoder_input_tokens.reshape(-1, shape[2]),
                decoder_code_mask, train)
            return logits.reshape(*shape, -1)
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
