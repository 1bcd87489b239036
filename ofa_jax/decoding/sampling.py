"""Random answers: every hypothesis of an example is drawn by itself, token by token.

A sample's score is its probability under the model (and its constraints), not under what `top_k`
and `top_p` have left. Samples stay in the order in which they were drawn.
"""

import jax
import jax.numpy as jnp

from ofa_jax.decoding.config import DecodingConfig, DynamicParams
from ofa_jax.decoding.hypotheses import EOS, PAD, Continuation, DecodeState, Hypotheses


def start(batch_size: int, samples: int) -> jax.Array:
    """float32 [B, G], totals: all are there."""
    return jnp.zeros((batch_size, samples))


def select(
    log_probs: jax.Array, growing: DecodeState, config: DecodingConfig, key: jax.Array
) -> Continuation:
    """One step: float32 [B, G, V] to a token of each hypothesis; padding behind eos."""
    key = jax.random.fold_in(key, growing.step)
    ended = _ended(growing)
    if config.top_k or config.top_p < 1:
        scores, tokens = jax.lax.top_k(log_probs, config.top_k or log_probs.shape[-1])
        if config.top_p < 1:
            probs = jax.nn.softmax(scores)
            before = jnp.cumsum(probs, axis=-1) - probs
            scores = jnp.where(before < config.top_p, scores, -jnp.inf)
        drawn = _at(tokens, jax.random.categorical(key, scores))
    else:
        drawn = jax.random.categorical(key, log_probs)
    return Continuation(jnp.where(ended, PAD, drawn), jnp.where(ended, 0.0, _at(log_probs, drawn)))


def _at(x: jax.Array, index: jax.Array) -> jax.Array:
    """[..., N] and int [...] to [...]."""
    return jnp.take_along_axis(x, index[..., None], axis=-1)[..., 0]


def _ended(growing: DecodeState) -> jax.Array:
    """bool [B, G]."""
    return (growing.newest == EOS) | (growing.newest == PAD)


def running(growing: DecodeState) -> jax.Array:
    """bool [B], which examples are not done."""
    return (~_ended(growing) & jnp.isfinite(growing.totals)).any(axis=1)


def results(growing: DecodeState, numbers: DynamicParams) -> Hypotheses:
    """The samples. Those that had no way to end are not there."""
    tokens, there = growing.written, jnp.isfinite(growing.totals)
    lengths = jnp.where(there, (tokens != PAD).sum(axis=-1), 0)
    penalty = jnp.maximum(lengths, 1).astype(jnp.float32) ** numbers.length_penalty
    return Hypotheses(
        jnp.where(there[..., None], tokens, PAD),
        growing.totals / penalty,
        lengths,
        jnp.where(there[..., None], growing.token_scores, 0.0),
    )
