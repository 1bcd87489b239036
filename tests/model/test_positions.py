"""Position tables and biases against the tables of the reference implementation."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ofa_jax.model import position_biases, positions


@pytest.fixture(scope="module")
def tables(golden):
    return dict(np.load(golden / "positions" / "positions.npz"))


@pytest.mark.parametrize(
    ("name", "arguments"), [("token_bucket_256", (256,)), ("token_bucket_16_max64", (16, 64, 64))]
)
def test_token_buckets_match_the_reference(tables, name, arguments):
    np.testing.assert_array_equal(positions.token_bucket_table(*arguments), tables[name])


def test_token_buckets_over_a_longer_range_match_the_reference(tables):
    ours = positions.token_buckets(256, -np.arange(2048), max_position=2048)
    np.testing.assert_array_equal(ours, tables["token_bucket_256_max2048_row0"])


@pytest.mark.parametrize("bucket_size", [42, 4])
def test_image_buckets_match_the_reference(tables, bucket_size):
    np.testing.assert_array_equal(
        positions.image_bucket_table(bucket_size), tables[f"image_bucket_{bucket_size}"]
    )


@pytest.mark.parametrize("size", ["96x128", "64x160", "384x384", "100x70"])
def test_patch_position_ids_match_the_reference(tables, size):
    grid = positions.patch_grid(*map(int, size.split("x")))
    np.testing.assert_array_equal(
        positions.grid_position_ids(*grid, 42), tables[f"image_position_ids_{size}"]
    )


def test_code_position_ids_match_the_reference(tables):
    ours = positions.code_position_ids(code_grid=16, bucket_size=42)
    np.testing.assert_array_equal(ours, tables["decoder_image_position_idx"])


def test_filler_positions_stay_within_a_small_table():
    assert positions.code_position_ids(2, bucket_size=4).max() == 16


# Biases only copy table entries, so equality is exact.


def table(rows, heads=3):
    return np.random.default_rng(0).standard_normal((rows, heads)).astype(np.float32)


@pytest.mark.parametrize("length", [1, 2, 33, 300])
def test_text_bias_looks_up_the_reference_buckets(tables, length):
    values = table(511)
    expected = values[tables["token_bucket_256"][:length, :length]].transpose(2, 0, 1)
    np.testing.assert_array_equal(
        position_biases.text_bias(jnp.array(values), length, 256), expected
    )


@pytest.mark.parametrize("grid", [(1, 1), (5, 7), (7, 5), (1, 42)])
def test_grid_bias_looks_up_the_reference_buckets(tables, grid):
    values = table(6892)
    ids = positions.grid_position_ids(*grid, 42)
    expected = values[tables["image_bucket_42"][ids][:, ids]].transpose(2, 0, 1)
    np.testing.assert_array_equal(position_biases.grid_bias(jnp.array(values), *grid, 42), expected)


def test_patch_bias_uses_the_patches_of_each_example(tables):
    values, grid = table(6892), (5, 7)
    indices = np.random.default_rng(1).integers(0, 35, (2, 9))
    ids = positions.grid_position_ids(*grid, 42)[indices]
    got = position_biases.patch_bias(jnp.array(values), jnp.array(indices), grid, 42)
    for row in range(2):
        expected = values[tables["image_bucket_42"][ids[row]][:, ids[row]]].transpose(2, 0, 1)
        np.testing.assert_array_equal(got[row], expected)


def test_patch_bias_by_matmul_equals_lookup():
    """Gradients are float32 sums in another order and agree to 1e-5 of the largest."""
    values, grid = jnp.array(table(6892)), (3, 4)
    indices = jnp.array(np.random.default_rng(1).permuted(np.tile(np.arange(12), (2, 1)), axis=1))
    weights = jnp.array(np.random.default_rng(2).standard_normal((2, 3, 12, 12)), jnp.float32)

    def both(function, **options):
        value, pull = jax.vjp(lambda x: function(x, indices, grid, 42, **options), values)
        return value, pull(weights)[0]

    value, gradient = both(position_biases._patch_bias_by_lookup)
    products, their_gradient = both(position_biases._patch_bias_by_matmul, dtype=jnp.float32)
    np.testing.assert_array_equal(products, value)
    np.testing.assert_allclose(their_gradient, gradient, rtol=0, atol=1e-5 * np.abs(gradient).max())
    np.testing.assert_array_equal(both(position_biases.patch_bias)[1], gradient)
    rounded = both(position_biases._patch_bias_by_matmul, dtype=jnp.bfloat16)[0]
    np.testing.assert_array_equal(rounded, value.astype(jnp.bfloat16).astype(jnp.float32))


@pytest.mark.parametrize("length", [1, 2, 10, 65, 66, 90])
def test_code_bias_looks_up_the_reference_buckets_within_and_after_the_grid(tables, length):
    values = table(6892)
    # The reference's ids for an 8x8 grid: bos, 64 codes, then fillers.
    ids = np.concatenate([[0], positions.grid_position_ids(8, 8, 42), np.full(90, 1024)])[:length]
    expected = values[tables["image_bucket_42"][ids][:, ids]].transpose(2, 0, 1)
    np.testing.assert_array_equal(
        position_biases.code_bias(jnp.array(values), length, 8, 42), expected
    )


def test_interpolated_positions_equal_bilinear_resizing_in_torch(official, tables):
    """Allows 2^-20, torch's float32 spacing of coordinates up to 16, as error of the weights.

    It counts in both directions, between neighbours that differ by up to twice the maximum.
    """
    embedding = official.state_dict["encoder.embed_image_positions.weight"].astype(np.float32)
    grid = embedding[positions.grid_position_ids(16, 16, 42)].reshape(16, 16, -1)
    resized = positions.interpolate_positions(jnp.array(grid), 20, 26)
    tolerance = 2 * 2**-20 * 2 * np.abs(embedding).max()
    np.testing.assert_allclose(resized, tables["interp_image_pos_embed"], rtol=0, atol=tolerance)


def test_docstring_examples_run():
    results = [doctest.testmod(module) for module in (positions, position_biases)]
    assert sum(result.attempted for result in results) >= 3
    assert not any(result.failed for result in results)
