"""Trivial baselines and the spans at masks, against values computed by hand."""

import numpy as np
import pytest

from ofa_jax.evaluation import trivial_baselines
from ofa_jax.evaluation.metrics.spans import exact_spans, extract_spans


def rng():
    return np.random.default_rng(0)


def test_most_frequent_answer_depends_on_the_question_type():
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
    evaluation = [{"answers": ["1"], "type": kind} for kind in ("existence", "count", "corner")]
    assert trivial_baselines.most_frequent_answer(training, evaluation, rng()) == ["no", "2", "no"]


def test_most_frequent_label_breaks_ties_by_the_smallest():
    assert trivial_baselines.most_frequent_label(["yes", "no"], ["yes"] * 2, rng()) == ["no", "no"]
    assert trivial_baselines.most_frequent_label(["no", "yes"], ["yes"], rng()) == ["no"]


def test_most_frequent_phrase_counts_all_correct_phrases():
    assert trivial_baselines.most_frequent_phrase([["a", "c"], ["b", "c"]], [["a"]] * 2, rng()) == [
        "c",
        "c",
    ]


def test_box_baselines_give_the_mean_box_and_the_most_frequent_label():
    training = [[0, 0, 10, 20], [10, 20, 30, 40]]
    (box,) = trivial_baselines.mean_box(training, [None], rng())
    np.testing.assert_array_equal(box, np.float32([5, 10, 20, 30]))
    training = [
        {"boxes": [[0, 0, 4, 4], [2, 2, 6, 6]], "labels": ["owl", "car"]},
        {"boxes": [], "labels": []},
        {"boxes": [[1, 1, 2, 8]], "labels": ["owl"]},
    ]
    (found,) = trivial_baselines.mean_box_with_frequent_label(training, [None], rng())
    assert found["labels"] == ["owl"]
    np.testing.assert_array_equal(found["boxes"], np.float32([[1, 1, 4, 6]]))


def test_code_baselines_give_the_most_frequent_code_or_uniform_draws():
    (found,) = trivial_baselines.most_frequent_code([[3, 1, 3], [2, 3, 0]], [[9, 9]], rng())
    assert found.tolist() == [3, 3] and found.dtype == np.int32
    (drawn,) = trivial_baselines.draw_codes(4)([], [np.zeros(4000, np.int32)], rng())
    # Binomial of 4,000 draws: 5 standard deviations of 27 around 1,000.
    assert np.abs(np.bincount(drawn, minlength=4) - 1000).max() < 140


def test_drawn_captions_are_training_captions_and_differ():
    training = [{"captions": [f"a {n}", f"the {n}"]} for n in range(20)]
    drawn = trivial_baselines.draw_caption(training, [None] * 40, rng())
    assert set(drawn) <= {caption for own in training for caption in own["captions"]}
    assert len(set(drawn)) > 5


def test_draw_true_box_draws_from_the_boxes_of_each_image():
    images = [np.float32([[0, 0, 1, 1]]), np.float32([[2, 2, 3, 3], [4, 4, 5, 5]])]
    first, second = trivial_baselines.draw_true_box(images, rng())
    assert first.tolist() == [0, 0, 1, 1] and second.tolist() in images[1].tolist()


@pytest.mark.parametrize(
    "masked, text, expected",
    [
        (" the<mask> fox<mask>", "the quick brown fox jumps", ["quick brown", "jumps"]),
        (
            " <mask> a<mask><mask> b.",
            "x a y b.",
            ["x", "", "y"],
        ),  # an inserted mask replaces no text
        (" the<mask> fox", "the dog", None),
        (" a<mask> (b)", "a c (b)", ["c"]),
        (" a b", "a b", []),
    ],
)
def test_extract_spans_returns_the_text_at_each_mask(masked, text, expected):
    assert extract_spans(masked, text) == expected


def test_exact_spans_counts_each_span_and_none_if_the_rest_was_changed():
    masked = [" the<mask> fox<mask>", " an<mask>", " plain"]
    references = ["the quick fox jumps", "an owl", "plain"]
    assert exact_spans(masked, references, ["the quick fox sits", "a owl", "plain"]) == {
        "exact_spans": 1 / 3
    }
    assert exact_spans(masked, references, references) == {"exact_spans": 1.0}
    assert exact_spans(masked, references, [None, None, None]) == {"exact_spans": 0.0}


def test_fill_masks_fills_every_mask():
    assert trivial_baselines.fill_masks(" the<mask> fox<mask>", "of") == "the of fox of"


@pytest.mark.parametrize("objective", trivial_baselines.BASELINES)
def test_without_references_a_baseline_says_so(objective):
    _, baseline = trivial_baselines.BASELINES[objective]
    empty = {
        "image_captioning": {"captions": []},
        "visual_question_answering": {"answers": []},
        "object_detection": {"boxes": [], "labels": []},
        "grounded_captioning": [],
        "image_infilling": [],
    }
    for training in ([], [empty[objective]] if objective in empty else []):
        with pytest.raises(ValueError, match="No training record has a reference"):
            baseline(training, ["yes"], rng())
