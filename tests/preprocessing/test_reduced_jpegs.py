"""`ObjectiveConfig.reduced_jpegs`: large JPEGs are decoded at a reduced scale, and nothing else."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from ofa_jax.preprocessing import images, objectives
from ofa_jax.utils.bad_input import InvalidRecordError

LARGE, SMALL = (1280, 960), (640, 480)


def photograph(size, kind="JPEG"):
    """Returns a file of smooth colours with some detail; of the same content at every size."""
    coarse = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("at_least", "size"),
    [(None, (1280, 960)), (961, (1280, 960)), (481, (1280, 960)), (480, (640, 480)),
     (240, (320, 240)), (120, (160, 120)), (1, (160, 120))],
)  # fmt: skip
def test_both_sides_have_as_many_pixels_as_are_asked_for(at_least, size):
    assert images.decode(photograph(LARGE), at_least=at_least).size == size


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP"])
def test_other_formats_are_decoded_as_they_are(kind):
    assert images.decode(photograph(LARGE, kind), at_least=100).size == LARGE


def test_a_damaged_jpeg_is_refused_at_every_scale():
    for at_least in (None, 100):
        with pytest.raises(InvalidRecordError, match="cannot be decoded"):
            images.decode(photograph(LARGE)[:5000], at_least=at_least)


def caption(config, size, **options):
    record = {"image": photograph(size), "captions": ["a cat"], "data_set": "coco"}
    rng = np.random.default_rng(5)
    config = dataclasses.replace(config, **options)
    return objectives.image_captioning(record, rng, config), rng.random()


def test_captions_of_large_images_differ_by_little(config):
    exact, after = caption(config, LARGE)
    reduced, also_after = caption(config, LARGE, reduced_jpegs=True)
    assert after == also_after  # the same draws
    difference = np.abs(exact["image"].astype(int) - reduced["image"].astype(int))
    assert exact["image"].shape == reduced["image"].shape == (384, 384, 3)
    assert 0 < difference.max() and difference.mean() < 2
    np.testing.assert_array_equal(exact["targets"], reduced["targets"])


def test_small_images_and_evaluation_are_bitwise_the_same(config):
    for size, options in ((SMALL, {}), (LARGE, {"training": False})):
        exact, _ = caption(config, size, **options)
        reduced, _ = caption(config, size, reduced_jpegs=True, **options)
        np.testing.assert_array_equal(exact["image"], reduced["image"])
