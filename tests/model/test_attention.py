"""The softmax of attention: values, gradients, and what it saves for the backward pass."""

import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.model.attention import softmax


def test_low_precision_softmax_saves_only_its_weights():
    scores = 3 * jax.random.normal(jax.random.key(0), (4, 6, 50))
    gradient = jax.random.normal(jax.random.key(1), scores.shape).astype(jnp.bfloat16)

    def weights_and_gradient(dtype):
        weights, pull = jax.vjp(lambda x: softmax(x, dtype), scores)
        saved = {(x.dtype, x.shape) for x in jax.tree.leaves(pull) if x.size >= scores.size}
        return weights, pull(gradient.astype(dtype))[0], saved

    weights, slope, saved = weights_and_gradient(jnp.dtype(jnp.bfloat16))
    assert saved == {(jnp.dtype(jnp.bfloat16), scores.shape)} and weights.dtype == jnp.bfloat16
    exact_weights, exact_slope, _ = weights_and_gradient(jnp.dtype(jnp.float32))
    # bfloat16 has eight bits: the error of a weight is at most 2^-9 of itself. The error of a slope
    # is at most twice that, times its weight, times the largest difference of gradients (below 8).
    np.testing.assert_allclose(weights.astype(jnp.float32), exact_weights, rtol=2**-8)
    assert np.abs(np.asarray(gradient, np.float32)).max() < 4
    bound = 2 * 2**-9 * 8 * np.asarray(exact_weights).max(-1, keepdims=True)
    assert (np.abs(slope - exact_slope) <= bound).all()


def test_float32_softmax_equals_jax_softmax():
    scores = jax.random.normal(jax.random.key(0), (3, 7))
    np.testing.assert_array_equal(
        softmax(scores, jnp.dtype(jnp.float32)), jax.nn.softmax(scores, axis=-1)
    )
