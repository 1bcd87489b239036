"""Tests resizing, cropping and jittering against golden pixels and boxes."""

import io

import numpy as np
import pytest
from PIL import Image

from ofa_jax.preprocessing import images
from ofa_jax.preprocessing.boxes import as_boxes, flip, nonempty
from ofa_jax.preprocessing.records import InvalidRecordError


@pytest.fixture(scope="module")
def resized(golden):
    return np.load(golden / "preprocess" / "resize.npz")


def make_image(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def test_sizes_and_boxes_are_the_golden_ones(resized):
    for row in resized["resize_table_w_h_size_max_ow_oh_box"]:
        width, height, size, max_size, new_width, new_height = (int(value) for value in row[:6])
        limit = max_size if max_size > 0 else None
        image, boxes = images.resize_shorter_side(
            Image.new("RGB", (width, height)), as_boxes([10, 20, 100, 150]), size, limit
        )
        assert image.size == (new_width, new_height), row
        np.testing.assert_array_equal(boxes[0], row[6:].astype(np.float32))


@pytest.mark.parametrize("name", ["96x80_to_60x50", "96x80_to_130x111", "60x90_to_64x64"])
def test_bicubic_pixels_are_the_golden_ones(resized, name):
    source, _, target = name.partition("_to_")
    expected = resized[f"bicubic_{name}"]
    image = Image.fromarray(resized[f"bicubic_in_{source}"])
    width, height = map(int, target.split("x"))
    result = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("seed", range(60))
def test_cropping_a_lazy_resize_gives_the_pixels_of_resizing_first(seed):
    """Tests enlarging and shrinking of one or both sides, and windows in and beyond the image."""
    rng = np.random.default_rng(seed)
    width, height = (int(side) for side in rng.integers(20, 90, 2))
    size = tuple(int(side) for side in rng.integers(15, 110, 2))
    if seed % 4 == 0:
        size = (width, size[1]) if seed % 8 else (size[0], height)
    if seed == 19:
        size = (width, height)
    stored = make_image(width, height, seed)
    resized, expected = (
        images.LazyResize(stored, size),
        stored.resize(size, Image.Resampling.BICUBIC),
    )
    np.testing.assert_array_equal(images.to_array(resized), np.asarray(expected))
    for _ in range(5):
        left, top = rng.uniform(-20, 60, 2).round(1)
        window = (left, top, left + rng.integers(1, 60), top + rng.integers(1, 60))
        found = resized.crop(window)
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected.crop(window)))


@pytest.mark.parametrize("seed", range(5))
def test_an_object_lies_in_the_crop_around_it(seed):
    rng = np.random.default_rng(seed)
    width, height, size = 200, 150, 96
    x0, y0 = rng.uniform(0, width - 60), rng.uniform(0, height - 60)
    box = as_boxes([x0, y0, x0 + rng.uniform(5, 60), y0 + rng.uniform(5, 60)])
    image, cropped = images.object_center_crop(make_image(width, height, seed), box, size)
    assert image.size == (size, size)
    # No part of the object is cropped. The window's offset is exact, so only float32 rounds.
    before, after = box[0, 2:] - box[0, :2], cropped[0, 2:] - cropped[0, :2]
    np.testing.assert_allclose(after, before, atol=200 * 2**-22)


def test_flipping_twice_changes_nothing():
    image, boxes = make_image(40, 30), as_boxes([[1, 2, 8, 9], [0, 0, 40, 30]])
    flipped, flipped_boxes = images.horizontal_flip(image, boxes)
    np.testing.assert_array_equal(np.asarray(flipped)[:, ::-1], np.asarray(image))
    np.testing.assert_array_equal(flipped_boxes[0], [32, 2, 39, 9])
    np.testing.assert_array_equal(flip(flipped_boxes, 40), boxes)


@pytest.mark.parametrize("seed", range(5))
def test_jittered_boxes_lie_inside(seed):
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.uniform(0, 90, (6, 2, 2)), axis=1)
    boxes = as_boxes(corners.reshape(6, 4))
    image, jittered = images.large_scale_jitter(
        make_image(120, 90), boxes, 64, rng.random(), tuple(rng.random(2))
    )
    assert image.size == (64, 64)
    assert jittered.min() >= 0 and jittered.max() <= 64
    assert len(jittered) == 6 and nonempty(jittered).any()


def test_central_jitter_at_the_smallest_scale_is_a_resize():
    image, boxes = images.large_scale_jitter(
        make_image(96, 96), as_boxes([0, 0, 96, 48]), 64, 0.0, (0.5, 0.5)
    )
    expected = make_image(96, 96).resize((64, 64), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))
    np.testing.assert_array_equal(boxes[0], [0, 0, 64, 32])


def test_grey_and_transparent_images_become_rgb():
    for mode in ("L", "RGBA", "P"):
        buffer = io.BytesIO()
        make_image(8, 8).convert(mode).save(buffer, "PNG")
        assert images.decode(buffer.getvalue()).mode == "RGB"


@pytest.mark.parametrize("encoded", [b"", b"no image", b"\x89PNG\r\n\x1a\n corrupt"])
def test_bytes_that_are_not_an_image_make_a_record_invalid(encoded):
    with pytest.raises(InvalidRecordError, match="cannot be decoded"):
        images.decode(encoded)
