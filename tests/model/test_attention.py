"""What attention keeps for its gradient."""

import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.model.attention import softmax


def test_narrow_weights_are_all_that_softmax_keeps():
    scores = 3 * jax.random.normal(jax.random.key(0), (4, 6, 50))
    gradient = jax.random.normal(jax.random.key(1), scores.shape).astype(jnp.bfloat16)

    def differentiated(dtype):
        weights, pull = jax.vjp(lambda x: softmax(x, dtype), scores)
        kept = {(x.dtype, x.shape) for x in jax.tree.leaves(pull) if x.size >= scores.size}
        return weights, pull(gradient.astype(dtype))[0], kept

    weights, slope, kept = differentiated(jnp.dtype(jnp.bfloat16))
    assert kept == {(jnp.dtype(jnp.bfloat16), scores.shape)} and weights.dtype == jnp.bfloat16
    wide_weights, wide_slope, _ = differentiated(jnp.dtype(jnp.float32))
    # bfloat16 has eight bits: each weight is off by 2^-9 of itself at most, and each slope by as
    # much of its weight times the largest difference of gradients (below 8 here), twice over.
    np.testing.assert_allclose(weights.astype(jnp.float32), wide_weights, rtol=2**-8)
    assert np.abs(np.asarray(gradient, np.float32)).max() < 4
    bound = 2 * 2**-9 * 8 * np.asarray(wide_weights).max(-1, keepdims=True)
    assert (np.abs(slope - wide_slope) <= bound).all()


def test_float32_is_plain_softmax():
    scores = jax.random.normal(jax.random.key(0), (3, 7))
    np.testing.assert_array_equal(
        softmax(scores, jnp.dtype(jnp.float32)), jax.nn.softmax(scores, axis=-1)
    )
