"""Log-probabilities of a fixed set of candidate outputs.

For tasks with a closed set of outputs (VQA, ImageNet) this is the exact alternative to search: all
candidates are scored. The encoder runs once. The candidates pass through the decoder in batches, in
place of the beams of a search, and share the keys and values of the encoder's output.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ofa_jax.decoding.constraints import ForcedPrefix
from ofa_jax.decoding.hypotheses import BOS, EOS, PAD
from ofa_jax.decoding.model_methods import decode_step, encode, start_cache
from ofa_jax.decoding.search import check_prefix, check_trie, select_decoder_inputs
from ofa_jax.decoding.trie import Trie
from ofa_jax.model import OFA, DecoderCache, ModelInputs, layout
from ofa_jax.model.checks import check_length


class CandidateBatches(flax.struct.PyTreeNode):
    """Candidates sorted by length and split into batches of equal size.

    Attributes:
      tokens: int32, ended by eos, then padding; the last batch is filled up with repetitions.
      lengths: int32, length of the longest candidate of each batch, including eos.
    """

    tokens: Int[Array | np.ndarray, "batches candidates length"]
    lengths: Int[Array | np.ndarray, " batches"]


def make_scorer(
    model: OFA,
    candidates: Sequence[Sequence[int]],
    trie: Trie | None = None,
    candidates_at_once: int = 32,
    restrict_to_trie: bool = True,
) -> Callable[[Any, ModelInputs], Float[Array, "batch candidates"]]:
    """Builds a function that scores all candidates for every example of a batch.

    Args:
      model: the model.
      candidates: token ids of each candidate, without bos and eos.
      trie: trie of the candidates; built from them if None.
      candidates_at_once: number of candidates that are scored in parallel. For the base model each
        of them needs 37 kB of cache per token and 240 kB of logits, per example.
      restrict_to_trie: whether only tokens that continue a candidate have probability, as in the
        reference implementation of VQA. False scores with the whole vocabulary.

    Returns:
      score(variables, batch) -> float32 sums of log-probabilities, including eos, in the order of
      `candidates`; they follow decoder_prefix_tokens if the batch has them.

    Raises:
      ValueError: if the model cannot generate a candidate; `score` raises it for a batch that does
        not fit.
    """
    if trie is None:
        trie = Trie.from_sequences(candidates, model.config.vocab_size)
    check_trie(trie, model)
    if candidates_at_once < 1:
        raise ValueError(f"candidates_at_once is {candidates_at_once}; it must be at least 1.")
    batches, order = _make_batches(candidates, min(candidates_at_once, len(candidates)))
    max_candidate_length = batches.tokens.shape[-1]

    def score(variables: Any, batch: ModelInputs) -> Float[Array, "batch candidates"]:
        """Scores all candidates, see `make_scorer`."""
        batch = select_decoder_inputs(batch)
        prefix = batch.get("decoder_prefix_tokens")
        length = max_candidate_length + (0 if prefix is None else prefix.shape[1])
        check_length(
            length,
            "the longest candidate with prefix and eos",
            model.config.max_target_positions,
            "leave it out",
        )
        check_prefix(batch, length, model)
        return _encode_and_score(
            variables, batch, batches, order, trie if restrict_to_trie else None, model=model
        )

    return score


def _make_batches(
    candidates: Sequence[Sequence[int]], size: int
) -> tuple[CandidateBatches, Int[np.ndarray, " candidates"]]:
    """Returns batches of candidates of similar length, and each candidate's index in them."""
    order = np.argsort([len(candidate) for candidate in candidates], kind="stable")
    padded = np.concatenate([order, np.full(-len(order) % size, order[-1])])
    tokens = np.full((len(padded), max(map(len, candidates)) + 1), PAD, np.int32)
    for row, index in enumerate(padded):
        tokens[row, : len(candidates[index])] = candidates[index]
        tokens[row, len(candidates[index])] = EOS
    batches = tokens.reshape(-1, size, tokens.shape[-1])
    lengths = (batches != PAD).sum(axis=-1).max(axis=1).astype(np.int32)
    return CandidateBatches(batches, lengths), np.argsort(order).astype(np.int32)


@functools.partial(jax.jit, static_argnames="model")
def _encode_and_score(
    variables: Any,
    batch: ModelInputs,
    batches: CandidateBatches,
    order: Int[Array, " candidates"],
    trie: Trie | None,
    *,
    model: OFA,
) -> Float[Array, "batch candidates"]:
    """Encodes a batch and scores all batches of candidates, in the order of the candidates."""
    variables, plain_config = layout.ensure_plain(variables, model.config)
    model = model.clone(config=plain_config)
    encoded = encode(model, variables, batch)
    batch_size, (_, size, length) = encoded.hidden.shape[0], batches.tokens.shape
    prefix_tokens = batch.get("decoder_prefix_tokens")
    prefix = None
    if prefix_tokens is not None:
        prefix = ForcedPrefix.from_padded(prefix_tokens)
        length += prefix_tokens.shape[1]
    cache = start_cache(model, variables, encoded, length, size, batch.get("decoder_code_mask"))
    scores = jax.lax.map(
        lambda candidates: _score_candidates(
            model, variables, candidates, cache, prefix, trie, (batch_size, size)
        ),
        batches,
    )  # [batches, B, candidates]
    return jnp.moveaxis(scores, 1, 0).reshape(batch_size, -1)[:, order]


def _score_candidates(
    model: OFA,
    variables: Any,
    candidates: CandidateBatches,
    cache: DecoderCache,
    prefix: ForcedPrefix | None,
    trie: Trie | None,
    shape: tuple[int, int],
) -> Float[Array, "batch candidates"]:
    """Sums the log-probabilities of one batch of candidates.

    Args:
      model: the model.
      variables: its variables.
      candidates: tokens [candidates, length] of one batch, and its length [].
      cache: empty cache of the encoded examples.
      prefix: forced tokens before the candidates, or None.
      trie: trie of the tokens that have probability, or None for all.
      shape: numbers of examples and candidates.

    Returns:
      float32 sums of log-probabilities, including eos.
    """
    token_table = jnp.asarray(candidates.tokens)
    num_steps = candidates.lengths + (0 if prefix is None else prefix.lengths.max())

    def step(state: tuple[Array, Array, Array, Array, DecoderCache]) -> tuple[Any, ...]:
        """Adds the log-probabilities of the next token of each candidate."""
        step, last_tokens, scores, nodes, cache = state
        logits, cache = decode_step(model, variables, last_tokens, cache, step)
        tokens, is_scored = _tokens_at(token_table, prefix, step, shape)
        if trie is not None:
            # Within the prefix any tokens may be allowed, because they are not scored.
            logits = jnp.where(trie.allowed(nodes), logits, -jnp.inf)
            nodes = jnp.where(is_scored, trie.advance(nodes, tokens), nodes)
        log_probs = jax.nn.log_softmax(logits)
        picked = jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]
        return step + 1, tokens, scores + jnp.where(is_scored, picked, 0), nodes, cache

    start = (
        jnp.zeros((), jnp.int32),
        jnp.full(shape, BOS, jnp.int32),
        jnp.zeros(shape),
        jnp.zeros(shape, jnp.int32),
        cache,
    )
    return jax.lax.while_loop(lambda state: state[0] < num_steps, step, start)[2]


def _tokens_at(
    candidates: Int[Array, "candidates length"],
    prefix: ForcedPrefix | None,
    step: Int[Array, ""],
    shape: tuple[int, int],
) -> tuple[Int[Array, "batch candidates"], Bool[Array, "batch candidates"]]:
    """Returns the tokens at a position, and whether they are scored (not prefix or padding)."""
    if prefix is None:
        tokens = jax.lax.dynamic_index_in_dim(candidates, step, axis=1, keepdims=False)
        return jnp.broadcast_to(tokens, shape), jnp.broadcast_to(tokens != PAD, shape)
    forced, prefix_token = prefix.at(step)
    tokens = candidates.at[:, step - prefix.lengths].get(mode="fill", fill_value=PAD).T
    is_scored = ~forced[:, None] & (tokens != PAD)
    return jnp.where(forced[:, None], prefix_token[:, None], tokens), is_scored
