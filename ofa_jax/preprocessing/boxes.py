"""Transforms of boxes that accompany the transforms of their image.

A box is x0, y0, x1, y1 in pixels; arrays are float32 [n, 4]. All arithmetic is in float32, as in
the reference implementation, so that the results agree bit for bit.
"""

import numpy as np
from jaxtyping import Bool, Float32
from numpy.typing import ArrayLike


def as_boxes(boxes: ArrayLike) -> Float32[np.ndarray, "n 4"]:
    """Converts anything with 4n numbers to float32 [n, 4]."""
    return np.asarray(boxes, np.float32).reshape(-1, 4)


def scale(
    boxes: Float32[np.ndarray, "n 4"], ratio_width: float, ratio_height: float
) -> Float32[np.ndarray, "n 4"]:
    """Returns the boxes of an image that was resized by these ratios."""
    return boxes * np.array([ratio_width, ratio_height] * 2, np.float32)


def flip(boxes: Float32[np.ndarray, "n 4"], width: int) -> Float32[np.ndarray, "n 4"]:
    """Returns the boxes of an image of `width` pixels that was mirrored left to right."""
    mirrored = boxes[:, [2, 1, 0, 3]] * np.array([-1, 1, -1, 1], np.float32)
    return mirrored + np.array([width, 0, width, 0], np.float32)


def crop(
    boxes: Float32[np.ndarray, "n 4"], left: float, top: float, width: int, height: int
) -> Float32[np.ndarray, "n 4"]:
    """Returns the boxes of a cropped image, clipped to it.

    A box outside the crop ends up with no area.
    """
    shifted = boxes - np.array([left, top, left, top], np.float32)
    shifted = np.minimum(shifted, np.array([width, height] * 2, np.float32))
    return np.maximum(shifted, np.float32(0))


def nonempty(boxes: Float32[np.ndarray, "n 4"]) -> Bool[np.ndarray, " n"]:
    """Returns which boxes have an area."""
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
