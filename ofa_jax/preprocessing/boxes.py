"""Boxes through image transforms, in float32 as the original computes them.

A box is x0, y0, x1, y1 in pixels; arrays are float32 [K, 4].
"""

import numpy as np


def as_boxes(boxes: np.ndarray) -> np.ndarray:
    """Anything of 4K numbers to float32 [K, 4]."""
    return np.asarray(boxes, np.float32).reshape(-1, 4)


def scale(boxes: np.ndarray, ratio_width: float, ratio_height: float) -> np.ndarray:
    """Boxes of an image that was resized by these ratios."""
    return boxes * np.array([ratio_width, ratio_height] * 2, np.float32)


def flip(boxes: np.ndarray, width: int) -> np.ndarray:
    """Boxes of an image that was mirrored left to right."""
    mirrored = boxes[:, [2, 1, 0, 3]] * np.array([-1, 1, -1, 1], np.float32)
    return mirrored + np.array([width, 0, width, 0], np.float32)


def crop(boxes: np.ndarray, left: float, top: float, width: int, height: int) -> np.ndarray:
    """Boxes of a cropped image, clipped to it; one that lies outside gets no area."""
    shifted = boxes - np.array([left, top, left, top], np.float32)
    shifted = np.minimum(shifted, np.array([width, height] * 2, np.float32))
    return np.maximum(shifted, np.float32(0))


def nonempty(boxes: np.ndarray) -> np.ndarray:
    """bool [K]: which boxes have an area."""
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
