"""Windows of resized images, with Pillow's bits and a compiled module's speed.

Pillow resizes in fixed point. Each value of the result is a weighted sum of the stored ones that
its kernel covers; weights are rounded to 22 bits, sums to 8. Rows come first, columns are resized
from their rounded values. All of it is integers, so any order of the same products gives the same
bits: the compiled module (`image_kernels`) computes them with vector instructions, and only those
of the window that is asked for. Without it Pillow does the work.
"""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int32, UInt8
from PIL import Image

from ofa_jax.preprocessing import image_kernels

__all__ = ["Axis", "resize_window", "weigh_axis"]

_PRECISION_BITS = 22  # PRECISION_BITS in Pillow's Resample.c
_SUPPORT = 2.0  # of the bicubic kernel
_LONGEST_SIDE = 8192  # so that no file fills the memory with weights
_PIXEL_BYTES = 4  # in Pillow's memory; rows that are aligned to more have gaps between them


class Axis(NamedTuple):
    """How the values along an axis of the result follow from the stored ones.

    Attributes:
      starts: the first stored value of each sum.
      weights: of the stored values from there on, times 2^22.
    """

    starts: Int32[np.ndarray, " length"]
    weights: Int32[np.ndarray, "length count"]


@functools.lru_cache(maxsize=256)
def weigh_axis(stored: int, resized: int) -> Axis:
    """Returns the weights with which Pillow resizes an axis of `stored` values to `resized`.

    The order of operations is that of `precompute_coeffs` and `normalize_coeffs_8bpc` in Pillow's
    Resample.c, so that every weight is rounded as there.
    """
    scale = stored / resized
    filter_scale = max(scale, 1.0)
    support = _SUPPORT * filter_scale
    center = (np.arange(resized) + 0.5) * scale
    starts = np.maximum((center - support + 0.5).astype(np.int64), 0)
    counts = np.minimum((center + support + 0.5).astype(np.int64), stored) - starts
    # Sums of one length, as short as possible. Near the end they start earlier, with zeros.
    count = int(counts.max())
    moved = np.minimum(starts, stored - count)
    positions = moved[:, None] + np.arange(count)
    inside = (positions >= starts[:, None]) & (positions < (starts + counts)[:, None])
    values = _bicubic((positions - center[:, None] + 0.5) * (1.0 / filter_scale))
    values = np.where(inside, values, 0.0)
    total = np.zeros(resized)
    for tap in range(count):  # one after the other, as there
        total += values[:, tap]
    values /= np.where(total == 0.0, 1.0, total)[:, None]
    half = np.where(values < 0, -0.5, 0.5)
    weights = (values * (1 << _PRECISION_BITS) + half).astype(np.int32)
    axis = Axis(moved.astype(np.int32), weights)
    for array in axis:
        array.setflags(write=False)
    return axis


def _bicubic(distance: Float64[np.ndarray, "n m"]) -> Float64[np.ndarray, "n m"]:
    """Returns the kernel of Keys 1981 with a = -0.5."""
    x = np.abs(distance)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def resize_window(
    image: Image.Image, size: tuple[int, int], window: tuple[int, int, int, int]
) -> UInt8[np.ndarray, "height width 3"] | None:
    """Returns a window of the image resized to `size`; the pixels outside of it are not computed.

    Args:
      image: the stored image.
      size: (width, height) to resize to.
      window: (left, top, right, bottom) within the resized image; not empty.

    Returns:
      The pixels; None where Pillow must do it: without the compiled module, for another mode than
      RGB, for very long sides, and for an image that is not one piece of memory, as of more than
      16 MiB.
    """
    if image_kernels.compiled is None or image.mode != "RGB":
        return None
    if max(*image.size, *size) > _LONGEST_SIDE or Image.core.get_alignment() > _PIXEL_BYTES:
        return None
    try:
        pixels = image.__arrow_c_array__()[1]  # of the image's own memory: nothing is copied
    except ValueError:  # several blocks of memory
        return None
    left, top, right, bottom = window
    columns, rows = (
        weigh_axis(stored, resized) for stored, resized in zip(image.size, size, strict=True)
    )
    target = np.empty((bottom - top, right - left, 3), np.uint8)
    image_kernels.compiled.resample(
        pixels,
        *image.size,
        columns.starts[left:right],
        columns.weights[left:right],
        rows.starts[top:bottom],
        rows.weights[top:bottom],
        target,
    )
    return target
