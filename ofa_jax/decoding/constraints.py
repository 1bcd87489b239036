"""What may come next: from logits to log-probabilities, -inf for every token that may not.

In the original's order: temperature; the trie or the range; softmax; lengths, specials and the
penalty of <unk>; repeated n-grams; and over all that the forced prefix.
"""

import flax
import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.decoding.config import DecodingConfig, DynamicParams
from ofa_jax.decoding.hypotheses import EOS, PAD, UNK, Continuation, DecodeState, pick
from ofa_jax.decoding.trie import Trie
from ofa_jax.tokenizers.vocabulary import SPECIAL_SYMBOLS


@flax.struct.dataclass
class Prefix:
    """Tokens that answers begin with.

    Attributes:
      tokens: int32 [B, P], padded at the end.
      lengths: int32 [B].
    """

    tokens: jax.Array
    lengths: jax.Array

    @classmethod
    def of(cls, tokens: jax.Array) -> "Prefix":
        """int32 [B, P], padded at the end."""
        return cls(tokens, (tokens != PAD).sum(axis=1))

    def at(self, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Whether place `step` is within the prefix, bool [B], and the token there, int32 [B]."""
        place = jnp.minimum(step, self.tokens.shape[1] - 1)
        tokens = jax.lax.dynamic_index_in_dim(self.tokens, place, axis=1, keepdims=False)
        return step < self.lengths, tokens


@flax.struct.dataclass
class Constraints:
    """All of them, for one call of a decoder.

    Attributes:
      numbers: settings with values.
      trie: of allowed answers, or None; it begins behind the prefix.
      prefix: forced tokens, or None.
      config: settings that are part of the program.
    """

    numbers: DynamicParams
    trie: Trie | None
    prefix: Prefix | None
    config: DecodingConfig = flax.struct.field(pytree_node=False)

    def log_probs(self, logits: jax.Array, growing: DecodeState) -> jax.Array:
        """Log-probabilities of the next token.

        Args:
          logits: float32 [B, G, V].
          growing: the hypotheses so far.

        Returns:
          float32 [B, G, V]; a row without a finite entry is a hypothesis that has no next token.
        """
        config, step = self.config, growing.step
        longest = growing.token_scores.shape[-1] - 1
        vocabulary = np.arange(logits.shape[-1])
        logits = logits / self.numbers.temperature
        answers = self._answers(growing, vocabulary)
        if answers is None:
            log_probs = jax.nn.log_softmax(logits)
        else:
            if config.renormalize:
                logits = jnp.where(answers, logits, -jnp.inf)
            # Where nothing is allowed the softmax is not a number.
            log_probs = jnp.where(answers, jax.nn.log_softmax(logits), -jnp.inf)

        barred = (vocabulary == PAD) | ((vocabulary == EOS) & (step < self.numbers.min_length))
        if config.exact_length:
            barred |= vocabulary < len(SPECIAL_SYMBOLS)
        barred = jnp.where(step < longest, barred, vocabulary != EOS)
        scores = jnp.where(barred, -jnp.inf, log_probs)
        scores -= self.numbers.unk_penalty * (vocabulary == UNK)
        if config.no_repeat_ngram_size:
            scores = _bar_repeated(scores, growing, config.no_repeat_ngram_size)
        if self.prefix is None:
            return scores
        forced, token = self.prefix.at(step)
        only = jnp.where(vocabulary == token[:, None, None], log_probs, -jnp.inf)
        return jnp.where(forced[:, None, None], only, scores)

    def _answers(self, growing: DecodeState, vocabulary: np.ndarray) -> jax.Array | None:
        """What the trie or the range allows, bool [V] or [B, G, V]; None for everything."""
        if self.config.constraint_range is not None:
            first, end = self.config.constraint_range
            return (vocabulary < len(SPECIAL_SYMBOLS)) | (
                (first <= vocabulary) & (vocabulary < end)
            )
        if self.trie is None:
            return None
        allowed = self.trie.allowed(growing.nodes)
        if self.prefix is None:
            return allowed
        return allowed | self.prefix.at(growing.step)[0][:, None, None]

    def nodes_after(self, growing: DecodeState, choice: Continuation) -> jax.Array | None:
        """Where in the trie the hypotheses will be, int32 [B, G]; None without one."""
        if self.trie is None:
            return None
        nodes = growing.nodes if choice.parents is None else pick(growing.nodes, choice.parents)
        after = self.trie.advance(nodes, choice.tokens)
        if self.prefix is None:
            return after
        return jnp.where(self.prefix.at(growing.step)[0][:, None], nodes, after)


def _bar_repeated(scores: jax.Array, growing: DecodeState, size: int) -> jax.Array:
    """-inf for tokens that would end a sequence of `size` tokens a second time."""
    width = growing.tokens.shape[-1]
    starts = np.arange(width - size + 1)  # of every sequence that there is room for

    def one(scores, tokens):
        """[V] and [1 + T] of one hypothesis."""
        repeated = starts + size - 1 <= growing.step
        for offset in range(size - 1):
            repeated &= tokens[starts + offset] == tokens[growing.step - (size - 2) + offset]
        last = jnp.where(repeated, tokens[starts + size - 1], scores.shape[0])
        return scores.at[last].set(-jnp.inf, mode="drop")

    if len(starts) == 0:
        return scores
    return jax.vmap(jax.vmap(one))(scores, growing.tokens)
