"""Baselines by hand, and which spans were filled."""

import numpy as np
import pytest

from ofa_jax.evaluation import trivial_baselines
from ofa_jax.evaluation.metrics.spans import exact_spans, fillings


def rng():
    return np.random.default_rng(0)


def test_questions_get_the_most_frequent_answer_of_their_type():
    training = [
        {"answers": [answer], "type": kind}
        for answer, kind in (
            ("2", "count"),
            ("1", "count"),
            ("2", "count"),
            ("no", "existence"),
            ("no", "existence"),
            ("no", "existence"),
        )
    ]
    asked = [{"answers": ["1"], "type": kind} for kind in ("existence", "count", "corner")]
    assert trivial_baselines.answers(training, asked, rng()) == ["no", "2", "no"]


def test_equally_frequent_answers_are_told_apart_in_the_same_way_always():
    assert trivial_baselines.labels(["yes", "no"], ["yes"] * 2, rng()) == ["no", "no"]
    assert trivial_baselines.labels(["no", "yes"], ["yes"], rng()) == ["no"]


def test_the_phrase_that_is_right_most_often_need_not_be_the_first_of_any():
    assert trivial_baselines.phrases([["a", "c"], ["b", "c"]], [["a"]] * 2, rng()) == ["c", "c"]


def test_boxes_are_the_mean_and_objects_have_the_most_frequent_name():
    training = [[0, 0, 10, 20], [10, 20, 30, 40]]
    (box,) = trivial_baselines.boxes(training, [None], rng())
    np.testing.assert_array_equal(box, np.float32([5, 10, 20, 30]))
    training = [
        {"boxes": [[0, 0, 4, 4], [2, 2, 6, 6]], "labels": ["owl", "car"]},
        {"boxes": [], "labels": []},
        {"boxes": [[1, 1, 2, 8]], "labels": ["owl"]},
    ]
    (found,) = trivial_baselines.objects(training, [None], rng())
    assert found["labels"] == ["owl"]
    np.testing.assert_array_equal(found["boxes"], np.float32([[1, 1, 4, 6]]))


def test_codes_are_the_most_frequent_one_or_drawn_evenly():
    (found,) = trivial_baselines.codes([[3, 1, 3], [2, 3, 0]], [[9, 9]], rng())
    assert found.tolist() == [3, 3] and found.dtype == np.int32
    (drawn,) = trivial_baselines.random_codes(4)([], [np.zeros(4000, np.int32)], rng())
    # Binomial of 4,000 draws: 5 standard deviations of 27 around 1,000.
    assert np.abs(np.bincount(drawn, minlength=4) - 1000).max() < 140


def test_captions_are_training_captions_and_differ():
    training = [{"captions": [f"a {n}", f"the {n}"]} for n in range(20)]
    drawn = trivial_baselines.captions(training, [None] * 40, rng())
    assert set(drawn) <= {caption for own in training for caption in own["captions"]}
    assert len(set(drawn)) > 5


def test_random_objects_are_boxes_of_their_own_image():
    images = [np.float32([[0, 0, 1, 1]]), np.float32([[2, 2, 3, 3], [4, 4, 5, 5]])]
    first, second = trivial_baselines.random_objects(images, rng())
    assert first.tolist() == [0, 0, 1, 1] and second.tolist() in images[1].tolist()


@pytest.mark.parametrize(
    "masked, text, expected",
    [
        (" the<mask> fox<mask>", "the quick brown fox jumps", ["quick brown", "jumps"]),
        (" <mask> a<mask><mask> b.", "x a y b.", ["x", "", "y"]),  # an inserted mask hides nothing
        (" the<mask> fox", "the dog", None),
        (" a<mask> (b)", "a c (b)", ["c"]),
        (" a b", "a b", []),
    ],
)
def test_fillings_are_what_stands_at_the_masks(masked, text, expected):
    assert fillings(masked, text) == expected


def test_spans_count_one_by_one_and_none_where_the_rest_was_changed():
    masked = [" the<mask> fox<mask>", " an<mask>", " plain"]
    references = ["the quick fox jumps", "an owl", "plain"]
    assert exact_spans(masked, references, ["the quick fox sits", "a owl", "plain"]) == {
        "exact_spans": 1 / 3
    }
    assert exact_spans(masked, references, references) == {"exact_spans": 1.0}
    assert exact_spans(masked, references, [None, None, None]) == {"exact_spans": 0.0}


def test_the_baseline_of_text_infilling_fills_every_mask():
    assert trivial_baselines.filled(" the<mask> fox<mask>", "of") == "the of fox of"
