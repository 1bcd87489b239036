"""A scene: which objects stand where, on which background, and the image of it.

Everything is drawn from one generator that depends only on (seed, split, index), so a scene is the
same whichever process makes it. Distances are fractions of the image's side unless said.
"""

import dataclasses

import numpy as np
from PIL import Image

from ofa_jax.scenes import nouns as nouns_lib
from ofa_jax.scenes import sprites
from ofa_jax.scenes.nouns import Noun

SPLITS = ("train", "validation", "test", "test_shifted")

# The longer side of an object: 28 px of a 128 px image at least, nearly two 16 px patches.
SMALLEST_OBJECT = 0.22
LARGEST_OBJECT = 0.5
# A pixel belongs to an object where its pictogram is at least this opaque (of 255).
VISIBLE_ALPHA = 64
_LARGEST_OVERLAP = 0.06  # intersection of two boxes, of the smaller one's area
_LEAST_VISIBLE = 0.92  # of an object's own pixels
_LEAST_CONTRAST = 60.0  # distance of an object's mean colour from the background's, of 441
_PLACEMENT_TRIES = 60


@dataclasses.dataclass(frozen=True)
class SceneOptions:
    """What scenes are made of; a scene is a function of these, its split and its index.

    nouns: how many nouns of the table are used, the easiest to tell apart first.
    image_size: pixels of a side.
    max_objects: at most so many objects in an image; fewer are more frequent.
    seed: of everything that is drawn.
    """

    nouns: int = 40
    image_size: int = 128
    max_objects: int = 6
    seed: int = 0

    def __post_init__(self):
        if not 1 <= self.max_objects <= 6:
            raise ValueError(
                "A scene has room for 1 to 6 objects: set --max_objects so, not "
                f"{self.max_objects}."
            )
        if self.image_size < 64 or self.image_size % 16:
            raise ValueError(
                "Images are cut into patches of 16 pixels and need room for objects: set "
                f"--image_size to a multiple of 16 from 64 on, not {self.image_size}."
            )
        nouns_lib.first_nouns(self.nouns)


@dataclasses.dataclass(frozen=True)
class SceneObject:
    """An object: its noun and the tight box of its visible pixels, x0 y0 x1 y1 in pixels."""

    noun: Noun
    box: tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Scene:
    """What is exactly known of an image.

    size: pixels of a side. background: its name, None where no short word is exact.
    vocabulary: every noun that some scene of this data set may show.
    """

    size: int
    objects: tuple[SceneObject, ...]
    background: str | None
    vocabulary: tuple[Noun, ...]


def generator(options: SceneOptions, split: str, index: int) -> np.random.Generator:
    """The generator of scene `index` of a split."""
    return np.random.default_rng([options.seed, SPLITS.index(split), index])


def compose(
    options: SceneOptions, style: str, rng: np.random.Generator
) -> tuple[Scene, np.ndarray]:
    """Draws a scene and its image.

    Args:
      options: see SceneOptions.
      style: pictogram style, one of sprites.STYLES.
      rng: decides everything.

    Returns:
      The scene, and the image uint8[size, size, 3].
    """
    size = options.image_size
    vocabulary = nouns_lib.first_nouns(options.nouns)
    chosen = _choose_nouns(vocabulary, options.max_objects, rng)
    placed = _place(chosen, style, size, rng)
    owner = _owners(placed, size)
    background, name = _visible_background(placed, owner, size, rng)
    image = Image.fromarray(background)
    objects = []
    for number, (noun, pixels, x, y) in enumerate(placed):
        patch = Image.fromarray(pixels)
        image.paste(patch, (x, y), patch)
        objects.append(SceneObject(noun, _tight_box(owner == number)))
    return Scene(size, tuple(objects), name, vocabulary), np.asarray(image)


def _choose_nouns(vocabulary, max_objects: int, rng) -> list[Noun]:
    """Nouns of the objects: few more often than many, and some twice, so that counts matter."""
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


def _place(chosen, style: str, size: int, rng) -> list[tuple[Noun, np.ndarray, int, int]]:
    """Turns, scales and places each pictogram: (noun, uint8[h, w, 4], x, y), back to front."""
    largest = min(LARGEST_OBJECT, 0.85 / np.sqrt(len(chosen)))
    while True:
        sides = rng.uniform(SMALLEST_OBJECT, largest, len(chosen))
        sides[::-1].sort()  # large ones first, they are harder to place
        placed, boxes = [], []
        for noun, side in zip(chosen, sides, strict=True):
            pixels = _draw(noun, style, round(side * size + 0.5), size, rng)
            spot = _free_spot(pixels.shape[:2], boxes, size, rng)
            if spot is None:
                break
            x, y = spot
            placed.append((noun, pixels, x, y))
            boxes.append((x, y, x + pixels.shape[1], y + pixels.shape[0]))
        if len(placed) == len(chosen) and _all_clearly_visible(placed, size):
            return placed
        largest = max(SMALLEST_OBJECT, 0.95 * largest)


def _draw(noun: Noun, style: str, side: int, size: int, rng) -> np.ndarray:
    """One pictogram, mirrored and turned a little: uint8[h, w, 4] with max(h, w) == side."""
    master = sprites.sprite(noun.code, style, round(LARGEST_OBJECT * size) + 8)
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


def _free_spot(shape, boxes, size: int, rng) -> tuple[int, int] | None:
    height, width = shape
    for _ in range(_PLACEMENT_TRIES):
        x, y = int(rng.integers(size - width + 1)), int(rng.integers(size - height + 1))
        if all(
            _overlap((x, y, x + width, y + height), other) <= _LARGEST_OVERLAP for other in boxes
        ):
            return x, y
    return None


def _overlap(a, b) -> float:
    """Intersection of two boxes as a fraction of the smaller one."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


def _owners(placed, size: int) -> np.ndarray:
    """Which object each pixel shows: int8[size, size], -1 the background."""
    owner = np.full((size, size), -1, np.int8)
    for number, (_, pixels, x, y) in enumerate(placed):
        height, width = pixels.shape[:2]
        owner[y : y + height, x : x + width][pixels[..., 3] >= VISIBLE_ALPHA] = number
    return owner


def _all_clearly_visible(placed, size: int) -> bool:
    seen = np.bincount(_owners(placed, size).ravel() + 1, minlength=len(placed) + 1)[1:]
    own = np.array([(pixels[..., 3] >= VISIBLE_ALPHA).sum() for _, pixels, _, _ in placed])
    return bool((seen >= _LEAST_VISIBLE * own).all())


def _tight_box(mask: np.ndarray) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def _visible_background(placed, owner, size: int, rng) -> tuple[np.ndarray, str | None]:
    """The first of several backgrounds from which every object stands out, else the best one."""
    best = None
    for _ in range(6):
        background, name = _background(size, rng)
        contrast = min(
            _contrast(background, owner == number, pixels)
            for number, (_, pixels, _, _) in enumerate(placed)
        )
        if best is None or contrast > best[0]:
            best = (contrast, background, name)
        if contrast >= _LEAST_CONTRAST:
            break
    return best[1], best[2]


def _contrast(background, mask, pixels) -> float:
    opaque = pixels[pixels[..., 3] >= VISIBLE_ALPHA][:, :3].mean(0)
    return float(np.linalg.norm(opaque - background[mask].mean(0)))


def _background(size: int, rng) -> tuple[np.ndarray, str | None]:
    """A photograph's texture or a colour gradient, uint8[size, size, 3], and its name."""
    if rng.random() < 0.3:
        return _gradient(size, rng), None
    index = int(rng.integers(len(sprites.PHOTOGRAPHS)))
    entry = sprites.PHOTOGRAPHS[index]
    region = sprites.photograph(index)
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


def _gradient(size: int, rng) -> np.ndarray:
    """A linear colour gradient, uint8[size, size, 3]."""
    start, end = rng.uniform(30, 250, (2, 3))
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.linspace(-0.5, 0.5, size)
    position = np.cos(angle) * ramp[None, :] + np.sin(angle) * ramp[:, None]
    share = (position / (abs(np.cos(angle)) + abs(np.sin(angle))) + 0.5)[..., None]
    return (start * (1 - share) + end * share).astype(np.uint8)
