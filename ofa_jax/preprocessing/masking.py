"""BART's text infilling: one mask replaces a span of words (Lewis et al. 2020, section 2.2).

Span lengths in words are Poisson(3), until 30 % of the words are covered; a span of length 0
inserts a mask and removes nothing. The masking operates on ids: words are the vocabulary's.
"""

import math

import numpy as np
from jaxtyping import Bool, Float64, Int, Int32

MASK_RATIO = 0.3
POISSON_RATE = 3.0
# The reference implementation tabulates the Poisson probabilities above 1e-7, which end at 17.
_MAX_SPAN = 17


def span_probabilities(rate: float = POISSON_RATE) -> Float64[np.ndarray, "18"]:
    """Returns the Poisson distribution, cut off after 17 and normalised.

    At rate 3 the truncated tail is 1e-8 of the total.
    """
    lengths = np.arange(_MAX_SPAN + 1)
    log_factorials = np.array([math.lgamma(length + 1) for length in lengths])
    weights = np.exp(lengths * math.log(rate) - rate - log_factorials)
    return weights / weights.sum()


_SPAN_PROBABILITIES = span_probabilities()


def mask_spans(
    ids: Int[np.ndarray, " n"],
    whole_word_starts: Bool[np.ndarray, " vocab_size"],
    mask_id: int,
    rng: np.random.Generator,
    mask_ratio: float = MASK_RATIO,
) -> Int32[np.ndarray, " m"]:
    """Replaces each span of whole words by one mask, and inserts a mask for each empty span.

    Example, with spans of two words, one word and none:

        <s> the quick brown fox jumps </s>  ->  <s> <mask> brown <mask> <mask> jumps </s>

    Args:
      ids: the text between bos and eos, which are never masked.
      whole_word_starts: which ids begin a word.
      mask_id: the id of the mask.
      rng: samples lengths, positions and insertions.
      mask_ratio: the share of the words that spans cover, rounded up.

    Returns:
      The masked text between bos and eos.
    """
    ids = np.asarray(ids, np.int32)
    starts = whole_word_starts[ids]
    starts[[0, -1]] = False
    words = np.flatnonzero(starts)
    # Rounded in float32 as in the reference implementation: 50 words * 0.3 is slightly more than
    # 15, so 16 words.
    budget = math.ceil(np.float32(len(words)) * np.float32(mask_ratio))
    lengths = _sample_span_lengths(budget, rng)
    spans = lengths[lengths > 0]
    masked = ids
    if len(spans):
        # A word ends where the next one begins, or before eos.
        ends = np.append(words[1:], len(ids) - 1)
        first = rng.permutation(len(words))[: len(spans)]
        last = np.minimum(first + spans, len(words)) - 1
        removed = np.zeros(len(ids), bool)
        for begin, end in zip(words[first], ends[last], strict=True):
            removed[begin + 1 : end] = True
        # A span that begins inside another one merges with it: its own mask is removed as well.
        masked = ids.copy()
        masked[words[first]] = mask_id
        masked = masked[~removed]
    return _insert_masks(masked, len(lengths) - len(spans), mask_id, rng)


def _sample_span_lengths(budget: int, rng: np.random.Generator) -> Int[np.ndarray, " spans"]:
    """Samples lengths in words, 0 included, that sum to `budget`; the last one is cut to fit."""
    if budget == 0:
        return np.zeros(0, np.int64)
    lengths = np.zeros(0, np.int64)
    while lengths.sum() < budget:
        drawn = rng.choice(_MAX_SPAN + 1, size=budget, p=_SPAN_PROBABILITIES)
        lengths = np.append(lengths, drawn)
    covered = np.cumsum(lengths)
    count = int(np.argmax(covered >= budget)) + 1
    lengths = lengths[:count]
    lengths[-1] -= covered[count - 1] - budget
    return lengths


def _insert_masks(
    ids: Int32[np.ndarray, " n"], count: int, mask_id: int, rng: np.random.Generator
) -> Int32[np.ndarray, " m"]:
    """Inserts `count` masks at random positions between bos and eos."""
    if count == 0:
        return ids
    total = len(ids) + count
    positions = rng.permutation(total - 2)[:count] + 1
    inserted = np.zeros(total, bool)
    inserted[positions] = True
    result = np.full(total, mask_id, np.int32)
    result[~inserted] = ids
    return result
