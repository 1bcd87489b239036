"""Tests that the compiled loops over pixels have the bits of Pillow and numpy."""

import concurrent.futures
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ofa_jax.preprocessing import image_kernels, images, randaugment, resampling

ROOT = pathlib.Path(__file__).resolve().parents[2]

compiled = pytest.mark.skipif(
    image_kernels.compiled is None,
    reason="The compiled module is not built: `pip install --no-deps --editable .` builds it.",
)


def make_image(width, height, seed=0, kind="noise"):
    """Makes an image whose resized values overshoot (`extremes`), or not."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    if kind == "extremes":
        pixels = np.where(pixels < 128, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels)


def resize_with_pillow(image, size, window):
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC).crop(window))


@compiled
@pytest.mark.parametrize("kind", ["noise", "extremes"])
def test_windows_have_pillows_bits(kind):
    rng = np.random.default_rng(1)
    resized = 0
    for seed in range(150):
        # From enlarging eight times to taking one pixel of fifty.
        width, height = (int(side) for side in rng.integers(1, 120, 2))
        size = tuple(int(side) for side in rng.integers(1, 150, 2))
        image = make_image(width, height, seed, kind)
        left, top = (int(rng.integers(0, side)) for side in size)
        window = (
            left,
            top,
            *(
                int(rng.integers(at + 1, side + 1))
                for at, side in zip((left, top), size, strict=True)
            ),
        )
        if images.LazyResize(image, size)._columns_first:
            continue
        resized += 1
        found = resampling.resize_window(image, size, window)
        np.testing.assert_array_equal(found, resize_with_pillow(image, size, window))
    assert resized > 80


@compiled
@pytest.mark.parametrize("size", [384, 401, 432, 479])
def test_the_sizes_of_pretraining_have_pillows_bits(size):
    image = make_image(640, 480, size, "extremes")
    resized, _ = images.resize_shorter_side(image, images.NO_BOXES, size, 672)
    left, top = (resized.width - 384) // 2, (resized.height - 384) // 2
    window = (left, top, left + 384, top + 384)
    found = resampling.resize_window(image, resized.size, window)
    np.testing.assert_array_equal(found, resize_with_pillow(image, resized.size, window))


@pytest.mark.parametrize("size", [(90, 70), (40, 31), (60, 90)])
def test_the_result_is_the_same_without_the_compiled_module(size, monkeypatch):
    image = make_image(60, 45)
    boxes = np.array([[10, 5, 50, 40]], np.float32)

    def transformed():
        return [
            images.to_array(images.LazyResize(image, size)),
            images.to_array(images.LazyResize(image, size).crop((3, 2, 33, 28))),
            images.to_array(images.LazyResize(image, size).crop((-3, 2, 33, 300))),
            images.to_array(images.resize_and_center_crop(image, 24)),
            images.resize_to_square(image, 32),
            images.to_array(images.large_scale_jitter(image, boxes, 32, 0.7, (0.2, 0.9))[0]),
            randaugment.sharpness(np.asarray(image), 1.36),
        ]

    found = transformed()
    monkeypatch.setattr(image_kernels, "compiled", None)
    for ours, pillows in zip(found, transformed(), strict=True):
        assert ours.dtype == np.uint8
        np.testing.assert_array_equal(ours, pillows)


def test_a_crop_is_read_only_and_becomes_an_image():
    crop = images.LazyResize(make_image(60, 45), (40, 30)).crop((2, 3, 22, 13))
    assert crop.size == (20, 10)
    array = images.to_array(crop)
    assert not array.flags.writeable
    if image_kernels.compiled is not None:
        np.testing.assert_array_equal(np.asarray(crop.to_image()), array)
        assert np.asarray(crop, np.float32).dtype == np.float32
        assert np.array(crop).flags.writeable  # a copy
    assert isinstance(images.resize_and_center_crop(make_image(60, 45), 20), Image.Image)


@compiled
def test_pillow_does_what_the_compiled_module_cannot():
    grey = make_image(60, 45).convert("L")
    assert resampling.resize_window(grey, (40, 30), (0, 0, 40, 30)) is None
    narrow = make_image(3, 9000)  # its weights would take much memory
    assert resampling.resize_window(narrow, (3, 30), (0, 0, 3, 30)) is None
    assert resampling.resize_window(make_image(3, 9), (3, 9000), (0, 0, 3, 30)) is None
    # More than 16 MiB, so Pillow holds it in several pieces.
    large = Image.new("RGB", (2100, 2100), (9, 200, 31))
    assert resampling.resize_window(large, (40, 30), (0, 0, 40, 30)) is None
    found = images.to_array(images.LazyResize(large, (40, 30)).crop((1, 2, 39, 28)))
    assert found.shape == (26, 38, 3) and (found == [9, 200, 31]).all()


@compiled
def test_rows_with_gaps_between_them_are_left_to_pillow(monkeypatch):
    monkeypatch.setattr(Image.core, "get_alignment", lambda: 16)
    assert resampling.resize_window(make_image(61, 45), (40, 30), (0, 0, 40, 30)) is None


@compiled
@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"pixels": b"no capsule"}, "PyCapsule"),
        ({"width": 59}, "does not hold the pixels"),
        ({"height": 46}, "does not hold the pixels"),
        ({"width": -60, "height": -45}, "does not hold the pixels"),
        ({"columns": np.array([57], np.int32)}, "do not fit the image"),
        ({"columns": np.array([-1], np.int32)}, "do not fit the image"),
        ({"columns": np.zeros(0, np.int32)}, "do not fit the image"),
        ({"weights": np.zeros(0, np.int32)}, "do not fit the image"),
        ({"weights": np.zeros(61, np.int32)}, "do not fit the image"),
        ({"rows": np.array([42], np.int32)}, "do not fit the image"),
        ({"target": np.zeros(2, np.uint8)}, "another size"),
        ({"target": np.zeros((1, 1, 4), np.uint8)}, "another size"),
    ],
)
def test_the_compiled_module_reads_and_writes_nothing_outside(changed, sentence):
    given = {
        "pixels": make_image(60, 45).__arrow_c_array__()[1],
        "width": 60,
        "height": 45,
        "columns": np.array([56], np.int32),
        "weights": np.full((1, 4), 1 << 20, np.int32),
        "rows": np.array([41], np.int32),
        "row_weights": np.full((1, 4), 1 << 20, np.int32),
        "target": np.zeros((1, 1, 3), np.uint8),
    }
    image_kernels.compiled.resample(*given.values())
    expected = np.asarray(make_image(60, 45))[41:, 56:].mean((0, 1))
    np.testing.assert_allclose(given["target"][0, 0], expected, atol=1)
    with pytest.raises(ValueError, match=sentence):
        image_kernels.compiled.resample(*(given | changed).values())


@compiled
def test_threads_may_resize_one_image_together():
    image = make_image(200, 150)
    expected = resize_with_pillow(image, (130, 97), (5, 6, 125, 90))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        calls = [
            pool.submit(resampling.resize_window, image, (130, 97), (5, 6, 125, 90))
            for _ in range(40)
        ]
        for call in calls:
            np.testing.assert_array_equal(call.result(), expected)


@compiled
@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (3, 3), (37, 21)])
@pytest.mark.parametrize("factor", [0.0, 0.1, 1.0, 1.36, 1.9])
def test_sharpening_has_numpys_bits(shape, factor, monkeypatch):
    rng = np.random.default_rng(0)
    for pixels in (
        rng.integers(0, 256, (*shape, 3), np.uint8),
        rng.integers(0, 2, (*shape, 3), np.uint8) * np.uint8(255),  # leaves 0..255 and wraps
    ):
        with monkeypatch.context() as patch:
            patch.setattr(image_kernels, "compiled", None)
            expected = randaugment.sharpness(pixels, factor)
        before = pixels.copy()
        np.testing.assert_array_equal(randaugment.sharpness(pixels, factor), expected)
        np.testing.assert_array_equal(randaugment.sharpness(pixels[::-1][::-1], factor), expected)
        np.testing.assert_array_equal(pixels, before)


@compiled
def test_sharpening_refuses_images_of_different_sizes():
    large, small = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 3, 3), np.uint8)
    for image, smooth, target, height in (
        (large, small, large.copy(), 4),
        (large, large, small, 4),
        (large, large, large.copy(), 5),
        (large, large, large.copy(), 0),
    ):
        with pytest.raises(ValueError, match="different sizes"):
            image_kernels.compiled.sharpen(image, smooth, 1.36, height, target)


# ------------------------------------------------------------------------------------- building it


def build(folder, **environment):
    """Builds the module in a copy of the project's files; returns it, or None."""
    package = folder / "ofa_jax" / "preprocessing"
    package.mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "ATTRIBUTION.md"):
        shutil.copy(ROOT / name, folder)
    shutil.copy(ROOT / "ofa_jax" / "__init__.py", folder / "ofa_jax")
    shutil.copy(ROOT / "ofa_jax" / "preprocessing" / "_image_kernels.c", package)
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return next(package.glob("_image_kernels.*so"), None)


def test_without_a_c_compiler_the_package_is_built_without_the_module(tmp_path):
    assert build(tmp_path, CC=str(tmp_path / "missing")) is None


def test_other_processors_give_the_same_bits(tmp_path, monkeypatch):
    path = build(tmp_path, CFLAGS="-DWITHOUT_AVX2")
    if path is None:
        pytest.skip("There is no C compiler, or it does not find Python's headers.")
    spec = importlib.util.spec_from_file_location("_image_kernels", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(image_kernels, "compiled", module)
    image = make_image(64, 49, kind="extremes")
    for size in ((90, 70), (40, 31), (20, 49)):
        window = (3, 2, size[0] - 1, size[1])
        found = resampling.resize_window(image, size, window)
        np.testing.assert_array_equal(found, resize_with_pillow(image, size, window))
    sharp = randaugment.sharpness(np.asarray(image), 1.36)
    monkeypatch.setattr(image_kernels, "compiled", None)
    np.testing.assert_array_equal(sharp, randaugment.sharpness(np.asarray(image), 1.36))
