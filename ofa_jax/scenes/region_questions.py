"""Questions about a region of a scene, which no training example asks, with their exact answers.

    grounded_question_answering  how many owls are in the region?                  2
    region_neighbour             what is to the left of the region?                car
    region_in_style              what does the region describe in the style of
                                 " there is a dog "?                               there is an owl
    region_yes_no                is the object in the region an owl?               yes

The instruction ends with `region:` and the box. Training has questions about the whole image and
asks one thing alone about a region, its phrase. A question that a scene has no certain answer to is
not asked.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ofa_jax.scenes import relations
from ofa_jax.scenes.captions import Statement
from ofa_jax.scenes.composer import Scene, SceneObject
from ofa_jax.scenes.nouns import Noun

Box = tuple[float, float, float, float]
_STYLES = ("plain", "picture", "there", "exact")


@dataclasses.dataclass(frozen=True)
class RegionQuestion:
    """A question about a region.

    Attributes:
      text: in lower case; the region follows.
      box: of the region: x0 y0 x1 y1 in pixels.
      answer: the only correct one.
      type: questions of one type have the same possible answers.
    """

    text: str
    box: Box
    answer: str
    type: str


def restore_scene(
    labels: Sequence[str], boxes: Sequence[Sequence[float]], size: int, nouns: Sequence[str]
) -> Scene:
    """Returns the scene of a record with `object_labels` and `object_boxes`.

    Args:
      labels: of the objects.
      boxes: of the objects, in pixels.
      size: the side of the image in pixels.
      nouns: all nouns of the data set.
    """

    def noun(name: str) -> Noun:
        return Noun(name, code="")  # the pictogram is in the image already

    objects = tuple(
        SceneObject(noun(label), (float(x0), float(y0), float(x1), float(y1)))
        for label, (x0, y0, x1, y1) in zip(labels, boxes, strict=True)
    )
    return Scene(size, objects, None, tuple(map(noun, nouns)))


def ask(task: str, scene: Scene, rng: np.random.Generator) -> RegionQuestion | None:
    """Samples a question of a task; returns None if the scene has none.

    Args:
      task: a key of `MAKERS`.
      scene: what is in the image.
      rng: determines the question.
    """
    return MAKERS[task](scene, rng)


def possible_answers(task: str, nouns: Sequence[str]) -> tuple[str, ...] | None:
    """Returns all answers that questions of a task may have; None if they are whole captions.

    Args:
      task: a key of `MAKERS`.
      nouns: all nouns of the data set.
    """
    if task == "region_yes_no":
        return ("yes", "no")
    if task == "region_neighbour":
        return tuple(nouns)
    if task == "grounded_question_answering":
        sides = ("left", "right", "top", "bottom")
        return (*sides, *relations.CORNERS, *map(str, range(7)), *nouns)
    return None


def _shuffled(items: Sequence[Any], rng: np.random.Generator) -> list[Any]:
    return [items[index] for index in rng.permutation(len(items))]


# ------------------------------------------------------------- questions as the paper's: grounded


def _grounded_question(scene: Scene, rng: np.random.Generator) -> RegionQuestion | None:
    """Returns a question about a place, a number or a noun, as training asks of whole images."""
    for make in _shuffled((_ask_place, _ask_count, _ask_noun), rng):
        if (question := make(scene, rng)) is not None:
            return question
    return None


def _ask_place(scene: Scene, rng: np.random.Generator) -> RegionQuestion | None:
    """Asks where one of several objects of a noun is, if the others are elsewhere."""
    kinds: tuple[tuple[str, str, Callable[[SceneObject, int], str | None]], ...] = (
        (
            "is the {} in the region on the left or on the right?",
            "left or right",
            relations.horizontal_half,
        ),
        (
            "is the {} in the region at the top or at the bottom?",
            "top or bottom",
            relations.vertical_half,
        ),
        ("in which corner is the {} in the region?", "corner", relations.find_corner),
    )
    for item in _shuffled(scene.objects, rng):
        same = [other for other in scene.objects if other.noun == item.noun]
        for text, kind, find in _shuffled(kinds, rng):
            place = find(item, scene.size)
            if place is not None and any(find(other, scene.size) != place for other in same):
                return RegionQuestion(text.format(item.noun.name), item.box, place, kind)
    return None


def _ask_count(scene: Scene, rng: np.random.Generator) -> RegionQuestion | None:
    """Asks for the number of a noun in a region of some objects, if it has more outside."""
    if len(scene.objects) < 2:
        return None
    for item in _shuffled(scene.objects, rng):
        others = [other for other in scene.objects if other is not item]
        chosen = [item, *_shuffled(others, rng)[: int(rng.integers(0, len(others)))]]
        box = _around(chosen)
        inside = [other for other in scene.objects if _is_inside(other.box, box)]
        outside = [other for other in scene.objects if _is_outside(other.box, box)]
        if not outside or len(inside) + len(outside) < len(scene.objects):
            continue
        noun = _shuffled(outside if rng.random() < 0.5 else inside, rng)[0].noun
        count = sum(other.noun == noun for other in inside)
        if count < sum(other.noun == noun for other in scene.objects) or rng.random() < 0.5:
            text = f"how many {noun.plural} are in the region?"
            return RegionQuestion(text, box, str(count), "count")
    return None


def _ask_noun(scene: Scene, rng: np.random.Generator) -> RegionQuestion | None:
    """Asks for the noun of an object."""
    item = _shuffled(scene.objects, rng)[0]
    return RegionQuestion("which object is in the region?", item.box, item.noun.name, "object")


def _around(items: Sequence[SceneObject]) -> Box:
    """Returns the smallest box that contains some objects."""
    x0, y0, x1, y1 = zip(*(item.box for item in items), strict=True)
    return min(x0), min(y0), max(x1), max(y1)


def _is_inside(box: Box, region: Box) -> bool:
    """Returns whether a region contains a box."""
    x0, y0, x1, y1 = region
    return x0 <= box[0] and y0 <= box[1] and box[2] <= x1 and box[3] <= y1


def _is_outside(box: Box, region: Box) -> bool:
    """Returns whether a box and a region share no pixel."""
    x0, y0, x1, y1 = region
    return box[2] <= x0 or box[0] >= x1 or box[3] <= y0 or box[1] >= y1


# --------------------------------------------------------------------------------- the other tasks


def _neighbour_question(scene: Scene, rng: np.random.Generator) -> RegionQuestion | None:
    """Asks for the one object in a relation to the region."""
    for item in _shuffled(scene.objects, rng):
        for relation in _shuffled(relations.RELATIONS, rng):
            found = relations.find_only(scene, relation, item)
            if found is not None:
                text = f"what is {relation} the region?"
                return RegionQuestion(text, item.box, found.noun.name, relation)
    return None


def _style_question(scene: Scene, rng: np.random.Generator) -> RegionQuestion | None:
    """Asks for a caption of the region in the style of a caption of another noun."""
    item, style = _shuffled(scene.objects, rng)[0], _shuffled(_STYLES, rng)[0]
    other = _shuffled(relations.absent_nouns(scene), rng)[0]
    example, answer = (Statement(((noun, 1),), style).to_text() for noun in (other, item.noun))
    text = f'what does the region describe in the style of " {example} "?'
    return RegionQuestion(text, item.box, answer, style)


def _yes_no_question(scene: Scene, rng: np.random.Generator) -> RegionQuestion | None:
    """Asks whether the region shows a noun; half of the wrong ones are elsewhere in the image."""
    item, yes = _shuffled(scene.objects, rng)[0], bool(rng.random() < 0.5)
    noun, elsewhere = item.noun, [o.noun for o in scene.objects if o.noun != item.noun]
    if not yes:
        use_elsewhere = bool(elsewhere) and rng.random() < 0.5
        noun = _shuffled(elsewhere if use_elsewhere else relations.absent_nouns(scene), rng)[0]
    text = (
        f"is the object in the region {noun.with_article}?"
        if rng.random() < 0.5
        else f"is there {noun.with_article} in the region?"
    )
    return RegionQuestion(text, item.box, "yes" if yes else "no", "yes or no")


MAKERS: Mapping[str, Callable[[Scene, np.random.Generator], RegionQuestion | None]] = {
    "grounded_question_answering": _grounded_question,
    "region_neighbour": _neighbour_question,
    "region_in_style": _style_question,
    "region_yes_no": _yes_no_question,
}
"""Task -> the function that samples its question; None if the scene has none."""
