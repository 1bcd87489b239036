"""False captions and answers for image-text matching (Wang et al. 2022, section 3.2)."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

OTHER = "other"
_COUNT_TYPES = ("how many", "count")
# An object's name is replaced if a draw exceeds this, as in the reference implementation.
_KEEP_PROBABILITY = 0.6
# How many captions `sample_distant_caption` tries.
_MAX_DRAWS = 20


@dataclasses.dataclass(frozen=True)
class NegativePool:
    """The captions, names and answers of a corpus that negatives are sampled from.

    Attributes:
      captions: of the corpus.
      object_names: names that may replace another one.
      answers_by_type: question type -> answers; the key "other" serves unknown types.
    """

    captions: Sequence[str] = ()
    object_names: Sequence[str] = ()
    answers_by_type: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def type_by_answer(self) -> dict[str, str]:
        """The last type that lists an answer, "other" excepted, as in the reference table."""
        return {
            answer: kind
            for kind, answers in self.answers_by_type.items()
            if kind != OTHER
            for answer in answers
        }

    @functools.cached_property
    def object_name_pattern(self) -> re.Pattern[str]:
        """Finds object names in a caption, the longest first, in singular and plural."""
        names = sorted(self.object_names, key=len, reverse=True)
        return re.compile(rf"\b({'|'.join(map(re.escape, names))})(?:s|es)?\b")

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def sample_other(choices: Sequence[str], taken: str, rng: np.random.Generator) -> str | None:
    """Samples one of `choices` that is not `taken`; returns None if there is no other.

    If `taken` is drawn, the next choice is returned. (The reference implementation never draws the
    last choice itself; here each can be drawn.)
    """
    start = int(rng.integers(len(choices))) if len(choices) else 0
    for step in range(len(choices)):
        drawn = choices[(start + step) % len(choices)]
        if drawn != taken:
            return drawn
    return None


def replace_object_name(
    caption: str, objects: Sequence[str], pool: NegativePool, rng: np.random.Generator
) -> str | None:
    """Replaces the name of a sampled object in the caption; returns None if there is none."""
    if not objects:
        return None
    name = objects[int(rng.integers(len(objects)))]
    other = sample_other(pool.object_names, name, rng)
    return None if other is None else caption.replace(name, other)


def sample_negative_caption(
    caption: str, objects: Sequence[str], pool: NegativePool, rng: np.random.Generator
) -> str | None:
    """Samples a caption that is probably false for the image.

    For 40 % of the records with object names one name is replaced; otherwise a random caption of
    the corpus is returned. Returns None if the corpus has no other caption.
    """
    if objects and rng.random() > _KEEP_PROBABILITY:
        replaced = replace_object_name(caption, objects, pool, rng)
        # If the name does not occur in the caption, the caption is unchanged and still true.
        if replaced is not None and replaced != caption:
            return replaced
    return sample_other(pool.captions, caption, rng)


def sample_distant_caption(
    objects: Sequence[str], pool: NegativePool, rng: np.random.Generator
) -> str | None:
    """Samples a caption of another image that names an object which this image does not show.

    Args:
      objects: all objects of the image, by their names in the pool.
      pool: must have object names.
      rng: chooses.

    Returns:
      The caption, or None if none was found.
    """
    if not pool.captions or not pool.object_names:
        return None
    shown = set(objects)
    for _ in range(_MAX_DRAWS):
        caption = pool.captions[int(rng.integers(len(pool.captions)))]
        if set(pool.object_name_pattern.findall(caption)) - shown:
            return caption
    return None


def sample_negative_answer(
    answer: str,
    confidence: float,
    answer_type: str | None,
    pool: NegativePool,
    rng: np.random.Generator,
) -> str | None:
    """Samples an answer that is probably wrong.

    The more confident the correct answer, the more likely the sample has the same type (a count is
    sometimes off by one); otherwise it is of type "other". Unlike in the reference implementation,
    which compares the string with the number 0, a count of 0 becomes 1 and never -1.

    Returns:
      The answer, or None if the pool has no other.
    """
    draw = rng.random()
    kind = answer_type or pool.type_by_answer.get(answer)
    same_type = () if kind is None else pool.answers_by_type.get(kind, ())
    if confidence > draw + 0.1 and same_type:
        if kind in _COUNT_TYPES and answer.isdigit() and draw > 0.5:
            step = int(rng.choice([-1, 1]))
            return str(int(answer) + step) if answer != "0" else "1"
        if (other := sample_other(same_type, answer, rng)) is not None:
            return other
    others = pool.answers_by_type.get(OTHER) or same_type or tuple(pool.type_by_answer)
    return sample_other(others, answer, rng)
