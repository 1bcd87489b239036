"""Questions with their one correct answer and its type.

The types are defined so that every other answer of the same type is wrong: a negative for matching
can be sampled from them. No ambiguous question is generated.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from ofa_jax.scenes import relations
from ofa_jax.scenes.composer import Scene

_T = TypeVar("_T")

ANSWER_TYPES = (
    "existence",  # yes, no: is there one of these?
    "count",  # digits
    "left or right",  # the half of the image, or the side of another object
    "top or bottom",
    "above or below",
    "corner",  # top left, ...
    "relation",  # yes, no: is this to the left of that?
    "object",  # a noun: what is to the left of that?
    "comparison",  # yes, no: are there more of these than of those?
    "background",
)


@dataclasses.dataclass(frozen=True)
class Question:
    """A question in lower case, its answer, and the answer's type."""

    text: str
    answer: str
    type: str


_Maker = Callable[[Scene, np.random.Generator], Question | None]


def sample_questions(scene: Scene, count: int, rng: np.random.Generator) -> list[Question]:
    """Samples up to `count` questions: existence and count always, and others at random."""
    yes = rng.random() < 0.5
    chosen = [_existence_question(scene, rng, yes), _count_question(scene, rng)]
    # A second question about existence has the other answer, so that both are equally frequent.
    makers: list[_Maker] = [
        functools.partial(_existence_question, yes=not yes),
        _count_question,
        _half_question,
        _relation_question,
        _object_question,
        _comparison_question,
        _background_question,
        _corner_question,
    ]
    while makers and len(chosen) < count:
        maker = makers.pop(rng.integers(len(makers)))
        question = maker(scene, rng)
        if question is not None and question not in chosen:
            chosen.append(question)
    return chosen


def _choose(items: Sequence[_T], rng: np.random.Generator) -> _T:
    return items[int(rng.integers(len(items)))]


def _choose_if_any(items: Sequence[_T], rng: np.random.Generator) -> _T | None:
    """Samples one of the items; returns None, without a draw, if there are none."""
    return _choose(items, rng) if len(items) else None


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"


def _existence_question(scene: Scene, rng: np.random.Generator, yes: bool) -> Question:
    """Returns a question whether an object of a noun is in the image."""
    noun = _choose(scene.objects, rng).noun if yes else _choose(relations.absent_nouns(scene), rng)
    text = (
        f"is there {noun.with_article} in the picture?"
        if rng.random() < 0.7
        else f"are there any {noun.plural} in the picture?"
    )
    return Question(text, _yes_no(yes), "existence")


def _count_question(scene: Scene, rng: np.random.Generator) -> Question:
    """Returns a question for the number of objects, of nouns, or of objects of a noun."""
    kind = rng.random()
    if kind < 0.2:
        return Question("how many objects are there?", str(len(scene.objects)), "count")
    if kind < 0.3:
        text = "how many kinds of objects are there?"
        return Question(text, str(len(relations.group_by_noun(scene))), "count")
    if kind < 0.4:
        noun = _choose(relations.absent_nouns(scene), rng)
        return Question(f"how many {noun.plural} are there?", "0", "count")
    noun, items = _choose(relations.group_by_noun(scene), rng)
    return Question(f"how many {noun.plural} are there?", str(len(items)), "count")


def _half_question(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Returns a question for the half of the image that an object is in."""
    item = _choose_if_any(relations.unique_objects(scene), rng)
    if item is None:
        return None
    name = item.noun.name
    options = []
    if (half := relations.horizontal_half(item, scene.size)) is not None:
        text = f"is the {name} on the left or on the right?"
        options.append(Question(text, half, "left or right"))
    if (half := relations.vertical_half(item, scene.size)) is not None:
        text = f"is the {name} at the top or at the bottom?"
        options.append(Question(text, half, "top or bottom"))
    return _choose_if_any(options, rng)


def _corner_question(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Returns a question for the corner that an object is in."""
    options = [
        Question(f"in which corner is the {item.noun.name}?", corner, "corner")
        for item in relations.unique_objects(scene)
        if (corner := relations.find_corner(item, scene.size)) is not None
    ]
    return _choose_if_any(options, rng)


def _relation_question(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Returns a question for the relation of two objects: a choice of two, or yes or no."""
    pair = _choose_if_any(relations.related_pairs(scene), rng)
    if pair is None:
        return None
    a, relation, b = pair
    first, second = a.noun.name, b.noun.name
    if rng.random() < 0.5:
        yes = rng.random() < 0.5
        stated = relation if yes else relations.OPPOSITE[relation]
        return Question(f"is the {first} {stated} the {second}?", _yes_no(yes), "relation")
    if relation in ("above", "below"):
        return Question(f"is the {first} above or below the {second}?", relation, "above or below")
    answer = "left" if "left" in relation else "right"
    return Question(
        f"is the {first} to the left or to the right of the {second}?", answer, "left or right"
    )


def _object_question(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Returns a question which object is in a position, if exactly one object is."""
    candidates = []
    if len(scene.objects) == 1:
        candidates.append(("what is in the picture?", scene.objects[0]))
    for anchor in relations.unique_objects(scene):
        for relation in relations.RELATIONS:
            found = relations.find_only(scene, relation, anchor)
            if found is not None:
                candidates.append((f"what is {relation} the {anchor.noun.name}?", found))
    for which in ("largest", "smallest"):
        found = relations.find_extreme(scene.objects, which, scene.size)
        if found is not None:
            candidates.append((f"what is the {which} object in the picture?", found))
    chosen = _choose_if_any(candidates, rng)
    return None if chosen is None else Question(chosen[0], chosen[1].noun.name, "object")


def _comparison_question(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Compares the counts of two nouns, mostly different ones: else nearly every answer is no."""
    pairs = list(itertools.permutations(relations.group_by_noun(scene), 2))
    different = [(a, b) for a, b in pairs if len(a[1]) != len(b[1])]
    pair = _choose_if_any(different if different else pairs if rng.random() < 0.1 else [], rng)
    if pair is None:
        return None
    first, second = pair
    return Question(
        f"are there more {first[0].plural} than {second[0].plural}?",
        _yes_no(len(first[1]) > len(second[1])),
        "comparison",
    )


def _background_question(scene: Scene, rng: np.random.Generator) -> Question | None:
    del rng
    if scene.background is None:
        return None
    return Question("what is in the background?", scene.background, "background")
