"""Sampling: each hypothesis of an example is drawn independently, token by token.

With one key for each example its samples do not depend on the others of its batch.

A sample's score is its probability under the model and the constraints, before `top_k` and `top_p`
are applied. Samples stay in the order in which they were drawn.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ofa_jax.decoding.config import DecodingConfig, DynamicParams
from ofa_jax.decoding.hypotheses import EOS, PAD, Continuation, DecodeState, Hypotheses


def initial_totals(batch_size: int, samples: int) -> Float[Array, "batch samples"]:
    """Returns the scores of empty samples."""
    return jnp.zeros((batch_size, samples))


def select(
    log_probs: Float[Array, "batch samples vocab"],
    state: DecodeState,
    config: DecodingConfig,
    key: PRNGKeyArray,
) -> Continuation:
    """Draws the next token of each sample; samples that have ended get padding.

    Args:
      log_probs: log-probabilities of the next token.
      state: samples so far.
      config: how to draw.
      key: one for the batch, or one for each example.
    """
    draw = _draw if key.ndim == 0 else jax.vmap(_draw, in_axes=(0, None, 0))
    ended = _has_ended(state)
    if config.top_k or config.top_p < 1:
        scores, tokens = jax.lax.top_k(log_probs, config.top_k or log_probs.shape[-1])
        if config.top_p < 1:
            probs = jax.nn.softmax(scores)
            before = jnp.cumsum(probs, axis=-1) - probs
            scores = jnp.where(before < config.top_p, scores, -jnp.inf)
        drawn = _take_last(tokens, draw(key, state.step, scores))
    else:
        drawn = draw(key, state.step, log_probs)
    return Continuation(
        jnp.where(ended, PAD, drawn), jnp.where(ended, 0.0, _take_last(log_probs, drawn))
    )


def _draw(
    key: PRNGKeyArray, step: Int[Array, ""], scores: Float[Array, "*rest n"]
) -> Int[Array, "*rest"]:
    """Draws an index of the last axis."""
    return jax.random.categorical(jax.random.fold_in(key, step), scores)


def _take_last(x: Float[Array, "*rest n"], index: Int[Array, "*rest"]) -> Float[Array, "*rest"]:
    """Selects one entry of the last axis."""
    return jnp.take_along_axis(x, index[..., None], axis=-1)[..., 0]


def _has_ended(state: DecodeState) -> Bool[Array, "batch samples"]:
    return (state.last_tokens == EOS) | (state.last_tokens == PAD)


def is_running(state: DecodeState) -> Bool[Array, " batch"]:
    """Returns which examples are not done."""
    return (~_has_ended(state) & jnp.isfinite(state.totals)).any(axis=1)


def finish(state: DecodeState, dynamic_params: DynamicParams) -> Hypotheses:
    """Returns the samples as hypotheses; those that could not end within T tokens are invalid."""
    tokens, valid = state.generated_tokens, jnp.isfinite(state.totals)
    lengths = jnp.where(valid, (tokens != PAD).sum(axis=-1), 0)
    penalty = jnp.maximum(lengths, 1).astype(jnp.float32) ** dynamic_params.length_penalty
    return Hypotheses(
        jnp.where(valid[..., None], tokens, PAD),
        state.totals / penalty,
        lengths,
        jnp.where(valid[..., None], state.token_scores, 0.0),
    )
