"""Converts an image and an instruction to the features of a model.

Images are resized as a whole to a square, as in the downstream tasks; boxes are given in pixels of
the given image. Only image infilling crops the image to a square, as in training.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from ofa_jax.data.features import Example
from ofa_jax.evaluation.postprocess import BoxTransform
from ofa_jax.inference.presets import DecodePreset
from ofa_jax.model.config import PIXELS_PER_CODE
from ofa_jax.preprocessing import images, instructions
from ofa_jax.preprocessing.examples import make_example
from ofa_jax.tokenizers.processor import Processor

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


def open_image(source: Any) -> Image.Image | None:
    """Opens an image from a path, encoded bytes, a PIL image, or uint8 [H, W, 3] or [H, W].

    Raises:
      FileNotFoundError, ValueError: it is none of these.
    """
    if source is None:
        return None
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    if isinstance(source, bytes):
        return images.decode(source)
    if isinstance(source, np.ndarray):
        if (
            source.dtype != np.uint8
            or source.ndim not in (2, 3)
            or source.shape[2:] not in ((), (3,), (4,))
        ):
            raise ValueError(
                f"An image is uint8 [height, width, 3], not {source.dtype}{list(source.shape)}: "
                "scale its values to 0..255 and put the channels last."
            )
        return Image.fromarray(source).convert("RGB")
    try:
        with open(source, "rb") as file:
            encoded = file.read()
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no image {source}.") from None
    return images.decode(encoded)


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
    try:
        box = np.array([float(coordinate) for coordinate in region])
    except (TypeError, ValueError):
        box = np.zeros(0)
    width, height = image_size
    limits = np.array([width, height] * 2)
    if (
        box.shape != (4,)
        or not np.isfinite(box).all()
        or (box[:2] >= box[2:]).any()
        or ((box < -1) | (box > limits + 1)).any()
    ):
        raise ValueError(
            f"The region {region} is not a box x0, y0, x1, y1 within the image of {width} x "
            f"{height} pixels."
        )
    clipped = np.clip(transform.to_model(box), 0, np.array(transform.size * 2))
    return processor.vocabulary.encode_box(clipped, processor.max_image_size)
