"""Image transforms that take boxes along, computed by Pillow as the original does.

An image is an RGB `PIL.Image` until `pixels` makes it uint8 [H, W, 3]; between resizing and
cropping it is a `Resized`. Sizes are in pixels, boxes float32 [K, 4] (see `boxes`). Whatever is
random is drawn by the caller and handed in.
"""

import dataclasses
import io
import math
from typing import Any

import numpy as np
from PIL import Image

from ofa_jax.preprocessing import boxes as box_ops
from ofa_jax.preprocessing.records import InvalidRecordError

NO_BOXES = np.zeros((0, 4), np.float32)
"""Of an image of which no box is wanted."""
# What a blanked pixel looks like to the eye; the model sees exactly 0 there (`blank_box`).
_BLANK = 128

# The original turns Pillow's guard against decompression bombs off as well: pretraining data has
# large scans in it.
Image.MAX_IMAGE_PIXELS = None

JITTER_SCALES = (1.0, 1.5)


def decode(encoded: bytes) -> Image.Image:
    """Any format that Pillow opens to an RGB image.

    Raises:
      InvalidRecordError: the bytes are no image, or a torn one.
    """
    try:
        image = Image.open(io.BytesIO(encoded))
        if image.mode != "RGB":
            return image.convert("RGB")
        image.load()
        return image
    except Exception as error:  # noqa: BLE001  Pillow's decoders raise whatever they stumble over
        raise InvalidRecordError(
            f"its image cannot be decoded ({type(error).__name__}: {error})"
        ) from error


@dataclasses.dataclass(frozen=True)
class Resized:
    """An image to be resized, bicubically, once it is known what of it is wanted.

    Pillow resizes along the rows, rounds to 8 bits, and then along the columns. Rows that no pixel
    of the window looks at need no first pass, and columns that are cropped away no second one: the
    pixels are those of resizing and then cropping, bit for bit.

    Attributes:
      image: as it is stored.
      size: (width, height) that it is resized to.
    """

    image: Image.Image
    size: tuple[int, int]

    @property
    def width(self) -> int:
        return self.size[0]

    @property
    def height(self) -> int:
        return self.size[1]

    def crop(self, window: tuple[float, float, float, float]) -> Image.Image:
        """As `PIL.Image.crop` of the resized image: rounded, and black outside."""
        left, top, right, bottom = (round(edge) for edge in window)
        first, last = max(left, 0), min(right, self.width)
        if first >= last or self._columns_first:
            return self._whole().crop(window)
        above, below = self._rows_behind(top, bottom)
        rows = self.image.crop((0, above, self.image.width, below))
        rows = rows.resize((self.width, rows.height), Image.Resampling.BICUBIC)
        # As high as before, black where it does not matter: the second pass is the same.
        strip = rows.crop((first, -above, last, self.image.height - above))
        strip = strip.resize((last - first, self.height), Image.Resampling.BICUBIC)
        return strip.crop((left - first, top, right - first, bottom))

    def _rows_behind(self, top: int, bottom: int) -> tuple[int, int]:
        """The stored rows, and some more, that the resized rows from top to bottom are made of."""
        scale = self.image.height / self.height
        reach = 2 * max(scale, 1.0) + 1  # of the bicubic kernel
        above = min(max(math.floor(top * scale - reach), 0), self.image.height - 1)
        below = max(min(math.ceil(bottom * scale + reach), self.image.height), above + 1)
        return above, below

    @property
    def _columns_first(self) -> bool:
        """Whether Pillow may take the other order: 13 does, where that saves much."""
        width, height = self.image.size
        return height > self.height and height - self.height > 2 * (width - self.width)

    def _whole(self) -> Image.Image:
        return self.image.resize(self.size, Image.Resampling.BICUBIC)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._whole(), dtype)


def pixels(image: Image.Image | Resized) -> np.ndarray:
    """uint8 [H, W, 3]."""
    return np.asarray(image)


def shorter_side_size(width: int, height: int, size: int, max_size: int | None) -> tuple[int, int]:
    """(width, height) after resizing the shorter side to `size`.

    The longer side is rounded down and then cut to `max_size`, which changes the aspect: the
    original does so.
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


def resize(
    image: Image.Image, boxes: np.ndarray, size: int, max_size: int | None = None
) -> tuple[Resized, np.ndarray]:
    """Resizes the shorter side to `size` (bicubic); see `shorter_side_size`."""
    width, height = image.size
    new_width, new_height = shorter_side_size(width, height, size, max_size)
    image = Resized(image, (new_width, new_height))
    return image, box_ops.scale(boxes, new_width / width, new_height / height)


def _crop(
    image: Image.Image | Resized, boxes: np.ndarray, left: float, top: float, size: int
) -> tuple[Image.Image, np.ndarray]:
    # Pillow rounds the window to whole pixels and fills what lies outside with black; the boxes
    # move by the exact offset, as in the original.
    window = image.crop((left, top, left + size, top + size))
    return window, box_ops.crop(boxes, left, top, size, size)


def center_crop(
    image: Image.Image | Resized, boxes: np.ndarray, size: int
) -> tuple[Image.Image, np.ndarray]:
    """The middle `size` x `size` pixels."""
    width, height = image.size
    return _crop(image, boxes, round((width - size) / 2), round((height - size) / 2), size)


def square(image: Image.Image, size: int) -> Image.Image:
    """The image made as small as it fills a square of `size` pixels a side, and its middle."""
    if image.size == (size, size):
        return image
    resized, _ = resize(image, NO_BOXES, size)
    return center_crop(resized, NO_BOXES, size)[0]


def middle(size: int, side: int) -> slice:
    """Where, along an axis of `size` pixels, the middle `side` pixels lie."""
    start = (size - side) // 2
    return slice(start, start + side)


def blank_middle(array: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """An image without its middle, and where that was.

    Args:
      array: uint8 [S, S, 3].
      side: of the middle, in pixels; at most S.

    Returns:
      uint8 [S, S, 3], a copy; int32 [4], y0 x0 y1 x1 of what is blank.
    """
    place = middle(len(array), side)
    array = array.copy()
    array[place, place] = _BLANK
    return array, np.array([place.start] * 2 + [place.stop] * 2, np.int32)


def object_center_crop(
    image: Image.Image | Resized, boxes: np.ndarray, size: int
) -> tuple[Image.Image, np.ndarray]:
    """`size` x `size` pixels around the first box, moved to lie within the image."""
    return _crop(image, boxes, *object_window(boxes[0], image.size, size), size)


def object_window(box: np.ndarray, image_size: tuple[int, int], size: int) -> tuple[float, float]:
    """(left, top) of what `object_center_crop` cuts out of an image of (width, height)."""
    x0, y0, x1, y1 = map(float, box)

    def start(center: float, length: int) -> float:
        beyond = min(length - center - size / 2, 0)
        return max(center - size / 2 + beyond, 0)

    return start((x0 + x1) / 2, image_size[0]), start((y0 + y1) / 2, image_size[1])


def horizontal_flip(image: Image.Image, boxes: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    """Mirrors left to right."""
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return mirrored, box_ops.flip(boxes, image.width)


def large_scale_jitter(
    image: Image.Image,
    boxes: np.ndarray,
    size: int,
    scale_draw: float,
    offset_draws: tuple[float, float],
) -> tuple[Image.Image, np.ndarray]:
    """Resizes to 1.0-1.5 times `size` (shorter side) and crops `size` x `size` anywhere.

    Ghiasi et al. 2021 (Copy-Paste), with the range that OFA uses for detection.

    Args:
      image, boxes: the image.
      size: of the result.
      scale_draw: in [0, 1), where in the range of scales.
      offset_draws: in [0, 1), where to crop: (vertical, horizontal).

    Returns:
      The image and all boxes; those outside have no area.
    """
    extent = np.array(image.size[::-1], np.float32)
    scaled, offsets = jitter_window(image.size, size, scale_draw, offset_draws)
    image = image.resize((int(scaled[1]), int(scaled[0])), Image.Resampling.BICUBIC)
    ratio_height, ratio_width = scaled.astype(np.float32) / extent
    boxes = box_ops.scale(boxes, ratio_width, ratio_height)
    return _crop(image, boxes, int(offsets[1]), int(offsets[0]), size)


def jitter_window(
    image_size: tuple[int, int], size: int, scale_draw: float, offset_draws: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """To what `large_scale_jitter` resizes an image of (width, height), and where it cuts.

    Returns:
      (height, width) and (top, left), int32 [2] each.
    """
    # float32 throughout, as the original: a rounding apart moves a box by a pixel.
    low, high = JITTER_SCALES
    target = np.round(
        np.float32(size) * (np.float32(scale_draw) * np.float32(high - low) + np.float32(low))
    )
    extent = np.array(image_size[::-1], np.float32)
    scaled = np.round(extent * np.max(target / extent)).astype(np.int32)
    offsets = np.floor((scaled - size) * np.asarray(offset_draws, np.float32))
    return scaled, offsets.astype(np.int32)
