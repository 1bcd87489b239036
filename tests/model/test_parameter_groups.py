"""Parameter groups and parameter averages over real training steps."""

import functools

import flax
import flax.linen as nn
import jax
import numpy as np
import pytest
from small_model import SMALL
from small_run import batches, make_parts

from ofa_jax.model import OFA, parameter_groups
from ofa_jax.training.losses import LossConfig
from ofa_jax.training.optimizer import OptimizerConfig

BATCH = {"text": next(batches())["text"]}
WIDE = SMALL.replace(adapter_width=3, prefix_length=2)


def paths(tree):
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {tuple(entry.key for entry in path): np.asarray(x) for path, x in leaves}


@functools.cache
def step(config=SMALL, loss=LossConfig(), **options):  # noqa: B008  frozen
    _, new_state, train_step, _ = make_parts(config, loss, groups={"text": "others"}, **options)
    return new_state(), jax.jit(train_step)


def changed(before, after):
    """Returns the paths of the parameters that a step has changed."""
    before, after = paths(before.params), paths(after.params)
    return {path for path in before if (before[path] != after[path]).any()}


@pytest.mark.parametrize(
    ("options", "config"),
    [
        (dict(frozen=("encoder",)), WIDE),
        pytest.param(dict(frozen=("embeddings",)), SMALL, marks=pytest.mark.slow),
        pytest.param(dict(frozen=("resnet", "decoder")), SMALL, marks=pytest.mark.slow),
        pytest.param(dict(trainable_groups=("biases",)), SMALL, marks=pytest.mark.slow),
        (dict(trainable_groups=("adapters",)), WIDE),
        (dict(trainable_groups=("prefixes", "biases")), WIDE),
    ],
)
def test_only_trainable_parameters_change(options, config):
    state, train_step = step(config, **options)
    after, metrics = train_step(state, BATCH)
    frozen, trained = options.get("frozen", ()), options.get("trainable_groups")
    trainable = {
        path
        for path in paths(state.params)
        if (trained is None or parameter_groups.in_groups(path, trained))
        and not parameter_groups.in_groups(path, frozen)
    }
    moved = changed(state, after)
    assert moved <= trainable and moved
    if "prefixes" in (trained or ()):
        # Every self-attention has its own prefix.
        prefixes = {path for path in moved if parameter_groups.GROUPS["prefixes"](path)}
        assert len(prefixes) == 2 * (config.encoder_layers + config.decoder_layers)
        assert all("self_attention" in path for path in prefixes)
    # Text reaches neither the ResNet nor the image tables; all other trainable parameters move.
    reached = changed(*_plain_step(config))
    assert moved >= {path for path in reached & trainable if path[-1] != "bias" or trained}
    # The optimizer holds no moments of frozen parameters.
    moments = sum(x.size for x in jax.tree.leaves(after.opt_state))
    assert moments <= 2 * sum(paths(state.params)[path].size for path in trainable) + 8
    assert metrics.gradient_norm > 0


@functools.cache
def _plain_step(config):
    state, train_step = step(config, weight_decay=0.0)
    return state, train_step(state, BATCH)[0]


def test_adapters_are_initialised_as_the_identity():
    config = SMALL.replace(adapter_width=3)
    variables = nn.meta.unbox(jax.jit(OFA(config).init)(jax.random.key(0), BATCH["text"]))
    flat = flax.traverse_util.flatten_dict(variables["params"])
    less = {path: x for path, x in flat.items() if "adapter" not in path}
    added = [x for path, x in flat.items() if "adapter" in path and "up" in path]
    assert added and not any(x.any() for x in added)
    # The adapters add 0, but two programs may round a sum differently.
    expected = jax.jit(OFA(SMALL).apply)(
        {**variables, "params": flax.traverse_util.unflatten_dict(less)}, BATCH["text"]
    )
    np.testing.assert_allclose(
        jax.jit(OFA(config).apply)(variables, BATCH["text"]),
        expected,
        rtol=0,
        atol=1e-6 * np.abs(expected).max(),
    )


def test_parameter_average_decays_and_is_used_for_evaluation():
    state, train_step = step(ema_decay=0.9, ema_start=1)
    begun, _ = train_step(state, BATCH)
    # Before its start the average equals the parameters.
    jax.tree.map(np.testing.assert_array_equal, begun.ema_params, begun.params)
    after, _ = train_step(begun, BATCH)
    jax.tree.map(
        lambda average, old, new: np.testing.assert_allclose(
            average, 0.9 * old + 0.1 * new, rtol=1e-5, atol=1e-8
        ),
        after.ema_params,
        begun.params,
        after.params,
    )
    assert after.eval_variables["params"] is after.ema_params
    assert begun.replace(ema_params=None).eval_variables["params"] is begun.params


def test_skipped_steps_do_not_change_the_average():
    state, train_step = step(ema_decay=0.9, ema_start=1)
    broken = jax.tree.map(np.copy, BATCH)
    broken["text"]["decoder_loss_weights"][0, 0] = np.nan
    after, _ = train_step(state, broken)
    jax.tree.map(np.testing.assert_array_equal, after.ema_params, state.ema_params)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(frozen=("resent",)), "OptimizerConfig.frozen names 'resent'.*Did you mean resnet?"),
        (
            dict(trainable_groups=("adapter",)),
            "trainable_groups names 'adapter'.*Did you mean adapters?",
        ),
        (dict(ema_decay=1.0), "ema_decay is 1.0; it must be at least 0 and below 1, or None"),
    ],
)
def test_unknown_groups_and_invalid_decays_raise(options, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(1e-3, 10, **options)


def test_training_no_parameters_raises():
    with pytest.raises(ValueError, match="trains nothing .*does the model have what it names"):
        step(SMALL, trainable_groups=("adapters",))
