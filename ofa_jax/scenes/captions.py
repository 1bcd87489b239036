"""True captions of a scene in several phrasings, and hard negatives that are really false.

A caption is a structured claim that is put into words at the end, so that a negative is a changed
claim in correct English, never a replaced string. Example:

    a dog and two apples  |  there is a dog and two apples on grass  |  a dog to the left of a car
"""

import dataclasses

from ofa_jax.scenes import relations
from ofa_jax.scenes.composer import Scene
from ofa_jax.scenes.nouns import Noun, number_word

PLACES = {
    "grass": "on grass",
    "gravel": "on gravel",
    "bricks": "on bricks",
    "wood": "on wood",
    "outer space": "in outer space",
}


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a caption says.

    counts: nouns and how many of each are there (at least, unless exact).
    style: "plain", "picture", "there" or "exact".
    relation: between the two single objects of `counts`; place: a corner, of its only object.
    background: key of PLACES.
    """

    counts: tuple[tuple[Noun, int], ...]
    style: str = "plain"
    relation: str | None = None
    corner: str | None = None
    background: str | None = None

    def words(self) -> str:
        """The claim as a phrase in lower case, without a full stop."""
        if self.style == "exact":
            text = "exactly " + listing(
                f"{number_word(count)} {noun.name if count == 1 else noun.plural}"
                for noun, count in self.counts
            )
        elif self.relation:
            (first, _), (second, _) = self.counts
            text = f"{first.with_article} {self.relation} {second.with_article}"
        else:
            text = listing(noun.counted(count) for noun, count in self.counts)
        if self.corner:
            text += f" in the {self.corner} corner"
        if self.style == "picture":
            text = f"a picture of {text}"
        if self.style == "there":
            text = f"there {'is' if self.counts[0][1] == 1 else 'are'} {text}"
        if self.background:
            text += f" {PLACES[self.background]}"
        return text


def listing(parts) -> str:
    """["a", "b", "c"] -> "a, b and c"."""
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last


def true_claims(scene: Scene) -> list[Claim]:
    """Every claim that a caption of this scene may make; the plain listing comes first.

    Each names all objects of the scene.
    """
    counts = tuple((noun, len(items)) for noun, items in relations.groups(scene))
    plain = Claim(counts)
    claims = [
        plain,
        dataclasses.replace(plain, style="picture"),
        dataclasses.replace(plain, style="there"),
        dataclasses.replace(plain, style="exact"),
    ]
    if scene.background:
        claims.append(dataclasses.replace(plain, background=scene.background))
    if len(scene.objects) == 1:
        where = relations.corner(scene.objects[0], scene.size)
        if where:
            claims.append(dataclasses.replace(plain, corner=where))
    if len(scene.objects) == 2:
        claims.extend(
            Claim(((a.noun, 1), (b.noun, 1)), relation=relation)
            for a, relation, b in relations.related_pairs(scene)
        )
    return claims


def captions(scene: Scene, count: int, rng) -> list[Claim]:
    """The plain listing and `count - 1` other true claims."""
    plain, *others = true_claims(scene)
    chosen = rng.permutation(len(others))[: count - 1]
    return [plain, *(others[i] for i in chosen)]


def negative_claims(scene: Scene, true: list[Claim], count: int, rng) -> list[Claim]:
    """Claims close to the true ones, each clearly false of the scene.

    Half of them name an object that is not there; the others change a count, flip a relation,
    move to another corner or name another background, where that applies.
    """
    absent = relations.absent(scene)
    negatives: list[Claim] = []
    others = [claim for source in true for claim in _falsified(source, rng)]
    others = [others[i] for i in rng.permutation(len(others))]
    while len(negatives) < count:
        swap = len(negatives) % 2 == 0 or not others
        if swap:
            source = true[rng.integers(len(true))]
            negative = _swapped(source, absent[rng.integers(len(absent))], rng)
        else:
            negative = others.pop()
        if negative not in negatives:
            negatives.append(negative)
    return negatives


def _swapped(claim: Claim, noun: Noun, rng) -> Claim:
    """One noun of the claim replaced by one that the image does not show."""
    place = rng.integers(len(claim.counts))
    counts = list(claim.counts)
    counts[place] = (noun, counts[place][1])
    return dataclasses.replace(claim, counts=tuple(counts))


def _falsified(claim: Claim, rng) -> list[Claim]:
    """Claims with the same nouns that are false."""
    result = []
    if claim.relation:
        result.append(dataclasses.replace(claim, relation=relations.OPPOSITE[claim.relation]))
    elif not claim.corner:
        place = rng.integers(len(claim.counts))
        noun, count = claim.counts[place]
        # More than are there is false in any reading; fewer only where the claim says "exactly".
        fewer = claim.style == "exact" and count > 1 and rng.random() < 0.5
        counts = list(claim.counts)
        counts[place] = (noun, count - 1 if fewer else count + 1)
        result.append(dataclasses.replace(claim, counts=tuple(counts)))
    if claim.corner:
        corners = [name for name in relations.CORNERS if name != claim.corner]
        result.append(dataclasses.replace(claim, corner=corners[rng.integers(len(corners))]))
    if claim.background:
        names = [name for name in PLACES if name != claim.background]
        result.append(dataclasses.replace(claim, background=names[rng.integers(len(names))]))
    return result
