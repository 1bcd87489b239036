"""Position columns: the bound on scores, the model's options, and the bytes that they save."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from official_model import random_variables
from small_model import SMALL, random_batch

from ofa_jax.model import OFA
from ofa_jax.model.attention_ops import (
    MASKED_SCORE,
    attention_scores,
    softmax,
    to_key_layout,
)
from ofa_jax.model.attention_terms import AttentionMask, PositionFactors, ScoreTerms, attend
from ofa_jax.planning.hlo import Program
from ofa_jax.training.losses import LossConfig, token_losses, total

PATCHES = {"encoder_patch_indices": np.array([[0, 4, 8, 2], [7, 1, 3, 5], [2, 6, 0, 1]], np.int32)}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_scores_in_columns_differ_by_rounding_alone(dtype):
    """Checks every score against the bound of `attention_terms`, twice n u S and one rounding."""
    rng, width = np.random.default_rng(0), 16
    content, position = (
        [jnp.asarray(rng.standard_normal((2, 5, 3, width)), dtype) for _ in range(2)]
        for _ in range(2)
    )
    factors = PositionFactors(*position)
    joined = [jnp.concatenate(pair, axis=-1) for pair in zip(content, position, strict=True)]
    columns = attention_scores(joined[0], to_key_layout(joined[1]))
    sums = attention_scores(content[0], to_key_layout(content[1])) + factors.bias()
    exact = [np.asarray(x, np.float64) for x in joined]
    magnitude = np.einsum("bqhd,bkhd->bhqk", *map(np.abs, exact))
    bound = (2 * 2 * width + 1) * 2**-24 * magnitude * (1 + 1e-5)
    assert (np.abs(np.asarray(columns, np.float64) - np.asarray(sums, np.float64)) <= bound).all()
    truth = np.einsum("bqhd,bkhd->bhqk", *exact)
    assert (np.abs(columns - truth) <= bound).all()


def test_masks_as_arrays():
    keys = np.array([[True, True, False]])
    np.testing.assert_array_equal(AttentionMask(keys).dense(2), [[[[True, True, False]]]])
    causal = AttentionMask(keys, causal=True).dense(3, prefix=1)
    expected = [[True, True, False, False], [True, True, True, False], [True, True, True, False]]
    np.testing.assert_array_equal(causal, [[expected]])


def loss_and_gradients(config, variables, batch, train):
    """Returns the sum of the losses of all tokens and its gradients."""

    def loss(params):
        logits, _ = OFA(config).apply(
            variables | {"params": params},
            batch,
            train=train,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(3)},
        )
        targets = batch["decoder_input_tokens"]
        tokens = token_losses(logits, targets, jnp.ones(targets.shape), LossConfig())
        return total([tokens], LossConfig(), 0)[0]

    return jax.jit(jax.value_and_grad(loss))(variables["params"])


@pytest.mark.parametrize(
    ("options", "extra", "pixels"),
    [
        ({"attention_dropout_rate": 0.3, "dropout_rate": 0.1, "prefix_length": 2}, {}, 0),
        ({"scan_layers": True, "remat": "weight_dots", "scale_heads": False}, {}, 0),
        ({"freeze_batch_norm": True}, PATCHES, 48),
    ],
)
def test_losses_and_gradients_are_those_of_biases(options, extra, pixels):
    """Float32 sums in another order: 1e-5 of the loss, and 1e-4 of each array's largest gradient.

    Gradients pass through a softmax of scores of size 10 in each attention, which multiplies the
    rounding of scores, about 1e-6, by up to 10, and through LayerNorms of a width of 16, which
    divide by standard deviations below one.
    """
    config = SMALL.replace(**options)
    variables, batch = random_variables(config), random_batch(pixels=pixels) | extra
    value, gradients = loss_and_gradients(config, variables, batch, train=True)
    columns = config.replace(attention_implementation="columns")
    ours, our_gradients = loss_and_gradients(columns, variables, batch, train=True)
    np.testing.assert_allclose(ours, value, rtol=1e-5)
    for (path, theirs), mine in zip(
        jax.tree_util.tree_leaves_with_path(gradients),
        jax.tree.leaves(our_gradients),
        strict=True,
    ):
        largest = max(float(abs(theirs).max()), 1e-2)
        np.testing.assert_allclose(
            mine, theirs, rtol=0, atol=1e-4 * largest, err_msg=jax.tree_util.keystr(path)
        )


def test_columns_move_fewer_bytes_where_positions_depend_on_the_example():
    """Counted in the compiled program, as plans count: forward and backward of three layers."""
    rng, shape = np.random.default_rng(0), (4, 64, 2, 8)
    factors = PositionFactors(*(jnp.asarray(rng.standard_normal(shape), jnp.float32),) * 2)
    x, mask = factors.query, AttentionMask(jnp.ones((4, 64), bool))

    def by_columns(x, factors):
        for _ in range(3):
            x = attend(x, x, x, ScoreTerms(factors), mask)
        return x.sum()

    def by_bias(x, factors):
        bias = factors.bias()
        for _ in range(3):
            keys = to_key_layout(x)
            scores = jnp.where(mask.dense(64), attention_scores(x, keys) + bias, MASKED_SCORE)
            x = jnp.einsum("...hqk,...hdk->...qhd", softmax(scores, x.dtype), keys)
        return x.sum()

    def moved(function):
        step = jax.jit(jax.grad(function, argnums=(0, 1)))
        return Program(step.lower(x, factors).compile().as_text()).hbm_bytes()

    np.testing.assert_allclose(by_columns(x, factors), by_bias(x, factors), rtol=1e-4)
    assert moved(by_columns) < 0.95 * moved(by_bias)
