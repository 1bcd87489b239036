"""The loss against the official one, with every option.

Tolerance 1e-5 relative: sums of some hundred float32 terms, each within 2^-23 of its value.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ofa_jax.model import factored_logits
from ofa_jax.model.factored_logits import FactoredLogits
from ofa_jax.training import losses
from ofa_jax.training.losses import LossConfig

RELATIVE = dict(rtol=1e-5)
UNIT_CASES = {
    "plain": {},
    "drop": dict(drop_worst_ratio=0.3),
    "rdrop": dict(rdrop_alpha=1.0),
    "rdrop_a5_drop": dict(rdrop_alpha=5.0, drop_worst_ratio=0.2),
    "range": dict(constraint_range=(369, 401)),
    "range_rdrop": dict(constraint_range=(369, 401), rdrop_alpha=0.7),
    "cmask": {},
}


@pytest.fixture(scope="module")
def unit(golden):
    return dict(np.load(golden / "model_tiny" / "loss_unit.npz"))


def unit_loss(unit, name, eps, logits=None):
    config = LossConfig(label_smoothing=eps, **UNIT_CASES[name])
    logits = unit[f"{name}/logits"] if logits is None else logits
    mask = unit.get(f"{name}/mask")
    tokens = losses.token_losses(
        jnp.asarray(logits)[:, None],
        jnp.asarray(unit[f"{name}/target"], jnp.int32)[:, None],
        jnp.ones((len(logits), 1)),
        config,
        None if mask is None else jnp.asarray(mask)[:, None],
    )
    # `update_num` was 1 and `drop_worst_after` 0.
    return losses.total([tokens], config, 1)


@pytest.mark.parametrize("eps", [0.0, 0.1])
@pytest.mark.parametrize("name", UNIT_CASES)
def test_every_option_matches_the_official_code(unit, name, eps):
    np.testing.assert_allclose(unit_loss(unit, name, eps), unit[f"{name}/out_eps{eps}"], **RELATIVE)


@pytest.mark.parametrize("name", UNIT_CASES)
def test_gradients_are_finite_where_logits_are_not(unit, name):
    """A constraint leaves -inf in the logits, and 0 * inf must not reach the gradient."""
    gradient = jax.grad(lambda logits: unit_loss(unit, name, 0.1, logits)[0])(
        jnp.asarray(unit[f"{name}/logits"])
    )
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


def tokens_of(case, logits, config):
    weights = jnp.broadcast_to(
        jnp.asarray(case["in_conf"], jnp.float32)[:, None], case["in_target"].shape
    )
    return losses.token_losses(logits, jnp.asarray(case["in_target"], jnp.int32), weights, config)


@pytest.mark.parametrize("drop", ["", "_drop20"])
@pytest.mark.parametrize("conf", ["conf", "noconf"])
@pytest.mark.parametrize("eps", [0.0, 0.1])
@pytest.mark.parametrize("name", ["a", "b1", "c", "d"])
def test_losses_of_the_cases_match_the_official_code(official, name, eps, conf, drop):
    case, _ = official.case(name)
    key = f"loss_eps{eps}_{conf}{drop}"
    if conf == "noconf":
        case = {**case, "in_conf": np.ones(len(case["in_target"]))}
    elif "in_conf" not in case:
        pytest.fail(f"case {name} has no confidences")
    config = LossConfig(label_smoothing=eps, drop_worst_ratio=0.2 if drop else 0.0)
    tokens = tokens_of(case, jnp.asarray(case["logits"]), config)
    loss, nll, count = losses.total([tokens], config, 1)
    np.testing.assert_allclose(loss, case[key], **RELATIVE)
    np.testing.assert_allclose(nll, case[f"{key}_nll"], **RELATIVE)
    assert count == case[f"{key}_sample_size"]


def test_the_pretraining_loss_matches_the_official_code(official, golden):
    """The mini-batches [case a with sampled patches, case d], each over its own tokens."""
    expected = json.loads((golden / "model_tiny" / "pretrain_pair.json").read_text())
    config = LossConfig(label_smoothing=0.1)
    streams = {}
    for name in ("a", "d"):
        case, batch = official.case(name)
        if name == "a":
            batch["encoder_patch_indices"] = np.array(expected["patch_orders"], np.int32)
        streams[name] = tokens_of(case, official.apply(official.variables, batch), config)
    log = expected["log"]
    for name, version in (("a", "v1"), ("d", "v2")):
        loss, _, count = losses.total([streams[name]], config, 0)
        np.testing.assert_allclose(loss, log[f"loss_{version}"], **RELATIVE)
        assert count == log[f"sample_size_{version}"]
    loss = losses.grouped_loss(streams, {"a": "pairs", "d": "others"}, config, 0)
    np.testing.assert_allclose(loss, expected["loss"], **RELATIVE)


def random_tokens(seed, config, shape=(4, 5), vocabulary=11):
    rng = np.random.default_rng(seed)
    targets = rng.integers(2, vocabulary, shape).astype(np.int32)
    targets[:, -1] = 1
    return losses.token_losses(
        jnp.asarray(rng.standard_normal((*shape, vocabulary)), jnp.float32),
        jnp.asarray(targets),
        jnp.ones(shape),
        config,
    )


def test_streams_of_one_group_are_summed_before_they_are_divided():
    config = LossConfig()
    streams = {"x": random_tokens(0, config), "y": random_tokens(1, config, (2, 9))}
    together = losses.grouped_loss(streams, {"x": "g", "y": "g"}, config, 0)
    loss = sum(float(tokens.loss.sum()) for tokens in streams.values())
    np.testing.assert_allclose(together, loss / (4 * 4 + 2 * 8), **RELATIVE)
    apart = losses.grouped_loss(streams, {"x": "g", "y": "h"}, config, 0)
    assert abs(float(apart) - float(together)) > 1


def test_drop_worst_ranks_the_tokens_of_a_group_together_and_starts_late():
    config = LossConfig(drop_worst_ratio=0.25, drop_worst_after=3)
    streams = [random_tokens(0, config), random_tokens(1, config, (2, 9))]
    every = np.concatenate([np.asarray(s.loss)[np.asarray(s.scored)] for s in streams])
    loss, _, count = losses.total(streams, config, 3)
    assert count == len(every) == 32
    np.testing.assert_allclose(loss, every.sum(), **RELATIVE)
    loss, _, count = losses.total(streams, config, 4)
    assert count == 24
    np.testing.assert_allclose(loss, np.sort(every)[:24].sum(), **RELATIVE)


def test_encouraging_loss_is_its_formula_and_has_no_kink():
    """Li et al. 2021: -log p + log(1 - p), from log_end on with the tangent of the bonus."""
    logits = jnp.stack([jnp.linspace(-9, 9, 181), jnp.zeros(181)], -1)[:, None]
    targets, weights = jnp.zeros((181, 1), jnp.int32), jnp.full((181, 1), 0.5)
    config = LossConfig(encouraging_end=0.75)
    ours = losses.token_losses(logits, targets, weights, config)
    p = 1 / (1 + np.exp(-np.linspace(-9, 9, 181)))
    bonus = np.where(p <= 0.75, np.log1p(-np.minimum(p, 0.75)), np.log(0.25) - (p - 0.75) / 0.25)
    np.testing.assert_allclose(ours.loss[:, 0], 0.5 * (-np.log(p) + bonus), rtol=1e-4, atol=1e-5)
    # Differences of float32 numbers up to 9.
    np.testing.assert_allclose(ours.nll[:, 0], -0.5 * np.log(p), rtol=1e-5, atol=1e-6)
    # Correct tokens keep a gradient, larger than that of cross-entropy; all values are finite.
    slope = jax.vmap(
        jax.grad(
            lambda x, config: losses.token_losses(
                x[None, None], jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1)), config
            ).loss.sum()
        ),
        in_axes=(0, None),
    )
    pushed, usual = slope(logits[:, 0], config)[:, 0], slope(logits[:, 0], LossConfig())[:, 0]
    assert np.isfinite(pushed).all() and (np.asarray(pushed) < np.asarray(usual)).all()


def test_a_group_without_a_token_has_no_loss():
    config = LossConfig()
    empty = losses.token_losses(
        jnp.ones((2, 3, 7)), jnp.ones((2, 3), jnp.int32), jnp.zeros((2, 3)), config
    )
    assert losses.grouped_loss({"x": empty}, {"x": "g"}, config, 0) == 0


@pytest.mark.parametrize(
    "options",
    [
        dict(label_smoothing=1.0),
        dict(encouraging_end=1.0),
        dict(drop_worst_ratio=-0.1),
        dict(rdrop_alpha=-1),
        dict(constraint_range=(9, 5)),
        dict(constraint_range=(0, 5)),
    ],
)
def test_invalid_options_are_refused(options):
    with pytest.raises(ValueError, match=f"LossConfig.{next(iter(options))}"):
        LossConfig(**options)


def test_a_range_beyond_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="ends at 20, but the vocabulary has 11"):
        random_tokens(0, LossConfig(constraint_range=(5, 20)))


@pytest.mark.parametrize("name", UNIT_CASES)
def test_rows_added_to_the_vocabulary_change_nothing(unit, name):
    logits, target = unit[f"{name}/logits"][:, None], unit[f"{name}/target"][:, None]
    config = LossConfig(label_smoothing=0.1, **UNIT_CASES[name])
    size, mask = logits.shape[-1], unit.get(f"{name}/mask")
    mask = None if mask is None else jnp.asarray(mask)[:, None]
    padded = np.pad(logits, ((0, 0), (0, 0), (0, 7)), constant_values=-1e30)
    expected, actual = (
        losses.total(
            [
                losses.token_losses(
                    jnp.asarray(x),
                    jnp.asarray(target, jnp.int32),
                    jnp.ones((len(x), 1)),
                    config,
                    mask,
                    vocab_size=size,
                )
            ],
            config,
            1,
        )
        for x in (logits, padded)
    )
    np.testing.assert_allclose(actual, expected, **RELATIVE)


BLOCK_CASES = {
    "plain": {},
    "smoothed": dict(label_smoothing=0.1),
    "range": dict(label_smoothing=0.1, constraint_range=(150, 290)),
    "encouraging": dict(encouraging_end=0.75),
    "drop": dict(drop_worst_ratio=0.3, label_smoothing=0.2),
    "R-Drop, which needs all logits": dict(rdrop_alpha=0.7),
}


@pytest.mark.parametrize("name", BLOCK_CASES)
def test_logits_in_blocks_have_the_same_losses_and_gradients(name, monkeypatch):
    """Three blocks of 128, 128 and 51 of 307 rows, the last seven of which are no ids.

    Sums of some hundred float32 terms in another order: 1e-5 of the largest number.
    """
    monkeypatch.setattr(factored_logits, "LARGEST_BLOCK", 128)
    rng, config = np.random.default_rng(0), LossConfig(**BLOCK_CASES[name])
    hidden = jnp.asarray(rng.standard_normal((4, 5, 16)), jnp.float32)
    table = jnp.asarray(rng.standard_normal((307, 16)), jnp.float32)
    targets = jnp.asarray(rng.integers(150, 290, (4 // config.passes, 5)), jnp.int32)
    targets = jnp.concatenate([targets.at[0, 3:].set(1)] * config.passes)
    weights = jnp.asarray(rng.random((4, 5)), jnp.float32)

    def loss(hidden, table, whole):
        logits = FactoredLogits(hidden, table, 300)
        logits = logits.whole() if whole else logits
        tokens = losses.token_losses(logits, targets, weights, config, vocab_size=300)
        return losses.total([tokens], config, 1)[:2]

    def value_and_gradients(whole):
        summed = lambda *factors: sum(loss(*factors, whole))  # noqa: E731
        return loss(hidden, table, whole), jax.grad(summed, argnums=(0, 1))(hidden, table)

    for ours, theirs in zip(
        *map(jax.tree.leaves, (value_and_gradients(False), value_and_gradients(True))), strict=True
    ):
        largest = float(abs(theirs).max())
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * largest)


def test_logits_in_blocks_make_no_array_of_all_logits():
    hidden, table = jnp.zeros((2, 3, 8)), jnp.zeros((59520, 8))
    targets = jnp.zeros((2, 3), jnp.int32)

    def loss(hidden, table, config):
        logits = FactoredLogits(hidden, table, 59457)
        tokens = losses.token_losses(logits, targets, jnp.ones((2, 3)), config, None, 59457)
        return tokens.loss.sum()

    def shapes(config):
        gradient = jax.grad(lambda *factors: loss(*factors, config), argnums=(0, 1))
        return str(jax.make_jaxpr(gradient)(hidden, table))

    assert "2,3,59520]" not in shapes(LossConfig(label_smoothing=0.1))
    assert "2,3,3968]" in shapes(LossConfig(label_smoothing=0.1))  # 15 blocks without padding
    assert "2,3,59520]" in shapes(LossConfig(rdrop_alpha=1.0))
