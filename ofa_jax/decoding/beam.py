"""Beam search as in fairseq's `SequenceGenerator`.

Each step considers the 2 G best continuations of an example's G hypotheses. Those among the first G
that end with eos are finished; the first G that do not end are continued. An example is done when G
hypotheses are finished, even if better ones might follow, or when no hypothesis is left.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ofa_jax.decoding.config import DynamicParams
from ofa_jax.decoding.hypotheses import EOS, Continuation, DecodeState, Hypotheses, gather_beams


def initial_totals(batch_size: int, beams: int) -> Float[Array, "batch beams"]:
    """Returns the scores of empty hypotheses: all beams are equal, so only the first counts."""
    return jnp.full((batch_size, beams), -jnp.inf).at[:, 0].set(0.0)


def select(
    log_probs: Float[Array, "batch beams vocab"],
    state: DecodeState,
    finished: Hypotheses,
    dynamic_params: DynamicParams,
) -> tuple[Continuation, Hypotheses]:
    """Selects the continuations of one step.

    Args:
      log_probs: log-probabilities of the next token.
      state: hypotheses so far.
      finished: finished hypotheses, in the order in which they ended.
      dynamic_params: holds the length penalty.

    Returns:
      The continuations of the unfinished hypotheses, and the finished hypotheses including those
      that end in this step.
    """
    batch_size, beams, _ = log_probs.shape
    # The best 2 G of all continuations are among the best 2 G of each hypothesis.
    scores, tokens = jax.lax.top_k(log_probs, 2 * beams)
    totals, best = jax.lax.top_k(
        (state.totals[..., None] + scores).reshape(batch_size, -1), 2 * beams
    )
    scores, tokens = (gather_beams(x.reshape(batch_size, -1), best) for x in (scores, tokens))
    parents = best // (2 * beams)

    ends = (tokens == EOS) & jnp.isfinite(totals)  # [B, 2 G]
    finished = _add_finished(
        finished,
        ends[:, :beams],
        parents[:, :beams],
        scores[:, :beams],
        totals[:, :beams],
        state,
        dynamic_params,
    )
    continues = jnp.argsort(ends, axis=1)[:, :beams]  # stable: the best that do not end
    continuation = Continuation(*(gather_beams(x, continues) for x in (tokens, scores, parents)))
    return continuation, finished


def _add_finished(
    finished: Hypotheses,
    ends: Bool[Array, "batch beams"],
    parents: Int[Array, "batch beams"],
    scores: Float[Array, "batch beams"],
    totals: Float[Array, "batch beams"],
    state: DecodeState,
    dynamic_params: DynamicParams,
) -> Hypotheses:
    """Writes the continuations that end to free slots of `finished`, best first.

    Args:
      finished: finished hypotheses.
      ends: which continuations end with eos.
      parents: hypothesis that each continuation extends.
      scores: log-probability of the last token of each continuation.
      totals: sum of the log-probabilities of each continuation.
      state: hypotheses so far.
      dynamic_params: holds the length penalty.

    Returns:
      The finished hypotheses with the new ones among them.
    """
    slots = finished.valid.sum(axis=1, keepdims=True) + jnp.cumsum(ends, axis=1) - 1
    takes = ends[:, None] & (slots[:, None] == jnp.arange(ends.shape[1])[:, None])
    filled, source = takes.any(axis=2), takes.argmax(axis=2)  # [B, slot]
    length, step = state.step + 1, state.step

    def from_source(x: Array, last: Array | int) -> Array:
        """Gathers [B, G, T] of the parents and writes `last` at the current step."""
        return gather_beams(x, gather_beams(parents, source)).at[:, :, step].set(last)

    penalty = length.astype(jnp.float32) ** dynamic_params.length_penalty
    new = Hypotheses(
        tokens=from_source(state.generated_tokens, EOS),
        scores=gather_beams(totals, source) / penalty,
        lengths=jnp.broadcast_to(length, filled.shape),
        token_scores=from_source(state.token_scores, gather_beams(scores, source)),
    )
    return jax.tree.map(
        lambda new, old: jnp.where(filled.reshape(*filled.shape, *[1] * (old.ndim - 2)), new, old),
        new,
        finished,
    )


def is_running(state: DecodeState, finished: Hypotheses) -> Bool[Array, " batch"]:
    """Returns which examples are not done."""
    return ~finished.valid.all(axis=1) & jnp.isfinite(state.totals).any(axis=1)
