"""Metrics of short answers: questions, labels, nouns, exact strings, summaries, codes, images."""

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


# Computed with the official script of the VQA challenge (VQAv2, GT-Vision-Lab/VQA); 20,000 random
# pairs gave no difference to it either.
@pytest.mark.parametrize(
    ("people", "answer", "expected"),
    [
        (["yes"] * 3 + ["no"] * 7, "yes", 0.9),
        (["2"] * 2 + ["two"] + ["3"] * 7, "Two.", 0.9),
        (["red"] + ["blue"] * 9, "the red", 0.3),
        (["red"] + ["blue"] * 9, "blue", 1.0),
        (["red"] + ["blue"] * 9, "green", 0.0),
        # All agree: compared as they are, but for upper and lower case.
        (["Dog."] * 10, "dog", 0.0),
        (["Dog"] * 10, "dog", 1.0),
    ],
)
def test_vqa_accuracy_is_the_official_one(people, answer, expected):
    values = vqa.vqa_accuracy([{"answers": people}], [answer])
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
def test_answers_are_normalised_as_officially(answer, expected):
    assert vqa.normalize_answer(answer) == expected


def test_vqa_accuracy_with_confidences_is_that_of_the_answer_letter_by_letter():
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


def test_a_question_with_a_single_answer_can_be_answered_right():
    references = [{"answers": ["top left"]}, {"answers": ["yes", "no"]}]
    assert vqa.vqa_accuracy(references, ["Top Left", "maybe"]) == {"accuracy": 0.5}
    with pytest.raises(ValueError, match="example 1 has no references"):
        vqa.vqa_accuracy([{"answers": ["yes"]}, {"answers": []}], ["yes", "no"])


def test_labels_are_judged_by_scikit_learn_with_known_values():
    references = ["yes", "yes", "yes", "no", "no", "yes"]
    answers = ["yes", " no", "yes ", "no", "yes", None]
    # 2 true positives, 1 false positive, 2 false negatives, 1 true negative.
    assert classification.accuracy(references, answers) == {"accuracy": 0.5}
    assert classification.f1(references, answers) == {"f1": pytest.approx(4 / 7)}
    assert classification.f1(references, answers, positive="no") == {"f1": pytest.approx(0.5)}
    assert classification.accuracy_and_f1(references, answers) == {
        "accuracy": 0.5,
        "f1": pytest.approx(4 / 7),
    }
    # (TP TN - FP FN) / sqrt((TP + FP)(TP + FN)(TN + FP)(TN + FN)) of the first five: TP 2, TN 1,
    # FP 1, FN 1.
    assert classification.matthews_correlation(references[:5], answers[:5]) == {
        "matthews_correlation": pytest.approx((2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2)),
    }


def test_labels_that_are_all_the_same_give_numbers():
    assert classification.matthews_correlation(["yes", "no"], ["yes", "yes"]) == {
        "matthews_correlation": 0.0,
    }
    assert classification.f1(["no"], ["no"]) == {"f1": 0.0}
    assert classification.accuracy(["no"], ["no"]) == {"accuracy": 1.0}


def test_noun_f1_counts_things_named_against_things_there():
    references = [
        {"captions": [], "nouns": ["dog", "apple", "apple"]},
        {"captions": [], "nouns": ["mouse", "wine glass"]},
    ]
    answers = ["a dog and an owl", "Two mice on grass, no cup, and a wine glass"]
    values = nouns.noun_f1(references, answers)
    assert values == {
        "noun_f1": 0.75,
        "noun_precision": 0.75,
        "noun_recall": 0.75,
    }
    assert nouns.noun_f1(references, ["", None])["noun_f1"] == 0.0


def test_every_noun_of_the_table_is_found_in_every_phrasing_and_no_other_one():
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


def test_strings_are_the_same_but_for_spaces_around_them():
    values = exact.exact_match(["a b", "c", "", "d"], [" a b\n", "C", "", None])
    assert values == {"exact_match": 0.5}


def test_one_of_several_right_answers_is_right_and_the_first_is_counted_apart():
    known = [["a", "b"], ["a", "b"], ["c"], ["d", "e"]]
    values = exact.one_of_several(known, [" b", "a\n", "d", None])
    assert values == {"accuracy": 2 / 4, "exact_match": 1 / 4}


def test_codes_are_compared_place_by_place_and_missing_ones_are_wrong():
    references = [np.array([1, 2, 3, 4]), np.array([5, 6]), [7, 8]]
    answers = [np.array([1, 0, 3]), [5, 6, 9], None]
    assert exact.token_accuracy(references, answers) == {"token_accuracy": 4 / 8}
    with pytest.raises(ValueError, match="example 0 has no references"):
        exact.token_accuracy([[]], [[1]])


def test_rouge_of_a_shorter_summary_by_hand():
    values = summarization.rouge(["the cats sat"], ["the cat"])
    # The words are stemmed. Unigrams: P 1, R 2/3. Bigrams: P 1, R 1/2. Subsequence: P 1, R 2/3.
    assert values == {
        "rouge1": pytest.approx(0.8),
        "rouge2": pytest.approx(2 / 3),
        "rougeL": pytest.approx(0.8),
    }
    assert summarization.rouge(["the cat"], [None]) == {"rouge1": 0, "rouge2": 0, "rougeL": 0}


def test_psnr_is_ten_log_of_white_over_error_and_always_finite():
    black = np.zeros((4, 4, 3), np.uint8)
    off_by_five = np.full_like(black, 5)
    expected = 10 * math.log10(255**2 / 25)
    assert images.psnr([black], [off_by_five]) == {"psnr": pytest.approx(expected)}
    best = 10 * math.log10(255**2 * 48)
    values = images.psnr([black, off_by_five], [black, black])
    assert values == {"psnr": pytest.approx((best + expected) / 2)}


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (np.zeros((4, 4, 3), np.float32), "give uint8"),
        (np.zeros((2, 4, 3), np.uint8), "make them equal in size"),
    ],
)
def test_images_that_cannot_be_compared_get_a_sentence(answer, sentence):
    with pytest.raises(ValueError, match=sentence):
        images.psnr([np.zeros((4, 4, 3), np.uint8)], [answer])


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
def test_nothing_to_judge_is_said_in_a_sentence(metric):
    with pytest.raises(ValueError, match="got no examples"):
        metric([], [])
    with pytest.raises(ValueError, match="0 examples and 1 answers"):
        metric([], ["a"])
