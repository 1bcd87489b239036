"""Tests the augmentation of ImageNet: each operation by its effect, and the whole by its draws."""

import dataclasses

import downstream_files
import numpy as np
import pytest
from PIL import Image

from ofa_jax.preprocessing import classification
from ofa_jax.preprocessing.classification import OPERATIONS, apply_operation
from ofa_jax.preprocessing.downstream import DownstreamConfig, load_square_image
from ofa_jax.tokenizers.vocabulary import OFAVocabulary

RECORD = {"image": downstream_files.make_image(), "label": "great white shark"}


@pytest.fixture(scope="module")
def config(shared_golden):
    vocabulary = OFAVocabulary.from_ofa_directory(shared_golden / "bpe")
    return DownstreamConfig(vocabulary, image_size=48)


def image(value=100, size=(20, 10)):
    return Image.new("RGB", size, (value, value, value))


def gradient():
    """Returns an image whose brightness is 10 times the column."""
    return Image.fromarray(
        np.broadcast_to(10 * np.arange(20, dtype=np.uint8)[None, :, None], (10, 20, 3)).copy()
    )


def test_the_target_is_the_name_of_the_class(config):
    example = classification.classification(RECORD, np.random.default_rng(0), config)
    vocabulary = config.vocabulary
    assert vocabulary.decode(example["inputs"]) == " what does the image describe?"
    assert vocabulary.decode(example["targets"][:-1]) == " great white shark"
    assert example["image"].shape == (48, 48, 3) and example["image"].dtype == np.uint8


def test_training_images_depend_on_the_seed_and_others_are_whole(config):
    def make(seed, **change):
        given = dataclasses.replace(config, **change)
        return classification.classification(RECORD, np.random.default_rng(seed), given)["image"]

    np.testing.assert_array_equal(make(3), make(3))
    assert len({make(seed).tobytes() for seed in range(6)}) == 6
    for change in ({"training": False}, {"augment": False}):
        np.testing.assert_array_equal(make(3, **change), load_square_image(RECORD, 48))


def test_crops_have_the_configured_areas_and_aspect_ratios():
    """Measures them in an image whose colours are the coordinates."""
    width, height = 200, 120
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    coordinates = Image.fromarray(np.stack([x, y, y], -1).astype(np.uint8))
    areas, aspects = [], []
    for seed in range(300):
        window = np.asarray(
            classification.random_resized_crop(coordinates, 64, np.random.default_rng(seed))
        ).astype(int)
        # Nearly all of the window: its outermost pixels are mixed by the filter.
        w = (window[32, -1, 0] - window[32, 0, 0]) * 64 / 63
        h = (window[-1, 32, 1] - window[0, 32, 1]) * 64 / 63
        areas.append(w * h / (width * height))
        aspects.append(w / h)
    # A pixel more or less on sides of at least 38 pixels.
    assert 0.07 < min(areas) < 0.15 and max(areas) > 0.75
    assert 0.7 < min(aspects) < 0.85 and 1.18 < max(aspects) < 1.43


def test_an_image_too_thin_for_every_draw_is_cropped_at_the_centre():
    thin = Image.fromarray(np.repeat(np.arange(250, dtype=np.uint8)[None, :, None], 3, axis=2)[:1])
    window = np.asarray(classification.random_resized_crop(thin, 8, np.random.default_rng(0)))
    assert abs(int(window.mean()) - 124) <= 1


def test_a_rectangle_is_erased_in_a_quarter_of_the_images():
    grey = np.full((40, 40, 3), 7, np.uint8)
    shares = []
    for seed in range(400):
        changed = (classification.random_erase(grey, np.random.default_rng(seed)) != 7).any(-1)
        if changed.any():
            rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
            box = changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert box.mean() > 0.95  # noise hits 7 in one of hundreds
            shares.append(box.size / changed.size)
    # Five standard deviations of 400 draws of one quarter.
    assert abs(len(shares) - 100) < 5 * np.sqrt(400 * 0.25 * 0.75)
    assert 0.015 < min(shares) < 0.06 and 0.28 < max(shares) < 0.36
    assert (grey == 7).all()


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_keeps_size_and_mode_at_every_level(name):
    sample = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8))
    for level in (0.0, 4.5, 9.0, 10.0):
        for negative in (False, True):
            result = apply_operation(name, sample, level, negative)
            assert result.size == sample.size and result.mode == "RGB"


def test_strengths_grow_as_in_timm():
    def value(name, level, negative=False, of=100):
        return np.asarray(apply_operation(name, image(of), level, negative))[5, 10, 0]

    assert value("Brightness", 10) == 190 and value("Brightness", 10, True) == 10
    assert value("Brightness", 5) == 145
    assert value("Invert", 3) == 155
    # Four bits are kept at level 0, one at level 9, none at level 10.
    assert value("Posterize", 0, of=127) == 112 and value("Posterize", 9, of=255) == 128
    assert value("Posterize", 10) == 0
    # Inverted from the threshold on: 256 - 230 at level 9.
    assert value("Solarize", 9) == 155 and value("Solarize", 0) == 100
    assert value("SolarizeAdd", 9, of=100) == 199 and value("SolarizeAdd", 9, of=130) == 130
    # Contrast about the image's mean; a grey image has no colour.
    assert value("Contrast", 9) == 100 and value("Color", 9) == 100


def test_geometric_operations_have_a_direction():
    sample = gradient()

    def row(name, level, negative):
        return np.asarray(apply_operation(name, sample, level, negative)).astype(int)

    # 45 % of 20 pixels at level 10: what was nine columns to the right comes here.
    np.testing.assert_array_equal(row("TranslateX", 10, False)[5, 2:9, 0], 10 * np.arange(11, 18))
    np.testing.assert_array_equal(row("TranslateX", 10, True)[5, 11:18, 0], 10 * np.arange(2, 9))
    # Row y is sheared by 0.3 y.
    sheared = row("ShearX", 10, False)
    assert abs(sheared[9, 5, 0] - sheared[0, 5, 0] - 27) <= 2
    assert abs(row("ShearX", 10, True)[9, 9, 0] - row("ShearX", 10, True)[0, 9, 0] + 27) <= 2
    # 30 degrees at level 10: half a row's height more or less to the right.
    turned = np.asarray(apply_operation("Rotate", Image.new("RGB", (21, 21), (9, 9, 9)), 10, False))
    assert tuple(turned[0, 0]) == (124, 116, 104) and tuple(turned[10, 10]) == (9, 9, 9)
