"""AdamW and its schedule, against their formulas."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ofa_jax.training.optimizer import OptimizerConfig, learning_rate_schedule, make_optimizer


def test_the_learning_rate_rises_linearly_and_falls_linearly_to_zero():
    """fairseq's polynomial_decay: done / warmup, then peak * (1 - (done - warmup) / rest)."""
    schedule = learning_rate_schedule(OptimizerConfig(2e-4, total_steps=100, warmup=10))
    expected = [2e-4 * max(done, 1) / 10 for done in range(10)]
    expected += [2e-4 * (1 - (done - 10) / 90) for done in range(10, 101)]
    # float32, computed by optax in a few operations.
    np.testing.assert_allclose(
        [schedule(done) for done in range(101)], expected, rtol=1e-5, atol=1e-11
    )


def test_a_share_of_the_steps_warms_up():
    assert OptimizerConfig(1e-4, total_steps=1000).warmup_steps == 10
    assert OptimizerConfig(1e-4, total_steps=1000, warmup=0).warmup_steps == 0
    assert OptimizerConfig(1e-4, total_steps=1000, warmup=300).warmup_steps == 300
    assert learning_rate_schedule(OptimizerConfig(1e-4, 1000, warmup=0))(0) == np.float32(1e-4)


def test_an_update_is_clipped_adam_with_decoupled_decay():
    config = OptimizerConfig(0.1, total_steps=1000, warmup=0, clip_norm=1.0, weight_decay=0.05)
    params = {"x": jnp.array([1.0, -2.0]), "y": jnp.array([3.0])}
    gradients = {"x": jnp.array([3.0, -4.0]), "y": jnp.array([12.0])}
    optimizer = make_optimizer(config)
    updates, state = optimizer.update(gradients, optimizer.init(params), params)
    new = optax.apply_updates(params, updates)
    for name in params:
        # After one step m / (1 - beta1) = g and v / (1 - beta2) = g^2: Adam moves by its sign.
        expected = params[name] - 0.1 * (jnp.sign(gradients[name]) + 0.05 * params[name])
        np.testing.assert_allclose(new[name], expected, rtol=1e-5)
    # The first moment has seen the gradient cut to norm 1 (13 before).
    first = optax.tree_utils.tree_get(state, "mu")
    np.testing.assert_allclose(first["x"], 0.1 * gradients["x"] / 13, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        dict(learning_rate=0),
        dict(total_steps=0),
        dict(warmup=101),
        dict(warmup=-1),
        dict(clip_norm=0),
    ],
)
def test_invalid_settings_are_refused(options):
    with pytest.raises(ValueError, match=f"OptimizerConfig.{next(iter(options))}"):
        OptimizerConfig(**{"learning_rate": 1e-4, "total_steps": 100} | options)
