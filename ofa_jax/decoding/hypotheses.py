"""Answers while they grow and when they are finished.

B examples, G hypotheses of each, T places: the longest answer and its eos. A hypothesis that is not
there, because fewer answers are possible than were asked for, has the score -inf and no tokens.
"""

import flax
import jax
import jax.numpy as jnp

from ofa_jax.decoding.trie import Trie
from ofa_jax.model.cache import DecoderCache
from ofa_jax.model.layers import with_activation_sharding
from ofa_jax.tokenizers.vocabulary import OFAVocabulary

BOS, PAD, EOS, UNK = (
    OFAVocabulary.bos_id,
    OFAVocabulary.pad_id,
    OFAVocabulary.eos_id,
    OFAVocabulary.unk_id,
)


@flax.struct.dataclass
class Hypotheses:
    """Finished answers.

    Attributes:
      tokens: int32 [B, G, T], each ended by eos, then padding; bos is left out.
      scores: float32 [B, G], see `DecodingConfig.length_penalty`.
      lengths: int32 [B, G], tokens with eos; 0 for a hypothesis that is not there.
      token_scores: float32 [B, G, T], log-probability of each token; 0 on padding.
    """

    tokens: jax.Array
    scores: jax.Array
    lengths: jax.Array
    token_scores: jax.Array

    @classmethod
    def none(cls, batch_size: int, count: int, length: int) -> "Hypotheses":
        """Places for `count` hypotheses of each example, all empty."""
        shape = (batch_size, count)
        return cls(
            tokens=with_activation_sharding(
                jnp.full((*shape, length), PAD, jnp.int32), "batch", None, None
            ),
            scores=with_activation_sharding(jnp.full(shape, -jnp.inf), "batch", None),
            lengths=with_activation_sharding(jnp.zeros(shape, jnp.int32), "batch", None),
            token_scores=with_activation_sharding(jnp.zeros((*shape, length)), "batch", None, None),
        )

    @property
    def there(self) -> jax.Array:
        """bool [B, G], which places hold a hypothesis."""
        return self.lengths > 0

    def best_first(self) -> "Hypotheses":
        """Sorted by score."""
        order = jnp.argsort(-self.scores, axis=1)
        return jax.tree.map(lambda x: pick(x, order), self)


@flax.struct.dataclass
class Continuation:
    """How each of the G hypotheses of an example goes on: all [B, G].

    Attributes:
      tokens: int32.
      token_scores: float32, their log-probabilities.
      parents: int32, the hypothesis that is continued; None where each continues itself.
    """

    tokens: jax.Array
    token_scores: jax.Array
    parents: jax.Array | None = None


@flax.struct.dataclass
class DecodeState:
    """Answers that are being written, all at the same place.

    Attributes:
      step: int32 [], how many tokens each has.
      tokens: int32 [B, G, 1 + T], bos first, padding last.
      token_scores: float32 [B, G, T].
      totals: float32 [B, G], sums of token_scores; -inf for a hypothesis that is not there.
      cache: of the decoder.
      nodes: int32 [B, G], where in the trie each is; None without one.
    """

    step: jax.Array
    tokens: jax.Array
    token_scores: jax.Array
    totals: jax.Array
    cache: DecoderCache
    nodes: jax.Array | None = None

    @classmethod
    def start(cls, totals: jax.Array, cache: DecoderCache, trie: Trie | None) -> "DecodeState":
        """Nothing written yet; totals [B, G] say which hypotheses are there."""
        length = cache.length
        tokens = jnp.full((*totals.shape, 1 + length), PAD, jnp.int32).at[:, :, 0].set(BOS)
        return cls(
            step=jnp.zeros((), jnp.int32),
            tokens=with_activation_sharding(tokens, "batch", None, None),
            token_scores=with_activation_sharding(
                jnp.zeros((*totals.shape, length)), "batch", None, None
            ),
            totals=with_activation_sharding(totals, "batch", None),
            cache=cache,
            nodes=None
            if trie is None
            else with_activation_sharding(jnp.zeros(totals.shape, jnp.int32), "batch", None),
        )

    @property
    def newest(self) -> jax.Array:
        """int32 [B, G], the last token of each."""
        return jax.lax.dynamic_index_in_dim(self.tokens, self.step, axis=2, keepdims=False)

    @property
    def written(self) -> jax.Array:
        """int32 [B, G, T], the tokens without bos."""
        return self.tokens[:, :, 1:]

    def extend(self, choice: Continuation, nodes: jax.Array | None) -> "DecodeState":
        """One token longer; `nodes` are those of the new hypotheses."""
        tokens, token_scores, totals, cache = (
            self.tokens,
            self.token_scores,
            self.totals,
            self.cache,
        )
        if choice.parents is not None:
            tokens, token_scores, totals = (
                pick(x, choice.parents) for x in (tokens, token_scores, totals)
            )
            cache = cache.reorder(choice.parents)
        return DecodeState(
            self.step + 1,
            tokens.at[:, :, self.step + 1].set(choice.tokens),
            token_scores.at[:, :, self.step].set(choice.token_scores),
            totals + choice.token_scores,
            cache,
            nodes,
        )


def pick(x: jax.Array, index: jax.Array) -> jax.Array:
    """Per example some of x [B, G, ...], by index int32 [B, N]: [B, N, ...]."""
    return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)
