"""Tests RandAugment's operations against golden pixels, bit for bit."""

import numpy as np
import pytest

from ofa_jax.preprocessing import randaugment


@pytest.fixture(scope="module")
def expected(golden):
    return np.load(golden / "preprocess" / "randaugment_ops.npz")


@pytest.mark.parametrize("name", list(randaugment.OPERATIONS))
@pytest.mark.parametrize("draw", [0.0, 0.9])
def test_every_operation_gives_the_golden_pixels(expected, name, draw):
    result = randaugment.apply_operation(name, expected["input"], 7, draw)
    np.testing.assert_array_equal(result, expected[f"{name}_r{draw}"])


@pytest.mark.parametrize("name", ["AutoContrast", "Equalize", "Sharpness", "Brightness"])
def test_operations_on_low_contrast_give_the_golden_pixels(expected, name):
    result = randaugment.apply_operation(name, expected["input_lowcontrast"], 7, 0.0)
    np.testing.assert_array_equal(result, expected[f"{name}_lowcontrast"])


@pytest.mark.parametrize("name", list(randaugment.OPERATIONS))
def test_a_flat_image_is_accepted(name):
    flat = np.full((16, 24, 3), 77, np.uint8)
    result = randaugment.apply_operation(name, flat, 7, 0.0)
    assert result.shape == flat.shape and result.dtype == np.uint8


def test_the_result_depends_on_the_generator_alone(expected):
    image = expected["input"]
    results = [randaugment.randaugment(image, np.random.default_rng(seed)) for seed in range(40)]
    again = [randaugment.randaugment(image, np.random.default_rng(seed)) for seed in range(40)]
    for first, second in zip(results, again, strict=True):
        np.testing.assert_array_equal(first, second)
    changed = sum(not np.array_equal(result, image) for result in results)
    # Two operations are applied with probability one half each, and Identity changes nothing: an
    # image is unchanged with probability (1 - 0.45)^2 = 0.30. 40 draws are within 5 standard
    # deviations (2.9).
    assert abs(changed - 40 * 0.70) < 5 * 2.9


@pytest.mark.parametrize("name", ["TranslateX", "TranslateY"])
@pytest.mark.parametrize("level", range(11))
@pytest.mark.parametrize("draw", [0.0, 0.9])
def test_shifting_by_whole_pixels_is_opencvs_translation(name, level, draw, monkeypatch):
    image = np.random.default_rng(level).integers(0, 256, (23, 31, 3), np.uint8)
    found = randaugment.apply_operation(name, image, level, draw)
    monkeypatch.setattr(
        randaugment,
        "_shift",
        lambda image, up, left: randaugment._affine(
            image, np.array([[1, 0, -left], [0, 1, -up]], np.float32)
        ),
    )
    expected = randaugment.apply_operation(name, image, level, draw)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("offset", [-40, -23, 0, 22, 23, 90])
def test_an_image_shifted_out_of_sight_is_grey(offset):
    image = np.random.default_rng(0).integers(0, 100, (23, 23, 3), np.uint8)
    for shift in (randaugment.translate_x, randaugment.translate_y):
        grey = (shift(image, offset) == randaugment.FILL).all()
        assert grey == (abs(offset) >= 23)
