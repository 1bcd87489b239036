"""Baselines that look neither at the image nor at the text, only at the training references.

    image_captioning            a training caption, drawn anew for every image
    visual_question_answering   the most frequent training answer to questions of that type
    image_text_matching         the most frequent training label
    grounded_captioning         the phrase that is correct most often in training
    visual_grounding            the mean training box
    object_detection            the mean training box with the most frequent label
    image_infilling             the most frequent training code at every position
    text_infilling              the most frequent training span at every mask (`fill_masks`)

References are those of the objectives' `EvalSpec`s.
"""

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from ofa_jax.evaluation.metrics.spans import MASK

References = Sequence[Any]
Baseline = Callable[[References, References, np.random.Generator], list[Any]]
"""(training references, evaluation references, rng) -> a prediction for each evaluation example."""


def most_frequent(values: Iterable[Any]) -> Any:
    """Returns the most frequent value; of equally frequent ones the smallest.

    Raises:
      ValueError: there is none.
    """
    counts = collections.Counter(values)
    if not counts:
        raise _no_references()
    return min(counts, key=lambda value: (-counts[value], value))


def draw_caption(
    training: References, evaluation: References, rng: np.random.Generator
) -> list[str]:
    """Draws a training caption for each example."""
    pool = [caption for reference in training for caption in reference["captions"]]
    if not pool:
        raise _no_references()
    return [pool[index] for index in rng.integers(len(pool), size=len(evaluation))]


def most_frequent_answer(
    training: References, evaluation: References, rng: np.random.Generator
) -> list[str]:
    """Returns the most frequent answer of each question's type; of an unknown type, of all."""
    by_type = collections.defaultdict(list)
    for reference in training:
        if not reference["answers"]:
            continue
        for kind in {reference.get("type"), None}:
            by_type[kind].append(reference["answers"][0])
    if not by_type:
        raise _no_references()
    best = {kind: most_frequent(answers) for kind, answers in by_type.items()}
    return [best.get(reference.get("type"), best[None]) for reference in evaluation]


def most_frequent_label(
    training: References, evaluation: References, rng: np.random.Generator
) -> list[str]:
    """Returns the most frequent text for each example."""
    return [most_frequent(training)] * len(evaluation)


def most_frequent_phrase(
    training: References, evaluation: References, rng: np.random.Generator
) -> list[str]:
    """Returns the phrase that is correct for the most training examples."""
    phrases = [phrase for reference in training for phrase in reference]
    return most_frequent_label(phrases, evaluation, rng)


def mean_box(
    training: References, evaluation: References, rng: np.random.Generator
) -> list[Float32[np.ndarray, "4"]]:
    """Returns the mean training box for each example."""
    return [_mean(training)] * len(evaluation)


def mean_box_with_frequent_label(
    training: References, evaluation: References, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Returns the mean training box with the most frequent label for each example."""
    non_empty = [reference for reference in training if len(reference["labels"])]
    if not non_empty:
        raise _no_references()
    box = _mean(np.concatenate([reference["boxes"] for reference in non_empty]))
    label = most_frequent(label for reference in non_empty for label in reference["labels"])
    return [{"boxes": box[None], "labels": [label]}] * len(evaluation)


def most_frequent_code(
    training: References, evaluation: References, rng: np.random.Generator
) -> list[Int32[np.ndarray, " n"]]:
    """Returns the most frequent code at every position of each example."""
    code = most_frequent(
        code for reference in training for code in np.asarray(reference).reshape(-1).tolist()
    )
    return [np.full(len(reference), code, np.int32) for reference in evaluation]


def draw_codes(num_codes: int) -> Baseline:
    """Returns a baseline that draws codes uniformly, int32 [n] for each example."""
    return lambda training, evaluation, rng: [
        rng.integers(num_codes, size=len(reference), dtype=np.int32) for reference in evaluation
    ]


BASELINES: Mapping[str, tuple[str, Baseline]] = {
    "image_captioning": ("a training caption at random", draw_caption),
    "visual_question_answering": ("the most frequent answer of the type", most_frequent_answer),
    "image_text_matching": ("the most frequent answer", most_frequent_label),
    "visual_grounding": ("the mean box", mean_box),
    "grounded_captioning": ("the phrase that is right most often", most_frequent_phrase),
    "object_detection": (
        "the mean box with the most frequent name",
        mean_box_with_frequent_label,
    ),
    "image_infilling": ("the most frequent code", most_frequent_code),
}
"""Objective -> (the baseline's description in reports, the baseline)."""


def fill_masks(masked: str, span: str) -> str:
    """Returns a text with the same span at each of its masks."""
    return " ".join(masked.replace(MASK, f" {span} ").split())


def draw_true_box(
    boxes_of_images: Sequence[Float32[np.ndarray, "n 4"]], rng: np.random.Generator
) -> list[Float32[np.ndarray, "4"]]:
    """Draws one of each image's ground-truth boxes: localises objects, but ignores the phrase."""
    return [boxes[int(rng.integers(len(boxes)))] for boxes in boxes_of_images]


def _mean(boxes: Any) -> Float32[np.ndarray, "4"]:
    """Returns the mean of boxes [n, 4]."""
    if not len(boxes):
        raise _no_references()
    return np.mean(np.asarray(boxes, np.float64), axis=0).astype(np.float32)


def _no_references() -> ValueError:
    """Returns the error of a baseline that has nothing to go by."""
    return ValueError(
        "No training record has a reference, so there is no baseline: give records with references."
    )
