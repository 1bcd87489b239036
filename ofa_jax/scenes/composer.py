"""A scene: objects, their positions, a background, and the image of it all.

All draws are from one generator that depends only on (seed, split, index), so a scene is the same
in whichever process it is composed. Distances are fractions of the image's side unless noted.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int8, UInt8
from PIL import Image

from ofa_jax.scenes import nouns as nouns_lib
from ofa_jax.scenes import sprites
from ofa_jax.scenes.nouns import Noun

SPLITS = ("train", "validation", "test", "test_shifted")

# The longer side of an object: at least 28 px of a 128 px image, nearly two 16 px patches.
SMALLEST_OBJECT = 0.22
LARGEST_OBJECT = 0.5
# A pixel belongs to an object where its pictogram is at least this opaque (of 255).
VISIBLE_ALPHA = 64
_MAX_OVERLAP = 0.06  # intersection of two boxes, as a fraction of the smaller one's area
_MIN_VISIBLE = 0.92  # of an object's own pixels
_MIN_CONTRAST = 60.0  # distance of an object's mean colour from the background's, at most 441
_PLACEMENT_ATTEMPTS = 60
_BACKGROUND_ATTEMPTS = 6


@dataclasses.dataclass(frozen=True)
class SceneOptions:
    """The options of a data set; a scene is a function of these, its split and its index.

    Attributes:
      nouns: the number of nouns, from the start of the table: the most distinct come first.
      image_size: the side of images in pixels.
      max_objects: the maximum number of objects in an image; smaller numbers are more frequent.
      seed: determines all draws.
    """

    nouns: int = 40
    image_size: int = 128
    max_objects: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.max_objects <= 6:
            raise ValueError(
                "A scene has room for 1 to 6 objects: set --max_objects to 1 to 6, not "
                f"{self.max_objects}."
            )
        if self.image_size < 64 or self.image_size % 16:
            raise ValueError(
                "Images are cut into patches of 16 pixels and need room for objects: set "
                f"--image_size to a multiple of 16 from 64 on, not {self.image_size}."
            )
        nouns_lib.first_nouns(self.nouns)
        if self.nouns <= self.max_objects:
            raise ValueError(
                "Every scene needs a noun that it does not show, so there must be more nouns than "
                f"objects: set --nouns to at least {self.max_objects + 1}, not {self.nouns}."
            )

    @property
    def vocabulary(self) -> tuple[Noun, ...]:
        """The nouns of the data set."""
        return nouns_lib.first_nouns(self.nouns)


@dataclasses.dataclass(frozen=True)
class SceneObject:
    """An object: its noun, and the tight box of its visible pixels: x0 y0 x1 y1 in pixels."""

    noun: Noun
    box: tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Scene:
    """The exact content of an image.

    Attributes:
      size: the side of the image in pixels.
      objects: from back to front.
      background: its name; None where no short name is exact.
      vocabulary: all nouns of the data set.
    """

    size: int
    objects: tuple[SceneObject, ...]
    background: str | None
    vocabulary: tuple[Noun, ...]


class _Placement(NamedTuple):
    """A drawn object: its noun, its pixels, and the position of its top left corner."""

    noun: Noun
    pixels: UInt8[np.ndarray, "height width 4"]
    x: int
    y: int


_Box = tuple[float, float, float, float]


def make_generator(options: SceneOptions, split: str, index: int) -> np.random.Generator:
    """Returns the random generator of scene `index` of a split."""
    return np.random.default_rng([options.seed, SPLITS.index(split), index])


def compose(
    options: SceneOptions, style: str, rng: np.random.Generator
) -> tuple[Scene, UInt8[np.ndarray, "size size 3"]]:
    """Composes a random scene.

    Args:
      options: see SceneOptions.
      style: the style of the pictograms, one of sprites.STYLES.
      rng: determines the scene.

    Returns:
      The scene and its image.
    """
    size = options.image_size
    vocabulary = options.vocabulary
    chosen = _choose_nouns(vocabulary, options.max_objects, rng)
    placements = _place_objects(chosen, style, size, rng)
    owner = _pixel_owners(placements, size)
    background, name = _contrasting_background(placements, owner, size, rng)
    image = Image.fromarray(background)
    objects = []
    for number, (noun, pixels, x, y) in enumerate(placements):
        patch = Image.fromarray(pixels)
        image.paste(patch, (x, y), patch)
        objects.append(SceneObject(noun, _tight_box(owner == number)))
    return Scene(size, tuple(objects), name, vocabulary), np.asarray(image)


def _choose_nouns(
    vocabulary: Sequence[Noun], max_objects: int, rng: np.random.Generator
) -> list[Noun]:
    """Samples the objects' nouns: few more often than many, and some repeatedly."""
    weights = np.array([0.27, 0.29, 0.18, 0.12, 0.08, 0.06][:max_objects])
    count = 1 + rng.choice(max_objects, p=weights / weights.sum())
    chosen: list[int] = []
    for _ in range(count):
        if chosen and rng.random() < 0.3:
            chosen.append(chosen[rng.integers(len(chosen))])
        else:
            fresh = [i for i in range(len(vocabulary)) if i not in chosen]
            chosen.append(fresh[rng.integers(len(fresh))])
    return [vocabulary[i] for i in chosen]


def _place_objects(
    chosen: Sequence[Noun], style: str, size: int, rng: np.random.Generator
) -> list[_Placement]:
    """Draws each pictogram and samples its position, from back to front."""
    largest = min(LARGEST_OBJECT, 0.85 / np.sqrt(len(chosen)))
    while True:
        sides = rng.uniform(SMALLEST_OBJECT, largest, len(chosen))
        sides[::-1].sort()  # large objects first: they are harder to place
        placements: list[_Placement] = []
        boxes: list[_Box] = []
        for noun, side in zip(chosen, sides, strict=True):
            pixels = _draw_pictogram(noun, style, round(side * size + 0.5), size, rng)
            height, width = pixels.shape[:2]
            position = _find_free_position(height, width, boxes, size, rng)
            if position is None:
                break
            x, y = position
            placements.append(_Placement(noun, pixels, x, y))
            boxes.append((x, y, x + width, y + height))
        if len(placements) == len(chosen) and _all_clearly_visible(placements, size):
            return placements
        largest = max(SMALLEST_OBJECT, 0.95 * largest)


def _draw_pictogram(
    noun: Noun, style: str, side: int, size: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 4"]:
    """Draws a pictogram whose longer side is `side`, sometimes mirrored or slightly rotated."""
    master = sprites.render_sprite(noun.code, style, round(LARGEST_OBJECT * size) + 8)
    if rng.random() < 0.5:
        master = master[:, ::-1]
    angle = rng.uniform(-12, 12) if rng.random() < 0.5 else 0.0
    image = Image.fromarray(np.ascontiguousarray(master)).convert("RGBa")
    if angle:
        image = image.rotate(angle, Image.Resampling.BICUBIC, expand=True)
        visible = image.getchannel("a").point(lambda alpha: 255 * (alpha >= VISIBLE_ALPHA))
        image = image.crop(visible.getbbox())
    scale = side / max(image.size)
    width, height = (max(4, round(length * scale)) for length in image.size)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(image.convert("RGBA"))


def _find_free_position(
    height: int, width: int, boxes: Iterable[_Box], size: int, rng: np.random.Generator
) -> tuple[int, int] | None:
    """Samples an (x, y) at which an object hardly overlaps the others; None if none was found."""
    for _ in range(_PLACEMENT_ATTEMPTS):
        x, y = int(rng.integers(size - width + 1)), int(rng.integers(size - height + 1))
        if all(_overlap((x, y, x + width, y + height), other) <= _MAX_OVERLAP for other in boxes):
            return x, y
    return None


def _overlap(a: _Box, b: _Box) -> float:
    """Computes the intersection of two boxes as a fraction of the smaller one."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


def _pixel_owners(placements: Sequence[_Placement], size: int) -> Int8[np.ndarray, "size size"]:
    """Returns the index of the object that each pixel shows, -1 for the background."""
    owner = np.full((size, size), -1, np.int8)
    for number, (_, pixels, x, y) in enumerate(placements):
        height, width = pixels.shape[:2]
        owner[y : y + height, x : x + width][pixels[..., 3] >= VISIBLE_ALPHA] = number
    return owner


def _all_clearly_visible(placements: Sequence[_Placement], size: int) -> bool:
    """Returns whether hardly any pixel of an object is hidden by another one."""
    owner = _pixel_owners(placements, size)
    visible = np.bincount(owner.ravel() + 1, minlength=len(placements) + 1)[1:]
    own = np.array([(item.pixels[..., 3] >= VISIBLE_ALPHA).sum() for item in placements])
    return bool((visible >= _MIN_VISIBLE * own).all())


def _tight_box(mask: Bool[np.ndarray, "size size"]) -> _Box:
    """Returns the smallest box that contains the mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def _contrasting_background(
    placements: Sequence[_Placement],
    owner: Int8[np.ndarray, "size size"],
    size: int,
    rng: np.random.Generator,
) -> tuple[UInt8[np.ndarray, "size size 3"], str | None]:
    """Samples several backgrounds; returns the first with enough contrast, or the best.

    Returns:
      The background, and its name if it has one.
    """
    best_contrast = -1.0
    for _ in range(_BACKGROUND_ATTEMPTS):
        background, name = _sample_background(size, rng)
        contrast = min(
            _contrast(background, owner == number, item.pixels)
            for number, item in enumerate(placements)
        )
        if contrast > best_contrast:
            best_contrast, best = contrast, (background, name)
        if contrast >= _MIN_CONTRAST:
            break
    return best


def _contrast(
    background: UInt8[np.ndarray, "size size 3"],
    mask: Bool[np.ndarray, "size size"],
    pixels: UInt8[np.ndarray, "height width 4"],
) -> float:
    """Computes the distance between the mean colours of an object and of what it covers."""
    opaque = pixels[pixels[..., 3] >= VISIBLE_ALPHA][:, :3].mean(0)
    return float(np.linalg.norm(opaque - background[mask].mean(0)))


def _sample_background(
    size: int, rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "size size 3"], str | None]:
    """Samples a texture from a photograph, or a colour gradient; returns it and its name."""
    if rng.random() < 0.3:
        return _sample_gradient(size, rng), None
    index = int(rng.integers(len(sprites.PHOTOGRAPHS)))
    entry = sprites.PHOTOGRAPHS[index]
    region = sprites.load_photograph(index)
    side = int(rng.uniform(0.35, 1.0) * min(region.size))
    x = int(rng.integers(region.width - side + 1))
    y = int(rng.integers(region.height - side + 1))
    crop = region.resize(
        (size, size), Image.Resampling.BOX, box=(x, y, x + side, y + side), reducing_gap=None
    )
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = np.asarray(crop, np.float32)
    tint = np.asarray(entry.tint, np.float32) * rng.uniform(0.92, 1.08, 3)
    mean = pixels.mean((0, 1))
    pixels = (mean + rng.uniform(0.55, 0.95) * (pixels - mean)) * tint * rng.uniform(0.8, 1.2)
    return np.clip(pixels, 0, 255).astype(np.uint8), entry.name


def _sample_gradient(size: int, rng: np.random.Generator) -> UInt8[np.ndarray, "size size 3"]:
    """Samples a linear colour gradient."""
    start, end = rng.uniform(30, 250, (2, 3))
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.linspace(-0.5, 0.5, size)
    position = np.cos(angle) * ramp[None, :] + np.sin(angle) * ramp[:, None]
    share = (position / (abs(np.cos(angle)) + abs(np.sin(angle))) + 0.5)[..., None]
    return (start * (1 - share) + end * share).astype(np.uint8)
