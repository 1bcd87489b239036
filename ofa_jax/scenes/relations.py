"""What is exactly true of where objects are, and what is clearly false; between them, silence.

Every predicate has a clear margin. A statement is made only where it is clearly true, and used as
a negative only where it is clearly false; a pair of objects in between gets no statement.
Boxes are x0 y0 x1 y1 in pixels; `size` is the image's side, to which margins are relative.
"""

import itertools

from ofa_jax.scenes.composer import Scene, SceneObject
from ofa_jax.scenes.nouns import Noun

_LEAST_SHIFT = 0.16  # between the centres of two objects, for "left of" and "above"
_LARGEST_SHARED = 0.25  # of the narrower one's extent along that axis
_LOW, _HIGH = 0.40, 0.60  # a centre below or above is on that side; in between it is neither
_CORNER_LOW, _CORNER_HIGH = 0.36, 0.64
_LEAST_GAP = 0.10  # between the first and the second, for "leftmost"
_LEAST_RATIO = 1.6  # of box areas, for "largest"

OPPOSITE = {
    "to the left of": "to the right of",
    "to the right of": "to the left of",
    "above": "below",
    "below": "above",
}
RELATIONS = tuple(OPPOSITE)
CORNERS = ("top left", "top right", "bottom left", "bottom right")


def centre(item: SceneObject) -> tuple[float, float]:
    """The centre of an object's box in pixels."""
    x0, y0, x1, y1 = item.box
    return (x0 + x1) / 2, (y0 + y1) / 2


def area(item: SceneObject) -> float:
    """The area of an object's box in square pixels."""
    x0, y0, x1, y1 = item.box
    return (x1 - x0) * (y1 - y0)


def _length(item: SceneObject) -> float:
    """The longer side of an object's box in pixels."""
    x0, y0, x1, y1 = item.box
    return max(x1 - x0, y1 - y0)


def _extreme_length(ranked, which: str) -> bool:
    lengths = [_length(item) for item in ranked]
    return lengths[0] == (max(lengths) if which == "largest" else min(lengths))


def holds(a: SceneObject, relation: str, b: SceneObject, size: int) -> bool:
    """Whether `a` is clearly in this relation to `b`, e.g. "to the left of".

    The centres are apart by a margin, mostly along the relation's axis, and the boxes hardly share
    any of that axis.
    """
    if relation in ("to the right of", "below"):
        a, b, relation = b, a, OPPOSITE[relation]
    axis = 0 if relation == "to the left of" else 1
    shift = centre(b)[axis] - centre(a)[axis]
    across = abs(centre(b)[1 - axis] - centre(a)[1 - axis])
    extents = [item.box[axis + 2] - item.box[axis] for item in (a, b)]
    shared = a.box[axis + 2] - b.box[axis]
    return (
        shift >= _LEAST_SHIFT * size
        and shift >= across
        and shared <= _LARGEST_SHARED * min(extents)
    )


def fails(a: SceneObject, relation: str, b: SceneObject) -> bool:
    """Whether `a` is clearly not in this relation to `b`: its centre is not even on that side."""
    axis = 0 if relation.startswith("to the") else 1
    shift = centre(b)[axis] - centre(a)[axis]
    return shift <= 0 if relation in ("to the left of", "above") else shift >= 0


def side(item: SceneObject, size: int) -> str | None:
    """ "left" or "right" half of the image; None near the middle."""
    return _low_high(centre(item)[0] / size, "left", "right", _LOW, _HIGH)


def height(item: SceneObject, size: int) -> str | None:
    """ "top" or "bottom" half of the image; None near the middle."""
    return _low_high(centre(item)[1] / size, "top", "bottom", _LOW, _HIGH)


def corner(item: SceneObject, size: int) -> str | None:
    """One of CORNERS, or None."""
    x, y = (coordinate / size for coordinate in centre(item))
    column = _low_high(x, "left", "right", _CORNER_LOW, _CORNER_HIGH)
    row = _low_high(y, "top", "bottom", _CORNER_LOW, _CORNER_HIGH)
    return f"{row} {column}" if row and column else None


def _low_high(value, low_name, high_name, low, high) -> str | None:
    return low_name if value < low else high_name if value > high else None


def extreme(items, which: str, size: int) -> SceneObject | None:
    """The leftmost, rightmost, top, bottom, largest or smallest of several; None when unclear."""
    items = list(items)
    if len(items) < 2:
        return None
    if which in ("largest", "smallest"):
        ranked = sorted(items, key=area, reverse=which == "largest")
        small, large = sorted(ranked[:2], key=area)
        # By area and by length, so that a long thin object next to a round one is not compared.
        clear = area(large) >= _LEAST_RATIO * area(small) and _extreme_length(ranked, which)
    else:
        axis = 0 if which in ("leftmost", "rightmost") else 1
        ranked = sorted(
            items, key=lambda item: centre(item)[axis], reverse=which in ("rightmost", "bottom")
        )
        gap = abs(centre(ranked[0])[axis] - centre(ranked[1])[axis])
        clear = gap >= _LEAST_GAP * size
    return ranked[0] if clear else None


def groups(scene: Scene) -> list[tuple[Noun, list[SceneObject]]]:
    """The objects by noun, in reading order: by the left edge of each noun's first object."""
    ordered = sorted(scene.objects, key=lambda item: (item.box[0], item.box[1]))
    nouns = dict.fromkeys(item.noun for item in ordered)
    return [(noun, [item for item in ordered if item.noun == noun]) for noun in nouns]


def singles(scene: Scene) -> list[SceneObject]:
    """The objects that are the only one of their noun."""
    return [items[0] for _, items in groups(scene) if len(items) == 1]


def only_one(scene: Scene, relation: str, anchor: SceneObject) -> SceneObject | None:
    """The one object that is in the relation to `anchor`, where no other could be meant."""
    others = [item for item in scene.objects if item is not anchor]
    there = [item for item in others if holds(item, relation, anchor, scene.size)]
    if len(there) != 1:
        return None
    clear = all(item is there[0] or fails(item, relation, anchor) for item in others)
    return there[0] if clear else None


def related_pairs(scene: Scene) -> list[tuple[SceneObject, str, SceneObject]]:
    """Every (a, relation, b) that clearly holds between two objects single of their noun."""
    return [
        (a, relation, b)
        for a, b in itertools.permutations(singles(scene), 2)
        for relation in RELATIONS
        if holds(a, relation, b, scene.size)
    ]


def absent(scene: Scene) -> list[Noun]:
    """The nouns that the image does not show."""
    shown = {item.noun for item in scene.objects}
    return [noun for noun in scene.vocabulary if noun not in shown]
