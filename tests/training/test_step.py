"""One step: gradients, frozen parameters, and sums per task."""

import functools

import jax
import numpy as np
import pytest
from small_model import SMALL
from small_run import GROUPS, batches, make_parts, stream_batch

from ofa_jax.model import OFA
from ofa_jax.training import losses, metrics
from ofa_jax.training.losses import LossConfig
from ofa_jax.training.metrics import TaskSums

FIRST = next(batches())
# Text alone compiles in a fraction of the time: for what has nothing to do with images.
PLAIN = LossConfig()


@functools.cache
def jitted(config=SMALL, loss=PLAIN, streams=tuple(GROUPS)):
    groups = {name: GROUPS[name] for name in streams}
    _, new_state, train_step, eval_step = make_parts(config, loss, groups=groups)
    return new_state, jax.jit(train_step), jax.jit(eval_step)


def differs(a, b) -> bool:
    return any(
        (np.asarray(x) != np.asarray(y)).any()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_the_loss_goes_down_on_a_batch_seen_again_and_again():
    new_state, train_step, _ = jitted()
    state, seen = new_state(), []
    for _ in range(24):
        state, step_metrics = train_step(state, FIRST)
        seen.append(float(step_metrics.loss))
    # Both groups begin near log(60) = 4.1 and must overfit 20 tokens.
    assert seen[-1] < 0.7 * seen[0]
    assert state.step == 24 and state.skipped_steps == 0


def test_the_loss_is_the_sum_of_groups_and_batch_norm_is_updated_by_each_stream():
    new_state, train_step, _ = jitted()
    state = new_state()
    new, step_metrics = train_step(state, FIRST)
    variables, tokens = state.variables, {}
    forward = jax.jit(
        functools.partial(
            OFA(SMALL).apply,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
    )
    for name in GROUPS:
        logits, updates = forward(variables, FIRST[name])
        variables = {**variables, **updates}
        tokens[name] = losses.token_losses(
            logits,
            FIRST[name]["decoder_target_tokens"],
            FIRST[name]["decoder_loss_weights"],
            LossConfig(),
        )
    np.testing.assert_allclose(
        step_metrics.loss, losses.grouped_loss(tokens, GROUPS, LossConfig(), 0), rtol=1e-5
    )
    assert differs(new.batch_stats, state.batch_stats)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        new.batch_stats,
        variables["batch_stats"],
    )


def test_logits_in_blocks_make_the_same_step():
    """Sums over the vocabulary in another order: 1e-5 of the largest gradient of each array."""
    new_state, train_step, _ = jitted(streams=("text",))
    _, in_blocks, _ = jitted(loss=LossConfig(logits_in_blocks=True), streams=("text",))
    (ours, our_metrics), (theirs, their_metrics) = (
        step(new_state(), {"text": FIRST["text"]}) for step in (in_blocks, train_step)
    )
    for name in ("loss", "gradient_norm"):
        np.testing.assert_allclose(
            getattr(our_metrics, name), getattr(their_metrics, name), rtol=1e-5
        )
    np.testing.assert_allclose(our_metrics.tasks.nll, their_metrics.tasks.nll, rtol=1e-5)
    for mine, other in zip(
        jax.tree.leaves(ours.opt_state), jax.tree.leaves(theirs.opt_state), strict=True
    ):
        largest = float(np.abs(other).max())
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-5 * max(largest, 1e-6))


def test_each_task_has_its_own_sums():
    new_state, train_step, _ = jitted()
    _, step_metrics = train_step(new_state(), FIRST)
    # Both streams: 4 examples of 5 scored tokens, half of them of either task.
    np.testing.assert_array_equal(step_metrics.tasks.tokens, [20, 20])
    np.testing.assert_array_equal(step_metrics.tasks.examples, [4, 4])
    means = metrics.mean_losses(step_metrics.tasks, ("a", "b"))
    assert set(means) == {"a", "b"}
    # With equal weights the two groups' means are 2 * the mean over both tasks.
    np.testing.assert_allclose(sum(means.values()), step_metrics.loss, rtol=1e-5)


def test_a_confidence_scales_the_loss_but_not_the_logged_one():
    new_state, train_step, _ = jitted()
    weighted = jax.tree.map(np.copy, FIRST)
    for batch in weighted.values():
        batch["decoder_loss_weights"] *= 0.5
    _, plain = train_step(new_state(), FIRST)
    _, half = train_step(new_state(), weighted)
    np.testing.assert_allclose(half.loss, 0.5 * plain.loss, rtol=1e-5)
    np.testing.assert_allclose(half.tasks.nll, plain.tasks.nll, rtol=1e-5)


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted():
    new_state, train_step, _ = jitted()
    state = new_state()
    broken = jax.tree.map(np.copy, FIRST)
    broken["text"]["decoder_loss_weights"][0, 0] = np.nan
    new, step_metrics = train_step(state, broken)
    assert not np.isfinite(step_metrics.loss)
    assert new.step == 1 and new.skipped_steps == 1
    for part in ("params", "batch_stats", "opt_state"):
        assert not differs(getattr(new, part), getattr(state, part)), part
    after, step_metrics = train_step(new, FIRST)
    assert np.isfinite(step_metrics.loss) and after.skipped_steps == 1


def test_dropout_follows_from_the_step():
    new_state, train_step, _ = jitted(SMALL.replace(dropout_rate=0.3), streams=("text",))
    state = new_state()
    first, again = train_step(state, FIRST)[1], train_step(state, FIRST)[1]
    assert first.loss == again.loss
    later = train_step(state.replace(step=state.step + 1), FIRST)[1]
    assert later.loss != first.loss


def test_rdrop_counts_both_passes_and_punishes_their_difference():
    def first_step(dropout_rate, **options):
        config = SMALL.replace(dropout_rate=dropout_rate)
        new_state, train_step, _ = jitted(config, LossConfig(**options), ("text",))
        metrics = train_step(new_state(), FIRST)[1]
        np.testing.assert_array_equal(metrics.tasks.tokens, [20, 20])
        # The log has the plain nats of both passes.
        return metrics.loss, metrics.tasks.nll.sum() / metrics.tasks.tokens.sum()

    # Untrained passes differ by some 4e-4 of their loss; a hundred times that exceeds rounding.
    loss, plain = first_step(0.3, rdrop_alpha=100.0)
    assert loss > 1.01 * plain
    # Without dropout the passes agree, and their divergence is nothing: plain nats remain.
    loss, plain = first_step(0.0, rdrop_alpha=100.0)
    np.testing.assert_allclose(loss, plain, rtol=1e-5)


@pytest.mark.parametrize("pixels", [48, 0])
def test_evaluation_sums_loss_and_right_tokens(pixels):
    new_state, _, eval_step = jitted()
    state, batch = new_state(), stream_batch(5, pixels)
    sums = eval_step(state.variables, batch, TaskSums.zeros(2))
    sums = eval_step(state.variables, batch, sums)
    logits = np.asarray(jax.jit(OFA(SMALL).apply)(state.variables, batch), np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    targets = batch["decoder_target_tokens"]
    picked = np.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
    scored = targets != 1
    for task in (0, 1):
        rows = batch["task_ids"] == task
        np.testing.assert_allclose(sums.nll[task], -2 * picked[rows][scored[rows]].sum(), rtol=1e-5)
        right = (logits.argmax(-1) == targets)[rows][scored[rows]].sum()
        assert sums.correct[task] == 2 * right
        assert sums.tokens[task] == 2 * scored[rows].sum()


def test_accumulated_gradients_equal_those_of_the_whole_batch():
    """Parts of unequal numbers of tokens: a mean of means would be a different loss.

    float32 sums in another order: 1e-5 of each array's largest value.
    """
    whole = {"pairs": stream_batch(0, 0, size=6), "text": stream_batch(1, 0, size=6)}
    for k, batch in enumerate(whole.values()):
        batch["decoder_target_tokens"][k : k + 3, 1:] = SMALL.pad_id
    results = []
    for parts in (1, 3):
        _, new_state, train_step, _ = make_parts(
            SMALL, LossConfig(label_smoothing=0.1), gradient_accumulation=parts
        )
        results.append(jax.jit(train_step)(new_state(), whole))
    (state, one), (accumulated_state, accumulated) = results
    for name in ("loss", "gradient_norm", "tasks"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
            getattr(accumulated, name),
            getattr(one, name),
        )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, rtol=0, atol=1e-5 * max(np.abs(b).max(), 1e-6)
        ),
        accumulated_state.opt_state,
        state.opt_state,
    )


def test_accumulation_is_refused_where_the_whole_batch_must_be_seen():
    with pytest.raises(ValueError, match="drop_worst_ratio ranks the tokens of the whole batch"):
        make_parts(SMALL, LossConfig(drop_worst_ratio=0.2), gradient_accumulation=2)
