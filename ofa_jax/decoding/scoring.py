"""How probable is each of a fixed set of answers?

For questions with a closed list of answers (VQA, ImageNet) the exact alternative to search: all
candidates are scored, none is lost on the way. The encoder runs once; the candidates go through the
decoder a batch at a time, side by side as the beams of a search do, so that they read the same keys
and values of the encoder's output.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.decoding.constraints import Prefix
from ofa_jax.decoding.hypotheses import BOS, EOS, PAD
from ofa_jax.decoding.search import check_prefix, check_trie, read_by_decoders
from ofa_jax.decoding.trie import Trie
from ofa_jax.model import OFA, layout
from ofa_jax.model.checks import check_length


@flax.struct.dataclass
class Candidates:
    """Answers sorted by length and cut into batches of one size.

    Attributes:
      tokens: int32 [N, M, L], ended by eos, then padding; the last batch is filled up.
      lengths: int32 [N], of the longest in each batch, with eos.
    """

    tokens: jax.Array
    lengths: jax.Array


def make_scorer(
    model: OFA,
    answers: Sequence[Sequence[int]],
    trie: Trie | None = None,
    candidates_at_once: int = 32,
    restrict: bool = True,
) -> Callable[[Any, Mapping[str, Any]], jax.Array]:
    """A function that scores all answers for every example of a batch.

    Args:
      model: whose opinion is wanted.
      answers: token ids of each, without bos and eos.
      trie: of the answers, if there is one already.
      candidates_at_once: how many answers are scored side by side. For the base model and each
        example, one of them needs 37 kB a token of cache and 240 kB of logits.
      restrict: whether only what continues some answer has probability, as the original does in
        VQA. False scores with the whole vocabulary.

    Returns:
      score(variables, batch) -> float32 [B, C], sums of log-probabilities, eos included, in the
      order of `answers`; behind decoder_prefix_tokens where the batch has them.

    Raises:
      ValueError: for answers that the model cannot write; the function, for a batch that does not
        fit.
    """
    if trie is None:
        trie = Trie.from_answers(answers, model.config.vocab_size)
    check_trie(trie, model)
    if candidates_at_once < 1:
        raise ValueError(f"candidates_at_once is {candidates_at_once}; it must be at least 1.")
    candidates, places = _in_batches(answers, min(candidates_at_once, len(answers)))
    longest = candidates.tokens.shape[-1]

    def score(variables: Any, batch: Mapping[str, Any]) -> jax.Array:
        batch = read_by_decoders(batch)
        prefix = batch.get("decoder_prefix_tokens")
        length = longest + (0 if prefix is None else prefix.shape[1])
        check_length(
            length,
            "the longest answer with prefix and eos",
            model.config.max_target_positions,
            "leave it out",
        )
        check_prefix(batch, length, model)
        return _program(
            variables, batch, candidates, places, trie if restrict else None, model=model
        )

    return score


def _in_batches(answers: Sequence[Sequence[int]], size: int) -> tuple[Candidates, np.ndarray]:
    """Batches of answers of like length, and where each answer is in them, int32 [C]."""
    order = np.argsort([len(answer) for answer in answers], kind="stable")
    padded = np.concatenate([order, np.full(-len(order) % size, order[-1])])
    tokens = np.full((len(padded), max(map(len, answers)) + 1), PAD, np.int32)
    for row, index in enumerate(padded):
        tokens[row, : len(answers[index])] = answers[index]
        tokens[row, len(answers[index])] = EOS
    tokens = tokens.reshape(-1, size, tokens.shape[-1])
    lengths = (tokens != PAD).sum(axis=-1).max(axis=1).astype(np.int32)
    return Candidates(tokens, lengths), np.argsort(order).astype(np.int32)


@functools.partial(jax.jit, static_argnames="model")
def _program(variables, batch, candidates, places, trie, *, model) -> jax.Array:
    variables, plain_config = layout.ensure_plain(variables, model.config)
    model = model.clone(config=plain_config)
    encoded = model.apply(variables, batch, method="encode")
    batch_size, (_, size, longest) = encoded.hidden.shape[0], candidates.tokens.shape
    tokens = batch.get("decoder_prefix_tokens")
    prefix = None if tokens is None else Prefix.of(tokens)
    length = longest + (0 if prefix is None else tokens.shape[1])
    empty = model.apply(
        variables, encoded, length, size, batch.get("decoder_code_mask"), method="start_cache"
    )
    shape = (batch_size, size)

    def target(tokens, step):
        """The token at a place, int32 [B, M], and whether it counts."""
        if prefix is None:
            here = jax.lax.dynamic_index_in_dim(tokens, step, axis=1, keepdims=False)
            return jnp.broadcast_to(here, shape), jnp.broadcast_to(here != PAD, shape)
        forced, own = prefix.at(step)
        place = step - prefix.lengths
        here = tokens.at[:, place].get(mode="fill", fill_value=PAD).T
        return jnp.where(forced[:, None], own[:, None], here), ~forced[:, None] & (here != PAD)

    def score_batch(candidates: Candidates):
        """Sums of log-probabilities, float32 [B, M], of one batch."""
        steps = candidates.lengths + (0 if prefix is None else prefix.lengths.max())

        def step(state):
            step, newest, scores, nodes, cache = state
            logits, cache = model.apply(variables, newest, cache, step, method="decode_step")
            token, counts = target(candidates.tokens, step)
            if trie is not None:
                # What is allowed within the prefix does not matter: it is not scored.
                logits = jnp.where(trie.allowed(nodes), logits, -jnp.inf)
                nodes = jnp.where(counts, trie.advance(nodes, token), nodes)
            log_probs = jax.nn.log_softmax(logits)
            picked = jnp.take_along_axis(log_probs, token[..., None], axis=-1)[..., 0]
            return step + 1, token, scores + jnp.where(counts, picked, 0), nodes, cache

        start = (
            jnp.zeros((), jnp.int32),
            jnp.full(shape, BOS, jnp.int32),
            jnp.zeros(shape),
            jnp.zeros(shape, jnp.int32),
            empty,
        )
        return jax.lax.while_loop(lambda state: state[0] < steps, step, start)[2]

    scores = jax.lax.map(score_batch, candidates)  # [N, B, M]
    return jnp.moveaxis(scores, 1, 0).reshape(batch_size, -1)[:, places]
