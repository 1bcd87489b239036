"""Referring phrases: each refers to exactly one object of the scene.

The only object of its noun is "the owl". One of several owls is identified by a position or size
with a clear margin: "the leftmost owl", "the owl on the left", "the owl above the car".
"""

from collections.abc import Sequence

import numpy as np

from ofa_jax.scenes import relations
from ofa_jax.scenes.composer import Scene, SceneObject

_EXTREMES = ("leftmost", "rightmost", "top", "bottom", "largest", "smallest")


def sample_phrases(scene: Scene, rng: np.random.Generator) -> list[tuple[str, SceneObject]]:
    """Samples one phrase for each object that has an unambiguous one, and for some a second."""
    found: list[tuple[str, SceneObject]] = []
    for item in scene.objects:
        same = _same_noun(scene, item)
        options = _distinguishing_phrases(scene, item, same)
        options = [options[i] for i in rng.permutation(len(options))]
        if len(same) == 1:
            found.append((_plain_phrase(item), item))
            options = options[: int(rng.random() < 0.25)]
        found.extend((text, item) for text in options[:2])
    return found


def true_phrases(scene: Scene) -> list[tuple[str, SceneObject]]:
    """Returns every phrase that `sample_phrases` may return, with its object."""
    found: list[tuple[str, SceneObject]] = []
    for item in scene.objects:
        same = _same_noun(scene, item)
        plain = [_plain_phrase(item)] if len(same) == 1 else []
        found.extend((text, item) for text in plain + _distinguishing_phrases(scene, item, same))
    return found


def _same_noun(scene: Scene, item: SceneObject) -> list[SceneObject]:
    return [other for other in scene.objects if other.noun == item.noun]


def _plain_phrase(item: SceneObject) -> str:
    return f"the {item.noun.name}"


def _distinguishing_phrases(
    scene: Scene, item: SceneObject, same: Sequence[SceneObject]
) -> list[str]:
    """Returns phrases that distinguish `item` from those of the same noun, or from all objects."""
    name = item.noun.name
    options = []
    if len(same) > 1:
        options += [
            f"the {which} {name}"
            for which in _EXTREMES
            if relations.find_extreme(same, which, scene.size) is item
        ]
        options += _by_half(scene, item, same)
        options += _by_relation(scene, item, same)
    for which in ("largest", "smallest"):
        if relations.find_extreme(scene.objects, which, scene.size) is item:
            options.append(f"the {which} object")
    for anchor in relations.unique_objects(scene):
        if anchor is not item:
            options += [
                f"the object {relation} the {anchor.noun.name}"
                for relation in relations.RELATIONS
                if relations.find_only(scene, relation, anchor) is item
            ]
    return options


def _by_half(scene: Scene, item: SceneObject, same: Sequence[SceneObject]) -> list[str]:
    """Returns e.g. "the owl on the left", if all other owls are in the right half."""
    options = []
    for half, words in (
        (relations.horizontal_half, "on the"),
        (relations.vertical_half, "at the"),
    ):
        own = half(item, scene.size)
        rest = [half(other, scene.size) for other in same if other is not item]
        if own and all(name not in (own, None) for name in rest):
            options.append(f"the {item.noun.name} {words} {own}")
    return options


def _by_relation(scene: Scene, item: SceneObject, same: Sequence[SceneObject]) -> list[str]:
    """Returns e.g. "the owl above the car", if that is clearly false of all other owls."""
    options = []
    for anchor in relations.unique_objects(scene):
        for relation in relations.RELATIONS:
            if relations.is_clearly_true(item, relation, anchor, scene.size) and all(
                other is item or relations.is_clearly_false(other, relation, anchor)
                for other in same
            ):
                options.append(f"the {item.noun.name} {relation} the {anchor.noun.name}")
    return options
