"""The loss: token cross-entropy with the options of the official OFA code, in groups of streams.

For a token with target t, log-probabilities l (float32 [V]) and confidence c (the official code's
adjust_label_smoothed_cross_entropy):

    nll    = -c l[t]
    smooth = -c sum(l)                              over the allowed ids, if there is a range
    loss   = (1 - eps - eps_i) nll + eps_i smooth,  eps_i = eps / (V - 1)

Encouraging loss (Li et al. 2021, arXiv 2110.06537) adds to nll the bonus c log(1 - p) of the
target's probability p, so that confident tokens keep a gradient; beyond p = log_end the bonus is
continued by its tangent. Padding is left out, drop-worst leaves out the largest losses, R-Drop
(Liang et al. 2021) adds the symmetric KL divergence of two passes that differ by their dropout.
Each *group* of streams is divided by its own number of tokens, and the groups are added:
mean(pairs) + mean(text, images). A confidence scales a token's loss, not the number of tokens.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ofa_jax.model.factored_logits import FactoredLogits, is_sharded
from ofa_jax.utils import options
from ofa_jax.utils.option_checks import checked

NUM_SPECIAL_IDS = 4
"""The first ids, bos, pad, eos and unk, may be predicted under any constraint."""


@checked
@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Options of the loss.

    Attributes:
      label_smoothing: eps; 0 in pretraining, 0.1 in most fine-tuning.
      drop_worst_ratio: share of the tokens to leave out, those with the largest losses.
      drop_worst_after: number of updates before drop-worst starts.
      rdrop_alpha: weight of R-Drop's divergence; 0 for one pass only.
      constraint_range: [first, last + 1) of the ids that may be predicted besides the special ones,
        e.g. the image codes; None for all.
      encouraging_end: log_end of the encouraging loss, 0 < x < 1 (0.75 and 0.5 are usual; the
        larger, the stronger); None for none.
      pad_id: targets that are not scored.
      logits_in_blocks: whether logits are computed block by block of the vocabulary, and again for
        the gradient, instead of being kept: less memory and memory traffic for a third more
        arithmetic in this product. It has no effect where a loss needs all logits (R-Drop,
        candidates) or the vocabulary is split over devices. The result agrees within rounding.
    """

    label_smoothing: options.Rate = 0.0
    drop_worst_ratio: options.Rate = 0.0
    drop_worst_after: options.Natural = 0
    rdrop_alpha: options.NonNegative = 0.0
    constraint_range: tuple[options.TokenId, options.TokenId] | None = None
    encouraging_end: Annotated[float, options.Above(0), options.Below(1)] | None = None
    pad_id: options.TokenId = 1
    logits_in_blocks: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for a range of ids that is empty."""
        if self.constraint_range is not None:
            start, end = self.constraint_range
            if not NUM_SPECIAL_IDS <= start < end:
                raise ValueError(
                    f"LossConfig.constraint_range is ({start}, {end}); give (first, last + 1) of "
                    f"the allowed ids, from {NUM_SPECIAL_IDS} on."
                )

    @property
    def passes(self) -> int:
        """Forward passes per example: two under R-Drop."""
        return 2 if self.rdrop_alpha else 1


@flax.struct.dataclass
class TokenLosses:
    """The losses of each token; all arrays have the shape of the targets.

    Attributes:
      loss: float32, smoothed and weighted; 0 on padding.
      nll: float32, weighted negative log-likelihood; 0 on padding.
      divergence: float32, the symmetric KL of the two passes, on the first half of the examples
        only; None without R-Drop.
      scored: bool, False on padding.
    """

    loss: jax.Array
    nll: jax.Array
    divergence: jax.Array | None
    scored: jax.Array


def negative_log_likelihood(
    logits: Float[Array, "*n v"], targets: Int[Array, "*n"]
) -> Float[Array, "*n"]:
    """Returns -log p(target) in nats."""
    return jax.nn.logsumexp(logits, axis=-1) - _pick(logits, targets)


def _pick(logits: Float[Array, "*n v"], targets: Int[Array, "*n"]) -> Float[Array, "*n"]:
    """Returns logits[..., target], by a comparison that fuses and gathers no sharded vocabulary."""
    ids = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    return jnp.sum(jnp.where(ids == targets[..., None], logits, 0), axis=-1)


def token_losses(
    logits: Float[Array, "b t v"] | FactoredLogits,
    targets: Int[Array, "b t"],
    weights: Float[Array, "b t"],
    config: LossConfig,
    mask: Bool[Array, "b t ids"] | None = None,
    vocab_size: int | None = None,
) -> TokenLosses:
    """Computes the loss of every token.

    Args:
      logits: of each example; under R-Drop both passes one after the other, [2B, T, V]. As factors
        they are multiplied in blocks, where `LossConfig.logits_in_blocks` can be.
      targets: of the same examples.
      weights: each example's confidence; anything on padding.
      config: options; drop-worst is applied later, see `total`.
      mask: ids that may be predicted at each position (a candidate trie), with or without the rows
        added; None for all.
      vocab_size: number of ids that exist; the model may have added rows to its embedding. All of V
        when None.

    Returns:
      TokenLosses.
    """
    eps = config.label_smoothing
    scored = targets != config.pad_id
    allowed, count = _allowed(logits.shape[-1], vocab_size or logits.shape[-1], config, mask)
    if isinstance(logits, FactoredLogits) and (
        mask is not None or config.rdrop_alpha or is_sharded()
    ):
        logits = logits.whole()
    if isinstance(logits, FactoredLogits):
        normaliser, picked, summed = logits.statistics(targets, allowed)
    else:
        if allowed is not None:
            logits = jnp.where(allowed, logits, -jnp.inf)
        normaliser, picked = jax.nn.logsumexp(logits, axis=-1), _pick(logits, targets)
        # Only needed for smoothing; else the compiler leaves it out.
        summed = (logits if allowed is None else jnp.where(allowed, logits, 0)).sum(-1)
    nll = (normaliser - picked) * weights
    loss = target_loss = nll + _encouragement(nll, weights, config)
    if eps:
        eps_i = eps / count
        # sum(log p) = sum(logits) - V log(normaliser): no array of log-probabilities is made.
        number = logits.shape[-1] if allowed is None else allowed.sum(-1)
        smooth = (number * normaliser - summed) * weights
        loss = (1 - eps - eps_i) * target_loss + eps_i * smooth
    divergence = None
    if config.rdrop_alpha:
        assert not isinstance(logits, FactoredLogits)
        divergence = _divergence(logits, normaliser, weights, allowed)
    zero = lambda x: jnp.where(scored, x, 0)  # noqa: E731
    return TokenLosses(zero(loss), zero(nll), divergence, scored)


def _encouragement(nll: jax.Array, weights: jax.Array, config: LossConfig) -> jax.Array | float:
    """Returns weights * log(1 - p), at most 0; linear beyond log_end, with the slope at log_end."""
    if config.encouraging_end is None:
        return 0.0
    end = config.encouraging_end
    probability = jnp.exp(-nll / jnp.where(weights > 0, weights, 1))
    # The branch that is not taken must not make an infinity, whose gradient would be NaN.
    inside = jnp.log1p(-jnp.minimum(probability, end))
    beyond = math.log(1 - end) - (probability - end) / (1 - end)
    return weights * jnp.where(probability > end, beyond, inside)


def _allowed(rows: int, size: int, config: LossConfig, mask: jax.Array | None) -> tuple[Any, Any]:
    """Returns which of the rows may be predicted (None for all), and the divisor of eps.

    Args:
      rows: V, number of rows of the embedding.
      size: number of ids that exist.
      config: options.
      mask: as of `token_losses`.

    Returns:
      (bool [V] or [B, T, V], or None; a number or float32 [B, T]).
    """
    if mask is not None:
        added = [(0, 0)] * (mask.ndim - 1) + [(0, rows - mask.shape[-1])]
        return jnp.pad(mask, added), mask.sum(-1) - 1 + 1e-6
    ids = np.arange(rows)
    if config.constraint_range is None:
        return (None if rows == size else ids < size), size - 1
    start, end = config.constraint_range
    if end > size:
        raise ValueError(
            f"LossConfig.constraint_range ends at {end}, but the vocabulary has {size} ids."
        )
    allowed = (ids < NUM_SPECIAL_IDS) | ((ids >= start) & (ids < end))
    return allowed, allowed.sum() - 1 + 1e-6


def _divergence(
    logits: jax.Array, normaliser: jax.Array, weights: jax.Array, allowed: Any
) -> jax.Array:
    """Returns (KL(p||q) + KL(q||p)) / 2 of each token's two passes, float32 [B, T].

    As in the official code, the confidence scales the log-probabilities themselves.
    """
    log_probs = (logits - normaliser[..., None]) * weights[..., None]
    if allowed is not None:
        # Not -inf: both passes have it, and 0 * (inf - inf) would spoil value and gradient.
        log_probs = jnp.where(allowed, log_probs, 0)
    p, q = jnp.split(log_probs, 2)
    return jnp.sum((jnp.exp(p) - jnp.exp(q)) * (p - q), axis=-1) / 2


def total(
    streams: Sequence[TokenLosses], config: LossConfig, update: jax.Array | int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums the tokens of the streams of one group, as the official code sums one mini-batch.

    Args:
      streams: of one group; drop-worst ranks the tokens of all of them together.
      config: options.
      update: number of updates made so far.

    Returns:
      (loss, nll, tokens), float32 scalars: the sum of the losses with R-Drop's divergence, the sum
      of the negative log-likelihoods, and the number of tokens in both (of both passes).
    """
    loss = [stream.loss for stream in streams]
    nll = [stream.nll for stream in streams]
    kept = [stream.scored for stream in streams]
    if config.drop_worst_ratio:
        kept = _drop_worst(loss, kept, config, update)

    def sum_kept(values: Sequence[jax.Array]) -> Any:
        """Sums the tokens that are kept."""
        return sum(
            jnp.where(keep, value, 0).sum() for keep, value in zip(kept, values, strict=True)
        )

    result = sum_kept(loss)
    if config.rdrop_alpha:
        for stream, keep in zip(streams, kept, strict=True):
            first = jnp.split(keep, 2)[0]
            assert stream.divergence is not None
            result += config.rdrop_alpha * jnp.where(first, stream.divergence, 0).sum()
    tokens: Any = sum(keep.sum() for keep in kept)
    return result, sum_kept(nll), tokens.astype(jnp.float32)


def _drop_worst(
    losses: Sequence[jax.Array],
    scored: Sequence[jax.Array],
    config: LossConfig,
    update: jax.Array | int,
) -> list[jax.Array]:
    """Returns, as bool arrays, the int(n (1 - ratio)) smallest of the n scored losses.

    Under R-Drop the first pass chooses for both.
    """
    passes = config.passes
    first = [jnp.split(x, passes)[0] for x in scored]
    ranked = jnp.concatenate(
        [
            jnp.where(keep, jnp.split(x, passes)[0], jnp.inf).ravel()
            for x, keep in zip(losses, first, strict=True)
        ]
    )
    # Counted beforehand in double precision, as in the official code.
    keep_of = np.floor(np.arange(len(ranked) + 1) * (1 - config.drop_worst_ratio))
    number: Any = sum(keep.sum() for keep in first)
    number = jnp.where(
        update > config.drop_worst_after, jnp.asarray(keep_of, jnp.int32)[number], number
    )
    ranks = jnp.argsort(jnp.argsort(ranked, stable=True))
    kept, start = [], 0
    for keep in first:
        chosen = keep & (ranks[start : start + keep.size].reshape(keep.shape) < number)
        kept.append(jnp.concatenate([chosen] * passes))
        start += keep.size
    return kept


def grouped_loss(
    streams: Mapping[str, TokenLosses],
    groups: Mapping[str, str],
    config: LossConfig,
    update: jax.Array | int,
    tokens: Mapping[str, jax.Array] | None = None,
) -> jax.Array:
    """Computes the pretraining loss: each group's loss per token, added over the groups.

    Args:
      streams: stream name -> the losses of its tokens.
      groups: stream name -> its group.
      config: options.
      update: number of updates made so far.
      tokens: group -> divisor, see `count_tokens`, where the streams are a part of the batch; their
        own number of tokens when None.

    Returns:
      float32 scalar, in nats.
    """
    result = jnp.float32(0)
    for group in dict.fromkeys(groups[name] for name in streams):
        members = [losses for name, losses in streams.items() if groups[name] == group]
        loss, _, number = total(members, config, update)
        if tokens is not None:
            number = tokens[group]
        # A group whose records were all invalid has no tokens, and no loss.
        result += loss / jnp.maximum(number, 1)
    return result


def count_tokens(
    targets: Mapping[str, jax.Array], groups: Mapping[str, str], config: LossConfig
) -> dict[str, jax.Array]:
    """Counts the tokens that each group's loss is divided by, before any loss is known.

    Args:
      targets: stream name -> int32 [B, T], as the batch has them (R-Drop counts them twice).
      groups: stream name -> its group.
      config: options, without drop-worst, which depends on the losses.

    Returns:
      Group -> float32 scalar.
    """
    counts: dict[str, jax.Array] = {}
    for name, array in targets.items():
        number = config.passes * (array != config.pad_id).sum()
        counts[groups[name]] = counts.get(groups[name], 0) + number
    return {group: number.astype(jnp.float32) for group, number in counts.items()}
