"""Where the time goes, what padding costs, profiles and the watchdog."""

import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from ofa_jax.training import telemetry, validation
from ofa_jax.training.loop import LoopConfig


def test_a_lap_tells_stepping_from_all_else():
    lap = telemetry.Lap(10.0, {"waiting_for_data": 1.0, "checkpoints": 2.0, "compilation": 3.0})
    assert lap.stepping_seconds == 5.0  # waiting for data slows steps down; saving does not
    assert lap.goodput == pytest.approx(0.4)
    assert lap.share("checkpoints") == 0.2 and lap.share("validation") == 0.0
    speed = telemetry.Throughput.over(lap, steps=10, examples=80, target_tokens=400)
    assert (speed.steps_per_second, speed.examples_per_second) == (2.0, 16.0)
    assert speed.scalars["target_tokens_per_second_per_chip"] == 80.0 / speed.num_devices


def test_the_clock_begins_each_lap_anew_and_keeps_the_total():
    clock = telemetry.Clock()
    with clock.measure("checkpoints"):
        time.sleep(0.02)
    first = clock.lap()
    with pytest.raises(OSError), clock.measure("checkpoints"):
        raise OSError  # what fails took time too
    second = clock.lap()
    assert first.parts["checkpoints"] >= 0.02 > second.parts["checkpoints"]
    total = clock.total()
    assert total.parts["checkpoints"] == pytest.approx(
        first.parts["checkpoints"] + second.parts["checkpoints"])
    assert total.seconds >= first.seconds + second.seconds


def test_padding_is_a_share_of_the_tokens_of_each_side_since_the_last_report():
    padding = telemetry.Padding(pad_id=1)
    padding.add({"text": {
        "encoder_input_tokens": np.array([[0, 5, 2, 1], [0, 2, 1, 1]]),
        "decoder_input_tokens": np.array([[0, 5], [0, 1]])}})
    padding.add({"text": {
        "encoder_input_tokens": np.full((2, 4), 1), "decoder_input_tokens": np.full((2, 2), 5)}})
    assert padding.shares() == {"text/encoder": 11 / 16, "text/decoder": 1 / 8}
    assert padding.shares() == {}


@pytest.mark.parametrize("first_step", [1, 3])
def test_a_profile_is_made_of_the_steps_asked_for_also_when_resuming_within_them(
    tmp_path, first_step
):
    profiler = telemetry.Profiler(epath.Path(tmp_path / "profile"), (2, 3))
    active = []
    for step in range(first_step, 6):
        profiler.before(step)
        active += [step] * profiler._active
        profiler.after(step, jnp.ones(2) * step)
    assert active == [step for step in (2, 3) if step >= first_step]
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_no_profile_is_made_unasked(tmp_path):
    profiler = telemetry.Profiler(epath.Path(tmp_path / "profile"), None)
    profiler.before(1)
    profiler.after(1, None)
    profiler.close()
    assert not (tmp_path / "profile").exists()


def test_a_process_that_makes_no_step_ends_and_says_where_it_was():
    program = (
        "import time\nfrom ofa_jax.training.watchdog import Watchdog\n"
        "def stuck(): time.sleep(60)\n"
        "with Watchdog(1.0) as dog:\n"
        "    for _ in range(3): time.sleep(0.5); dog.well()\n"
        "    print('was well', flush=True)\n    stuck()\n")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "was well\n"
    assert "in stuck" in done.stderr


def results(loss, accuracy=0.5):
    return {"a": {"loss": loss, "token_accuracy": accuracy}, "b": {"loss": 1.0,
            "token_accuracy": 0.1}}


def test_the_best_step_is_by_the_metric_asked_for_and_known_after_a_restart(tmp_path):
    history = validation.History(epath.Path(tmp_path / "validations.json"))
    for step, loss, accuracy in ((2, 3.0, 0.2), (4, 2.0, 0.3), (6, 2.5, 0.9), (8, np.nan, 0.95)):
        history.add(step, results(loss, accuracy))
    again = validation.History(epath.Path(tmp_path / "validations.json"))
    for known in (history, again):
        assert known.best("loss", [2, 4, 6, 8]) == 4
        assert known.best("loss", [2, 6, 8, 10]) == 6, "only of those that are there"
        assert known.best("a/token_accuracy", [2, 4, 6]) == 6
        assert known.best("b/loss", [2, 4, 6]) == 2
        assert known.best("loss", [8, 10]) is None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(best_metric="accuracy"), "LoopConfig.best_metric is 'accuracy'; give one of loss"),
        (dict(best_metric="loss"), r"set validation_period \(0\) to a multiple"),
        (dict(best_metric="loss", validation_period=150, checkpoint_period=100), "a multiple"),
        (dict(checkpoints_to_keep=0), "checkpoints_to_keep is 0; give at least 1, or None"),
        (dict(checkpoint_keep_period=0), "checkpoint_keep_period is 0"),
        (dict(profile_steps=(5, 4)), "give the first and the last step"),
        (dict(profile_steps=(5,)), "give the first and the last step"),
    ],
)
def test_what_the_loop_cannot_do_is_a_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        LoopConfig(total_steps=10, **options)


def test_a_metric_of_no_task_of_the_run_is_a_sentence():
    with pytest.raises(ValueError, match="the run's tasks are a, b"):
        validation.check_metric("c/loss", "LoopConfig.best_metric", ["a", "b"])
