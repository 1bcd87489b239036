"""Several processes, killed and resized: each run ends as an uninterrupted run does.

See `fault_run.py` for the run. The same two devices in all, so equality is exact.
"""

import json
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
from fault_tools import (
    ROOT,
    arrays,
    assert_same,
    environment,
    logged_losses,
    logged_rows,
    start,
    with_devices,
)

STEPS = 12


@pytest.fixture
def begin(tmp_path):
    """Returns a function that starts runs; all are killed after the test."""
    begun = []

    def begin(processes, steps=STEPS, *flags):
        begun.append(start(tmp_path / "run", processes, steps, *flags))
        return begun[-1]

    yield begin
    for run in begun:
        run.end()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Returns the directory of a run of one process that was never stopped."""
    directory = tmp_path_factory.mktemp("uninterrupted")
    run = start(directory, 1, STEPS)
    assert run.wait() == 0, run.output()
    return directory


def test_the_uninterrupted_run_meets_invalid_records_and_reads_an_epoch_once(uninterrupted):
    """8 rows a step at 2 to 1: after 7.5 steps the 40 records of the first task are through."""
    log = (uninterrupted / "log.txt").read_text()
    assert "Skipped often, record 3: is one of the bad ones" in log
    rows = logged_rows(uninterrupted)
    assert len(rows) == 8 * STEPS and all(len(seen) == 1 for seen in rows.values())
    first_epoch = [
        json.loads(next(iter(rows[step, row])))[0] - 4
        for step in range(1, STEPS + 1)
        for row in range(8)
        if (8 * (step - 1) + row) % 3 < 2
    ]
    numbers = [number for number in first_epoch[:40] if number >= 0]
    assert sorted(numbers) == sorted(set(range(40)) - {3, 11})


@pytest.mark.parametrize("victim", [0, 1], ids=["coordinator", "worker"])
def test_a_killed_process_is_restarted_and_nothing_is_lost(begin, uninterrupted, victim):
    """Kills at a random moment, on which nothing may depend."""
    run = begin(2, STEPS, "--step_seconds=0.05")
    run.wait_for_steps(random.Random(victim).randint(3, 8))
    os.kill(run.pid(victim), signal.SIGKILL)
    assert run.wait() == 0, run.output()
    assert "supervisor: The run " in run.output() and "restart 1 of" in run.output()
    # On a busy machine the first checkpoint may not have been complete: then it begins anew.
    begun = [
        run.output().count(sentence) for sentence in ("Starting a new run", "Resuming from step")
    ]
    assert begun in ([1, 1], [2, 0])
    assert_same(run.directory, uninterrupted, STEPS)


def go_on(begin, stopped, processes):
    """Resumes a stopped run on a number of processes until its end."""
    last, _ = logged_losses(stopped.directory)[-1]
    assert last < STEPS
    run = begin(processes)
    assert run.wait() == 0, run.output()
    assert f"Resuming from step {last} of {STEPS}" in run.output()
    return run


def test_sigterm_to_one_process_saves_the_same_step_on_all_and_one_process_resumes(
    begin, uninterrupted
):
    run = begin(2, STEPS, "--step_seconds=0.2", "--checkpoint_period=100")
    run.wait_for_steps(3)
    os.kill(run.pid(1), signal.SIGTERM)
    assert run.wait() == 0, run.output()
    assert "Asked to stop (SIGTERM): saving step" in run.output()
    assert_same(go_on(begin, run, 1).directory, uninterrupted, STEPS)


def test_sigterm_to_the_supervisor_saves_and_two_processes_resume(begin, uninterrupted):
    run = begin(1, STEPS, "--step_seconds=0.2", "--checkpoint_period=100")
    run.wait_for_steps(2)
    run.process.terminate()
    assert run.wait() == 0, run.output()
    last, _ = logged_losses(run.directory)[-1]
    assert last < STEPS and arrays(run.directory, last)["['step']"] == last
    assert_same(go_on(begin, run, 2).directory, uninterrupted, STEPS)


def test_a_silent_process_is_dropped_after_the_heartbeat_timeout(begin, uninterrupted):
    run = begin(2, STEPS, "--step_seconds=0.05", "--heartbeat_timeout_seconds=3")
    run.wait_for_steps(3)
    os.kill(run.pid(1), signal.SIGSTOP)
    assert run.wait() == 0, run.output()
    assert "restart 1 of" in run.output()
    assert_same(run.directory, uninterrupted, STEPS)


RESHARD = """
import io, json, shutil, sys
sys.path.insert(0, "tests/helpers")
import jax, fault_run
from absl import flags
from rich.console import Console
from ofa_jax.sharding import Partitioner
from ofa_jax.training import loop

flags.FLAGS(["test"])
root = sys.argv[1]

def train(name, steps, **mesh):
    run = fault_run.make_run(
        fault_run.parse([f"{root}/{name}", f"--steps={steps}"]), Partitioner(**mesh))
    object.__setattr__(run, "console", Console(file=io.StringIO()))
    loop.train(run)
    assert name in ("whole", "begun") or "Resuming from step 4" in run.console.file.getvalue()
    return run.abstract_state.params["embedding"].sharding.shard_shape((64, 8))

train("whole", 8)
train("begun", 4)
two, one = tuple(jax.devices()[:2]), tuple(jax.devices()[:1])
meshes = {
    "data": dict(data=4), "fsdp": dict(data=1, fsdp=4), "both": dict(data=2, fsdp=2),
    "two devices": dict(data=1, fsdp=2, devices=two), "one device": dict(devices=one)}
for name, mesh in meshes.items():
    shutil.copytree(f"{root}/begun", f"{root}/{name}")
    print(json.dumps([name, train(name, 8, **mesh)]))
"""
SHARDS = {
    "data": [64, 8],
    "fsdp": [16, 8],
    "both": [32, 8],
    "two devices": [32, 8],
    "one device": [64, 8],
}


@pytest.fixture(scope="module")
def resharded(tmp_path_factory):
    """Returns runs begun on four devices along data and finished on other meshes."""
    directory = tmp_path_factory.mktemp("resharded")
    done = subprocess.run(
        [sys.executable, "-c", RESHARD, str(directory)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment(1) | {"XLA_FLAGS": with_devices(4)["XLA_FLAGS"]},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return directory, dict(map(json.loads, done.stdout.splitlines()))


@pytest.mark.parametrize("mesh", SHARDS)
def test_a_run_resumes_on_any_other_mesh(resharded, mesh):
    """The saved state is the same to the bit. After it sums are made in another order: float32,
    1e-5 relative to the largest entry of each array over four steps of Adam."""
    directory, shards = resharded
    assert shards[mesh] == SHARDS[mesh]
    whole, ours = arrays(directory / "whole", 8), arrays(directory / mesh, 8)
    assert whole.keys() == ours.keys()
    for name, array in ours.items():
        atol = 1e-5 * np.abs(whole[name]).max()
        np.testing.assert_allclose(array, whole[name], rtol=0, atol=atol, err_msg=name)
    expected, logged = dict(logged_losses(directory / "whole")), logged_losses(directory / mesh)
    assert [step for step, _ in logged] == list(range(1, 9))
    for step, loss in logged:
        assert loss == pytest.approx(expected[step], rel=1e-6)
    assert logged_rows(directory / mesh) == logged_rows(directory / "whole")
    before = arrays(directory / mesh, 4)
    for name, array in arrays(directory / "whole", 4).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
