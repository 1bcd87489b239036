"""Constraints on the next token: turns logits into log-probabilities, -inf for forbidden tokens.

They apply in the order of the reference implementation: temperature; the trie or the range;
softmax; length, special symbols and the penalty of <unk>; repeated n-grams; the forced prefix.
"""

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ofa_jax.decoding.config import DecodingConfig, DynamicParams
from ofa_jax.decoding.hypotheses import EOS, PAD, UNK, Continuation, DecodeState, gather_beams
from ofa_jax.decoding.trie import Trie
from ofa_jax.tokenizers.id_layout import SPECIAL_SYMBOLS


class ForcedPrefix(flax.struct.PyTreeNode):
    """Tokens that every hypothesis of an example starts with.

    Attributes:
      tokens: int32, padded at the end.
      lengths: int32, number of tokens of each prefix.
    """

    tokens: Int[Array, "batch prefix"]
    lengths: Int[Array, " batch"]

    @classmethod
    def from_padded(cls, tokens: Int[Array, "batch prefix"]) -> "ForcedPrefix":
        """Creates a prefix from tokens padded at the end."""
        return cls(tokens, (tokens != PAD).sum(axis=1))

    def at(self, step: Int[Array, ""]) -> tuple[Bool[Array, " batch"], Int[Array, " batch"]]:
        """Returns whether position `step` is within each prefix, and the prefix's token there."""
        position = jnp.minimum(step, self.tokens.shape[1] - 1)
        tokens = jax.lax.dynamic_index_in_dim(self.tokens, position, axis=1, keepdims=False)
        return step < self.lengths, tokens


class Constraints(flax.struct.PyTreeNode):
    """All constraints of one call of a decoder.

    Attributes:
      dynamic_params: settings that are arguments of the compiled program.
      trie: allowed outputs, starting after the prefix; None for all.
      prefix: forced tokens, or None.
      config: settings that are part of the compiled program.
    """

    dynamic_params: DynamicParams
    trie: Trie | None
    prefix: ForcedPrefix | None
    config: DecodingConfig = flax.struct.field(pytree_node=False)

    def log_probs(
        self, logits: Float[Array, "batch beams vocab"], state: DecodeState
    ) -> Float[Array, "batch beams vocab"]:
        """Computes the log-probabilities of the next token.

        Args:
          logits: float32 logits of the model.
          state: the hypotheses so far.

        Returns:
          float32; a row without a finite entry is a hypothesis that cannot be continued.
        """
        config, step = self.config, state.step
        max_output_length = state.token_scores.shape[-1] - 1
        vocabulary = np.arange(logits.shape[-1])
        logits = logits / self.dynamic_params.temperature
        allowed = self._allowed_tokens(state, vocabulary)
        if allowed is None:
            log_probs = jax.nn.log_softmax(logits)
        else:
            if config.renormalize:
                logits = jnp.where(allowed, logits, -jnp.inf)
            # Where no token is allowed, the softmax is NaN.
            log_probs = jnp.where(allowed, jax.nn.log_softmax(logits), -jnp.inf)

        too_short = step < self.dynamic_params.min_length
        forbidden = (vocabulary == PAD) | ((vocabulary == EOS) & too_short)
        if config.exact_length:
            forbidden |= vocabulary < len(SPECIAL_SYMBOLS)
        forbidden = jnp.where(step < max_output_length, forbidden, vocabulary != EOS)
        scores = jnp.where(forbidden, -jnp.inf, log_probs)
        scores -= self.dynamic_params.unk_penalty * (vocabulary == UNK)
        if config.no_repeat_ngram_size:
            scores = _forbid_repeated_ngrams(scores, state, config.no_repeat_ngram_size)
        if self.prefix is None:
            return scores
        forced, token = self.prefix.at(step)
        forced_scores = jnp.where(vocabulary == token[:, None, None], log_probs, -jnp.inf)
        return jnp.where(forced[:, None, None], forced_scores, scores)

    def _allowed_tokens(
        self, state: DecodeState, vocabulary: Int[np.ndarray, " vocab"]
    ) -> Bool[Array | np.ndarray, "... vocab"] | None:
        """Returns which tokens the trie or the range allows, or None if there is neither."""
        if self.config.constraint_range is not None:
            first, end = self.config.constraint_range
            return (vocabulary < len(SPECIAL_SYMBOLS)) | (
                (first <= vocabulary) & (vocabulary < end)
            )
        if self.trie is None:
            return None
        assert state.nodes is not None
        allowed = self.trie.allowed(state.nodes)
        if self.prefix is None:
            return allowed
        return allowed | self.prefix.at(state.step)[0][:, None, None]

    def next_nodes(
        self, state: DecodeState, continuation: Continuation
    ) -> Int[Array, "batch beams"] | None:
        """Returns the trie nodes of the continued hypotheses; None without a trie."""
        if self.trie is None:
            return None
        assert state.nodes is not None
        nodes = state.nodes
        if continuation.parents is not None:
            nodes = gather_beams(nodes, continuation.parents)
        after = self.trie.advance(nodes, continuation.tokens)
        if self.prefix is None:
            return after
        return jnp.where(self.prefix.at(state.step)[0][:, None], nodes, after)


def _forbid_repeated_ngrams(
    scores: Float[Array, "batch beams vocab"], state: DecodeState, size: int
) -> Float[Array, "batch beams vocab"]:
    """Sets the scores of tokens that would repeat an n-gram of `size` tokens to -inf."""
    width = state.tokens.shape[-1]
    starts = np.arange(width - size + 1)  # of all n-grams that fit
    if len(starts) == 0:
        return scores

    def forbid(
        scores: Float[Array, " vocab"], tokens: Int[Array, " 1+length"]
    ) -> Float[Array, " vocab"]:
        """Handles a single hypothesis."""
        repeated = starts + size - 1 <= state.step
        for offset in range(size - 1):
            repeated &= tokens[starts + offset] == tokens[state.step - (size - 2) + offset]
        last = jnp.where(repeated, tokens[starts + size - 1], scores.shape[0])
        return scores.at[last].set(-jnp.inf, mode="drop")

    return jax.vmap(jax.vmap(forbid))(scores, state.tokens)
