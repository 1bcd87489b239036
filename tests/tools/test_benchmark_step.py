"""What the benchmark of the step says of a program, timed or only compiled."""

import json
import math

import jax.numpy as jnp
import numpy as np

from tools import benchmark_step


def square(x):
    return x @ x


X = np.ones((64, 64), np.float32)


def test_a_program_that_is_only_compiled_has_figures_but_no_times():
    timing = benchmark_step.time_program(square, [X], runs=0)
    assert timing.flops == 2 * 64**3
    # The operand, once or twice, and the result.
    assert 2 * X.nbytes <= timing.bytes_accessed <= 3 * X.nbytes
    assert timing.temporary_bytes >= 0
    assert timing.runs == ()
    assert math.isnan(timing.seconds) and math.isnan(timing.page_faults)


def test_a_timed_program_counts_its_runs_and_page_faults():
    calls = benchmark_step.time_program(lambda x: (x + 1, x), [jnp.zeros(3)], runs=2, donate=True)
    assert len(calls.runs) == 2
    assert calls.seconds == np.median(calls.runs)
    assert calls.page_faults >= 0


def test_json_and_table_leave_out_what_was_not_measured(capsys):
    timings = {"whole step": benchmark_step.time_program(square, [X], runs=0)}
    work = benchmark_step.Workload()
    figures = json.loads(json.dumps(benchmark_step._as_json(work, math.nan, timings)))
    program = figures["programs"]["whole step"]
    assert program["seconds"] is None and program["share_of_matmul_rate"] is None
    assert program["bytes_accessed"] == timings["whole step"].bytes_accessed
    benchmark_step._print_table(work, math.nan, timings, steps=0)
    shown = capsys.readouterr().out
    assert "whole step" in shown
    assert "nan" not in shown and "examples/s" not in shown
