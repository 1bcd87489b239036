"""Questions with the one right answer, and its type.

Types are made so that every other answer of the same type is wrong: a negative for matching can be
drawn from them. Each maker lists candidates (question, answer, type); nothing ambiguous is asked.
"""

import dataclasses
import functools
import itertools

from ofa_jax.scenes import relations
from ofa_jax.scenes.composer import Scene

# Answer type -> what is asked.
ANSWER_TYPES = (
    "existence",  # yes, no: is a thing in the picture?
    "count",  # digits
    "left or right",  # on which side, or of what
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
    """A question in lower case, its answer and the type of the answer."""

    text: str
    answer: str
    type: str


def questions(scene: Scene, count: int, rng) -> list[Question]:
    """About `count` questions on different things: existence and count always, others in turn."""
    yes = rng.random() < 0.5
    chosen = [_existence(scene, rng, yes), _count(scene, rng)]
    # A second question on existence has the other answer, so that both stay equally frequent.
    makers = [
        functools.partial(_existence, yes=not yes),
        _count,
        _side,
        _relation,
        _object,
        _comparison,
        _background,
        _corner,
    ]
    while makers and len(chosen) < count:
        maker = makers.pop(rng.integers(len(makers)))
        question = maker(scene, rng)
        if question is not None and question not in chosen:
            chosen.append(question)
    return chosen


def _pick(items, rng):
    return items[rng.integers(len(items))] if len(items) else None


def _existence(scene: Scene, rng, yes: bool) -> Question:
    noun = _pick(scene.objects, rng).noun if yes else _pick(relations.absent(scene), rng)
    text = (
        f"is there {noun.with_article} in the picture?"
        if rng.random() < 0.7
        else f"are there any {noun.plural} in the picture?"
    )
    return Question(text, "yes" if yes else "no", "existence")


def _count(scene: Scene, rng) -> Question:
    kind = rng.random()
    if kind < 0.2:
        return Question("how many objects are there?", str(len(scene.objects)), "count")
    if kind < 0.3:
        text = "how many kinds of objects are there?"
        return Question(text, str(len(relations.groups(scene))), "count")
    if kind < 0.4:
        return Question(
            f"how many {_pick(relations.absent(scene), rng).plural} are there?", "0", "count"
        )
    noun, items = _pick(relations.groups(scene), rng)
    return Question(f"how many {noun.plural} are there?", str(len(items)), "count")


def _side(scene: Scene, rng) -> Question | None:
    item = _pick(relations.singles(scene), rng)
    if item is None:
        return None
    options = [
        (
            relations.side(item, scene.size),
            f"is the {item.noun.name} on the left or on the right?",
            "left or right",
        ),
        (
            relations.height(item, scene.size),
            f"is the {item.noun.name} at the top or at the bottom?",
            "top or bottom",
        ),
    ]
    option = _pick([option for option in options if option[0]], rng)
    return option and Question(option[1], option[0], option[2])


def _corner(scene: Scene, rng) -> Question | None:
    candidates = [(item, relations.corner(item, scene.size)) for item in relations.singles(scene)]
    found = _pick([pair for pair in candidates if pair[1]], rng)
    return found and Question(f"in which corner is the {found[0].noun.name}?", found[1], "corner")


def _relation(scene: Scene, rng) -> Question | None:
    pair = _pick(relations.related_pairs(scene), rng)
    if pair is None:
        return None
    a, relation, b = pair
    first, second = a.noun.name, b.noun.name
    if rng.random() < 0.5:
        yes = rng.random() < 0.5
        asked = relation if yes else relations.OPPOSITE[relation]
        return Question(f"is the {first} {asked} the {second}?", "yes" if yes else "no", "relation")
    if relation in ("above", "below"):
        return Question(f"is the {first} above or below the {second}?", relation, "above or below")
    answer = "left" if "left" in relation else "right"
    return Question(
        f"is the {first} to the left or to the right of the {second}?", answer, "left or right"
    )


def _object(scene: Scene, rng) -> Question | None:
    """What is there? Asked only where exactly one object can be meant."""
    candidates = []
    if len(scene.objects) == 1:
        candidates.append(("what is in the picture?", scene.objects[0]))
    for anchor in relations.singles(scene):
        for relation in relations.RELATIONS:
            found = relations.only_one(scene, relation, anchor)
            if found is not None:
                candidates.append((f"what is {relation} the {anchor.noun.name}?", found))
    for which in ("largest", "smallest"):
        found = relations.extreme(scene.objects, which, scene.size)
        if found is not None:
            candidates.append((f"what is the {which} object in the picture?", found))
    found = _pick(candidates, rng)
    return found and Question(found[0], found[1].noun.name, "object")


def _comparison(scene: Scene, rng) -> Question | None:
    """Mostly of nouns with different counts, else nearly every answer would be no."""
    pairs = list(itertools.permutations(relations.groups(scene), 2))
    different = [(a, b) for a, b in pairs if len(a[1]) != len(b[1])]
    pair = _pick(different if different else pairs if rng.random() < 0.1 else [], rng)
    if pair is None:
        return None
    first, second = pair
    more = len(first[1]) > len(second[1])
    return Question(
        f"are there more {first[0].plural} than {second[0].plural}?",
        "yes" if more else "no",
        "comparison",
    )


def _background(scene: Scene, rng) -> Question | None:
    if scene.background is None:
        return None
    return Question("what is in the background?", scene.background, "background")
