"""OFA: one encoder over image patches and text, one decoder, one vocabulary.

images [B,H,W,3] -> ResNet -> grid [B,G,C] -> patches [B,N,C] -> [B,N,d] --+
                                                                         encoder [B,N+S,d]
instruction [B,S] -> shared embedding -> [B,S,d] --------------------------+    |
                                                                                v
target so far [B,T] -> shared embedding -> [B,T,d] ------------------------> decoder [B,T,d]
                                                                                |
logits [B,T,V] <- the same embedding, transposed -------------------------------+
"""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ofa_jax.model.attention import KeyValues
from ofa_jax.model.cache import DecoderCache
from ofa_jax.model.checks import check_encoder_inputs, check_length, check_tokens
from ofa_jax.model.config import PATCH_STRIDE, OFAConfig
from ofa_jax.model.decoder import Decoder
from ofa_jax.model.encoder import Encoder, EncoderOutput, ModelInputs
from ofa_jax.model.factored_logits import FactoredLogits
from ofa_jax.model.layers import Embed, dtype_of, with_activation_sharding
from ofa_jax.model.pack_streams import pack_streams, unpack_streams
from ofa_jax.model.transformer import LayerCache


class OFA(nn.Module):
    """The whole model; `ofa_jax.model` shows how to call it.

    Attributes:
      config: sizes and options.
    """

    config: OFAConfig

    def setup(self) -> None:
        """Creates the shared embedding, the encoder and the decoder."""
        c = self.config
        self.token_embedding = Embed(c.padded_vocab_size, c.width, ("vocab", "embed"))
        self.encoder = Encoder(c)
        self.decoder = Decoder(c)

    def __call__(self, batch: ModelInputs, train: bool = False) -> Float[Array, "... length vocab"]:
        """Computes the logits of every next token.

        Args:
          batch: arrays by name, see `ofa_jax.model`.
          train: whether to use dropout (rngs={"dropout": key}) and batch statistics
            (mutable=["batch_stats"]).

        Returns:
          float32 logits [B, T, V]; [B, G, T, V] for G targets per example.

        Raises:
          ValueError: if the batch does not fit the configuration.
        """
        tokens = batch["decoder_input_tokens"]
        return self.score_streams({"": batch}, train).reshape(*tokens.shape, -1)

    def score_streams(
        self, batches: Mapping[str, ModelInputs], train: bool = False
    ) -> Float[Array, "rows length vocab"]:
        """Computes the logits of several batches: those of `factor_streams`, multiplied."""
        return self.factor_streams(batches, train).whole()

    def factor_streams(
        self, batches: Mapping[str, ModelInputs], train: bool = False
    ) -> FactoredLogits:
        """Computes the logits of several batches, whose shapes may differ, but for one product.

        Equals `__call__` on one batch after another (batch statistics carry over from each to the
        next), but looks up the tokens of all batches at once and multiplies all decoder outputs
        with the embedding at once. The gradients of both are as large as the whole embedding and
        are summed over all devices.

        Args:
          batches: stream name -> batch.
          train: see `__call__`.

        Returns:
          Logits of all streams, packed by `pack_streams`; `unpack_streams` splits them.

        Raises:
          ValueError: if a batch does not fit the configuration.
        """
        if self.is_initializing():
            batches = {
                name: _add_missing_inputs(batch, self.config) for name, batch in batches.items()
            }
        for batch in batches.values():
            check_encoder_inputs(batch, self.config)
            self._check_decoder_tokens(batch["decoder_input_tokens"])
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
        return self._factors(pack_streams(decoded, shapes))

    def encode(self, batch: ModelInputs, train: bool = False) -> EncoderOutput:
        """Runs the encoder on the encoder_* arrays of a batch."""
        check_encoder_inputs(batch, self.config)
        (embedded,) = self._embed(batch["encoder_input_tokens"])
        return self.encoder(batch, embedded, train)

    def decode(
        self,
        encoder_output: EncoderOutput,
        decoder_input_tokens: Int[Array, "... length"],
        decoder_code_mask: Bool[Array, " batch"] | None = None,
        train: bool = False,
    ) -> Float[Array, "... length vocab"]:
        """Computes the logits of every next token given the encoder's output.

        Args:
          encoder_output: result of `encode`.
          decoder_input_tokens: int32 [B, T], bos and then the targets without their last token;
            [B, G, T] for G targets per example, which share its encoder output.
          decoder_code_mask: which examples have image codes as targets.
          train: whether dropout and stochastic depth are on.

        Returns:
          float32 logits [B, T, V] or [B, G, T, V].
        """
        self._check_decoder_tokens(decoder_input_tokens)
        (embedded,) = self._embed(decoder_input_tokens)
        x = self._decode(encoder_output, decoder_input_tokens, embedded, decoder_code_mask, train)
        rows = x.reshape(len(x), -1, x.shape[-1])
        return self._logits(rows).reshape(*decoder_input_tokens.shape, -1)

    def _decode(
        self,
        encoded: EncoderOutput,
        tokens: Int[Array, "... length"],
        embedded: Float[Array, "... length width"],
        is_image_code: Bool[Array, " batch"] | None,
        train: bool,
    ) -> Float[Array, "... length width"]:
        """Runs the decoder on embedded tokens [B, T] or [B, G, T]."""
        *targets_axis, length = tokens.shape[1:]
        if targets_axis:
            (num_targets,) = targets_axis
            if is_image_code is not None:
                is_image_code = jnp.repeat(is_image_code, num_targets, axis=0)
            encoded = encoded.repeat(num_targets)
        flat = tokens.reshape(-1, length)
        x, _ = self.decoder(encoded, flat, embedded.reshape(*flat.shape, -1), is_image_code, train)
        return x.reshape(embedded.shape)

    def _check_decoder_tokens(self, tokens: Int[Array, "... length"]) -> None:
        """Raises ValueError unless tokens [B, T] or [B, G, T] fit the configuration."""
        if tokens.ndim == 3:
            tokens = tokens.reshape(-1, tokens.shape[2])
        check_tokens(tokens, "decoder_input_tokens", self.config.max_target_positions, self.config)

    def start_cache(
        self,
        encoder_output: EncoderOutput,
        length: int,
        beams: int = 1,
        decoder_code_mask: Bool[Array, " batch"] | None = None,
    ) -> DecoderCache:
        """Creates a cache for decoding token by token.

        Args:
          encoder_output: result of `encode`.
          length: number of decoder positions that the cache can hold.
          beams: hypotheses per example that are decoded in parallel.
          decoder_code_mask: which examples generate image codes.

        Returns:
          The cache for `decode_step` at position 0.

        Raises:
          ValueError: if the layers are stacked, or if the model lacks positions.
        """
        c, batch_size = self.config, encoder_output.hidden.shape[0]
        if c.scan_layers:
            raise ValueError(
                "OFAConfig.scan_layers stacks the layers, but decoding token by token runs them "
                "one by one: convert with ofa_jax.model.layout.ensure_plain first."
            )
        check_length(length, "the decoder's cache", c.max_target_positions, "decode fewer tokens")
        tokens = jnp.zeros((batch_size, beams), jnp.int32)
        past = self._empty_past((batch_size, beams, c.num_heads, c.head_dim, length))
        empty = DecoderCache((past,) * c.decoder_layers, encoder_output.mask, decoder_code_mask)
        # Run a step on dummy tokens, and keep only the projections of the encoder's output; the
        # compiler removes everything else.
        (embedded,) = self._embed(tokens)
        _, cache = self.decoder(
            encoder_output,
            tokens,
            embedded,
            decoder_code_mask,
            False,
            empty,
            jnp.zeros((), jnp.int32),
        )
        assert cache is not None
        return cache.replace(
            layers=tuple(
                layer.replace(past=before.past)
                for layer, before in zip(cache.layers, empty.layers, strict=True)
            )
        )

    def _empty_past(self, shape: tuple[int, ...]) -> LayerCache:
        """Returns the cache of a layer without past positions, [B, beams, heads, head_dim, T]."""
        past = with_activation_sharding(
            jnp.zeros(shape, dtype_of(self.config)), "batch", None, "heads", "kv", "length"
        )
        return LayerCache(KeyValues(past, past))

    def decode_step(
        self, tokens: Int[Array, "batch beams"], cache: DecoderCache, position: Int[Array, ""]
    ) -> tuple[Float[Array, "batch beams vocab"], DecoderCache]:
        """Computes the logits of the next token of every beam.

        Args:
          tokens: the last token of each beam: bos at position 0.
          cache: result of `start_cache` or of the previous step.
          position: number of tokens before these.

        Returns:
          float32 logits, and the cache for the next step.
        """
        (embedded,) = self._embed(tokens)
        x, new_cache = self.decoder(
            None, tokens, embedded, cache.is_image_code, False, cache, position
        )
        assert new_cache is not None
        return self._logits(x), new_cache

    def _logits(self, x: Float[Array, "rows length width"]) -> Float[Array, "rows length vocab"]:
        """Multiplies decoder outputs with the embedding, in float32."""
        return self._factors(x).whole()

    def _factors(self, x: Float[Array, "rows length width"]) -> FactoredLogits:
        """Returns decoder outputs with the embedding that they are multiplied with."""
        table = with_activation_sharding(self.token_embedding().astype(x.dtype), "vocab", "embed")
        return FactoredLogits(x, table, self.config.vocab_size)

    def _embed(self, *tokens: Int[Array, "..."]) -> list[Float[Array, "... width"]]:
        """Looks up several arrays of tokens at once; their batch sizes may differ."""
        c = self.config
        # Gather the columns on every device: a look-up in sharded columns would exchange ids and
        # results. Float32, because the gradient sums over all tokens that share a row.
        table = with_activation_sharding(self.token_embedding(), "vocab", "embed")
        ids = pack_streams(tokens)
        embedded = jnp.take(table, ids, axis=0, mode="clip").astype(dtype_of(c))
        embedded = with_activation_sharding(
            embedded * jnp.asarray(c.embedding_scale, dtype_of(c)), "batch", "length", "embed"
        )
        return unpack_streams(embedded, [array.shape for array in tokens])


def _add_missing_inputs(batch: ModelInputs, config: OFAConfig) -> ModelInputs:
    """Adds the inputs that are missing, so that `init` creates every parameter for any batch."""
    batch_size = batch["encoder_input_tokens"].shape[0]
    pixels = 2 * PATCH_STRIDE
    images = jnp.zeros((batch_size, pixels, pixels, 3))
    missing = {"encoder_images": images, "decoder_code_mask": jnp.zeros((batch_size,), bool)}
    if config.second_image:
        missing["encoder_second_images"] = images
    return missing | dict(batch)
