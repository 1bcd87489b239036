"""Starts `fault_run.py` as processes, injects faults, and compares the final results."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = pathlib.Path(__file__).resolve().parents[2]
DRIVER = [sys.executable, str(ROOT / "tests" / "helpers" / "fault_run.py")]
SUPERVISOR = [sys.executable, "-m", "launch.supervisor", "--backoff_seconds=0.1"]
DEVICES = 2
"""Devices of the whole run, for any number of processes: sums have the same order, so results must
be equal bit for bit."""


def environment(processes: int) -> dict[str, str]:
    """Returns the environment of each of several processes."""
    return with_devices(DEVICES // processes) | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


def with_devices(count: int) -> dict[str, str]:
    """Returns the environment of these tests with a number of simulated devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    return os.environ | {"XLA_FLAGS": flags.strip()}


@dataclasses.dataclass
class Started:
    """A supervised run in progress."""

    directory: pathlib.Path
    process: subprocess.Popen
    log: pathlib.Path

    def wait(self, timeout: float = 120) -> int:
        """Waits for the end of the run and returns its exit code."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            self.end()
            raise AssertionError(f"The run hangs:\n{self.output()[-3000:]}") from error

    def end(self) -> None:
        """Kills all processes of the run."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def output(self) -> str:
        """Returns all output so far."""
        return self.log.read_text()

    def pid(self, number: int) -> int:
        """Returns the current id of a process, by its number in the run."""
        return int((self.directory / f"pid.{number}").read_text())

    def wait_for_restart(self, pid: int, timeout: float = 120) -> None:
        """Waits until the first process has another id than `pid`."""
        end = time.monotonic() + timeout
        while self.pid(0) == pid:
            assert time.monotonic() < end, f"It is not restarted:\n{self.output()[-3000:]}"
            time.sleep(0.05)

    def wait_for_steps(self, count: int, timeout: float = 120) -> None:
        """Waits until `count` more steps have been reported, across restarts."""
        wanted = len(logged_losses(self.directory)) + count
        end = time.monotonic() + timeout
        while len(logged_losses(self.directory)) < wanted:
            assert self.process.poll() is None, f"The run ended:\n{self.output()[-3000:]}"
            assert time.monotonic() < end, f"No step:\n{self.output()[-3000:]}"
            time.sleep(0.02)


def start(directory, processes: int, steps: int, *flags: str) -> Started:
    """Starts a run under the supervisor, in a process group of its own."""
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / "log.txt"
    with log.open("a") as file:
        process = subprocess.Popen(
            [
                *SUPERVISOR,
                f"--processes={processes}",
                "--",
                *DRIVER,
                str(directory),
                f"--steps={steps}",
                *flags,
            ],
            env=environment(processes),
            cwd=ROOT,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    return Started(directory, process, log)


def logged_losses(directory) -> list[tuple[int, float]]:
    """Returns (step, loss) in the order in which they were reported."""
    path = directory / "losses.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(step), float(loss)) for step, loss in map(str.split, lines)]


def logged_rows(directory) -> dict[tuple[int, int], set[str]]:
    """Returns {(step, row of the batch): tokens seen there}, over all restarts and processes."""
    rows: dict[tuple[int, int], set[str]] = {}
    for path in directory.glob("rows.*.txt"):
        for line in path.read_text().splitlines():
            step, row, tokens = line.split(" ", 2)
            rows.setdefault((int(step), int(row)), set()).add(tokens)
    return rows


def arrays(directory, step: int) -> dict[str, np.ndarray]:
    """Returns the arrays of a checkpoint's state by their paths."""
    folder = directory / "checkpoints" / str(step) / "state"
    with ocp.PyTreeCheckpointer() as checkpointer:
        saved = checkpointer.metadata(folder).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
        tree = checkpointer.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same(directory, uninterrupted, steps: int) -> None:
    """Asserts equal losses, examples of every step and final state, bit for bit."""
    expected = dict(logged_losses(uninterrupted))
    logged = logged_losses(directory)
    assert set(expected) == {step for step, _ in logged} == set(range(1, steps + 1))
    assert not [(step, loss) for step, loss in logged if loss != expected[step]]
    assert logged_rows(directory) == logged_rows(uninterrupted)
    ours, theirs = arrays(directory, steps), arrays(uninterrupted, steps)
    assert ours.keys() == theirs.keys() and any("kernel" in name for name in ours)
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)
