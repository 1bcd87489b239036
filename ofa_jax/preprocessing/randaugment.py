"""RandAugment with the ten operations of OFA's pretraining (Cubuk et al. 2020).

Each operation maps uint8 [height, width, 3] to the same shape. `randaugment` samples two of them
and applies each with probability one half, at level 7 of 10. Geometric operations and filters are
OpenCV's, as in the reference implementation, so that pixels agree bit for bit.
"""

from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8

from ofa_jax.preprocessing import image_kernels

# The pixels of an image, and what every operation returns for it.
_Pixels = UInt8[np.ndarray, "height width 3"]

MAX_LEVEL = 10
FILL = (128, 128, 128)
_APPLY_PROBABILITY = 0.5
_TRANSLATE_PIXELS = 10.0
_SHEAR = 0.3
_DEGREES = 30.0

# Loader threads already use all cores; OpenCV's own thread pool would compete with them.
cv2.setNumThreads(0)


def auto_contrast(image: _Pixels) -> _Pixels:
    """Stretches each channel to 0..255.

    The reference implementation negates the darkest value as a uint8, which wraps around: a channel
    without black becomes nearly white. Published models were trained with that, so it is kept.
    """
    return _per_channel(image, _contrast_table)


def _contrast_table(histogram: Float32[np.ndarray, "256"]) -> Float[np.ndarray, "256"] | None:
    """Returns the table of `auto_contrast` for a channel; None if it has one value only."""
    low, high = np.flatnonzero(histogram)[[0, -1]].tolist()
    if high <= low:
        return None
    scale = 255 / (high - low)
    wrapped = -low % 256
    return (np.arange(256) * scale + wrapped * scale).clip(0, 255)


def equalize(image: _Pixels) -> _Pixels:
    """Equalises each channel's histogram, with Pillow's formula."""
    return _per_channel(image, _equalize_table)


def _equalize_table(histogram: Float32[np.ndarray, "256"]) -> Float[np.ndarray, "256"] | None:
    """Returns the table of `equalize` for a channel; None if it would change nothing."""
    step = histogram[histogram != 0][:-1].sum() // 255
    if step == 0:
        return None
    before = np.concatenate([[step // 2], histogram[:-1]])
    return (np.cumsum(before) // step).clip(0, 255)


def _per_channel(image: _Pixels, table: Callable[[np.ndarray], np.ndarray | None]) -> _Pixels:
    """Maps each channel by the table that its histogram gives; without a table it is unchanged."""
    tables = np.empty((256, 1, image.shape[-1]), np.uint8)
    for channel in range(image.shape[-1]):
        counts = cv2.calcHist([image], [channel], None, [256], [0, 256])
        # float32, which is exact below 2^24 pixels.
        found = table(counts.reshape(-1).astype(np.int64))
        tables[:, 0, channel] = np.arange(256) if found is None else found.astype(np.uint8)
    return cv2.LUT(image, tables)


def brightness(image: _Pixels, factor: float) -> _Pixels:
    """Multiplies by `factor` and clips at 255."""
    table = (np.arange(256, dtype=np.float32) * factor).clip(0, 255).astype(np.uint8)
    return cv2.LUT(image, table)


def sharpness(image: _Pixels, factor: float) -> _Pixels:
    """Extrapolates from the smoothed image by `factor`; the outermost pixels are unchanged.

    Values above 255 or below 0 wrap around, as in the reference implementation.
    """
    kernel = np.ones((3, 3), np.float32)
    kernel[1, 1] = 5
    smooth = cv2.filter2D(image, -1, kernel / 13)
    if image_kernels.compiled is not None:
        target = np.empty_like(smooth)
        image = np.ascontiguousarray(image)
        image_kernels.compiled.sharpen(image, smooth, factor, len(image), target)
        return target
    smooth = smooth.astype(np.float32)[1:-1, 1:-1]
    sharp = image.astype(np.float32)
    sharp[1:-1, 1:-1] = smooth + factor * (sharp[1:-1, 1:-1] - smooth)
    # Through int32: a negative float to uint8 is undefined in C.
    return sharp.astype(np.int32).astype(np.uint8)


def _affine(image: _Pixels, matrix: Float[np.ndarray, "2 3"]) -> _Pixels:
    height, width = image.shape[:2]
    return cv2.warpAffine(image, matrix, (width, height), borderValue=FILL, flags=cv2.INTER_LINEAR)


def shear_x(image: _Pixels, factor: float) -> _Pixels:
    """Shifts each row by `factor` times its index."""
    return _affine(image, np.array([[1, factor, 0], [0, 1, 0]], np.float32))


def shear_y(image: _Pixels, factor: float) -> _Pixels:
    """Shifts each column by `factor` times its index."""
    return _affine(image, np.array([[1, 0, 0], [factor, 1, 0]], np.float32))


def translate_x(image: _Pixels, offset: float) -> _Pixels:
    """Shifts left by `offset` pixels."""
    if float(offset).is_integer():
        return _shift(image, 0, int(offset))
    return _affine(image, np.array([[1, 0, -offset], [0, 1, 0]], np.float32))


def translate_y(image: _Pixels, offset: float) -> _Pixels:
    """Shifts up by `offset` pixels."""
    if float(offset).is_integer():
        return _shift(image, int(offset), 0)
    return _affine(image, np.array([[1, 0, 0], [0, 1, -offset]], np.float32))


def _shift(image: _Pixels, up: int, left: int) -> _Pixels:
    """Does what `_affine` does for whole pixels, between which nothing is interpolated."""
    shifted = np.empty_like(image)
    shifted[...] = FILL
    height, width = image.shape[:2]
    up, left = min(max(up, -height), height), min(max(left, -width), width)
    visible = image[max(up, 0) : height + min(up, 0), max(left, 0) : width + min(left, 0)]
    shifted[max(-up, 0) : height - max(up, 0), max(-left, 0) : width - max(left, 0)] = visible
    return shifted


def rotate(image: _Pixels, degrees: float) -> _Pixels:
    """Rotates counter-clockwise around the centre."""
    height, width = image.shape[:2]
    return _affine(image, cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1))


def _enhance(level: int) -> float:
    return level / MAX_LEVEL * 1.8 + 0.1


# Name -> (operation, its argument as a function of the level, whether the argument's sign is
# random). A draw above one half negates the argument; for rotation, a draw below one half does.
OPERATIONS: dict[str, tuple[Callable, Callable[[int], float] | None, bool]] = {
    "Identity": (lambda image: image, None, False),
    "AutoContrast": (auto_contrast, None, False),
    "Equalize": (equalize, None, False),
    "Brightness": (brightness, _enhance, False),
    "Sharpness": (sharpness, _enhance, False),
    "ShearX": (shear_x, lambda level: level / MAX_LEVEL * _SHEAR, True),
    "ShearY": (shear_y, lambda level: level / MAX_LEVEL * _SHEAR, True),
    "TranslateX": (translate_x, lambda level: level / MAX_LEVEL * _TRANSLATE_PIXELS, True),
    "TranslateY": (translate_y, lambda level: level / MAX_LEVEL * _TRANSLATE_PIXELS, True),
    "Rotate": (rotate, lambda level: level / MAX_LEVEL * _DEGREES, True),
}


def apply_operation(name: str, image: _Pixels, level: int, sign_draw: float) -> _Pixels:
    """Applies one operation.

    Args:
      name: a key of OPERATIONS.
      image: the pixels.
      level: 0..10.
      sign_draw: in [0, 1), determines the sign of a geometric operation's argument.
    """
    operation, argument_at, signed = OPERATIONS[name]
    if argument_at is None:
        return operation(image)
    argument = argument_at(level)
    negative = sign_draw < 0.5 if name == "Rotate" else sign_draw > 0.5
    return operation(image, -argument if signed and negative else argument)


def randaugment(
    image: _Pixels, rng: np.random.Generator, num_operations: int = 2, level: int = 7
) -> _Pixels:
    """Samples `num_operations` operations and applies each with probability one half."""
    for name in rng.choice(list(OPERATIONS), num_operations):
        applied, sign = rng.random(2)
        if applied <= _APPLY_PROBABILITY:
            image = apply_operation(name, image, level, sign)
    return image
