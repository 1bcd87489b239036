"""The images of pairs and regions, which the two examples of a record may share.

See `image_sharing`: an image depends on the record and on what is drawn here alone.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from ofa_jax.preprocessing import image_sharing, images, record_regions
from ofa_jax.preprocessing import record_fields as fields
from ofa_jax.preprocessing.objective_config import ObjectiveConfig
from ofa_jax.preprocessing.randaugment import randaugment
from ofa_jax.preprocessing.records import Record
from ofa_jax.preprocessing.text import clean_caption

__all__ = ["Region", "load_image", "sample_region", "view_of"]


def load_image(
    record: Record, rng: np.random.Generator, config: ObjectiveConfig
) -> UInt8[np.ndarray, "size size 3"]:
    """Returns the image of a pair: decoded, resized, cropped and augmented."""
    name = ("pair", *_image_options(config))
    return image_sharing.shared(name, rng, lambda rng: _make_image(record, rng, config))


def _make_image(
    record: Record, rng: np.random.Generator, config: ObjectiveConfig
) -> UInt8[np.ndarray, "size size 3"]:
    """Makes the image of a pair."""
    size = _sample_size(rng, config)
    at_least = size if config.reduced_jpegs and config.training else None
    resized, _ = images.resize_shorter_side(
        fields.decode_image(record, config.decode_options, at_least),
        images.NO_BOXES,
        size,
        config.resize_max_size,
        config.decode_options.max_resized_pixels,
    )
    image, _ = images.center_crop(resized, images.NO_BOXES, config.image_size)
    array = images.to_array(image)
    return randaugment(array, rng) if config.training and config.randaugment else array


def _image_options(config: ObjectiveConfig) -> tuple[Any, ...]:
    """Returns what an image depends on besides its record and the draws."""
    sizes = config.image_size, *config.resize_range, config.resize_max_size, config.max_image_size
    return (
        *sizes,
        config.decode_options,
        config.randaugment,
        config.reduced_jpegs,
        config.training,
    )


class Region(NamedTuple):
    """A phrase with its box and the image that is cropped around the box.

    Attributes:
      phrase: as the record has it.
      bins: ids of the box.
      image: cropped around the box.
      view: see `view_of`.
    """

    phrase: str
    bins: Int32[np.ndarray, "4"]
    image: UInt8[np.ndarray, "size size 3"]
    view: Float32[np.ndarray, "4"]


def sample_region(record: Record, rng: np.random.Generator, config: ObjectiveConfig) -> Region:
    """Samples a phrase of a record, and crops the image around its box."""
    name = ("region", *_image_options(config))
    return image_sharing.shared(name, rng, lambda rng: _make_region(record, rng, config))


def _make_region(record: Record, rng: np.random.Generator, config: ObjectiveConfig) -> Region:
    """Samples a phrase and crops the image around it."""
    image = fields.decode_image(record, config.decode_options)
    phrases, boxes = record_regions.usable_regions(
        record, image.size, "phrases", "phrase_boxes", clean_caption
    )
    index = int(rng.integers(len(phrases)))
    size = _sample_size(rng, config)
    resized, box = images.resize_shorter_side(
        image,
        boxes[index : index + 1],
        size,
        config.resize_max_size,
        config.decode_options.max_resized_pixels,
    )
    window = images.object_window(box[0], resized.size, config.image_size)
    view = view_of(image.size, resized.size, window, config.image_size)
    cropped, box = images.object_center_crop(resized, box, config.image_size)
    bins = config.vocabulary.encode_box(box[0], config.max_image_size)
    return Region(phrases[index], bins, images.to_array(cropped), view)


def view_of(
    stored: tuple[int, int], resized: tuple[int, int], window: tuple[float, float], size: int
) -> Float32[np.ndarray, "4"]:
    """Returns x0 y0 x1 y1 of a window of the resized image, in pixels of the stored image."""
    left, top = window
    corners = np.array([left, top, left + size, top + size])
    return (corners * np.array(stored * 2) / np.array(resized * 2)).astype(np.float32)


def _sample_size(rng: np.random.Generator, config: ObjectiveConfig) -> int:
    """Samples the length of the shorter side; returns the smallest one outside of training."""
    low, high = config.resize_range
    return int(rng.integers(low, high + 1)) if config.training else low
