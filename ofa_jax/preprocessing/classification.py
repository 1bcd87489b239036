"""Image classification (ImageNet) and the augmentation of its training images.

The published fine-tuning crops and flips at random, applies RandAugment in timm's form
(`rand-m9-mstd0.5-inc1`: two of fifteen operations whose strength grows with the level), then the
RandAugment(2, 7) of pretraining, and erases a rectangle in a quarter of the images (Zhong et al.
2020).
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance, ImageOps

from ofa_jax.preprocessing import images, prompts
from ofa_jax.preprocessing.downstream import DownstreamConfig, get_target_text, load_square_image
from ofa_jax.preprocessing.examples import Example, make_example
from ofa_jax.preprocessing.randaugment import randaugment
from ofa_jax.preprocessing.record_fields import decode_image
from ofa_jax.preprocessing.records import Record

_MAX_ATTEMPTS = 10
_CROP_AREA, _CROP_ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)
_OPERATIONS_APPLIED, _APPLY_PROBABILITY = 2, 0.5
_LEVEL, _LEVEL_DEVIATION, _MAX_LEVEL = 9.0, 0.5, 10.0
_ERASE_PROBABILITY, _ERASED_AREA, _ERASED_ASPECT = 0.25, (0.02, 1 / 3), (0.3, 1 / 0.3)
# The colour outside of a rotated or shifted image: ImageNet's mean.
_FILL = (124, 116, 104)


def classification(record: Record, rng: np.random.Generator, config: DownstreamConfig) -> Example:
    """Returns `what does the image describe?` -> the name of its class."""
    label = get_target_text(record, "label", config)
    if config.training and config.augment:
        decoded = decode_image(record, config.decode_options)
        image = augment_image(decoded, config.image_size, rng)
    else:
        image = load_square_image(record, config.image_size, config.decode_options)
    return make_example(
        config.vocabulary, prompts.CLASSIFICATION, f" {label}" if label else "", image
    )


def augment_image(
    image: Image.Image, size: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "size size 3"]:
    """Applies the whole augmentation of training."""
    image = random_resized_crop(image, size, rng)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for name in rng.choice(list(OPERATIONS), _OPERATIONS_APPLIED):
        level = float(np.clip(rng.normal(_LEVEL, _LEVEL_DEVIATION), 0, _MAX_LEVEL))
        applied, sign = rng.random(2)
        if applied < _APPLY_PROBABILITY:
            image = apply_operation(name, image, level, negative=sign < 0.5)
    return random_erase(randaugment(images.to_array(image), rng), rng)


def random_resized_crop(image: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """Crops 8 to 100 % of the area with an aspect ratio of 3/4 to 4/3, and resizes to a square.

    If none of ten sampled windows fits into the image, the largest central window is used.
    """
    width, height = image.size
    for _ in range(_MAX_ATTEMPTS):
        area = width * height * rng.uniform(*_CROP_AREA)
        aspect = _sample_aspect(_CROP_ASPECT, rng)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            break
    else:
        low, high = _CROP_ASPECT
        w = min(width, round(height * high))
        h = min(height, round(width / low))
        left, top = (width - w) // 2, (height - h) // 2
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))


def random_erase(
    image: UInt8[np.ndarray, "height width 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """Replaces 2 to 33 % of the area by noise, in a quarter of the images.

    The noise is normal in the model's range [-1, 1] and clipped to it.
    """
    if rng.random() >= _ERASE_PROBABILITY:
        return image
    height, width = image.shape[:2]
    for _ in range(_MAX_ATTEMPTS):
        area = height * width * rng.uniform(*_ERASED_AREA)
        aspect = _sample_aspect(_ERASED_ASPECT, rng)
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            noise = (rng.standard_normal((h, w, 3)) * 0.5 + 0.5) * 255
            image = image.copy()
            image[top : top + h, left : left + w] = noise.clip(0, 255).round().astype(np.uint8)
            return image
    return image


def _sample_aspect(limits: tuple[float, float], rng: np.random.Generator) -> float:
    """Samples an aspect ratio, uniform in its logarithm."""
    low, high = map(math.log, limits)
    return math.exp(rng.uniform(low, high))


# ------------------------------------------------------------------------- timm's operations


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=_FILL
    )


def _solarize_add(image: Image.Image, added: int) -> Image.Image:
    """Brightens the pixels in the darker half of the range."""
    table = [min(255, value + added) if value < 128 else value for value in range(256)]
    return image.point(table * 3)


def _enhance(enhancer: Callable[[Image.Image], Any]) -> Callable[[Image.Image, float], Any]:
    return lambda image, change: enhancer(image).enhance(max(0.1, 1 + change))


def _fraction(level: float) -> float:
    return level / _MAX_LEVEL


# Name -> (operation, its argument as a function of the level, whether the argument has a sign).
OPERATIONS: dict[str, tuple[Callable, Callable[[float], float] | None, bool]] = {
    "AutoContrast": (ImageOps.autocontrast, None, False),
    "Equalize": (ImageOps.equalize, None, False),
    "Invert": (ImageOps.invert, None, False),
    "Rotate": (
        lambda image, degrees: image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=_FILL),
        lambda level: 30 * _fraction(level),
        True,
    ),
    "Posterize": (
        lambda image, bits: ImageOps.posterize(image, bits) if bits else image.point(lambda _: 0),
        lambda level: 4 - int(4 * _fraction(level)),
        False,
    ),
    "Solarize": (
        ImageOps.solarize,
        lambda level: 256 - min(256, int(256 * _fraction(level))),
        False,
    ),
    "SolarizeAdd": (_solarize_add, lambda level: min(128, int(110 * _fraction(level))), False),
    "Color": (_enhance(ImageEnhance.Color), lambda level: 0.9 * _fraction(level), True),
    "Contrast": (_enhance(ImageEnhance.Contrast), lambda level: 0.9 * _fraction(level), True),
    "Brightness": (_enhance(ImageEnhance.Brightness), lambda level: 0.9 * _fraction(level), True),
    "Sharpness": (_enhance(ImageEnhance.Sharpness), lambda level: 0.9 * _fraction(level), True),
    "ShearX": (
        lambda image, factor: _affine(image, (1, factor, 0, 0, 1, 0)),
        lambda level: 0.3 * _fraction(level),
        True,
    ),
    "ShearY": (
        lambda image, factor: _affine(image, (1, 0, 0, factor, 1, 0)),
        lambda level: 0.3 * _fraction(level),
        True,
    ),
    "TranslateX": (
        lambda image, share: _affine(image, (1, 0, share * image.width, 0, 1, 0)),
        lambda level: 0.45 * _fraction(level),
        True,
    ),
    "TranslateY": (
        lambda image, share: _affine(image, (1, 0, 0, 0, 1, share * image.height)),
        lambda level: 0.45 * _fraction(level),
        True,
    ),
}


def apply_operation(name: str, image: Image.Image, level: float, negative: bool) -> Image.Image:
    """Applies one operation.

    Args:
      name: a key of OPERATIONS.
      image: RGB.
      level: 0 to 10.
      negative: whether the argument of an operation with a sign is negated.
    """
    operation, argument_at, signed = OPERATIONS[name]
    if argument_at is None:
        return operation(image)
    argument = argument_at(level)
    return operation(image, -argument if signed and negative else argument)
