"""OFA as a model of t5x; T5X_CHECKOUT names the folders of t5x and what it needs, with `:`."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from small_model import SMALL
from small_run import make_parts, stream_batch

from ofa_jax import convert
from ofa_jax.checkpoints import storage
from ofa_jax.decoding import DecodingConfig, make_decoder
from ofa_jax.model import OFA
from ofa_jax.training.losses import negative_log_likelihood

TASK, OTHER_TASK = "t5x_test", "t5x_other_test"
FOLDERS = os.environ.get("T5X_CHECKOUT", "")
needs_t5x = pytest.mark.skipif(not FOLDERS, reason="T5X_CHECKOUT names no checkout of t5x")


def test_importing_without_t5x_says_how_to_install_it():
    program = "import sys; sys.modules['t5x'] = None; import ofa_jax.t5x"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and last.startswith("ImportError: ofa_jax.t5x needs t5x")
    assert "docs/guides/t5x.md" in last


@pytest.fixture(scope="module")
def t5x():
    """Returns our package for t5x, with t5x on the path and a task registered."""
    import seqio
    import tensorflow as tf

    sys.path += [folder for folder in FOLDERS.split(os.pathsep) if folder not in sys.path]
    from ofa_jax import t5x

    feature = seqio.Feature(seqio.PassThroughVocabulary(SMALL.vocab_size), add_eos=False)

    def examples(split, shuffle_files=False, seed=None):
        return tf.data.Dataset.from_tensors({"inputs": [0, 5, 2], "targets": [7, 8, 2]})

    for name in (TASK, OTHER_TASK):
        seqio.TaskRegistry.add(
            name,
            source=seqio.FunctionDataSource(examples, splits=["train"]),
            preprocessors=[],
            output_features={"inputs": feature, "targets": feature},
        )
    seqio.MixtureRegistry.add("t5x_mixture", [(TASK, 1), (OTHER_TASK, 1)])
    return t5x


@pytest.fixture(scope="module")
def grouped(t5x):
    """Returns the name of a mixture of two groups."""
    return t5x.grouped_mixture("t5x_mixture", {TASK: "pairs", OTHER_TASK: "others"})


def make_model(t5x, config=SMALL, task=TASK, **options):
    from ofa_jax.data.features import Stream

    stream = Stream("pairs", task, 4, {"inputs": 7, "targets": 6}, image_size=48, code_targets=True)
    adamw = t5x.adamw(learning_rate=1e-2, total_steps=100, warmup=0)
    return t5x.OFAModel(config, stream, adamw, **options)


def start_t5x(model, variables):
    """Returns t5x's state with these variables, and its step."""
    import flax
    from t5x import train_state as t5x_state
    from t5x import trainer

    variables = flax.core.freeze(jax.tree.map(np.array, variables))
    state = t5x_state.FlaxOptimTrainState.create(model.optimizer_def, variables)
    step = jax.jit(
        lambda state, batch: trainer.train_with_lr(
            state, batch, np.float32(0), jax.random.PRNGKey(0), model, None
        )
    )
    return state, step


@pytest.fixture(scope="module")
def first():
    return stream_batch(0, 48)


@pytest.fixture(scope="module")
def state():
    """Returns a function that makes our first state, and our train step."""
    _, new_state, train_step, _ = make_parts(SMALL, groups={"pairs": "pairs"})
    return new_state, jax.jit(train_step)


@needs_t5x
def test_three_steps_of_t5x_have_our_losses(t5x, state):
    """Float32, in another program: 1e-5 relative."""
    import flax

    new_state, train_step = state
    model, ours = make_model(t5x), new_state()
    theirs, step = start_t5x(model, ours.variables)
    for number in range(3):
        batch = stream_batch(number, 48)
        tokens = (batch["decoder_target_tokens"] != SMALL.pad_id).sum()
        ours, metrics = train_step(ours, {"pairs": batch})
        theirs, found = step(theirs, batch)
        loss = float(found["loss"].compute()) / float(tokens)
        assert loss == pytest.approx(float(metrics.loss), rel=1e-5)
    for name in ("params", "batch_stats"):
        mine = jax.tree.leaves(getattr(ours, name))
        other = theirs.params if name == "params" else theirs.flax_mutables["batch_stats"]
        for a, b in zip(mine, jax.tree.leaves(flax.core.unfreeze(other)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@needs_t5x
def test_a_grouped_mixture_has_the_loss_of_two_groups(t5x, grouped):
    """One batch of both streams; frozen batch norm, which would else see them together."""
    import flax

    config = SMALL.replace(freeze_batch_norm=True)
    _, new_state, train_step, _ = make_parts(config)
    model, ours, train_step = (
        make_model(t5x, config, task=grouped),
        new_state(),
        jax.jit(train_step),
    )
    assert model.groups == ("others", "pairs")
    theirs, step = start_t5x(model, ours.variables)
    for number in range(3):
        pairs, text = stream_batch(number, 48), stream_batch(100 + number, 48)
        text["decoder_target_tokens"][:, 2:] = SMALL.pad_id  # so that the groups' sizes differ
        ours, metrics = train_step(ours, {"pairs": pairs, "text": text})
        batch = {name: np.concatenate([pairs[name], text[name]]) for name in pairs}
        theirs, found = step(theirs, batch | {"loss_groups": np.repeat([1, 0], 4)})
        loss = float(found["loss_of_groups"].compute())
        assert loss == pytest.approx(float(metrics.loss), rel=1e-5)
    for a, b in zip(
        jax.tree.leaves(ours.params),
        jax.tree.leaves(flax.core.unfreeze(theirs.params)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@needs_t5x
def test_what_cannot_be_grouped_is_refused(t5x, grouped):
    groups = {TASK: "pairs", OTHER_TASK: "others"}
    assert t5x.grouped_mixture("t5x_mixture", groups) == grouped == "t5x_mixture:grouped"
    with pytest.raises(ValueError, match=f"no group for {OTHER_TASK}: give one for every task"):
        t5x.grouped_mixture("t5x_mixture", {TASK: "pairs"})
    with pytest.raises(ValueError, match="has other groups in this program"):
        t5x.grouped_mixture("t5x_mixture", {TASK: "pairs", OTHER_TASK: "pairs"})


@needs_t5x
def test_predictions_and_scores_are_ours(t5x, state, first):
    model = make_model(t5x, decoding=DecodingConfig(beam_size=2, max_length=4))
    variables = state[0]().variables
    params, stats = variables["params"], {"batch_stats": variables["batch_stats"]}
    wanted = make_decoder(OFA(SMALL), DecodingConfig(beam_size=2, max_length=4))(variables, first)
    tokens, aux = model.predict_batch_with_aux(params, first, flax_mutables=stats)
    np.testing.assert_array_equal(tokens, wanted.tokens[:, 0])
    np.testing.assert_array_equal(aux["scores"], wanted.scores[:, 0])
    logits = jax.jit(OFA(SMALL).apply)(variables, first)
    targets = first["decoder_target_tokens"]
    nll = np.where(targets == SMALL.pad_id, 0, negative_log_likelihood(logits, targets))
    scores = model.score_batch(params, first, stats)
    np.testing.assert_allclose(scores, -nll.sum(-1), rtol=1e-5)


@pytest.fixture(scope="module")
def initializer(t5x):
    """Returns what t5x makes and restores train states with, and its partitioner."""
    from t5x import partitioning, utils

    model = make_model(t5x)
    partitioner = partitioning.PjitPartitioner(1, logical_axis_rules=t5x.logical_axis_rules())
    states = utils.TrainStateInitializer(
        model.optimizer_def, model.get_initial_variables, {}, partitioner
    )
    return states, partitioner


@needs_t5x
@pytest.mark.parametrize("weights_alone", [False, True])
def test_t5x_restores_what_was_converted_and_what_it_saves_comes_back(
    initializer, state, tmp_path, weights_alone
):
    from t5x import checkpoints

    states, partitioner = initializer
    ours = state[0]().replace(step=np.array(7, np.int32))
    if weights_alone:
        storage.save_variables(tmp_path / "run", jax.tree.map(np.asarray, ours.variables), 7)
    else:
        storage.save_variables(tmp_path / "run", ours, 7, {"seed": 1})
    storage.write_model_config(tmp_path / "run", SMALL)
    convert.main([str(tmp_path / "run"), str(tmp_path / "t5x"), "--layout=t5x"])

    def manager(folder):
        return checkpoints.OrbaxCheckpointManagerInterface(
            str(tmp_path / folder), states.global_train_state_shape, partitioner
        )

    fallback = None
    if weights_alone:
        fallback = states.from_scratch(jax.random.PRNGKey(3)).state_dict()
    restored = manager("t5x").restore(step=7, fallback_state=fallback)
    assert int(restored.step) == 7
    for mine, other in (
        (ours.params, restored.params),
        (ours.batch_stats, restored.flax_mutables["batch_stats"]),
        *([] if weights_alone else [(ours.opt_state, restored.param_states)]),
    ):
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(a, b)

    (tmp_path / "saved").mkdir()
    saving = manager("saved")
    saving.save(restored)
    saving.close()
    storage.write_model_config(tmp_path / "saved", SMALL)
    convert.main([str(tmp_path / "saved"), str(tmp_path / "back")])
    back = storage.load_numpy_variables(tmp_path / "back")
    for a, b in zip(jax.tree.leaves(ours.variables), jax.tree.leaves(back), strict=True):
        np.testing.assert_array_equal(a, b)
    assert storage.find_checkpoint(tmp_path / "back").name == "7"
    tree = storage.read_arrays_tree(storage.find_checkpoint(tmp_path / "back"))
    assert set(tree) >= {"opt_state", "step", "skipped_steps"}


@needs_t5x
def test_every_variable_has_axes_that_the_rules_know(t5x):
    from flax.linen import partitioning

    model = make_model(t5x, SMALL.replace(vocab_multiple=16))
    variables = jax.eval_shape(
        lambda key: model.get_initial_variables(key, {}), jax.random.PRNGKey(0)
    )
    assert {"params", "params_axes", "batch_stats", "batch_stats_axes"} == set(variables)
    for dims in (1, 2):
        known = {name for name, _ in t5x.logical_axis_rules(dims)}
        for name in ("params", "batch_stats"):
            axes = partitioning.get_axis_names(variables[f"{name}_axes"])
            leaves = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
            used = {axis for leaf in leaves for axis in tuple(leaf) if axis is not None}
            assert used <= known
    assert model.config.padded_vocab_size == 64


@needs_t5x
def test_what_t5x_cannot_do_is_refused(t5x):
    from ofa_jax.training.losses import LossConfig

    with pytest.raises(ValueError, match="rdrop_alpha and drop_worst_ratio"):
        make_model(t5x, loss=LossConfig(rdrop_alpha=1.0))
    with pytest.raises(ValueError, match="method = 'beam'"):
        make_model(t5x, decoding=DecodingConfig("sample"))
    with pytest.raises(ValueError, match="not packed"):
        make_model(t5x).FEATURE_CONVERTER_CLS(pack=True)
    with pytest.raises(ValueError, match="no averaged parameters"):
        t5x.adamw(learning_rate=1e-2, total_steps=100, ema_decay=0.9)
