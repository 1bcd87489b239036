"""True captions of a scene in several styles, and hard negatives that are false of it.

A caption is composed as a structured statement and converted to text at the end. So a negative is a
changed statement in correct English, not the result of string replacement. Examples:

    a dog and two apples  |  there is a dog and two apples on grass  |  a dog to the left of a car
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from ofa_jax.scenes import relations
from ofa_jax.scenes.composer import Scene
from ofa_jax.scenes.nouns import Noun, number_word

BACKGROUND_PHRASES = {
    "grass": "on grass",
    "gravel": "on gravel",
    "bricks": "on bricks",
    "wood": "on wood",
    "outer space": "in outer space",
}


@dataclasses.dataclass(frozen=True)
class Statement:
    """The content of a caption.

    Attributes:
      counts: the nouns and the number of objects of each: exact in the style "exact", and
        otherwise a lower bound.
      style: "plain", "picture", "there" or "exact".
      relation: the relation between the two objects of `counts`.
      corner: the corner of the only object.
      background: a key of BACKGROUND_PHRASES.
    """

    counts: tuple[tuple[Noun, int], ...]
    style: str = "plain"
    relation: str | None = None
    corner: str | None = None
    background: str | None = None

    def to_text(self) -> str:
        """Returns the statement as a phrase in lower case, without a full stop."""
        text = self._describe_objects()
        if self.corner:
            text += f" in the {self.corner} corner"
        if self.style == "picture":
            text = f"a picture of {text}"
        if self.style == "there":
            text = f"there {'is' if self.counts[0][1] == 1 else 'are'} {text}"
        if self.background:
            text += f" {BACKGROUND_PHRASES[self.background]}"
        return text

    def _describe_objects(self) -> str:
        """Returns the part of the text that names the objects."""
        if self.style == "exact":
            return "exactly " + join_phrases(
                f"{number_word(count)} {noun.name if count == 1 else noun.plural}"
                for noun, count in self.counts
            )
        if self.relation:
            (first, _), (second, _) = self.counts
            return f"{first.with_article} {self.relation} {second.with_article}"
        return join_phrases(noun.counted(count) for noun, count in self.counts)


def join_phrases(phrases: Iterable[str]) -> str:
    """Joins phrases in English: ["a", "b", "c"] -> "a, b and c"."""
    *most, last = phrases
    return f"{', '.join(most)} and {last}" if most else last


def true_statements(scene: Scene) -> list[Statement]:
    """Returns every statement that a caption of this scene may make, the plain listing first.

    Each names all objects of the scene.
    """
    counts = tuple((noun, len(items)) for noun, items in relations.group_by_noun(scene))
    plain = Statement(counts)
    statements = [
        plain,
        dataclasses.replace(plain, style="picture"),
        dataclasses.replace(plain, style="there"),
        dataclasses.replace(plain, style="exact"),
    ]
    if scene.background:
        statements.append(dataclasses.replace(plain, background=scene.background))
    if len(scene.objects) == 1:
        corner = relations.find_corner(scene.objects[0], scene.size)
        if corner:
            statements.append(dataclasses.replace(plain, corner=corner))
    if len(scene.objects) == 2:
        statements.extend(
            Statement(((a.noun, 1), (b.noun, 1)), relation=relation)
            for a, relation, b in relations.related_pairs(scene)
        )
    return statements


def sample_captions(scene: Scene, count: int, rng: np.random.Generator) -> list[Statement]:
    """Returns the plain listing and samples up to `count - 1` other true statements."""
    plain, *others = true_statements(scene)
    chosen = rng.permutation(len(others))[: count - 1]
    return [plain, *(others[i] for i in chosen)]


def sample_negatives(
    scene: Scene, true: list[Statement], count: int, rng: np.random.Generator
) -> list[Statement]:
    """Samples statements that are similar to the true ones and clearly false of the scene.

    Half of them name an object that is absent. The others change a count, reverse a relation, or
    name another corner or background, where that applies.
    """
    absent = relations.absent_nouns(scene)
    negatives: list[Statement] = []
    others = [statement for source in true for statement in _falsify(source, rng)]
    others = [others[i] for i in rng.permutation(len(others))]
    while len(negatives) < count:
        replace_noun = len(negatives) % 2 == 0 or not others
        if replace_noun:
            source = true[rng.integers(len(true))]
            negative = _replace_noun(source, absent[rng.integers(len(absent))], rng)
        else:
            negative = others.pop()
        if negative not in negatives:
            negatives.append(negative)
    return negatives


def _replace_noun(statement: Statement, noun: Noun, rng: np.random.Generator) -> Statement:
    """Replaces a sampled noun of the statement by one that is absent from the image."""
    index = rng.integers(len(statement.counts))
    counts = list(statement.counts)
    counts[index] = (noun, counts[index][1])
    return dataclasses.replace(statement, counts=tuple(counts))


def _falsify(statement: Statement, rng: np.random.Generator) -> list[Statement]:
    """Returns false statements with the same nouns."""
    result = []
    if statement.relation:
        opposite = relations.OPPOSITE[statement.relation]
        result.append(dataclasses.replace(statement, relation=opposite))
    elif not statement.corner:
        result.append(_change_count(statement, rng))
    if statement.corner:
        corners = [name for name in relations.CORNERS if name != statement.corner]
        corner = corners[rng.integers(len(corners))]
        result.append(dataclasses.replace(statement, corner=corner))
    if statement.background:
        names = [name for name in BACKGROUND_PHRASES if name != statement.background]
        background = names[rng.integers(len(names))]
        result.append(dataclasses.replace(statement, background=background))
    return result


def _change_count(statement: Statement, rng: np.random.Generator) -> Statement:
    """Changes the count of a sampled noun by one.

    A larger count is false in any reading; a smaller one only where the statement says "exactly".
    """
    index = rng.integers(len(statement.counts))
    noun, count = statement.counts[index]
    fewer = statement.style == "exact" and count > 1 and rng.random() < 0.5
    counts = list(statement.counts)
    counts[index] = (noun, count - 1 if fewer else count + 1)
    return dataclasses.replace(statement, counts=tuple(counts))
