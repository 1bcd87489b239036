"""Converts an image and an instruction to the features of a model.

Images are resized as a whole to a square, as in the downstream tasks; boxes are given in pixels of
the given image. Only image infilling crops the image to a square, as in training.
"""

import dataclasses
import itertools
import math
import os
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
from jaxtyping import Float64, Int32, UInt8
from PIL import Image

from ofa_jax.data.features import Example
from ofa_jax.evaluation.postprocess import BoxTransform
from ofa_jax.inference.presets import DecodePreset
from ofa_jax.model.config import PIXELS_PER_CODE
from ofa_jax.preprocessing import images, instructions
from ofa_jax.preprocessing.examples import make_example
from ofa_jax.preprocessing.images import AS_SEEN, DecodeOptions
from ofa_jax.preprocessing.records import InvalidRecordError
from ofa_jax.tokenizers.processor import Processor
from ofa_jax.utils import files, wrong_files
from ofa_jax.utils.bad_input import Treatment, declare
from ofa_jax.utils.excerpts import excerpt

BAD_REGION = declare(
    "bad region",
    Treatment.SKIPPED,
    "The region of a request is not a box x0, y0, x1, y1 within the image; it may lie outside by a "
    "pixel.",
    __name__,
)

Box = Sequence[float]
"""x0, y0, x1, y1 in pixels of the given image."""


@dataclasses.dataclass(frozen=True)
class Request:
    """An input of the model.

    Attributes:
      instruction: see `ofa_jax.preprocessing.instructions`.
      image: an RGB image, or None.
      region: a box that the instruction refers to, or None.
    """

    instruction: str
    image: Image.Image | None = None
    region: Box | None = None


def open_image(source: Any, options: DecodeOptions = AS_SEEN) -> Image.Image | None:
    """Opens an image from a path, bytes, a PIL image, or uint8 [H, W, 3], [H, W, 4] or [H, W].

    Args:
      source: the image; None for none.
      options: how it is decoded, and how large it may be.

    Raises:
      FileNotFoundError, ValueError: it is none of these.
    """
    if source is None:
        return None
    if isinstance(source, str | os.PathLike):
        return images.decode(_read_image(source, options), options)
    if isinstance(source, bytes | bytearray | memoryview):
        return images.decode(bytes(source), options)
    if not isinstance(source, Image.Image):
        source = _from_array(source)
    if not all(source.size):
        raise ValueError(
            f"The image has {source.width} x {source.height} pixels, so there is nothing to see."
        )
    return images.to_rgb(source, options)


def _read_image(path: str | os.PathLike, options: DecodeOptions) -> bytes:
    """Reads a file. Raises FileNotFoundError or ValueError, which say what is wrong with it."""
    try:
        return files.read_bytes(os.fspath(path), options.max_encoded_bytes)
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no image {_shown(path)}.") from None
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or error
        raise ValueError(f"The image {_shown(path)} cannot be read: {problem}.") from error


def _shown(path: str | os.PathLike) -> str:
    """Returns a path as messages show it: whole, unless no file system takes it."""
    return wrong_files.shorten(os.fspath(path), 1000)


def _from_array(source: Any) -> Image.Image:
    """Converts an array of pixels. Raises ValueError if it is something else."""
    # Arrays of other libraries have the method; lists and file objects do not.
    if not hasattr(source, "__array__") or isinstance(source, type):
        raise ValueError(
            f"The image is a {type(source).__name__}; give a path, encoded bytes, a PIL image, an "
            "array uint8 [height, width, 3], or None."
        )
    array = np.asarray(source)
    if (
        array.dtype != np.uint8
        or array.ndim not in (2, 3)
        or array.shape[2:] not in ((), (3,), (4,))
    ):
        raise ValueError(
            f"An image is uint8 [height, width, 3], not {array.dtype}{list(array.shape)}: "
            "scale its values to 0..255 and put the channels last."
        )
    if not array.size:
        raise ValueError(
            f"The image {list(array.shape)} has no pixels, so there is nothing to see."
        )
    return Image.fromarray(np.ascontiguousarray(array))


def encode_request(
    request: Request, processor: Processor, preset: DecodePreset
) -> tuple[Example, BoxTransform | None]:
    """Converts a request to an example (see `data.features`).

    Args:
      request: instruction, image and region.
      processor: vocabulary and image sizes of the model.
      preset: how the image is preprocessed.

    Returns:
      The example, and the transform from its image to the given one; None without an image.

    Raises:
      ValueError: the instruction or the region cannot be used.
    """
    optional: dict[str, Any] = {"code_mask": np.bool_(preset.code_grid > 0)}
    pixels, transform = None, None
    if request.image is not None:
        pixels, transform = _preprocess_image(request.image, preset)
    if preset.infills_center:
        if pixels is None:
            raise ValueError("Image infilling needs an image, but there is no image.")
        pixels, optional["blank_box"] = _blank_center(pixels, preset.code_grid * PIXELS_PER_CODE)
    region = None
    if request.region is not None:
        if request.image is None or transform is None:
            raise ValueError("There is a region, but no image that it lies in.")
        region = _encode_region(request.region, request.image.size, transform, processor)
    parts = instructions.encode(processor.vocabulary, request.instruction, region)
    return make_example(processor.vocabulary, parts, (), pixels, **optional), transform


def _preprocess_image(
    image: Image.Image, preset: DecodePreset
) -> tuple[UInt8[np.ndarray, "size size 3"], BoxTransform]:
    """Resizes an image to the model's size."""
    size = preset.image_size
    if preset.infills_center:
        width, height = image.size
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        transform = BoxTransform((left, top, left + side, top + side), (size, size))
        return images.to_array(images.resize_and_center_crop(image, size)), transform
    transform = BoxTransform.of_whole_image(image.size, (size, size))
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return images.to_array(image), transform


def _blank_center(
    pixels: UInt8[np.ndarray, "size size 3"], side: int
) -> tuple[UInt8[np.ndarray, "size size 3"], Int32[np.ndarray, "4"]]:
    """Hides the centre of an image; returns its box, too."""
    if side > len(pixels):
        raise ValueError(
            f"The centre of {side} pixels a side is larger than an image of {len(pixels)}: raise "
            "infill_image_size."
        )
    return images.blank_center(pixels, side)


def _encode_region(
    region: Box, image_size: tuple[int, int], transform: BoxTransform, processor: Processor
) -> Int32[np.ndarray, "4"]:
    """Returns the location bins of a box in the given image of (width, height) pixels."""
    width, height = image_size
    box = _parse_box(region)
    clipped_to_image = np.clip(box, 0, np.array([width, height] * 2))
    if (
        not np.isfinite(box).all()
        or (box[:2] >= box[2:]).any()
        or (np.abs(box - clipped_to_image) > 1).any()
        or (clipped_to_image[:2] >= clipped_to_image[2:]).any()
    ):
        raise InvalidRecordError(
            f"The region {excerpt(region)} is not a box x0, y0, x1, y1 within the image of "
            f"{width} x {height} pixels.",
            BAD_REGION,
        )
    clipped = np.clip(transform.to_model(box), 0, np.array(transform.size * 2))
    return processor.vocabulary.encode_box(clipped, processor.max_image_size)


def _parse_box(region: Any) -> Float64[np.ndarray, "4"]:
    """Returns the four numbers of a region; NaN if it is something else."""
    invalid = np.full(4, np.nan)
    # The letters of a text and the keys of a dict are no coordinates.
    if isinstance(region, str | bytes | Mapping | Set):
        return invalid
    try:
        numbers = list(itertools.islice(region, 5))
        box = np.array([math.nan if isinstance(n, bool) else float(n) for n in numbers])
    except (TypeError, ValueError, OverflowError):
        return invalid
    return box if box.shape == (4,) else invalid
