"""The patch codebook: nearest codes, exact decoding, learning."""

import pickle

import numpy as np
import pytest

from ofa_jax.tokenizers import ImageTokenizer, PatchCodebook
from ofa_jax.tokenizers.patch_codebook import to_patches


@pytest.fixture(scope="module")
def codebook():
    rng = np.random.default_rng(0)
    return PatchCodebook(rng.integers(0, 256, (32, 192)).astype(np.float32))


def test_is_an_image_tokenizer(codebook):
    assert isinstance(codebook, ImageTokenizer)
    assert (codebook.num_codes, codebook.pixels_per_code) == (32, 8)


def test_codes_survive_decoding(codebook):
    codes = np.random.default_rng(1).integers(0, 32, (3, 5, 7)).astype(np.int32)
    images = codebook.decode(codes)
    assert images.shape == (3, 40, 56, 3) and images.dtype == np.uint8
    again = codebook.encode(images)
    assert again.dtype == np.int32
    np.testing.assert_array_equal(again, codes)


def test_encode_finds_the_nearest_code(codebook):
    images = np.random.default_rng(2).integers(0, 256, (2, 24, 16, 3), dtype=np.uint8)
    codes = codebook.encode(images)
    assert codes.shape == (2, 3, 2)
    for b, row, column in np.ndindex(codes.shape):
        block = images[b, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        squares = (block.reshape(-1).astype(np.float64) - codebook.codebook) ** 2
        assert codes[b, row, column] == squares.sum(1).argmin()


def test_fit_recovers_the_patches_that_images_are_made_of(codebook):
    """Images of 32 different patches and 32 codes: nothing is lost."""
    codes = np.random.default_rng(3).integers(0, 32, (12, 8, 8))
    images = codebook.decode(codes)
    learned = PatchCodebook.fit(images, 32, seed=0)
    assert {row.tobytes() for row in learned.codebook} == {
        row.tobytes() for row in codebook.codebook
    }
    np.testing.assert_array_equal(learned.decode(learned.encode(images)), images)


def test_fit_is_deterministic_and_better_than_random_patches():
    rng = np.random.default_rng(4)
    ramps = np.linspace(0, 255, 64)[:, None] * np.ones(64)
    images = np.stack(
        [
            np.stack([np.roll(ramps, rng.integers(64), axis) for axis in (0, 1, 0)], -1)
            for _ in range(30)
        ]
    ).astype(np.uint8)
    first, second = (PatchCodebook.fit(images, 16, seed=1) for _ in range(2))
    np.testing.assert_array_equal(first.codebook, second.codebook)
    patches = np.unique(to_patches(images, 8), axis=0)
    some = PatchCodebook(patches[rng.permutation(len(patches))[:16]].astype(np.float32))

    def error(tokenizer):
        return np.square(tokenizer.decode(tokenizer.encode(images)).astype(float) - images).mean()

    assert error(first) < error(some)


def test_saves_loads_and_pickles(codebook, tmp_path):
    codebook.save(tmp_path / "codebook.npz")
    for copy in (
        PatchCodebook.load(tmp_path / "codebook.npz"),
        pickle.loads(pickle.dumps(codebook)),
    ):
        np.testing.assert_array_equal(copy.codebook, codebook.codebook)
        assert copy.codebook.dtype == np.float32


def test_errors_give_advice(codebook, tmp_path):
    with pytest.raises(ValueError, match="multiples of 8"):
        codebook.encode(np.zeros((1, 12, 16, 3), np.uint8))
    with pytest.raises(ValueError, match="or fewer codes"):
        PatchCodebook.fit(np.zeros((2, 16, 16, 3), np.uint8), 4)
    with pytest.raises(FileNotFoundError, match="build_scenes"):
        PatchCodebook.load(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="num_codes, 192"):
        PatchCodebook(np.zeros((4, 100), np.float32))
