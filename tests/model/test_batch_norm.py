"""Batch norm and its gradients against the plain formulas, differentiated by JAX in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ofa_jax.model import batch_norm


def plain(x, scale, bias):
    """The definition (Ioffe and Szegedy 2015, algorithm 1)."""
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    var = jnp.square(x - mean).mean(axes)
    return (x - mean) / jnp.sqrt(var + batch_norm.EPSILON) * scale + bias, mean, var


def inputs(shape=(3, 5, 4, 6), mean=0.0):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape) * rng.uniform(0.5, 2, shape[-1]) + mean
    scale, bias, running_mean, dmean, dvar = rng.standard_normal((5, shape[-1]))
    return x, scale, bias, running_mean, (rng.standard_normal(shape), dmean, dvar)


def as_float32(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


@pytest.mark.parametrize("shape", [(3, 5, 4, 6), (7, 2), (1, 2, 1, 1)])
def test_values_moments_and_all_gradients_equal_the_definition(shape):
    """Also the gradients through the moments, which the model does not use."""
    x, scale, bias, running_mean, gradients = inputs(shape)

    @jax.jit
    def ours(x, scale, bias, running_mean, gradients):
        results, gradients_of = jax.vjp(batch_norm.normalise_by_batch, x, scale, bias, running_mean)
        return results, gradients_of(gradients)

    results, (*found, of_guess) = ours(*as_float32((x, scale, bias, running_mean, gradients)))
    # What is compared with is computed from the same float32 inputs in float64.
    given = jax.tree.map(np.float64, as_float32((x, scale, bias, gradients)))
    with jax.enable_x64(True):
        expected, gradients_of = jax.vjp(plain, *given[:3])
        expected_gradients = gradients_of(given[3])
    # Small variances magnify roundings: two values of a channel may be close.
    for one, other in zip((*results, *found), (*expected, *expected_gradients), strict=True):
        size = float(np.abs(other).max())
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5 * max(size, 1.0))
    np.testing.assert_array_equal(of_guess, 0)


@pytest.mark.parametrize("mean", [0.0, 3.0, 30.0, 1000.0])
def test_variances_are_accurate_wherever_the_mean_is(mean):
    """The sums of a CPU lose at most five bits, and means far from zero have another pass."""
    x = as_float32(inputs((16, 5, 5, 6), mean)[0])
    exact = np.asarray(x, np.float64).reshape(-1, 6)
    about_zero, about_mean = (
        jax.jit(moments)(x, guess)
        for moments, guess in (
            (batch_norm._moments_of_sums, jnp.zeros(6)),
            (batch_norm._moments_about, jnp.full(6, mean, jnp.float32)),
        )
    )
    for found_mean, found_var in (about_zero, about_mean):
        np.testing.assert_allclose(found_mean, exact.mean(0), rtol=1e-6, atol=1e-6)
        # 400 terms of a sum, the sixth part of whose roundings remains; 32 times their size.
        np.testing.assert_allclose(found_var, exact.var(0), rtol=3e-5)


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_constant_channels_have_no_variance_and_finite_gradients(value):
    x = jnp.full((2, 3, 3, 4), value)
    (y, mean, var), gradients_of = jax.vjp(
        batch_norm.normalise_by_batch, x, jnp.ones(4), jnp.full(4, 0.5), jnp.zeros(4)
    )
    np.testing.assert_allclose(y, 0.5, atol=2e-3)  # a rounding of 5 times 1 / sqrt(1e-5)
    np.testing.assert_allclose(mean, value, rtol=1e-6)
    np.testing.assert_allclose(var, 0.0, atol=1e-9)
    for gradient in gradients_of((jnp.ones_like(x), jnp.zeros(4), jnp.zeros(4)))[:3]:
        assert np.isfinite(gradient).all()


def test_nan_reaches_the_results():
    """A run that diverges is seen: no branch hides it."""
    x = jnp.ones((2, 3, 3, 4)).at[0, 0, 0, 1].set(jnp.nan)
    y, mean, var = batch_norm.normalise_by_batch(x, jnp.ones(4), jnp.zeros(4), jnp.zeros(4))
    for result in (mean, var, y[0, 0, 0]):
        assert np.isnan(result[1])


def test_other_platforms_compute_moments_in_one_pass_about_the_running_mean():
    x, scale, bias, running_mean, _ = as_float32(inputs())
    function = jax.jit(batch_norm.normalise_by_batch)
    programs = {
        platform: function.trace(x, scale, bias, running_mean)
        .lower(lowering_platforms=(platform,))
        .as_text()
        for platform in ("cpu", "tpu", "cuda")
    }
    # The comparison that decides on another pass.
    assert {name: "stablehlo.compare" in text for name, text in programs.items()} == {
        "cpu": True,
        "tpu": False,
        "cuda": False,
    }
