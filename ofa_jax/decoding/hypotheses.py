"""Hypotheses of the decoding loop: finished ones, and the state of those that are not.

B examples have G hypotheses of up to T tokens, which is the longest output and its eos. If fewer
outputs than G exist, the remaining hypotheses are invalid: their score is -inf and they are empty.
"""

import flax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

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


class Hypotheses(flax.struct.PyTreeNode):
    """Finished hypotheses.

    Attributes:
      tokens: int32, without bos, ended by eos, then padding.
      scores: float32, see `DecodingConfig.length_penalty`.
      lengths: int32, number of tokens including eos; 0 for invalid hypotheses.
      token_scores: float32, log-probability of each token; 0 on padding.
    """

    tokens: Int[Array, "batch beams length"]
    scores: Float[Array, "batch beams"]
    lengths: Int[Array, "batch beams"]
    token_scores: Float[Array, "batch beams length"]

    @classmethod
    def empty(cls, batch_size: int, count: int, length: int) -> "Hypotheses":
        """Returns `count` invalid hypotheses for each example."""
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
    def valid(self) -> Bool[Array, "batch beams"]:
        """Which hypotheses exist."""
        return self.lengths > 0

    def sorted_by_score(self) -> "Hypotheses":
        """Returns the hypotheses of each example, best first."""
        order = jnp.argsort(-self.scores, axis=1)
        return jax.tree.map(lambda x: gather_beams(x, order), self)


class Continuation(flax.struct.PyTreeNode):
    """The next token of each of the G hypotheses of an example.

    Attributes:
      tokens: int32, the tokens.
      token_scores: float32, their log-probabilities.
      parents: int32, the hypothesis that each new one continues; None if each continues itself.
    """

    tokens: Int[Array, "batch beams"]
    token_scores: Float[Array, "batch beams"]
    parents: Int[Array, "batch beams"] | None = None


class DecodeState(flax.struct.PyTreeNode):
    """Unfinished hypotheses, all of the same length.

    Attributes:
      step: int32, number of tokens of each hypothesis.
      tokens: int32, bos first, then the tokens, then padding.
      token_scores: float32, log-probability of each token.
      totals: float32, sums of token_scores; -inf for hypotheses that do not exist.
      cache: cache of the decoder.
      nodes: int32, the trie node of each hypothesis; None without a trie.
    """

    step: Int[Array, ""]
    tokens: Int[Array, "batch beams 1+length"]
    token_scores: Float[Array, "batch beams length"]
    totals: Float[Array, "batch beams"]
    cache: DecoderCache
    nodes: Int[Array, "batch beams"] | None = None

    @classmethod
    def start(
        cls, totals: Float[Array, "batch beams"], cache: DecoderCache, trie: Trie | None
    ) -> "DecodeState":
        """Returns empty hypotheses; those whose total is -inf do not exist."""
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
    def last_tokens(self) -> Int[Array, "batch beams"]:
        """The last token of each hypothesis."""
        return jax.lax.dynamic_index_in_dim(self.tokens, self.step, axis=2, keepdims=False)

    @property
    def generated_tokens(self) -> Int[Array, "batch beams length"]:
        """The tokens without bos."""
        return self.tokens[:, :, 1:]

    def extend(
        self, continuation: Continuation, nodes: Int[Array, "batch beams"] | None
    ) -> "DecodeState":
        """Returns the hypotheses with one more token.

        Args:
          continuation: the next tokens.
          nodes: trie nodes of the new hypotheses; None without a trie.
        """
        tokens, token_scores, totals, cache = (
            self.tokens,
            self.token_scores,
            self.totals,
            self.cache,
        )
        parents = continuation.parents
        if parents is not None:
            tokens, token_scores, totals = (
                gather_beams(x, parents) for x in (tokens, token_scores, totals)
            )
            # Guidance has two rows of the cache for each example.
            rows_per_example = cache.encoder_mask.shape[0] // parents.shape[0]
            if rows_per_example > 1:
                parents = jnp.repeat(parents, rows_per_example, axis=0)
            cache = cache.reorder(parents)
        return DecodeState(
            self.step + 1,
            tokens.at[:, :, self.step + 1].set(continuation.tokens),
            token_scores.at[:, :, self.step].set(continuation.token_scores),
            totals + continuation.token_scores,
            cache,
            nodes,
        )


def gather_beams(
    x: Shaped[Array, "batch beams *rest"], indices: Int[Array, "batch new_beams"]
) -> Shaped[Array, "batch new_beams *rest"]:
    """Gathers beams of each example by their indices."""
    return jnp.take_along_axis(x, indices.reshape(*indices.shape, *[1] * (x.ndim - 2)), axis=1)
