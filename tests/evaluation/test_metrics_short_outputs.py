"""Metrics of answers, labels, nouns, exact strings, summaries, codes and images."""

import math

import numpy as np
import pytest

from ofa_jax.evaluation.metrics import (
    classification,
    exact,
    images,
    nouns,
    summarization,
    vqa,
)
from ofa_jax.scenes.captions import Statement
from ofa_jax.scenes.nouns import all_nouns


# Computed with the official script of the VQA challenge (VQAv2, GT-Vision-Lab/VQA); on 20,000
# random pairs there was no difference either.
@pytest.mark.parametrize(
    ("human_answers", "prediction", "expected"),
    [
        (["yes"] * 3 + ["no"] * 7, "yes", 0.9),
        (["2"] * 2 + ["two"] + ["3"] * 7, "Two.", 0.9),
        (["red"] + ["blue"] * 9, "the red", 0.3),
        (["red"] + ["blue"] * 9, "blue", 1.0),
        (["red"] + ["blue"] * 9, "green", 0.0),
        # All agree: only the case is normalised.
        (["Dog."] * 10, "dog", 0.0),
        (["Dog"] * 10, "dog", 1.0),
    ],
)
def test_vqa_accuracy_equals_the_official_one(human_answers, prediction, expected):
    values = vqa.vqa_accuracy([{"answers": human_answers}], [prediction])
    assert values == {"accuracy": pytest.approx(expected)}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Two dogs, and the cat.", "2 dogs and cat"),
        ("black/white", "black white"),
        ("black/ white", "black white"),
        ("1,000 people", "1000 people"),
        ("3.5", "3.5"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldntve", "couldntve"),
        ("yall'd've", "y'all'd've"),
        ("'ow'sat", "'ow's'at"),
        ("somebody'd", "somebodyd"),
        ("lets", "lets"),
        ("None", "0"),
        ("t-shirt", "t shirt"),
        ("an", ""),
        ("", ""),
    ],
)
def test_vqa_answers_are_normalised_as_in_the_official_script(answer, expected):
    assert vqa.normalize_answer(answer) == expected


def test_vqa_accuracy_with_confidences_needs_an_exact_match():
    references = [
        {"answers": ["net", "mesh"], "confidences": [1.0, 0.3], "type": "object"},
        {"answers": ["net", "mesh"], "confidences": [1.0, 0.3], "type": "object"},
        {"answers": ["2"], "confidences": [1.0], "type": "count"},
    ]
    values = vqa.vqa_accuracy(references, [" mesh ", "the net", "2"])
    assert values == {
        "accuracy": pytest.approx(1.3 / 3),
        "accuracy/count": 1.0,
        "accuracy/object": 0.15,
    }


def test_vqa_accuracy_with_few_annotators_reaches_one():
    references = [{"answers": ["top left"]}, {"answers": ["yes", "no"]}]
    assert vqa.vqa_accuracy(references, ["Top Left", "maybe"]) == {"accuracy": 0.5}
    with pytest.raises(ValueError, match="example 1 has no references"):
        vqa.vqa_accuracy([{"answers": ["yes"]}, {"answers": []}], ["yes", "no"])


def test_classification_metrics_have_known_values():
    references = ["yes", "yes", "yes", "no", "no", "yes"]
    predictions = ["yes", " no", "yes ", "no", "yes", None]
    # 2 true positives, 1 false positive, 2 false negatives, 1 true negative.
    assert classification.accuracy(references, predictions) == {"accuracy": 0.5}
    assert classification.f1(references, predictions) == {"f1": pytest.approx(4 / 7)}
    assert classification.f1(references, predictions, positive="no") == {"f1": pytest.approx(0.5)}
    assert classification.accuracy_and_f1(references, predictions) == {
        "accuracy": 0.5,
        "f1": pytest.approx(4 / 7),
    }
    # (TP TN - FP FN) / sqrt((TP + FP)(TP + FN)(TN + FP)(TN + FN)) of the first five: TP 2, TN 1,
    # FP 1, FN 1.
    assert classification.matthews_correlation(references[:5], predictions[:5]) == {
        "matthews_correlation": pytest.approx((2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2)),
    }


def test_classification_metrics_are_finite_when_all_labels_are_equal():
    assert classification.matthews_correlation(["yes", "no"], ["yes", "yes"]) == {
        "matthews_correlation": 0.0,
    }
    assert classification.f1(["no"], ["no"]) == {"f1": 0.0}
    assert classification.accuracy(["no"], ["no"]) == {"accuracy": 1.0}


def test_noun_f1_compares_mentioned_nouns_with_objects_in_the_scene():
    references = [
        {"captions": [], "nouns": ["dog", "apple", "apple"]},
        {"captions": [], "nouns": ["mouse", "wine glass"]},
    ]
    predictions = ["a dog and an owl", "Two mice on grass, no cup, and a wine glass"]
    values = nouns.noun_f1(references, predictions)
    assert values == {
        "noun_f1": 0.75,
        "noun_precision": 0.75,
        "noun_recall": 0.75,
    }
    assert nouns.noun_f1(references, ["", None])["noun_f1"] == 0.0


def test_noun_finder_finds_exactly_the_nouns_of_a_phrase():
    finder = nouns.NounFinder()
    for noun in all_nouns():
        for count in (1, 3):
            for style, background in (
                ("plain", "grass"),
                ("picture", "gravel"),
                ("there", "bricks"),
                ("exact", "wood"),
                ("plain", "outer space"),
            ):
                statement = Statement(((noun, count),), style=style, background=background)
                assert finder.find(statement.to_text()) == {noun.name}, statement.to_text()


def test_exact_match_ignores_surrounding_spaces():
    values = exact.exact_match(["a b", "c", "", "d"], [" a b\n", "C", "", None])
    assert values == {"exact_match": 0.5}


def test_one_of_several_counts_any_correct_text_and_the_first_one_separately():
    references = [["a", "b"], ["a", "b"], ["c"], ["d", "e"]]
    values = exact.one_of_several(references, [" b", "a\n", "d", None])
    assert values == {"accuracy": 2 / 4, "exact_match": 1 / 4}


def test_token_accuracy_compares_by_position_and_counts_missing_tokens_as_wrong():
    references = [np.array([1, 2, 3, 4]), np.array([5, 6]), [7, 8]]
    predictions = [np.array([1, 0, 3]), [5, 6, 9], None]
    assert exact.token_accuracy(references, predictions) == {"token_accuracy": 4 / 8}
    with pytest.raises(ValueError, match="example 0 has no references"):
        exact.token_accuracy([[]], [[1]])


def test_rouge_of_a_shorter_summary_equals_hand_computation():
    values = summarization.rouge(["the cats sat"], ["the cat"])
    # The words are stemmed. Unigrams: P 1, R 2/3. Bigrams: P 1, R 1/2. Subsequence: P 1, R 2/3.
    assert values == {
        "rouge1": pytest.approx(0.8),
        "rouge2": pytest.approx(2 / 3),
        "rougeL": pytest.approx(0.8),
    }
    assert summarization.rouge(["the cat"], [None]) == {"rouge1": 0, "rouge2": 0, "rougeL": 0}


def test_psnr_equals_its_formula_and_is_always_finite():
    black = np.zeros((4, 4, 3), np.uint8)
    off_by_five = np.full_like(black, 5)
    expected = 10 * math.log10(255**2 / 25)
    assert images.psnr([black], [off_by_five]) == {"psnr": pytest.approx(expected)}
    best = 10 * math.log10(255**2 * 48)
    values = images.psnr([black, off_by_five], [black, black])
    assert values == {"psnr": pytest.approx((best + expected) / 2)}
    assert images.psnr([black, black], [off_by_five, None]) == {"psnr": pytest.approx(expected / 2)}


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "give uint8"),
        (np.zeros((2, 4, 3), np.uint8), "make them equal in size"),
    ],
)
def test_psnr_reports_incomparable_images(prediction, message):
    with pytest.raises(ValueError, match=message):
        images.psnr([np.zeros((4, 4, 3), np.uint8)], [prediction])


@pytest.mark.parametrize(
    "metric",
    [
        vqa.vqa_accuracy,
        classification.accuracy,
        classification.matthews_correlation,
        classification.f1,
        nouns.noun_f1,
        exact.exact_match,
        exact.one_of_several,
        exact.token_accuracy,
        summarization.rouge,
        images.psnr,
    ],
)
def test_metrics_report_missing_examples_and_unequal_lengths(metric):
    with pytest.raises(ValueError, match="got no examples"):
        metric([], [])
    with pytest.raises(ValueError, match="0 examples and 1 predictions"):
        metric([], ["a"])
