"""Metrics of boxes against values computed by hand."""

import numpy as np
import pytest

from ofa_jax.evaluation.metrics import boxes

SQUARE = [0.0, 0.0, 10.0, 10.0]
HALF = [0.0, 0.0, 10.0, 5.0]  # IoU 0.5 with the square, a hair less with the added union
MORE = [0.0, 0.0, 10.0, 6.0]  # 0.6
APART = [20.0, 20.0, 30.0, 30.0]


def objects(*pairs, **others):
    return {
        "boxes": np.array([box for box, _ in pairs], np.float32).reshape(-1, 4),
        "labels": [label for _, label in pairs],
        **others,
    }


def test_iou_equals_hand_computation():
    first = [SQUARE, SQUARE, SQUARE, SQUARE, [0, 0, 4, 4]]
    second = [SQUARE, HALF, APART, [10, 0, 20, 10], [2, 2, 6, 6]]
    np.testing.assert_allclose(boxes.iou(first, second), [1, 0.5, 0, 0, 4 / 28], rtol=1e-6)


def test_iou_of_inverted_or_empty_boxes_is_zero():
    assert boxes.iou([[10, 10, 0, 0]], [SQUARE]) == 0
    assert boxes.iou([[5, 5, 5, 5]], [[5, 5, 5, 5]]) == 0


def test_accuracy_at_iou_counts_boxes_above_the_threshold():
    predictions = [np.array(MORE, np.float32), HALF, APART, None]
    assert boxes.accuracy_at_iou([SQUARE] * 4, predictions) == {"acc@0.5": 0.25}
    assert boxes.accuracy_at_iou([SQUARE] * 4, predictions, 0.3) == {"acc@0.3": 0.5}


def test_detecting_every_object_gives_perfect_scores():
    references = [objects((SQUARE, "dog"), (APART, "cat")), objects((MORE, "dog"))]
    assert boxes.detection(references, references) == pytest.approx(
        {"map": 1, "map@0.5": 1, "f1@0.5": 1, "precision@0.5": 1, "recall@0.5": 1}
    )


def test_detecting_nothing_gives_zero():
    references = [objects((SQUARE, "dog")), objects()]
    for empty in ([None, None], [objects(), objects()]):
        assert set(boxes.detection(references, empty).values()) == {0.0}


def test_mean_average_precision_equals_hand_computation():
    references = [objects((SQUARE, "dog"), (APART, "dog"))]
    # The detection with the higher score is wrong, the other one correct: precision 1/2 up to
    # recall 1/2, which is 51 of COCO's 101 points. IoU 0.6 counts at three of the ten thresholds
    # 0.5, 0.55 ... 0.95.
    wrong = [40.0, 40.0, 50.0, 50.0]
    predictions = [objects((wrong, "dog"), (MORE, "dog"), scores=[0.9, 0.8])]
    values = boxes.detection(references, predictions)
    assert values["map@0.5"] == pytest.approx(0.5 * 51 / 101)
    assert 0.2 * 0.5 * 51 / 101 - 1e-9 <= values["map"] <= 0.3 * 0.5 * 51 / 101 + 1e-9
    assert values["f1@0.5"] == values["precision@0.5"] == values["recall@0.5"] == 0.5


def test_an_unknown_label_lowers_precision_but_not_average_precision():
    references = [objects((SQUARE, "dog"))]
    values = boxes.detection(references, [objects((SQUARE, "dog"), (APART, "unicorn"))])
    assert values["map@0.5"] == pytest.approx(1)
    assert values["precision@0.5"] == 0.5
    assert values["f1@0.5"] == pytest.approx(2 / 3)


def test_each_object_is_matched_once_and_only_with_its_own_label():
    references = [objects((SQUARE, "dog"), (APART, "cat"))]
    twice = objects((SQUARE, "dog"), (SQUARE, "dog"), (APART, "dog"))
    values = boxes.detection(references, [twice])
    assert values["precision@0.5"] == pytest.approx(1 / 3)
    assert values["recall@0.5"] == 0.5


def test_the_largest_overlap_is_matched_first():
    # The first detection overlaps both objects, the second object more; the second detection only
    # the first object.
    near, far = [0, 0, 10, 10], [0, 2, 10, 12]
    references = [objects((near, "dog"), (far, "dog"))]
    values = boxes.detection(references, [objects(([0, 1.5, 10, 11.5], "dog"), (near, "dog"))])
    assert values["f1@0.5"] == 1


@pytest.mark.parametrize(
    ("references", "predictions", "message"),
    [
        (
            [objects((SQUARE, "dog"))],
            [{"boxes": [SQUARE], "labels": []}],
            "prediction of example 0",
        ),
        ([{"boxes": [], "labels": ["dog"]}], [None], "reference of example 0"),
        ([objects()], [objects((SQUARE, "dog"))], "no example has an object"),
        ([], [], "got no examples"),
    ],
)
def test_detection_reports_invalid_input(references, predictions, message):
    with pytest.raises(ValueError, match=message):
        boxes.detection(references, predictions)


def test_accuracy_at_iou_is_fast_for_thousands_of_images():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 90, (5000, 2)).astype(np.float32)
    true = np.concatenate([corners, corners + 10], axis=1)
    values = boxes.accuracy_at_iou(list(true), list(true + np.float32(1)))
    assert values == {"acc@0.5": 1.0}  # 81 / 119
