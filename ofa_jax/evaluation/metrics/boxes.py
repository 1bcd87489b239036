"""Boxes: was the region found, and were all objects detected?

Boxes are x0, y0, x1, y1 in pixels. None stands for an answer that is no box.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ofa_jax.evaluation.metrics import inputs
from ofa_jax.preprocessing.boxes import as_boxes

Objects = Mapping[str, Any]
_MATCH = 0.5


def iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes [N, 4] and [N, 4], pair by pair: float64 [N].

    With 1e-6 square pixels added to the union, as the original OFA computes it: boxes without an
    area have 0.
    """
    first, second = (np.asarray(x, np.float64).reshape(-1, 4) for x in (first, second))
    sides = np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2])
    common = np.where((sides > 0).all(1), sides.prod(1), 0)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (first, second)]
    return common / (areas[0] + areas[1] - common + 1e-6)


def accuracy_at_iou(
    references: Sequence[Any], answers: Sequence[Any], threshold: float = _MATCH
) -> dict[str, float]:
    """ "acc@0.5": how many boxes overlap the true one with at least this IoU.

    Args:
      references: one box [4] each.
      answers: boxes [4], or None.
      threshold: of the IoU.
    """
    inputs.check_pairs("accuracy_at_iou", references, answers)
    nowhere = np.zeros(4)
    found = iou(
        np.stack([nowhere if box is None else np.asarray(box, np.float64) for box in answers]),
        np.stack([np.asarray(box, np.float64).reshape(4) for box in references]),
    )
    return {f"acc@{threshold:g}": float((found >= threshold).mean())}


def detection(references: Sequence[Objects], answers: Sequence[Objects | None]) -> dict[str, float]:
    """COCO's "map" and "map@0.5", and "f1@0.5", "precision@0.5" and "recall@0.5".

    The mean average precision is pycocotools', over the labels that the references have: a
    detection with any other label does not count there, but does in the precision. It ranks
    detections by their scores; generated ones that have none are equally sure, and equal ranks
    stand in the order of the examples. The F-measure needs no scores: detections and objects of one
    label are matched one to one, the largest IoU first, and counted over all examples.

    Args:
      references: {"boxes": [K, 4], "labels": list[str]}.
      answers: the same, optionally with "scores": list[float].
    """
    inputs.check_pairs("detection", references, answers)
    answers = [{"boxes": (), "labels": ()} if x is None else x for x in answers]
    for what, objects in (("reference", references), ("answer", answers)):
        for number, own in enumerate(objects):
            if len(as_boxes(own["boxes"])) != len(own["labels"]):
                raise ValueError(
                    f"detection: the {what} of example {number} has {len(as_boxes(own['boxes']))} "
                    f"boxes and {len(own['labels'])} labels; give one label per box."
                )
    if not any(len(own["labels"]) for own in references):
        raise ValueError("detection: no example has an object in its reference.")
    return _average_precision(references, answers) | _f1(references, answers)


def _average_precision(
    references: Sequence[Objects], answers: Sequence[Objects]
) -> dict[str, float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    labels = sorted({label for own in references for label in own["labels"]})
    categories = {label: number for number, label in enumerate(labels, 1)}
    truth, found = COCO(), COCO()
    for table, objects in ((truth, references), (found, answers)):
        table.dataset = {
            "images": [{"id": number} for number in range(len(references))],
            "categories": [{"id": number} for number in categories.values()],
            "annotations": _annotations(objects, categories),
        }
    # Its progress is not ours to print.
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found.createIndex()
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {"map": float(evaluation.stats[0]), "map@0.5": float(evaluation.stats[1])}


def _annotations(objects: Sequence[Objects], categories: Mapping[str, int]) -> list[dict[str, Any]]:
    annotations = []
    for image, own in enumerate(objects):
        boxes = _as_xywh(own["boxes"])
        scores = own.get("scores", np.ones(len(boxes)))
        for box, label, score in zip(boxes, own["labels"], scores, strict=True):
            if label in categories:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image,
                        "iscrowd": 0,
                        "category_id": categories[label],
                        "bbox": box.tolist(),
                        "area": float(box[2] * box[3]),
                        "score": float(score),
                    }
                )
    return annotations


def _as_xywh(boxes: Any) -> np.ndarray:
    """Corners [K, 4] to corner and size, float64 [K, 4]; sides below zero are zero."""
    corners = as_boxes(boxes).astype(np.float64)
    return np.concatenate([corners[:, :2], np.maximum(corners[:, 2:] - corners[:, :2], 0)], axis=1)


def _f1(references: Sequence[Objects], answers: Sequence[Objects]) -> dict[str, float]:
    right = sum(map(_matches, references, answers))
    precision = right / max(sum(len(own["labels"]) for own in answers), 1)
    recall = right / sum(len(own["labels"]) for own in references)
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return {"f1@0.5": f1, "precision@0.5": precision, "recall@0.5": recall}


def _matches(reference: Objects, answer: Objects) -> int:
    """How many objects were found, each by one detection of its own."""
    from pycocotools import mask

    if not len(answer["labels"]) or not len(reference["labels"]):
        return 0
    found, true = _as_xywh(answer["boxes"]), _as_xywh(reference["boxes"])
    overlaps = np.asarray(mask.iou(found, true, np.zeros(len(true))))
    overlaps *= np.asarray(answer["labels"])[:, None] == np.asarray(reference["labels"])
    count = 0
    while overlaps.max() >= _MATCH:
        row, column = np.unravel_index(overlaps.argmax(), overlaps.shape)
        overlaps[row], overlaps[:, column] = 0, 0
        count += 1
    return count
