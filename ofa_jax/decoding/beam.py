"""Beam search as fairseq's `SequenceGenerator` does it.

Of all continuations of an example's G hypotheses the 2 G best are looked at. Those of the first G
that end with eos are finished; the first G that do not end grow on. An example is done when G
hypotheses are finished, whatever better ones might still grow, or when none is left to grow.
"""

import jax
import jax.numpy as jnp

from ofa_jax.decoding.config import DynamicParams
from ofa_jax.decoding.hypotheses import EOS, Continuation, DecodeState, Hypotheses, pick


def start(batch_size: int, beams: int) -> jax.Array:
    """float32 [B, G], totals: all beams are equal at first, so only one of them is there."""
    return jnp.full((batch_size, beams), -jnp.inf).at[:, 0].set(0.0)


def select(
    log_probs: jax.Array, growing: DecodeState, finished: Hypotheses, numbers: DynamicParams
) -> tuple[Continuation, Hypotheses]:
    """One step.

    Args:
      log_probs: float32 [B, G, V], of the next token.
      growing: hypotheses so far.
      finished: those that have ended, in the order in which they did.
      numbers: for the length penalty.

    Returns:
      How the hypotheses that still grow go on, and the finished ones with the new ones among them.
    """
    batch_size, beams, _ = log_probs.shape
    # The best of each hypothesis first: the best of all are among them.
    scores, tokens = jax.lax.top_k(log_probs, 2 * beams)
    totals, best = jax.lax.top_k(
        (growing.totals[..., None] + scores).reshape(batch_size, -1), 2 * beams
    )
    scores, tokens = (pick(x.reshape(batch_size, -1), best) for x in (scores, tokens))
    parents = best // (2 * beams)

    ends = (tokens == EOS) & jnp.isfinite(totals)  # [B, 2 G]
    finished = _finish(
        finished,
        ends[:, :beams],
        parents[:, :beams],
        scores[:, :beams],
        totals[:, :beams],
        growing,
        numbers,
    )
    goes_on = jnp.argsort(ends, axis=1)[:, :beams]  # stable: the best that do not end
    return Continuation(*(pick(x, goes_on) for x in (tokens, scores, parents))), finished


def _finish(finished, ends, parents, scores, totals, growing, numbers) -> Hypotheses:
    """Puts those of [B, G] candidates that end into free places, the best first."""
    places = finished.there.sum(axis=1, keepdims=True) + jnp.cumsum(ends, axis=1) - 1
    takes = ends[:, None] & (places[:, None] == jnp.arange(ends.shape[1])[:, None])
    filled, source = takes.any(axis=2), takes.argmax(axis=2)  # [B, place]
    length, step = growing.step + 1, growing.step

    def of_source(x, last):
        """[B, G, T] of the parents with a last column of the candidates."""
        return pick(x, pick(parents, source)).at[:, :, step].set(last)

    new = Hypotheses(
        tokens=of_source(growing.written, EOS),
        scores=pick(totals, source) / length.astype(jnp.float32) ** numbers.length_penalty,
        lengths=jnp.broadcast_to(length, filled.shape),
        token_scores=of_source(growing.token_scores, pick(scores, source)),
    )
    return jax.tree.map(
        lambda new, old: jnp.where(filled.reshape(*filled.shape, *[1] * (old.ndim - 2)), new, old),
        new,
        finished,
    )


def running(growing: DecodeState, finished: Hypotheses) -> jax.Array:
    """bool [B], which examples are not done."""
    return ~finished.there.all(axis=1) & jnp.isfinite(growing.totals).any(axis=1)
