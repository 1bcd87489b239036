"""`python -m tools.benchmark_start`: what it waits for, and how it counts."""

import sys

import pytest

from tools import benchmark_start

PROGRAM = """
import sys, time
print("Compiling the step ...", flush=True)
print("step 851/1,700  loss 1.0", flush=True)
print("modules: 12", len(sys.argv) > 1, flush=True)
time.sleep(600)
"""


def command(*more):
    return [sys.executable, "-u", "-c", PROGRAM, *more]


def is_step(line):
    return benchmark_start._STEP.search(line) is not None


def test_a_program_is_stopped_once_it_has_done_it():
    seconds, modules, tensorflow = benchmark_start.wait_for(command(), is_step)
    assert 0 < seconds < 600 and modules == 12 and tensorflow is False


def test_the_first_start_is_reported_apart():
    starts = benchmark_start.measure(lambda number: command(*["x"] * number), is_step, 3)
    assert len(starts.later) == 2 and starts.tensorflow is True
    assert "the first time; 12 modules, TensorFlow imported" in starts.text("first step")


def test_a_program_that_fails_is_a_sentence():
    broken = [sys.executable, "-c", "raise ValueError('no checkpoint')"]
    with pytest.raises(ValueError, match="ended before .*ValueError: no checkpoint"):
        benchmark_start.wait_for(broken, is_step)


def test_a_run_with_nothing_to_resume_is_refused(tmp_path, capsys):
    assert benchmark_start.main([f"--run={tmp_path}"]) == 2
    assert "has 0 checkpoints; give a run directory" in capsys.readouterr().err
    assert benchmark_start.main([f"--run={tmp_path}", "--repeats=0"]) == 2
