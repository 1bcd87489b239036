"""Which spatial relations are clearly true of a scene, and which are clearly false.

Every predicate has a margin. A statement is made only if it is clearly true, and used as a negative
only if it is clearly false; for pairs of objects between the two there is no statement. Boxes are
x0 y0 x1 y1 in pixels; `size` is the side of the image, to which margins are relative.
"""

import itertools
from collections.abc import Sequence

from ofa_jax.scenes.composer import Scene, SceneObject
from ofa_jax.scenes.nouns import Noun

_MIN_SHIFT = 0.16  # between the centres of two objects, for "left of" and "above"
_MAX_SHARED = 0.25  # of the narrower object's extent along that axis
_LOW, _HIGH = 0.40, 0.60  # a centre below or above is in that half; between the two, in neither
_CORNER_LOW, _CORNER_HIGH = 0.36, 0.64
_MIN_GAP = 0.10  # between the first and the second, for "leftmost"
_MIN_RATIO = 1.6  # of box areas, for "largest"

OPPOSITE = {
    "to the left of": "to the right of",
    "to the right of": "to the left of",
    "above": "below",
    "below": "above",
}
RELATIONS = tuple(OPPOSITE)
CORNERS = ("top left", "top right", "bottom left", "bottom right")


def centre(item: SceneObject) -> tuple[float, float]:
    """Returns the centre of an object's box in pixels."""
    x0, y0, x1, y1 = item.box
    return (x0 + x1) / 2, (y0 + y1) / 2


def area(item: SceneObject) -> float:
    """Returns the area of an object's box in square pixels."""
    x0, y0, x1, y1 = item.box
    return (x1 - x0) * (y1 - y0)


def _length(item: SceneObject) -> float:
    """Returns the longer side of an object's box in pixels."""
    x0, y0, x1, y1 = item.box
    return max(x1 - x0, y1 - y0)


def is_clearly_true(a: SceneObject, relation: str, b: SceneObject, size: int) -> bool:
    """Returns whether `a` is clearly in this relation to `b`, e.g. "to the left of".

    The centres are apart by a margin, mostly along the relation's axis, and the boxes share little
    of that axis.
    """
    if relation in ("to the right of", "below"):
        a, b, relation = b, a, OPPOSITE[relation]
    axis = 0 if relation == "to the left of" else 1
    shift = centre(b)[axis] - centre(a)[axis]
    across = abs(centre(b)[1 - axis] - centre(a)[1 - axis])
    extents = [item.box[axis + 2] - item.box[axis] for item in (a, b)]
    shared = a.box[axis + 2] - b.box[axis]
    return shift >= _MIN_SHIFT * size and shift >= across and shared <= _MAX_SHARED * min(extents)


def is_clearly_false(a: SceneObject, relation: str, b: SceneObject) -> bool:
    """Returns whether the centre of `a` is not even on the relation's side of `b`."""
    axis = 0 if relation.startswith("to the") else 1
    shift = centre(b)[axis] - centre(a)[axis]
    return shift <= 0 if relation in ("to the left of", "above") else shift >= 0


def horizontal_half(item: SceneObject, size: int) -> str | None:
    """Returns the half of the image with the object, "left" or "right"; None near the middle."""
    return _low_high(centre(item)[0] / size, "left", "right", _LOW, _HIGH)


def vertical_half(item: SceneObject, size: int) -> str | None:
    """Returns the half of the image with the object, "top" or "bottom"; None near the middle."""
    return _low_high(centre(item)[1] / size, "top", "bottom", _LOW, _HIGH)


def find_corner(item: SceneObject, size: int) -> str | None:
    """Returns the corner that the object is in, one of CORNERS, or None."""
    x, y = (coordinate / size for coordinate in centre(item))
    column = _low_high(x, "left", "right", _CORNER_LOW, _CORNER_HIGH)
    row = _low_high(y, "top", "bottom", _CORNER_LOW, _CORNER_HIGH)
    return f"{row} {column}" if row and column else None


def _low_high(value: float, low_name: str, high_name: str, low: float, high: float) -> str | None:
    return low_name if value < low else high_name if value > high else None


def find_extreme(items: Sequence[SceneObject], which: str, size: int) -> SceneObject | None:
    """Returns the leftmost, rightmost, top, bottom, largest or smallest; None if it is unclear."""
    if len(items) < 2:
        return None
    if which in ("largest", "smallest"):
        ranked = sorted(items, key=area, reverse=which == "largest")
        clear = _is_clear_by_size(ranked, which)
    else:
        axis = 0 if which in ("leftmost", "rightmost") else 1
        ranked = sorted(
            items, key=lambda item: centre(item)[axis], reverse=which in ("rightmost", "bottom")
        )
        gap = abs(centre(ranked[0])[axis] - centre(ranked[1])[axis])
        clear = gap >= _MIN_GAP * size
    return ranked[0] if clear else None


def _is_clear_by_size(ranked: Sequence[SceneObject], which: str) -> bool:
    """Returns whether the first object is the largest or smallest by area and by length.

    With both criteria, a long thin object is not compared with a round one.
    """
    small, large = sorted(ranked[:2], key=area)
    lengths = [_length(item) for item in ranked]
    return area(large) >= _MIN_RATIO * area(small) and (
        lengths[0] == (max(lengths) if which == "largest" else min(lengths))
    )


def group_by_noun(scene: Scene) -> list[tuple[Noun, list[SceneObject]]]:
    """Groups the objects by noun, in the order of the left edge of each noun's first object."""
    ordered = sorted(scene.objects, key=lambda item: (item.box[0], item.box[1]))
    nouns = dict.fromkeys(item.noun for item in ordered)
    return [(noun, [item for item in ordered if item.noun == noun]) for noun in nouns]


def unique_objects(scene: Scene) -> list[SceneObject]:
    """Returns the objects that are the only one of their noun."""
    return [items[0] for _, items in group_by_noun(scene) if len(items) == 1]


def find_only(scene: Scene, relation: str, anchor: SceneObject) -> SceneObject | None:
    """Returns the one object that is clearly in the relation to `anchor`.

    Returns None if there is none, or if the relation is not clearly false of all others.
    """
    others = [item for item in scene.objects if item is not anchor]
    related = [item for item in others if is_clearly_true(item, relation, anchor, scene.size)]
    if len(related) != 1:
        return None
    clear = all(item is related[0] or is_clearly_false(item, relation, anchor) for item in others)
    return related[0] if clear else None


def related_pairs(scene: Scene) -> list[tuple[SceneObject, str, SceneObject]]:
    """Returns every clearly true (a, relation, b) of two objects that are unique of their noun."""
    return [
        (a, relation, b)
        for a, b in itertools.permutations(unique_objects(scene), 2)
        for relation in RELATIONS
        if is_clearly_true(a, relation, b, scene.size)
    ]


def absent_nouns(scene: Scene) -> list[Noun]:
    """Returns the nouns without an object in the image."""
    shown = {item.noun for item in scene.objects}
    return [noun for noun in scene.vocabulary if noun not in shown]
