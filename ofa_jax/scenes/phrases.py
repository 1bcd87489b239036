"""Referring phrases: each means exactly one object of the scene.

An object that is the only one of its noun is "the owl"; among several owls a position or a size
with a clear margin tells it: "the leftmost owl", "the owl on the left", "the owl above the car".
"""

from ofa_jax.scenes import relations
from ofa_jax.scenes.composer import Scene, SceneObject

_EXTREMES = ("leftmost", "rightmost", "top", "bottom", "largest", "smallest")


def phrases(scene: Scene, rng) -> list[tuple[str, SceneObject]]:
    """One phrase for every object that has an unambiguous one, for some a second."""
    found = []
    for item in scene.objects:
        same = _same_noun(scene, item)
        options = _distinguishing(scene, item, same)
        options = [options[i] for i in rng.permutation(len(options))]
        if len(same) == 1:
            found.append((_plain(item), item))
            options = options[: int(rng.random() < 0.25)]
        found.extend((text, item) for text in options[:2])
    return found


def true_phrases(scene: Scene) -> list[tuple[str, SceneObject]]:
    """Every phrase that `phrases` may draw: all of them are right answers about their object."""
    found = []
    for item in scene.objects:
        same = _same_noun(scene, item)
        plain = [_plain(item)] if len(same) == 1 else []
        found.extend((text, item) for text in plain + _distinguishing(scene, item, same))
    return found


def _same_noun(scene: Scene, item: SceneObject) -> list[SceneObject]:
    return [other for other in scene.objects if other.noun == item.noun]


def _plain(item: SceneObject) -> str:
    return f"the {item.noun.name}"


def _distinguishing(scene: Scene, item: SceneObject, same: list[SceneObject]) -> list[str]:
    """Phrases that tell `item` from the objects of the same noun, or from all objects."""
    name = item.noun.name
    options = []
    if len(same) > 1:
        options += [
            f"the {which} {name}"
            for which in _EXTREMES
            if relations.extreme(same, which, scene.size) is item
        ]
        options += _by_half(scene, item, same)
        options += _by_relation(scene, item, same)
    for which in ("largest", "smallest"):
        if relations.extreme(scene.objects, which, scene.size) is item:
            options.append(f"the {which} object")
    for anchor in relations.singles(scene):
        if anchor is not item:
            options += [
                f"the object {relation} the {anchor.noun.name}"
                for relation in relations.RELATIONS
                if relations.only_one(scene, relation, anchor) is item
            ]
    return options


def _by_half(scene: Scene, item: SceneObject, same) -> list[str]:
    """ "the owl on the left": it is in the left half and each other owl in the right one."""
    options = []
    for half, words in ((relations.side, "on the"), (relations.height, "at the")):
        own = half(item, scene.size)
        rest = [half(other, scene.size) for other in same if other is not item]
        if own and all(name not in (own, None) for name in rest):
            options.append(f"the {item.noun.name} {words} {own}")
    return options


def _by_relation(scene: Scene, item: SceneObject, same) -> list[str]:
    """ "the owl above the car": it clearly is, and no other owl could be said to be."""
    options = []
    for anchor in relations.singles(scene):
        for relation in relations.RELATIONS:
            if relations.holds(item, relation, anchor, scene.size) and all(
                other is item or relations.fails(other, relation, anchor) for other in same
            ):
                options.append(f"the {item.noun.name} {relation} the {anchor.noun.name}")
    return options
