"""Tests span masking against the statistics of 2,000 runs of the reference implementation."""

import json
from collections import Counter

import numpy as np
import pytest

from ofa_jax.preprocessing import masking

RUNS = 4000


@pytest.fixture(scope="module")
def expected(golden):
    return json.loads((golden / "preprocess" / "text_infilling_masker.json").read_text())


@pytest.fixture(scope="module")
def sentence(expected):
    """Returns the golden sentence with ids 0..59, all distinct; 60 is the mask."""
    starts = np.array(expected["is_word_start"] + [0], bool)
    return np.arange(len(expected["sentence_ids"])), starts


@pytest.fixture(scope="module")
def runs(sentence):
    ids, starts = sentence
    return [
        masking.mask_spans(ids, starts, len(ids), np.random.default_rng(seed))
        for seed in range(RUNS)
    ]


def bound(std, *counts):
    """Returns five standard errors of the difference of two means (p = 1 / 1.7 million)."""
    return 5 * std * np.sqrt(sum(1 / count for count in counts))


def test_span_probabilities_are_the_golden_ones(expected):
    np.testing.assert_allclose(masking.span_probabilities(), expected["span_probs"], rtol=1e-6)


def test_mean_and_deviation_of_masks_and_length_agree(runs, sentence, expected):
    mask = len(sentence[0])
    masks = [int((run == mask).sum()) for run in runs]
    lengths = [len(run) for run in runs]
    removed = [len(sentence[0]) - int((run != mask).sum()) for run in runs]
    for values, mean, std in [
        (masks, "mean_masks", "std_masks"),
        (lengths, "mean_len", "std_len"),
        (removed, "mean_removed_original_tokens", "std_removed"),
    ]:
        limit = bound(expected[std], RUNS, expected["runs"])
        assert abs(np.mean(values) - expected[mean]) < limit, mean
        # The standard error of a standard deviation is std / sqrt(2 n) for a normal variable.
        assert abs(np.std(values) - expected[std]) < limit / np.sqrt(2), std


@pytest.mark.parametrize("name", ["masks", "len", "removed"])
def test_histograms_agree(runs, sentence, expected, name):
    ids = sentence[0]
    measure = {
        "masks": lambda run: int((run == len(ids)).sum()),
        "len": len,
        "removed": lambda run: len(ids) - int((run != len(ids)).sum()),
    }[name]
    ours = Counter(measure(run) for run in runs)
    theirs = {int(value): count for value, count in expected[f"hist_{name}"].items()}
    # Largest distance of the two cumulative distributions (Kolmogorov-Smirnov): passes with
    # probability > 1 - 2 exp(-2 c^2) with c = 2.6, 0.9999973.
    values = range(max(*ours, *theirs) + 1)
    distance = np.abs(
        np.cumsum([ours.get(v, 0) for v in values]) / RUNS
        - np.cumsum([theirs.get(v, 0) for v in values]) / expected["runs"]
    ).max()
    assert distance < 2.6 * np.sqrt(1 / RUNS + 1 / expected["runs"])


def test_how_often_each_position_is_masked_agrees(runs, sentence, expected):
    kept = np.zeros(len(sentence[0]))
    for run in runs:
        kept[run[run < len(kept)]] += 1
    ours, theirs = 1 - kept / RUNS, np.array(expected["removal_prob_per_position"])
    std = np.sqrt(theirs * (1 - theirs))
    assert (np.abs(ours - theirs) <= bound(std, RUNS, expected["runs"])).all()


def test_order_bos_eos_and_whole_words_are_kept(runs, sentence):
    ids, starts = sentence
    starts = starts[:-1].copy()
    starts[[0, -1]] = True
    word = np.cumsum(starts)
    for run in runs[:300]:
        kept = run[run < len(ids)]
        assert run[0] == ids[0] and run[-1] == ids[-1]
        assert (np.diff(kept) > 0).all()
        # A word is kept or masked as a whole, except for pieces before the first word start.
        for index in set(word[kept]):
            assert set(ids[word == index]) <= set(kept)


def test_a_text_without_words_is_unchanged(sentence):
    ids = np.array([0, 2])
    result = masking.mask_spans(ids, sentence[1], 60, np.random.default_rng(0))
    np.testing.assert_array_equal(result, ids)


def test_the_same_seed_gives_the_same_masks(sentence):
    ids, starts = sentence
    first, second = (
        masking.mask_spans(ids, starts, 60, np.random.default_rng(7)) for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)
