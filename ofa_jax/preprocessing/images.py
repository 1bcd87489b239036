"""Transforms of images and their boxes, with Pillow as in the reference implementation.

An image is an RGB `PIL.Image` until `to_array` returns it as uint8 [height, width, 3]; between
resizing and cropping it is a `LazyResize`, and then perhaps a `Pixels`. Sizes are in pixels, boxes
float32 [n, 4] (see `boxes`).
The caller draws all random numbers and passes them in.
"""

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, UInt8
from PIL import Image

from ofa_jax.preprocessing import boxes as box_ops
from ofa_jax.preprocessing import resampling
from ofa_jax.preprocessing.image_files import UNREADABLE, decode, read_size, to_rgb
from ofa_jax.utils.bad_input import InvalidRecordError, Treatment, declare
from ofa_jax.utils.decode_options import AS_SEEN, AS_STORED, DecodeOptions

__all__ = [
    "AS_SEEN",
    "AS_STORED",
    "JITTER_SCALES",
    "NO_BOXES",
    "UNREADABLE",
    "DecodeOptions",
    "LazyResize",
    "Pixels",
    "blank_center",
    "center_crop",
    "center_slice",
    "check_resized_size",
    "decode",
    "horizontal_flip",
    "jitter_window",
    "large_scale_jitter",
    "object_center_crop",
    "object_window",
    "read_size",
    "resize_and_center_crop",
    "resize_shorter_side",
    "resize_to_square",
    "shorter_side_size",
    "to_array",
    "to_rgb",
]

NO_BOXES = np.zeros((0, 4), np.float32)
"""The boxes to pass with an image whose boxes do not matter."""
# How a blanked pixel is displayed; the model sees exactly 0 there (`blank_box` of an example).
_BLANK = 128

JITTER_SCALES = (1.0, 1.5)
_MAX_PIXELS = AS_SEEN.max_resized_pixels

TOO_NARROW = declare(
    "image is too long and narrow",
    Treatment.SKIPPED,
    "With its shorter side resized to the model's size, it would have more pixels than "
    "`DecodeOptions.max_resized_pixels`. Nothing is resized.",
    __name__,
)


def check_resized_size(
    stored: tuple[int, int], resized: tuple[int, int], max_pixels: int = _MAX_PIXELS
) -> None:
    """Raises InvalidRecordError if an image of (width, height) would become too large."""
    if resized[0] * resized[1] > max_pixels:
        raise InvalidRecordError(
            f"its image of {stored[0]} x {stored[1]} pixels would become {resized[0]} x "
            f"{resized[1]}; the limit is {max_pixels:,} pixels (DecodeOptions.max_resized_pixels)",
            TOO_NARROW,
        )


@dataclasses.dataclass(frozen=True)
class Pixels:
    """The pixels of an image, read-only as those of `PIL.Image` are."""

    array: UInt8[np.ndarray, "height width 3"]

    def __post_init__(self) -> None:
        self.array.setflags(write=False)

    @property
    def size(self) -> tuple[int, int]:
        """The (width, height)."""
        return self.array.shape[1], self.array.shape[0]

    def to_image(self) -> Image.Image:
        """Returns a `PIL.Image` with a copy of the pixels."""
        return Image.fromarray(self.array)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.array, dtype, copy=copy)


@dataclasses.dataclass(frozen=True)
class LazyResize:
    """A bicubic resize that is deferred until the crop is known, to compute only its pixels.

    Pillow resizes the rows, rounds to 8 bits, and then resizes the columns. Rows that do not
    contribute to the crop need no first pass, and columns outside it need no second pass; the
    compiled module of `resampling` leaves them out of both. The pixels are identical to those of
    resizing and then cropping.

    Attributes:
      image: the stored image.
      size: the (width, height) to resize to.
    """

    image: Image.Image
    size: tuple[int, int]

    @property
    def width(self) -> int:
        """The width after resizing."""
        return self.size[0]

    @property
    def height(self) -> int:
        """The height after resizing."""
        return self.size[1]

    def crop(self, window: tuple[float, float, float, float]) -> Image.Image | Pixels:
        """Returns what `PIL.Image.crop` of the resized image does: rounded, and black outside."""
        left, top, right, bottom = (round(edge) for edge in window)
        if (array := self._compute((left, top, right, bottom))) is not None:
            return Pixels(array)
        first, last = max(left, 0), min(right, self.width)
        if first >= last or self._columns_first:
            return self._resize_all().crop(window)
        above, below = self._contributing_rows(top, bottom)
        rows = self.image.crop((0, above, self.image.width, below))
        rows = rows.resize((self.width, rows.height), Image.Resampling.BICUBIC)
        # Padded with black to the stored height, so that the second pass has the same weights.
        strip = rows.crop((first, -above, last, self.image.height - above))
        strip = strip.resize((last - first, self.height), Image.Resampling.BICUBIC)
        return strip.crop((left - first, top, right - first, bottom))

    def _compute(self, window: tuple[int, int, int, int]) -> np.ndarray | None:
        """Returns the pixels of a window by the compiled module; None where it cannot."""
        left, top, right, bottom = window
        inside = 0 <= left < right <= self.width and 0 <= top < bottom <= self.height
        if not inside or self._columns_first or self.image.size == self.size:
            return None
        return resampling.resize_window(self.image, self.size, window)

    def _contributing_rows(self, top: int, bottom: int) -> tuple[int, int]:
        """Returns a range of stored rows that contains all that contribute to the resized rows."""
        scale = self.image.height / self.height
        reach = 2 * max(scale, 1.0) + 1  # of the bicubic kernel
        above = min(max(math.floor(top * scale - reach), 0), self.image.height - 1)
        below = max(min(math.ceil(bottom * scale + reach), self.image.height), above + 1)
        return above, below

    @property
    def _columns_first(self) -> bool:
        """Whether Pillow may resize the columns first, as version 13 does where it saves much."""
        width, height = self.image.size
        return height > self.height and height - self.height > 2 * (width - self.width)

    def _resize_all(self) -> Image.Image:
        return self.image.resize(self.size, Image.Resampling.BICUBIC)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self._compute((0, 0, *self.size))
        return np.asarray(self._resize_all() if array is None else array, dtype)


def to_array(image: Image.Image | LazyResize | Pixels) -> UInt8[np.ndarray, "height width 3"]:
    """Returns the pixels of an image."""
    return np.asarray(image)


def shorter_side_size(width: int, height: int, size: int, max_size: int | None) -> tuple[int, int]:
    """Returns (width, height) after resizing the shorter side to `size`.

    The longer side is rounded down and then cut to `max_size`, which changes the aspect ratio, as
    in the reference implementation.
    """
    if min(width, height) == size:
        new_width, new_height = width, height
    elif width < height:
        new_width, new_height = size, int(size * height / width)
    else:
        new_width, new_height = int(size * width / height), size
    if max_size is not None:
        new_width, new_height = min(new_width, max_size), min(new_height, max_size)
    return new_width, new_height


def resize_shorter_side(
    image: Image.Image,
    boxes: Float32[np.ndarray, "n 4"],
    size: int,
    max_size: int | None = None,
    max_pixels: int = _MAX_PIXELS,
) -> tuple[LazyResize, Float32[np.ndarray, "n 4"]]:
    """Resizes the shorter side to `size` (bicubic); see `shorter_side_size`.

    Raises:
      InvalidRecordError: the result would have more than `max_pixels` pixels.
    """
    width, height = image.size
    new_width, new_height = shorter_side_size(width, height, size, max_size)
    check_resized_size(image.size, (new_width, new_height), max_pixels)
    boxes = box_ops.scale(boxes, new_width / width, new_height / height)
    return LazyResize(image, (new_width, new_height)), boxes


def _crop(
    image: Image.Image | LazyResize,
    boxes: Float32[np.ndarray, "n 4"],
    left: float,
    top: float,
    size: int,
) -> tuple[Image.Image | Pixels, Float32[np.ndarray, "n 4"]]:
    """Crops a square.

    Pillow rounds the window to whole pixels and fills the outside with black; the boxes move by the
    exact offset, as in the reference implementation.
    """
    window = image.crop((left, top, left + size, top + size))
    return window, box_ops.crop(boxes, left, top, size, size)


def center_crop(
    image: Image.Image | LazyResize, boxes: Float32[np.ndarray, "n 4"], size: int
) -> tuple[Image.Image | Pixels, Float32[np.ndarray, "n 4"]]:
    """Crops the central `size` x `size` pixels."""
    width, height = image.size
    return _crop(image, boxes, round((width - size) / 2), round((height - size) / 2), size)


def resize_and_center_crop(
    image: Image.Image, size: int, max_pixels: int = _MAX_PIXELS
) -> Image.Image:
    """Resizes the shorter side to `size` and crops the central square.

    Raises:
      InvalidRecordError: the resized image would have more than `max_pixels` pixels.
    """
    if image.size == (size, size):
        return image
    resized, _ = resize_shorter_side(image, NO_BOXES, size, max_pixels=max_pixels)
    cropped = center_crop(resized, NO_BOXES, size)[0]
    return cropped.to_image() if isinstance(cropped, Pixels) else cropped


def resize_to_square(image: Image.Image, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Resizes the whole image to a square (bicubic), whatever its aspect ratio."""
    if image.size != (size, size):
        return to_array(LazyResize(image, (size, size)))
    return to_array(image)


def center_slice(size: int, side: int) -> slice:
    """Returns the slice of the central `side` pixels along an axis of `size` pixels."""
    start = (size - side) // 2
    return slice(start, start + side)


def blank_center(
    array: UInt8[np.ndarray, "size size 3"], side: int
) -> tuple[UInt8[np.ndarray, "size size 3"], Int32[np.ndarray, "4"]]:
    """Blanks the centre of an image, as in image infilling.

    Args:
      array: the image; it is not changed.
      side: the side of the blanked square in pixels; at most that of the image.

    Returns:
      A copy with the blank, and y0 x0 y1 x1 of what is blank.
    """
    center = center_slice(len(array), side)
    array = array.copy()
    array[center, center] = _BLANK
    return array, np.array([center.start] * 2 + [center.stop] * 2, np.int32)


def object_center_crop(
    image: Image.Image | LazyResize, boxes: Float32[np.ndarray, "n 4"], size: int
) -> tuple[Image.Image | Pixels, Float32[np.ndarray, "n 4"]]:
    """Crops `size` x `size` pixels around the first box, shifted to lie within the image."""
    return _crop(image, boxes, *object_window(boxes[0], image.size, size), size)


def object_window(
    box: Float32[np.ndarray, "4"], image_size: tuple[int, int], size: int
) -> tuple[float, float]:
    """Returns the (left, top) of `object_center_crop` in an image of (width, height)."""
    x0, y0, x1, y1 = map(float, box)

    def start(center: float, length: int) -> float:
        beyond = min(length - center - size / 2, 0)
        return max(center - size / 2 + beyond, 0)

    return start((x0 + x1) / 2, image_size[0]), start((y0 + y1) / 2, image_size[1])


def horizontal_flip(
    image: Image.Image, boxes: Float32[np.ndarray, "n 4"]
) -> tuple[Image.Image, Float32[np.ndarray, "n 4"]]:
    """Mirrors an image left to right."""
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return mirrored, box_ops.flip(boxes, image.width)


def large_scale_jitter(
    image: Image.Image,
    boxes: Float32[np.ndarray, "n 4"],
    size: int,
    scale_draw: float,
    offset_draws: tuple[float, float],
    max_pixels: int = _MAX_PIXELS,
) -> tuple[Image.Image | Pixels, Float32[np.ndarray, "n 4"]]:
    """Resizes the shorter side to 1.0-1.5 times `size` and crops `size` x `size` anywhere.

    This is the large-scale jitter of Ghiasi et al. 2021 (Copy-Paste), with OFA's range of scales.

    Args:
      image: the image.
      boxes: its boxes.
      size: the side of the result.
      scale_draw: in [0, 1), the position in the range of scales.
      offset_draws: in [0, 1), the (vertical, horizontal) position of the crop.
      max_pixels: the limit on the pixels of the resized image.

    Returns:
      The image and all boxes; those outside have no area.

    Raises:
      InvalidRecordError: the resized image would have more than `max_pixels` pixels.
    """
    extent = np.array(image.size[::-1], np.float32)
    scaled, offsets = jitter_window(image.size, size, scale_draw, offset_draws)
    resized = int(scaled[1]), int(scaled[0])
    check_resized_size(image.size, resized, max_pixels)
    ratio_height, ratio_width = scaled.astype(np.float32) / extent
    boxes = box_ops.scale(boxes, ratio_width, ratio_height)
    return _crop(LazyResize(image, resized), boxes, int(offsets[1]), int(offsets[0]), size)


def jitter_window(
    image_size: tuple[int, int], size: int, scale_draw: float, offset_draws: tuple[float, float]
) -> tuple[Int32[np.ndarray, "2"], Int32[np.ndarray, "2"]]:
    """Computes the resize and the crop of `large_scale_jitter` for an image of (width, height).

    Returns:
      The (height, width) to resize to, and the (top, left) of the crop.
    """
    # float32 throughout, as in the reference implementation: one rounding moves a box by a pixel.
    low, high = JITTER_SCALES
    target = np.round(
        np.float32(size) * (np.float32(scale_draw) * np.float32(high - low) + np.float32(low))
    )
    extent = np.array(image_size[::-1], np.float32)
    scaled = np.round(extent * np.max(target / extent))
    scaled = np.minimum(scaled, np.float32(2**30)).astype(np.int32)
    offsets = np.floor((scaled - size) * np.asarray(offset_draws, np.float32))
    return scaled, offsets.astype(np.int32)
