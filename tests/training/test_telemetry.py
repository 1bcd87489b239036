"""Goodput, padding, profiles and the watchdog."""

import subprocess
import sys
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from ofa_jax.training import telemetry, validation
from ofa_jax.training.loop_config import LoopConfig
from ofa_jax.utils import hardware, timers
from ofa_jax.utils.hardware import CHIPS


def test_an_interval_separates_steps_from_all_else():
    interval = timers.Interval(
        10.0, {"waiting_for_data": 1.0, "checkpoints": 2.0, "compilation": 3.0}
    )
    assert interval.stepping_seconds == 5.0  # waiting for data slows steps down; saving does not
    assert interval.goodput == pytest.approx(0.4)
    assert interval.share("checkpoints") == 0.2 and interval.share("validation") == 0.0
    speed = telemetry.Throughput.over(
        interval, steps=10, examples=80, target_tokens=400, flops=5e12, peak_flops=4e12
    )
    assert (speed.steps_per_second, speed.examples_per_second) == (2.0, 16.0)
    assert speed.scalars["target_tokens_per_second_per_chip"] == 80.0 / speed.num_devices
    assert speed.flops_per_second == 1e12 and speed.mfu == 0.25 / speed.num_devices


def test_the_timer_starts_each_interval_at_zero_and_keeps_the_total():
    timer = timers.GoodputTimer()
    with timer.measure("checkpoints"):
        time.sleep(0.02)
    first = timer.next_interval()
    with pytest.raises(OSError), timer.measure("checkpoints"):
        raise OSError  # what fails took time too
    second = timer.next_interval()
    assert first.parts["checkpoints"] >= 0.02 > second.parts["checkpoints"]
    total = timer.total()
    assert total.parts["checkpoints"] == pytest.approx(
        first.parts["checkpoints"] + second.parts["checkpoints"]
    )
    assert total.seconds >= first.seconds + second.seconds


class _Devices:
    """Simulated devices: a step starts when its batch and the previous step are ready."""

    def __init__(self, seconds):
        self._seconds, self.free_at = seconds, 0.0

    def step(self):
        """Returns the result of a step; reading it waits."""
        self.free_at = max(self.free_at, time.perf_counter()) + self._seconds
        return _Made(self.free_at)


class _Made:
    def __init__(self, at):
        self._at = at

    def block_until_ready(self):
        time.sleep(max(0.0, self._at - time.perf_counter()))
        return self


def slow_batches(seconds):
    while True:
        time.sleep(seconds)
        yield {}


@pytest.mark.parametrize(
    ("step_seconds", "batch_seconds", "waited"),
    [
        (0.10, 0.04, 0.04),  # only the first batch is waited for: the others come meanwhile
        (0.02, 0.10, 0.10 + 5 * 0.08),  # all but the time that the step before still took
    ],
)
def test_only_idle_time_of_the_devices_is_waiting_for_data(step_seconds, batch_seconds, waited):
    devices, batches = _Devices(step_seconds), slow_batches(batch_seconds)
    timer = timers.GoodputTimer()
    throttle = telemetry.DispatchThrottle(timer)
    for _ in range(6):
        throttle.next(batches)
        throttle.after_dispatch(devices.step())
    throttle.drain()
    throttle.close()
    # Sleeping is late by some milliseconds on a busy machine, and never early.
    found = timer.total().parts[telemetry.WAITING_FOR_DATA]
    assert waited * 0.9 <= found <= waited + 6 * 0.02


class _Result:
    """An array that the test marks as ready."""

    def __init__(self):
        self.ready = threading.Event()

    def block_until_ready(self):
        assert self.ready.wait(10)
        return self


def test_the_host_is_at_most_two_steps_ahead():
    throttle = telemetry.DispatchThrottle(timers.GoodputTimer())
    results = [_Result() for _ in range(4)]
    after_dispatch = []

    def host():
        for number, result in enumerate(results):
            throttle.after_dispatch(result)
            after_dispatch.append(number)

    thread = threading.Thread(target=host)
    thread.start()
    for number, result in enumerate(results):
        end = time.monotonic() + 10
        while len(after_dispatch) < min(number + 2, 4) and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(0.02)  # as long as it wants to go further
        assert after_dispatch == list(range(min(number + 2, 4)))
        result.ready.set()
    thread.join()
    throttle.drain()
    throttle.close()


def test_device_errors_are_raised_on_the_host():
    class Failing:
        def block_until_ready(self):
            raise RuntimeError("the device is gone")

    throttle = telemetry.DispatchThrottle(timers.GoodputTimer())
    throttle.after_dispatch(Failing())
    with pytest.raises(RuntimeError, match="the device is gone"):
        throttle.drain()


@pytest.mark.parametrize(
    ("kind", "flops"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v3", 61.5e12),  # half a chip
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H200", 989.4e12),
        ("cpu", None),
        ("TPU v99", None),
    ],
)
def test_the_peak_is_that_of_one_device_of_a_known_kind(kind, flops):
    assert hardware.peak_flops(kind) == flops


def test_every_known_kind_of_device_has_its_chip():
    assert set(hardware._CHIP_OF_KIND.values()) <= set(CHIPS)


def test_padding_is_a_share_of_the_tokens_of_each_side_since_the_last_report():
    padding = telemetry.Padding(pad_id=1)
    padding.add(
        {
            "text": {
                "encoder_input_tokens": np.array([[0, 5, 2, 1], [0, 2, 1, 1]]),
                "decoder_input_tokens": np.array([[0, 5], [0, 1]]),
            }
        }
    )
    padding.add(
        {
            "text": {
                "encoder_input_tokens": np.full((2, 4), 1),
                "decoder_input_tokens": np.full((2, 2), 5),
            }
        }
    )
    assert padding.shares() == {"text/encoder": 11 / 16, "text/decoder": 1 / 8}
    assert padding.shares() == {}


@pytest.mark.parametrize("first_step", [1, 3])
def test_a_profile_covers_the_configured_steps_also_when_resuming_within_them(tmp_path, first_step):
    profiler = telemetry.Profiler(epath.Path(tmp_path / "profile"), (2, 3))
    active = []
    for step in range(first_step, 6):
        profiler.before(step)
        active += [step] * profiler._active
        profiler.after(step, jnp.ones(2) * step)
    assert active == [step for step in (2, 3) if step >= first_step]
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_no_profile_is_recorded_by_default(tmp_path):
    profiler = telemetry.Profiler(epath.Path(tmp_path / "profile"), None)
    profiler.before(1)
    profiler.after(1, None)
    profiler.close()
    assert not (tmp_path / "profile").exists()


def test_a_process_without_progress_ends_and_reports_its_stack():
    program = (
        "import time\nfrom ofa_jax.training.watchdog import Watchdog\n"
        "def stuck(): time.sleep(60)\n"
        "with Watchdog(1.0) as dog:\n"
        "    for _ in range(3): time.sleep(0.5); dog.heartbeat()\n"
        "    print('was well', flush=True)\n    stuck()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "was well\n"
    assert "in stuck" in done.stderr


def results(loss, accuracy=0.5):
    return {
        "a": {"loss": loss, "token_accuracy": accuracy},
        "b": {"loss": 1.0, "token_accuracy": 0.1},
    }


def test_the_best_step_is_by_the_configured_metric_and_known_after_a_restart(tmp_path):
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
        (dict(checkpoints_to_keep=0), "checkpoints_to_keep is 0; it must be at least 1, or None"),
        (dict(checkpoint_keep_period=0), "checkpoint_keep_period is 0"),
        (dict(profile_steps=(5, 4)), "give the first and the last step"),
        (dict(profile_steps=(5,)), "give the first and the last step"),
    ],
)
def test_invalid_loop_options_are_reported_in_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        LoopConfig(total_steps=10, **options)


def test_a_metric_of_an_unknown_task_is_reported_in_one_sentence():
    with pytest.raises(ValueError, match="the run's tasks are a, b"):
        validation.check_metric("c/loss", "LoopConfig.best_metric", ["a", "b"])
