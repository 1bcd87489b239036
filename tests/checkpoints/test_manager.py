"""Damaged checkpoints, full disks and SIGTERM do not end or corrupt a run."""

import errno
import io
import os
import pathlib
import shutil
import signal
import subprocess

import fault_run
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from rich.console import Console

from ofa_jax.checkpoints import checksums, storage
from ofa_jax.checkpoints.manager import Checkpoints, SaveError
from ofa_jax.sharding import Partitioner
from ofa_jax.training import loop

pytestmark = pytest.mark.usefixtures("absl_flags")
STEPS = 6


def make_run(directory, steps, batches=lambda batches: batches):
    """Returns a run in this process whose output goes to `console.file`."""
    run = fault_run.make_run(fault_run.parse([str(directory), f"--steps={steps}"]), Partitioner())
    original = run.batches
    object.__setattr__(run, "batches", lambda start: batches(original(start)))
    object.__setattr__(run, "console", Console(file=io.StringIO(), width=300))
    return run


def train(directory, steps, **options):
    """Trains and returns the output."""
    run = make_run(directory, steps, **options)
    loop.train(run)
    return run.console.file.getvalue()


def saved(directory, step=STEPS):
    return ocp.PyTreeCheckpointer().restore(directory / "checkpoints" / str(step) / "state")


def steps_of(directory):
    return {path.name for path in (directory / "checkpoints").iterdir()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    directory = tmp_path_factory.mktemp("uninterrupted")
    train(directory, STEPS)
    return directory


@pytest.fixture
def stopped(uninterrupted, tmp_path):
    """Returns the same run after four steps, with checkpoints of steps 2 and 4."""
    for step in ("2", "4"):
        shutil.copytree(
            uninterrupted / "checkpoints" / step, tmp_path / "run" / "checkpoints" / step
        )
    return tmp_path / "run"


def assert_same_end(directory, uninterrupted):
    jax.tree.map(np.testing.assert_array_equal, saved(directory), saved(uninterrupted))


def data_file(directory, step):
    """Returns the file that holds the arrays."""
    files = (directory / "checkpoints" / str(step) / "state").rglob("*")
    return max((path for path in files if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {"truncated": truncate, "a flipped byte": flip_byte, "missing": pathlib.Path.unlink}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_logged_and_the_previous_one_gives_the_same_result(
    damage, stopped, uninterrupted
):
    path = data_file(stopped, 4)
    DAMAGES[damage](path)
    output = train(stopped, STEPS)
    name = path.relative_to(stopped / "checkpoints" / "4")
    problem = "is missing" if damage == "missing" else "is not as it was written"
    assert f"The checkpoint of step 4 is damaged: {name} {problem}." in output
    assert "Falling back to the checkpoint of step 2: that of step 4 is damaged" in output
    assert f"Resuming from step 2 of {STEPS}" in output
    assert steps_of(stopped) == {"2", "4", "4.damaged", "6"}
    assert_same_end(stopped, uninterrupted)
    jax.tree.map(np.testing.assert_array_equal, saved(stopped, 4), saved(uninterrupted, 4))


def test_variables_of_a_damaged_checkpoint_are_not_loaded(stopped):
    flip_byte(data_file(stopped, 4))
    for load in (
        lambda path: storage.load_numpy_variables(path),
        lambda path: storage.restore_variables(path, {}),
    ):
        with pytest.raises(ValueError, match="4 is damaged: state/.* is not as it was written"):
            load(str(stopped))
    assert storage.load_numpy_variables(str(stopped / "checkpoints" / "2"))["params"]


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(stopped):
    flip_byte(data_file(stopped, 2))
    truncate(data_file(stopped, 4))
    with pytest.raises(loop.RunError, match="Every checkpoint in .* is damaged"):
        train(stopped, STEPS)
    assert steps_of(stopped) == {"2", "4"}, "nothing is moved while nothing is chosen"


def test_checkpoints_without_checksums_are_used_and_logged_as_unverified(stopped, uninterrupted):
    for step in ("2", "4"):
        (stopped / "checkpoints" / step / checksums.FILE).unlink()
    output = train(stopped, STEPS)
    assert "The checkpoint of step 4 has no checksums (SHA256SUMS)" in output
    assert f"Resuming from step 4 of {STEPS}" in output
    assert_same_end(stopped, uninterrupted)


def test_a_checkpoint_without_checksums_is_skipped_if_another_has_them(stopped, uninterrupted):
    (stopped / "checkpoints" / "4" / checksums.FILE).unlink()
    output = train(stopped, STEPS)
    assert "Falling back to the checkpoint of step 2: that of step 4 is unverified" in output
    assert "4.unverified" in steps_of(stopped)
    assert_same_end(stopped, uninterrupted)


def test_damaged_checksums_are_damage(stopped):
    (stopped / "checkpoints" / "4" / checksums.FILE).write_text("nonsense\n")
    assert "The checkpoint of step 4 is damaged: SHA256SUMS is damaged." in train(stopped, STEPS)


def test_sha256sum_can_verify_the_files(uninterrupted):
    folder = uninterrupted / "checkpoints" / str(STEPS)
    done = subprocess.run(
        ["sha256sum", "--check", checksums.FILE], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    checked = {line.partition(":")[0] for line in done.stdout.splitlines()}
    items = {"run", "state"}
    assert checked == {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).parts[0] in items
    }


# ------------------------------------------------------------------------------------------ saving


@pytest.fixture
def full_disk(monkeypatch):
    """Makes the disk full while checkpoints of some steps are written."""

    def fill(*steps):
        def write(folder):
            if int(folder.name.partition(".")[0]) in steps:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            original(folder)

        monkeypatch.setattr(checksums, "write", write)

    original = checksums.write
    return fill


def test_a_failed_save_is_logged_and_training_continues(full_disk, uninterrupted, tmp_path):
    full_disk(4)
    output = train(tmp_path, STEPS)
    assert "The checkpoint of step 4 could not be written" in output
    assert "No space left on device" in output
    assert "Training goes on" in output and "the newest one is of step 2" in output
    assert steps_of(tmp_path) == {"2", "6"}, "what was written of it is in the way of the next one"
    assert_same_end(tmp_path, uninterrupted)


def test_three_failed_saves_in_a_row_stop_the_run_with_advice(full_disk, tmp_path):
    full_disk(4, 6, 8)
    with pytest.raises(SaveError, match="step 8 could not be written .*Free some space"):
        train(tmp_path, 12)
    assert "2" in steps_of(tmp_path)


def test_a_run_fails_if_its_last_checkpoint_cannot_be_written(full_disk, tmp_path):
    full_disk(STEPS)
    with pytest.raises(SaveError, match="The last checkpoint could not be written"):
        train(tmp_path, STEPS)


def test_the_newest_the_periodic_and_the_best_checkpoints_are_kept(tmp_path):
    state = {"x": np.arange(3.0)}
    manager = Checkpoints(
        str(tmp_path), keep=1, keep_period=4, best=lambda steps: 3 if 3 in steps else None
    )
    for step in range(1, 8):
        manager.save(step, state, {})
    manager.close()
    assert steps_of(tmp_path) == {"3", "4", "7"}


def test_an_unfinished_save_of_a_killed_run_is_removed(stopped):
    leftover = stopped / "checkpoints" / "5.orbax-checkpoint-tmp" / "state"
    leftover.mkdir(parents=True)
    (leftover / "half").write_text("x")
    train(stopped, STEPS)
    assert steps_of(stopped) == {"2", "4", "6"}


# ----------------------------------------------------------------------------------------- SIGTERM


def test_sigterm_saves_and_the_run_resumes_from_that_step(tmp_path, uninterrupted):
    def terminated(batches):
        for number, batch in enumerate(batches, 1):
            if number == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    handler = signal.getsignal(signal.SIGTERM)
    output = train(tmp_path, STEPS, batches=terminated)
    assert "Asked to stop (SIGTERM): saving step 3." in output
    assert steps_of(tmp_path) == {"2", "3"}
    assert signal.getsignal(signal.SIGTERM) == handler
    assert f"Resuming from step 3 of {STEPS}" in train(tmp_path, STEPS)
    assert_same_end(tmp_path, uninterrupted)
