"""The loop: checkpoints, resuming without a difference, and reports."""

import json
import pathlib

import jax
import numpy as np
import pytest
from small_run import TASKS, make_run

from ofa_jax.checkpoints import storage
from ofa_jax.checkpoints.manager import Checkpoints
from ofa_jax.training import loop
from ofa_jax.training.loop_config import LoopConfig
from ofa_jax.utils.timers import Interval

PERIODS = dict(log_period=1, checkpoint_period=2)


def output(run):
    return run.console.file.getvalue()


def final_state(run):
    manager = Checkpoints(run.model_dir)
    state, _ = manager.restore(run.config.total_steps, run.abstract_state)
    manager.close()
    return state


def losses(run):
    return {step: s["train/loss"] for step, s in run.writer.scalars.items() if "train/loss" in s}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns a run of five steps without a stop."""
    run = make_run(
        tmp_path_factory.mktemp("whole"),
        validation=True,
        total_steps=5,
        peak_flops=1e12,
        profile_steps=(3, 4),
        **PERIODS,
    )
    results = loop.train(run)
    return run, results


def test_resuming_gives_the_same_losses_and_parameters_as_not_stopping(whole, tmp_path):
    run, _ = whole
    begun = make_run(tmp_path, total_steps=3, **PERIODS)
    loop.train(begun)
    resumed = make_run(tmp_path, total_steps=5, **PERIODS)
    loop.train(resumed)
    assert "Resuming from step 3 of 5" in output(resumed)
    expected = losses(run)
    assert losses(begun) | losses(resumed) == expected and set(expected) == {1, 2, 3, 4, 5}
    jax.tree.map(np.testing.assert_array_equal, final_state(run), final_state(resumed))


def test_a_complete_run_is_reported_without_running_again(whole):
    run, results = whole
    again = make_run(run.model_dir, validation=True, total_steps=5, **PERIODS)
    assert loop.train(again) == results
    assert "already complete" in output(again) and "Compiling" not in output(again)
    assert not again.writer.scalars
    assert "first" in output(again)


def test_validation_is_written_to_the_file_the_events_and_the_table(whole):
    run, results = whole
    assert json.loads((run.model_dir / "validation.json").read_text()) == results
    assert set(results) == set(TASKS)
    for name, row in results.items():
        assert list(row) == ["loss", "unigram_loss", "token_accuracy", "majority_accuracy"]
        assert row["unigram_loss"] == 4.0 and row["majority_accuracy"] == 0.25
        assert run.writer.scalars[5][f"validation/loss/{name}"] == row["loss"]
        assert f"{row['loss']:.3f}" in output(run)


def test_reports_have_speed_losses_and_skipped_records(whole):
    run, _ = whole
    text = output(run)
    assert "step 5/5" in text and "examples/s" in text and "7 records skipped" in text
    scalars = run.writer.scalars[3]
    assert scalars["train/examples_per_second"] == pytest.approx(
        8 * scalars["train/steps_per_second"]
    )
    assert {f"train/loss/{name}" for name in TASKS} <= set(scalars)
    chips = jax.device_count()
    rate = 4e6 * scalars["train/steps_per_second"] / chips
    assert scalars["train/model_flops_per_second_per_chip"] == pytest.approx(rate)
    assert scalars["train/mfu"] == pytest.approx(rate / 1e12)
    assert f"MFU {scalars['train/mfu']:.1%}" in text
    # 8 examples of 5 scored tokens.
    assert scalars["train/target_tokens_per_second_per_chip"] == pytest.approx(
        40 * scalars["train/steps_per_second"] / chips
    )
    assert scalars["train/gradient_norm"] > 0 and scalars["train/parameter_norm"] > 0
    assert scalars["train/padding/text/encoder"] == 0
    assert {"train/time/compilation", "train/time/checkpoints", "train/time/restoring"} <= set(
        run.writer.scalars[5]
    )


def test_the_configured_steps_are_profiled(whole):
    run, _ = whole
    assert list(pathlib.Path(run.model_dir / "profile").rglob("*.xplane.pb"))


def test_a_run_with_another_fingerprint_is_not_continued(whole):
    run, _ = whole
    other = make_run(run.model_dir, run_fingerprint={"seed": 4, "shape": (1, 2)}, total_steps=9)
    with pytest.raises(loop.RunError, match="seed = 3, but now it is 4"):
        loop.train(other)


def test_a_checkpoint_of_another_model_is_refused_with_an_error(whole):
    run, _ = whole
    state = run.abstract_state
    wider = state.replace(
        batch_stats=jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((3, *x.shape), x.dtype, sharding=x.sharding),
            state.batch_stats,
        )
    )
    count = len(jax.tree.leaves(state.batch_stats))
    manager = Checkpoints(run.model_dir)
    sentence = rf"is \[4\] and should be \[3, 4\].* and {count - 5} more"
    with pytest.raises(ValueError, match=sentence):
        manager.restore(5, wider)
    manager.close()
    other = {"params": {"new": state.step}, "batch_stats": state.batch_stats}
    with pytest.raises(ValueError, match="params/new is missing; params/.* is not expected"):
        storage.restore_variables(str(run.model_dir), other)


def test_parameters_alone_can_be_taken_from_a_checkpoint(whole):
    run, _ = whole
    variables = storage.restore_variables(str(run.model_dir), run.abstract_state.variables)
    jax.tree.map(np.testing.assert_array_equal, variables, final_state(run).variables)
    folder = storage.find_checkpoint(str(run.model_dir / "checkpoints" / "4"))
    assert folder.name == "4"
    with pytest.raises(FileNotFoundError, match="There is no checkpoint in"):
        storage.find_checkpoint(str(run.model_dir / "nowhere"))


def test_only_the_newest_checkpoints_stay(tmp_path):
    run = make_run(
        tmp_path, total_steps=4, log_period=4, checkpoint_period=1, checkpoints_to_keep=2
    )
    loop.train(run)
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"3", "4"}


def test_too_many_bad_steps_stop_the_run(tmp_path):
    run = make_run(tmp_path, total_steps=5, log_period=1, max_skipped_steps=1)

    def broken(start):
        for batch in run_batches(start):
            batch["text"]["decoder_loss_weights"][:] = np.nan
            yield batch

    run_batches = run.batches
    object.__setattr__(run, "batches", broken)
    with pytest.raises(FloatingPointError, match="2 steps had a loss or gradient"):
        loop.train(run)


def trained_seconds(run, step):
    manager = Checkpoints(run.model_dir)
    seconds = manager.read_run_metadata(step)[loop.TRAINED_SECONDS]
    manager.close()
    return seconds


def test_a_run_whose_time_is_up_is_saved_validated_and_finished(whole, tmp_path):
    short = make_run(tmp_path, validation=True, total_steps=5, max_minutes=1e-9, **PERIODS)
    results = loop.train(short)
    assert "minutes of this run are over: it ends with step 1 of 5" in output(short)
    assert "Validation after 1 steps" in output(short)
    assert set(losses(short)) == {1} and set(results) == set(TASKS)
    again = make_run(tmp_path, validation=True, total_steps=5, max_minutes=1e-9, **PERIODS)
    assert loop.train(again) == results
    assert "already complete (checkpoint of step 1 of 5" in output(again)
    assert "Raise LoopConfig.max_minutes" in output(again) and not losses(again)
    # With more time it resumes and gives the same results.
    more = make_run(tmp_path, total_steps=5, max_minutes=60, **PERIODS)
    loop.train(more)
    run, _ = whole
    assert losses(short) | losses(more) == losses(run)
    jax.tree.map(np.testing.assert_array_equal, final_state(run), final_state(more))


def test_time_before_a_restart_counts_and_validation_does_not(tmp_path, monkeypatch):
    def spent(seconds, **parts):
        monkeypatch.setattr(
            loop.timers.GoodputTimer, "total", lambda clock: Interval(seconds, parts)
        )

    spent(40.0, validation=15.0)
    begun = make_run(tmp_path, total_steps=1, max_minutes=1, **PERIODS)
    loop.train(begun)
    assert trained_seconds(begun, 1) == 25
    spent(35.0)
    resumed = make_run(tmp_path, total_steps=5, max_minutes=1, **PERIODS)
    loop.train(resumed)
    assert trained_seconds(resumed, 2) == 60 and set(losses(resumed)) == {2}


def test_an_invalid_time_limit_is_refused():
    with pytest.raises(ValueError, match="max_minutes is 0; it must be positive"):
        LoopConfig(total_steps=1, max_minutes=0)
