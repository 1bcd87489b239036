"""Metrics of boxes: grounding accuracy and object detection.

Boxes are x0, y0, x1, y1 in pixels. None stands for a prediction that is not a box.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike

from ofa_jax.evaluation.metrics import inputs
from ofa_jax.preprocessing.boxes import as_boxes

Objects = Mapping[str, Any]
"""{"boxes": [K, 4], "labels": list[str]}, optionally with "scores": list[float]."""

_MATCH_IOU = 0.5


def iou(first: ArrayLike, second: ArrayLike) -> Float64[np.ndarray, " n"]:
    """Computes the intersection over union of boxes [n, 4] and [n, 4], pair by pair.

    1e-6 square pixels are added to the union, as in the reference implementation, so that boxes
    without an area have an IoU of 0.
    """
    a, b = (np.asarray(boxes, np.float64).reshape(-1, 4) for boxes in (first, second))
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    common = np.where((sides > 0).all(1), sides.prod(1), 0)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (a, b)]
    return common / (areas[0] + areas[1] - common + 1e-6)


@inputs.accepts(inputs.box)
def accuracy_at_iou(
    references: Sequence[Any], predictions: Sequence[Any], threshold: float = _MATCH_IOU
) -> dict[str, float]:
    """Computes "acc@0.5", the share of boxes whose IoU with the true box reaches the threshold.

    Args:
      references: a box [4] each.
      predictions: a box [4] each, or None.
      threshold: the smallest IoU that counts as correct.
    """
    inputs.check_pairs("accuracy_at_iou", references, predictions)
    no_box = np.zeros(4)
    ious = iou(
        np.stack([no_box if box is None else np.asarray(box, np.float64) for box in predictions]),
        np.stack([np.asarray(box, np.float64).reshape(4) for box in references]),
    )
    return {f"acc@{threshold:g}": float((ious >= threshold).mean())}


@inputs.accepts(inputs.objects)
def detection(
    references: Sequence[Objects], predictions: Sequence[Objects | None]
) -> dict[str, float]:
    """Computes COCO's "map" and "map@0.5", and "f1@0.5", "precision@0.5" and "recall@0.5".

    The mean average precision is pycocotools', over the labels of the references: a detection with
    any other label is ignored there, but counts in the precision. Detections are ranked by their
    scores; generated ones without scores rank equally, in the order of the examples. The F-measure
    needs no scores: detections and objects of one label are matched one to one, the largest IoU
    first, and counted over all examples.

    Args:
      references: the true objects of each example.
      predictions: the detections of each example, optionally with "scores"; or None.
    """
    inputs.check_pairs("detection", references, predictions)
    no_objects: Objects = {"boxes": (), "labels": ()}
    detections = [no_objects if x is None else x for x in predictions]
    for what, examples in (("reference", references), ("prediction", detections)):
        for index, objects in enumerate(examples):
            num_boxes, num_labels = len(as_boxes(objects["boxes"])), len(objects["labels"])
            if num_boxes != num_labels:
                raise ValueError(
                    f"detection: the {what} of example {index} has {num_boxes} boxes and "
                    f"{num_labels} labels; give one label per box."
                )
    if not any(len(reference["labels"]) for reference in references):
        raise inputs.NothingToScoreError("detection: no example has an object in its reference.")
    return _average_precision(references, detections) | _f1(references, detections)


def _average_precision(
    references: Sequence[Objects], detections: Sequence[Objects]
) -> dict[str, float]:
    """Computes the mean average precision by pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    labels = sorted({label for reference in references for label in reference["labels"]})
    categories = {label: index for index, label in enumerate(labels, 1)}
    truth, found = COCO(), COCO()
    for table, objects in ((truth, references), (found, detections)):
        table.dataset = {
            "images": [{"id": index} for index in range(len(references))],
            "categories": [{"id": category} for category in categories.values()],
            "annotations": _annotations(objects, categories),
        }
    # pycocotools prints its progress.
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found.createIndex()
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {"map": float(evaluation.stats[0]), "map@0.5": float(evaluation.stats[1])}


def _annotations(
    examples: Sequence[Objects], categories: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Returns COCO annotations of all objects whose label is a category."""
    annotations: list[dict[str, Any]] = []
    for image, objects in enumerate(examples):
        boxes = _as_xywh(objects["boxes"])
        scores = objects.get("scores", np.ones(len(boxes)))
        for box, label, score in zip(boxes, objects["labels"], scores, strict=True):
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


def _as_xywh(boxes: ArrayLike) -> Float64[np.ndarray, "k 4"]:
    """Converts corners [k, 4] to corner and size; negative sides become zero."""
    corners = as_boxes(boxes).astype(np.float64)
    return np.concatenate([corners[:, :2], np.maximum(corners[:, 2:] - corners[:, :2], 0)], axis=1)


def _f1(references: Sequence[Objects], detections: Sequence[Objects]) -> dict[str, float]:
    """Computes F-measure, precision and recall over all examples."""
    correct = sum(map(_num_matches, references, detections))
    precision = correct / max(sum(len(objects["labels"]) for objects in detections), 1)
    recall = correct / sum(len(objects["labels"]) for objects in references)
    f1 = 2 * precision * recall / (precision + recall) if correct else 0.0
    return {"f1@0.5": f1, "precision@0.5": precision, "recall@0.5": recall}


def _num_matches(reference: Objects, detections: Objects) -> int:
    """Returns how many objects were found, each by a different detection."""
    from pycocotools import mask

    if not len(detections["labels"]) or not len(reference["labels"]):
        return 0
    found, true = _as_xywh(detections["boxes"]), _as_xywh(reference["boxes"])
    overlaps = np.asarray(mask.iou(found, true, np.zeros(len(true))))
    overlaps *= np.asarray(detections["labels"])[:, None] == np.asarray(reference["labels"])
    count = 0
    while overlaps.max() >= _MATCH_IOU:
        row, column = np.unravel_index(overlaps.argmax(), overlaps.shape)
        overlaps[row], overlaps[:, column] = 0, 0
        count += 1
    return count
