"""Baselines: answers that look neither at the image nor at the text, only at training answers.

    captioning            a training caption, drawn anew for every image
    questions             the most frequent training answer to questions of that type
    matching              the most frequent training answer
    grounded captioning   the phrase that is right most often in training
    grounding             the mean training box
    detection             the mean training box, named by the most frequent name
    image infilling       the most frequent training code, everywhere
    text infilling        the most frequent training span, at every mask

References are those of the objectives' `EvalSpec`s (see `tasks.pretraining_eval`).
"""

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ofa_jax.evaluation.metrics.spans import MASK

References = Sequence[Any]
Blind = Callable[[References, References, np.random.Generator], list[Any]]
"""(training references, references of the questions, rng) -> an answer to each question."""


def most_frequent(values: Iterable[Any]) -> Any:
    """The value that comes most often; of equally frequent ones the smallest."""
    counts = collections.Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))


def captions(training: References, asked: References, rng: np.random.Generator) -> list[str]:
    """Training captions, drawn."""
    known = [caption for own in training for caption in own["captions"]]
    return [known[place] for place in rng.integers(len(known), size=len(asked))]


def answers(training: References, asked: References, rng: np.random.Generator) -> list[str]:
    """For each type of question its most frequent answer; of an unknown type, that of all."""
    by_type = collections.defaultdict(list)
    for own in training:
        for kind in {own.get("type"), None}:
            by_type[kind].append(own["answers"][0])
    best = {kind: most_frequent(known) for kind, known in by_type.items()}
    return [best.get(own.get("type"), best[None]) for own in asked]


def labels(training: References, asked: References, rng: np.random.Generator) -> list[str]:
    """The most frequent text."""
    return [most_frequent(training)] * len(asked)


def phrases(training: References, asked: References, rng: np.random.Generator) -> list[str]:
    """The phrase that is right most often."""
    return labels([phrase for own in training for phrase in own], asked, rng)


def boxes(training: References, asked: References, rng: np.random.Generator) -> list[np.ndarray]:
    """The mean box, float32 [4]."""
    return [np.mean(np.asarray(training, np.float64), axis=0).astype(np.float32)] * len(asked)


def objects(
    training: References, asked: References, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """The mean box with the most frequent name."""
    known = [own for own in training if len(own["labels"])]
    (box,) = boxes(np.concatenate([own["boxes"] for own in known]), [None], rng)
    name = most_frequent(label for own in known for label in own["labels"])
    return [{"boxes": box[None], "labels": [name]}] * len(asked)


def codes(training: References, asked: References, rng: np.random.Generator) -> list[np.ndarray]:
    """The most frequent code, as often as codes are wanted: int32 [n]."""
    code = most_frequent(np.concatenate([np.asarray(own).reshape(-1) for own in training]).tolist())
    return [np.full(len(own), code, np.int32) for own in asked]


def random_codes(num_codes: int) -> Blind:
    """Codes that are drawn evenly: int32 [n] each."""
    return lambda training, asked, rng: [
        rng.integers(num_codes, size=len(own), dtype=np.int32) for own in asked
    ]


BLIND: Mapping[str, tuple[str, Blind]] = {
    "image_captioning": ("a training caption at random", captions),
    "visual_question_answering": ("the most frequent answer of the type", answers),
    "image_text_matching": ("the most frequent answer", labels),
    "visual_grounding": ("the mean box", boxes),
    "grounded_captioning": ("the phrase that is right most often", phrases),
    "object_detection": ("the mean box with the most frequent name", objects),
    "image_infilling": ("the most frequent code", codes),
}
"""Objective -> what its baseline is, and the baseline."""


def filled(masked: str, span: str) -> str:
    """A text with one span at each of its masks."""
    return " ".join(masked.replace(MASK, f" {span} ").split())


def random_objects(
    boxes_of_images: Sequence[np.ndarray], rng: np.random.Generator
) -> list[np.ndarray]:
    """A random one of each image's true boxes: who sees things but cannot tell which is meant."""
    return [boxes[int(rng.integers(len(boxes)))] for boxes in boxes_of_images]
