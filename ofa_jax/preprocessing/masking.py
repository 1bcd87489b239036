"""BART's text infilling: spans of words become one mask each (Lewis et al. 2020, section 2.2).

Span lengths are Poisson(3) in words, until 30 % of the words are covered; a span of length 0
inserts a mask without taking anything away. Works on ids, so that the words are the vocabulary's.
"""

import math

import numpy as np

MASK_RATIO = 0.3
POISSON_RATE = 3.0
# The original samples from a table of the Poisson probabilities above 1e-7, which ends at 17.
_MAX_SPAN = 17


def span_probabilities(rate: float = POISSON_RATE) -> np.ndarray:
    """float64 [18]: the Poisson distribution cut off after 17 and normalised.

    The tail beyond is 1e-8 of the whole at rate 3.
    """
    lengths = np.arange(_MAX_SPAN + 1)
    log_factorials = np.array([math.lgamma(length + 1) for length in lengths])
    weights = np.exp(lengths * math.log(rate) - rate - log_factorials)
    return weights / weights.sum()


_SPAN_PROBABILITIES = span_probabilities()


def mask_spans(
    ids: np.ndarray,
    whole_word_starts: np.ndarray,
    mask_id: int,
    rng: np.random.Generator,
    mask_ratio: float = MASK_RATIO,
) -> np.ndarray:
    """Replaces spans of whole words by one mask each, and inserts masks for empty spans.

    Example, with spans of two words, one word and none:

        <s> the quick brown fox jumps </s>  ->  <s> <mask> brown <mask> <mask> jumps </s>

    Args:
      ids: int [n], framed by bos and eos, which are never masked.
      whole_word_starts: bool [vocab_size], which ids begin a word.
      mask_id: id of the mask.
      rng: draws lengths, places and insertions.
      mask_ratio: share of the words that spans cover, rounded up.

    Returns:
      int32 [m].
    """
    ids = np.asarray(ids, np.int32)
    starts = whole_word_starts[ids]
    starts[[0, -1]] = False
    words = np.flatnonzero(starts)
    # In float32, as the original rounds it: 50 words * 0.3 is a little over 15, so 16 words.
    budget = math.ceil(np.float32(len(words)) * np.float32(mask_ratio))
    lengths = _span_lengths(budget, rng)
    spans = lengths[lengths > 0]
    masked = ids
    if len(spans):
        # A word ends where the next begins, or before eos.
        ends = np.append(words[1:], len(ids) - 1)
        first = rng.permutation(len(words))[: len(spans)]
        last = np.minimum(first + spans, len(words)) - 1
        taken = np.zeros(len(ids), bool)
        for begin, end in zip(words[first], ends[last], strict=True):
            taken[begin + 1 : end] = True
        # A span that begins inside another one merges with it: its own mask is taken too.
        masked = ids.copy()
        masked[words[first]] = mask_id
        masked = masked[~taken]
    return _insert_masks(masked, len(lengths) - len(spans), mask_id, rng)


def _span_lengths(budget: int, rng: np.random.Generator) -> np.ndarray:
    """Lengths in words whose sum is `budget`; the last one is cut to fit. int [k], 0 allowed."""
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
    ids: np.ndarray, count: int, mask_id: int, rng: np.random.Generator
) -> np.ndarray:
    """Puts `count` masks at random places between bos and eos."""
    if count == 0:
        return ids
    total = len(ids) + count
    places = rng.permutation(total - 2)[:count] + 1
    inserted = np.zeros(total, bool)
    inserted[places] = True
    result = np.full(total, mask_id, np.int32)
    result[~inserted] = ids
    return result
