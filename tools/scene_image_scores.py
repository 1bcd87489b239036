"""What a run on Scenes finds in generated images, and how far they are from real ones.

The run captions each image, detects its objects and answers what is in the background:

    caption ─▶ what it asks for: nouns, their numbers, the background
    image ─▶ the run: caption, objects, background ─▶ share of what was asked that is there
    image ─▶ its ResNet: features ─▶ Frechet distance to real images; nearest training image
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from ofa_jax.evaluation.metrics.generated_images import FeatureStatistics, frechet_distance
from ofa_jax.evaluation.metrics.nouns import NounFinder
from ofa_jax.scenes.captions import BACKGROUND_PHRASES
from ofa_jax.scenes.nouns import all_nouns, number_word
from ofa_jax.training.image_tokenizer.config import PerceptualFeatures
from ofa_jax.training.image_tokenizer.features import load_features
from ofa_jax.training.image_tokenizer.step import to_pixels

_MAX_COUNT = 9
_BATCH = 32
_NUMBERS = {"a": 1, "an": 1} | {number_word(n): n for n in range(1, _MAX_COUNT + 1)}


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a caption asks for.

    Attributes:
      counts: the nouns and the number of objects of each.
      background: a key of BACKGROUND_PHRASES; None if the caption names none.
    """

    counts: Mapping[str, int]
    background: str | None = None


@dataclasses.dataclass(frozen=True)
class Found:
    """What a model sees in an image.

    Attributes:
      caption: that it gives the image.
      labels: of the objects that it detects.
      background: its answer to `what is in the background?`
    """

    caption: str = ""
    labels: Sequence[str] = ()
    background: str = ""


@dataclasses.dataclass(frozen=True)
class Shares:
    """Shares of what was asked that is found; None where nothing of a kind was asked.

    Attributes:
      nouns: by the captioner or the detector.
      nouns_captioned, nouns_detected: by one of them.
      counts: nouns whose number is right, by the captioner or the detector.
      backgrounds: by the answer to the question.
      asked: how many nouns and backgrounds were asked.
    """

    nouns: float | None
    nouns_captioned: float | None
    nouns_detected: float | None
    counts: float | None
    backgrounds: float | None
    asked: Mapping[str, int]


def count_nouns(text: str) -> dict[str, int]:
    """Returns the nouns of a caption and the number of objects of each.

    >>> count_nouns("there are two dogs and an owl on grass")
    {'dog': 2, 'owl': 1}
    """
    counts: collections.Counter[str] = collections.Counter()
    for number, form in _pattern().findall(text.lower()):
        name, is_plural = _forms()[form]
        # "dogs" without a number are at least two.
        counts[name] += _NUMBERS.get(number.strip(), 2 if is_plural else 1)
    return dict(counts)


def parse_caption(caption: str) -> Asked:
    """Returns what a caption of Scenes asks for."""
    text = caption.lower().strip().rstrip(".")
    background = next(
        (name for name, words in BACKGROUND_PHRASES.items() if text.endswith(f" {words}")), None
    )
    return Asked(count_nouns(text), background)


def measure(asked: Sequence[Asked], found: Sequence[Found]) -> Shares:
    """Returns the shares of what captions ask for that a model finds in images.

    Args:
      asked: of each caption.
      found: in the image of each caption.

    Raises:
      ValueError: there is not one image for each caption.
    """
    if len(asked) != len(found):
        raise ValueError(f"there are {len(asked)} captions and {len(found)} images.")
    totals: collections.Counter[str] = collections.Counter()
    finder = NounFinder()
    for wanted, seen in zip(asked, found, strict=True):
        captioned, detected = finder.find(seen.caption), {*seen.labels}
        by_caption, by_labels = count_nouns(seen.caption), collections.Counter(seen.labels)
        for noun, count in wanted.counts.items():
            totals["asked"] += 1
            totals["captioned"] += noun in captioned
            totals["detected"] += noun in detected
            totals["found"] += noun in captioned | detected
            totals["counted"] += count in (by_caption.get(noun), by_labels[noun])
        if wanted.background is not None:
            totals["backgrounds asked"] += 1
            totals["backgrounds"] += wanted.background == seen.background.strip().lower()

    def share(name: str, of: str = "asked") -> float | None:
        return totals[name] / totals[of] if totals[of] else None

    return Shares(
        nouns=share("found"),
        nouns_captioned=share("captioned"),
        nouns_detected=share("detected"),
        counts=share("counted"),
        backgrounds=share("backgrounds", "backgrounds asked"),
        asked={"nouns": totals["asked"], "backgrounds": totals["backgrounds asked"]},
    )


def shuffled(asked: Sequence[Asked]) -> list[Asked]:
    """Returns the captions of other images: each is moved by one place."""
    return [*asked[1:], *asked[:1]]


# ------------------------------------------------------------------------------------- features


Features = Callable[[UInt8[np.ndarray, "b h w 3"]], Float[np.ndarray, "b d"]]


def make_features(checkpoint: str) -> Features:
    """Returns the function from images to the features of a run's ResNet, averaged over places."""
    network, variables = load_features(PerceptualFeatures(checkpoint))
    compute = jax.jit(
        lambda variables, images: network.features(variables, to_pixels(images))[-1].mean((1, 2))
    )

    def features(images: UInt8[np.ndarray, "b h w 3"]) -> Float[np.ndarray, "b d"]:
        found = []
        for start in range(0, len(images), _BATCH):
            chunk = images[start : start + _BATCH]
            # Filled up, so that it is compiled once.
            filled = np.resize(chunk, (_BATCH, *chunk.shape[1:]))
            found.append(np.asarray(compute(variables, filled))[: len(chunk)])
        return np.concatenate(found)

    return features


def distance_to(real: Float[np.ndarray, "n d"], made: Float[np.ndarray, "m d"]) -> float:
    """Returns the Frechet distance of two sets of images in these features."""
    return frechet_distance(FeatureStatistics.of(real), FeatureStatistics.of(made))


def nearest(
    features: Float[np.ndarray, "n d"], others: Float[np.ndarray, "m d"]
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Returns the place of the nearest other image of each image, and the distance to it."""
    places, distances = [], []
    squares = np.square(others).sum(1)
    for one in features:
        found = squares - 2 * (others @ one)
        places.append(int(found.argmin()))
        distances.append(float(np.linalg.norm(others[places[-1]] - one)))
    return np.array(places, np.int64), np.array(distances)


# --------------------------------------------------------------------------------- grammar, lines


def read_found(lines: Iterable[Mapping[str, Any]], count: int) -> list[Found]:
    """Returns what a job of batch inference has found in each of `count` images.

    Args:
      lines: of the job; their ids are `NUMBER/caption`, `NUMBER/objects`, `NUMBER/background`. An
        error has found nothing.
      count: number of images.
    """
    values: list[dict[str, Any]] = [{} for _ in range(count)]
    for line in lines:
        number, _, what = str(line["id"]).partition("/")
        if "error" in line:
            continue
        name = "labels" if what == "objects" else what
        values[int(number)][name] = line.get("labels", []) if what == "objects" else line["answer"]
    return [Found(**found) for found in values]


@functools.cache
def _forms() -> dict[str, tuple[str, bool]]:
    """Returns each form of a noun -> its name, and whether it is the plural alone."""
    forms = {noun.plural: (noun.name, True) for noun in all_nouns()}
    return forms | {noun.name: (noun.name, False) for noun in all_nouns()}


@functools.cache
def _pattern() -> re.Pattern[str]:
    """Matches a noun with the number word before it; the longest noun first."""
    nouns = "|".join(map(re.escape, sorted(_forms(), key=len, reverse=True)))
    numbers = "|".join(_NUMBERS)
    return re.compile(rf"(?<!\w)((?:{numbers}) )?({nouns})(?!\w)")
