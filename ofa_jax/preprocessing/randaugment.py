"""RandAugment with the ten operations of OFA's pretraining (Cubuk et al. 2020).

Each operation maps uint8 [H, W, 3] to the same shape. `randaugment` draws two of them, applies each
with probability one half, at level 7 of 10. Geometric operations and filters are OpenCV's, as in
the original, so that pixels agree bit for bit.
"""

from collections.abc import Callable

import cv2
import numpy as np

MAX_LEVEL = 10
FILL = (128, 128, 128)
_APPLY_PROBABILITY = 0.5
_TRANSLATE_PIXELS = 10.0
_SHEAR = 0.3
_DEGREES = 30.0

# Loader threads already use the cores; OpenCV's own pool would fight them.
cv2.setNumThreads(0)


def auto_contrast(image: np.ndarray) -> np.ndarray:
    """Stretches each channel to 0..255.

    The original negates the darkest value as a uint8, so that it wraps around: a channel without
    black comes out nearly white. Published models were trained with that, and so we keep it.
    """
    return _per_channel(image, _contrast_table)


def _contrast_table(histogram: np.ndarray) -> np.ndarray | None:
    low, high = np.flatnonzero(histogram)[[0, -1]].tolist()
    if high <= low:
        return None
    scale = 255 / (high - low)
    wrapped = -low % 256
    return (np.arange(256) * scale + wrapped * scale).clip(0, 255)


def equalize(image: np.ndarray) -> np.ndarray:
    """Equalises each channel's histogram, by Pillow's rule."""
    return _per_channel(image, _equalize_table)


def _equalize_table(histogram: np.ndarray) -> np.ndarray | None:
    step = histogram[histogram != 0][:-1].sum() // 255
    if step == 0:
        return None
    before = np.concatenate([[step // 2], histogram[:-1]])
    return (np.cumsum(before) // step).clip(0, 255)


def _per_channel(image: np.ndarray, table: Callable[[np.ndarray], np.ndarray | None]) -> np.ndarray:
    """Looks each channel up in the table that its histogram gives; one without a table stays."""
    tables = np.empty((256, 1, image.shape[-1]), np.uint8)
    for channel in range(image.shape[-1]):
        counts = cv2.calcHist([image], [channel], None, [256], [0, 256])
        # float32, which is exact below 2^24 pixels.
        found = table(counts.reshape(-1).astype(np.int64))
        tables[:, 0, channel] = np.arange(256) if found is None else found.astype(np.uint8)
    return cv2.LUT(image, tables)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiplies by `factor` and cuts at 255."""
    table = (np.arange(256, dtype=np.float32) * factor).clip(0, 255).astype(np.uint8)
    return cv2.LUT(image, table)


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Moves away from the smoothed image by `factor`; the outermost pixels stay.

    What exceeds 255 or falls below 0 wraps around, as in the original.
    """
    kernel = np.ones((3, 3), np.float32)
    kernel[1, 1] = 5
    smooth = cv2.filter2D(image, -1, kernel / 13).astype(np.float32)[1:-1, 1:-1]
    sharp = image.astype(np.float32)
    sharp[1:-1, 1:-1] = smooth + factor * (sharp[1:-1, 1:-1] - smooth)
    # Through int32: a negative float to uint8 is undefined in C.
    return sharp.astype(np.int32).astype(np.uint8)


def _affine(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    return cv2.warpAffine(image, matrix, (width, height), borderValue=FILL, flags=cv2.INTER_LINEAR)


def shear_x(image: np.ndarray, factor: float) -> np.ndarray:
    """Shifts each row by `factor` times its number."""
    return _affine(image, np.array([[1, factor, 0], [0, 1, 0]], np.float32))


def shear_y(image: np.ndarray, factor: float) -> np.ndarray:
    """Shifts each column by `factor` times its number."""
    return _affine(image, np.array([[1, 0, 0], [factor, 1, 0]], np.float32))


def translate_x(image: np.ndarray, offset: float) -> np.ndarray:
    """Shifts left by `offset` pixels."""
    return _affine(image, np.array([[1, 0, -offset], [0, 1, 0]], np.float32))


def translate_y(image: np.ndarray, offset: float) -> np.ndarray:
    """Shifts up by `offset` pixels."""
    return _affine(image, np.array([[1, 0, 0], [0, 1, -offset]], np.float32))


def rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """Turns counter-clockwise around the middle."""
    height, width = image.shape[:2]
    return _affine(image, cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1))


def _enhance(level: int) -> float:
    return level / MAX_LEVEL * 1.8 + 0.1


# Name -> (operation, its argument at a level, whether the argument's sign is drawn). A draw above
# one half makes the argument negative, but for rotation, where a draw below does.
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


def apply(name: str, image: np.ndarray, level: int, sign_draw: float) -> np.ndarray:
    """One operation.

    Args:
      name: a key of OPERATIONS.
      image: uint8 [H, W, 3].
      level: 0..10.
      sign_draw: in [0, 1), decides the direction of a geometric operation.
    """
    operation, argument_at, signed = OPERATIONS[name]
    if argument_at is None:
        return operation(image)
    argument = argument_at(level)
    negative = sign_draw < 0.5 if name == "Rotate" else sign_draw > 0.5
    return operation(image, -argument if signed and negative else argument)


def randaugment(
    image: np.ndarray, rng: np.random.Generator, num_operations: int = 2, level: int = 7
) -> np.ndarray:
    """Applies `num_operations` random ones, each with probability one half."""
    for name in rng.choice(list(OPERATIONS), num_operations):
        applied, sign = rng.random(2)
        if applied <= _APPLY_PROBABILITY:
            image = apply(name, image, level, sign)
    return image
