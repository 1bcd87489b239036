"""Wrong captions and answers for image-text matching."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence

import numpy as np

OTHER = "other"
_COUNT_TYPES = ("how many", "count")
# The original swaps an object's name where a draw exceeds this.
_KEEP_PROBABILITY = 0.6
# How many captions are looked at for one that is false.
_MOST_DRAWS = 20


@dataclasses.dataclass(frozen=True)
class NegativePool:
    """What a corpus has to offer as wrong answers.

    Attributes:
      captions: of the corpus.
      object_names: that may stand in for another.
      answers_by_type: question type -> answers; the key "other" is used for unknown types.
    """

    captions: Sequence[str] = ()
    object_names: Sequence[str] = ()
    answers_by_type: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def type_by_answer(self) -> dict[str, str]:
        """The last type that lists an answer; "other" is none, as in the original's table."""
        return {
            answer: kind
            for kind, answers in self.answers_by_type.items()
            if kind != OTHER
            for answer in answers
        }

    @functools.cached_property
    def names_in(self) -> re.Pattern[str]:
        """Finds names of objects in a caption, the longest first, also where they end with s."""
        names = sorted(self.object_names, key=len, reverse=True)
        return re.compile(rf"\b({'|'.join(map(re.escape, names))})(?:s|es)?\b")

    def __getstate__(self):
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def choose_other(choices: Sequence[str], taken: str, rng: np.random.Generator) -> str | None:
    """One of `choices` that is not `taken`; None if there is no other.

    A draw of `taken` moves on to the choice behind it. (The original never draws the last choice
    itself; here each can come.)
    """
    start = int(rng.integers(len(choices))) if len(choices) else 0
    for step in range(len(choices)):
        drawn = choices[(start + step) % len(choices)]
        if drawn != taken:
            return drawn
    return None


def swap_object(
    caption: str, objects: Sequence[str], pool: NegativePool, rng: np.random.Generator
) -> str | None:
    """The caption with one of its objects' names replaced by another name; None if it has none."""
    if not objects:
        return None
    name = objects[int(rng.integers(len(objects)))]
    other = choose_other(pool.object_names, name, rng)
    return None if other is None else caption.replace(name, other)


def negative_caption(
    caption: str, objects: Sequence[str], pool: NegativePool, rng: np.random.Generator
) -> str | None:
    """A caption that is probably wrong for the image.

    In 40 % of the pairs that have object names one name is swapped, else it is a random caption of
    the corpus (section 4 of the spec). None if the corpus has no other caption.
    """
    if objects and rng.random() > _KEEP_PROBABILITY:
        swapped = swap_object(caption, objects, pool, rng)
        # A name that does not occur in the caption leaves it as it was: that would be true.
        if swapped is not None and swapped != caption:
            return swapped
    return choose_other(pool.captions, caption, rng)


def distant_caption(
    objects: Sequence[str], pool: NegativePool, rng: np.random.Generator
) -> str | None:
    """A caption of another image, which names something that this one does not show.

    Args:
      objects: all that the image shows, by names of the pool.
      pool: has names of objects.
      rng: chooses.

    Returns:
      None if none is found.
    """
    if not pool.captions or not pool.object_names:
        return None
    shown = set(objects)
    for _ in range(_MOST_DRAWS):
        caption = pool.captions[int(rng.integers(len(pool.captions)))]
        if set(pool.names_in.findall(caption)) - shown:
            return caption
    return None


def negative_answer(
    answer: str,
    confidence: float,
    answer_type: str | None,
    pool: NegativePool,
    rng: np.random.Generator,
) -> str | None:
    """An answer that is probably wrong.

    The surer the right answer, the likelier one of its own type (a count sometimes one off); else
    an answer of type "other". Unlike the original, a count of 0 becomes 1 and never -1: there the
    comparison with 0 is one of a string.

    Returns:
      None if the pool has nothing else to offer.
    """
    draw = rng.random()
    kind = answer_type or pool.type_by_answer.get(answer)
    same_type = pool.answers_by_type.get(kind, ())
    if confidence > draw + 0.1 and same_type:
        if kind in _COUNT_TYPES and answer.isdigit() and draw > 0.5:
            step = int(rng.choice([-1, 1]))
            return str(int(answer) + step) if answer != "0" else "1"
        if (other := choose_other(same_type, answer, rng)) is not None:
            return other
    others = pool.answers_by_type.get(OTHER) or same_type or tuple(pool.type_by_answer)
    return choose_other(others, answer, rng)
