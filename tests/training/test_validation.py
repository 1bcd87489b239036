"""The baselines, counted by hand."""

import io
import math

import numpy as np
import pytest
from rich.console import Console

from ofa_jax.training import validation
from ofa_jax.training.metrics import TaskSums
from ofa_jax.training.validation import SMOOTHING, Baselines

VOCABULARY = 6


def batch(tasks, targets):
    return {"task_ids": np.array(tasks), "decoder_target_tokens": np.array(targets, np.int32)}


@pytest.fixture
def baselines():
    result = Baselines(2, VOCABULARY)
    result.add(batch([0, 0, 0, 1], [[4, 2, 1], [4, 2, 1], [5, 2, 1], [3, 3, 2]]))
    return result


def test_unigram_is_the_frequency_of_each_token(baselines):
    nll, _, tokens = baselines.score([batch([0, 1], [[5, 2, 1], [3, 0, 2]])])
    probability = lambda count, total: (  # noqa: E731
        (count + SMOOTHING) / (total + SMOOTHING * VOCABULARY)
    )
    np.testing.assert_allclose(
        nll,
        [
            -math.log(probability(1, 6)) - math.log(probability(3, 6)),
            -math.log(probability(2, 3))
            - math.log(probability(0, 3))
            - math.log(probability(1, 3)),
        ],
    )
    np.testing.assert_array_equal(tokens, [2, 3])


def test_the_majority_baseline_predicts_the_most_frequent_target(baselines):
    _, correct, _ = baselines.score([batch([0, 0, 1], [[4, 2, 1], [5, 2, 1], [3, 0, 2]])])
    # "4 2" is right twice, and once about the end; "3 3 2" has two of three right.
    np.testing.assert_array_equal(correct, [3, 2])


def test_empty_rows_do_not_count(baselines):
    _, _, tokens = baselines.score([batch([0], [[1, 1, 1]])])
    np.testing.assert_array_equal(tokens, [0, 0])


def test_model_and_baselines_must_have_seen_the_same(baselines):
    scores = baselines.score([batch([0, 1], [[5, 2, 1], [3, 0, 2]])])
    sums = TaskSums(*np.array([[2.0, 6.0], [2, 3], [1, 3], [1, 1]]))
    results = validation.summarise(sums, scores, ("a", "b"))
    assert results["a"]["loss"] == 1.0 and results["b"]["token_accuracy"] == 1.0
    with pytest.raises(ValueError, match="saw different tokens"):
        validation.summarise(sums.replace(tokens=np.array([2, 4])), scores, ("a", "b"))


def test_the_table_marks_objectives_that_were_not_learned():
    rows = {
        "good": dict(loss=1.0, unigram_loss=2.0, token_accuracy=0.5, majority_accuracy=0.25),
        "bad": dict(loss=3.0, unigram_loss=2.0, token_accuracy=0.5, majority_accuracy=0.25),
    }
    console = Console(file=io.StringIO(), width=100)
    validation.print_table(rows, "after 3 steps", console)
    lines = console.file.getvalue().splitlines()
    assert "after 3 steps" in lines[0]
    (good,), (bad,) = ([x for x in lines if f" {name} " in x] for name in rows)
    assert "1.000 " in good and "!" not in good and "50.0%" in good
    assert "3.000 !" in bad
