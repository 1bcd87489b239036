"""Good checkpoints outlive bad training: not finite steps, full disks, errors and Ctrl-C."""

import dataclasses
import errno
import io
import json
import logging as python_logging
import os
import pathlib
import resource
import signal
import subprocess
import sys

import fault_run
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging
from fault_tools import DRIVER, environment
from rich.console import Console
from small_run import make_run

from ofa_jax.checkpoints import checksums, manager
from ofa_jax.data.loader import Loader, LoaderError
from ofa_jax.evaluation import event_writer
from ofa_jax.evaluation.event_writer import EventWriter
from ofa_jax.sharding import Partitioner
from ofa_jax.training import loop, preemption
from ofa_jax.utils import files

pytestmark = pytest.mark.usefixtures("absl_flags")
ROOT = pathlib.Path(__file__).parents[2]


def output(run):
    return run.console.file.getvalue()


def steps_of(folder):
    return sorted(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdecimal())


def poison(run, bad, value=np.nan):
    """Makes the loss of some steps not finite."""
    original = run.batches

    def batches(start):
        for step, batch in enumerate(original(start), start + 1):
            if step in bad:
                batch["text"]["decoder_loss_weights"][:] = value
            yield batch

    object.__setattr__(run, "batches", batches)
    return run


def small(folder, steps, **config):
    config = {"log_period": 1, "checkpoint_period": 1, "checkpoints_to_keep": 2} | config
    return make_run(folder, total_steps=steps, **config)


def test_nothing_is_saved_or_deleted_while_steps_are_skipped(tmp_path):
    run = poison(small(tmp_path, 12, max_skipped_steps=5), range(4, 100))
    with pytest.raises(FloatingPointError) as error:
        loop.train(run)
    assert steps_of(tmp_path) == [2, 3]
    # What the message names is there, complete.
    named = tmp_path / "checkpoints" / "3"
    assert f"continues from the last good checkpoint, {named}." in str(error.value)
    assert checksums.find_damage(named) is None
    assert output(run).count("is not saved: it is not finite") == 1


def test_a_lower_learning_rate_continues_from_the_last_good_step(tmp_path):
    bad = range(4, 100)
    for _ in range(2):  # skipped steps of an earlier start do not count
        with pytest.raises(FloatingPointError, match="3 steps had a loss or gradient"):
            loop.train(poison(small(tmp_path, 12, max_skipped_steps=2), bad))
    rescued = small(tmp_path, 6, max_skipped_steps=0)
    loop.train(rescued)
    assert "Resuming from step 3 of 6" in output(rescued)
    assert steps_of(tmp_path) == [5, 6]


def test_skipped_steps_that_a_checkpoint_has_counted_do_not_stop_the_next_start(tmp_path):
    loop.train(poison(small(tmp_path, 5, max_skipped_steps=3), (2, 3, 4)))
    more = small(tmp_path, 7, max_skipped_steps=0)
    loop.train(more)
    assert more.writer.scalars[7]["train/skipped_steps"] == 3, "the total is still reported"


def test_a_save_that_is_due_at_a_bad_step_is_made_at_the_next_good_one(tmp_path):
    run = poison(small(tmp_path, 7, checkpoint_period=3), (3, 4))
    loop.train(run)
    assert steps_of(tmp_path) == [6, 7] or steps_of(tmp_path) == [5, 6, 7]
    assert "Step 3 is not saved: it is not finite. There is no checkpoint yet." in output(run)


def test_a_run_whose_last_step_is_bad_does_not_pretend_to_be_complete(tmp_path):
    with pytest.raises(FloatingPointError, match="ended with step 4, .* not saved.*checkpoints/3"):
        loop.train(poison(small(tmp_path, 4), (4,)))
    assert steps_of(tmp_path) == [2, 3]


def exploding(folder, steps, keep, at, factor):
    """Returns a run of a tiny network whose parameters are multiplied by a factor in one step."""
    options = fault_run.parse([str(folder), f"--steps={steps}", "--checkpoint_period=1"])
    run = fault_run.make_run(options, Partitioner())

    def train_step(state, batches):
        state, metrics = fault_run.train_step(state, batches)
        scale = jnp.where(state.step == at, factor, 1.0)
        params = jax.tree.map(lambda x: x * scale, state.params)
        metrics = metrics.replace(parameter_norm=optax.tree.norm(params))
        finite = jnp.isfinite(metrics.loss)
        skipped = state.skipped_steps + jnp.where(finite, 0, 1)
        return state.replace(params=params, skipped_steps=skipped), metrics

    return dataclasses.replace(
        run,
        train_step=train_step,
        config=dataclasses.replace(run.config, checkpoints_to_keep=keep, max_skipped_steps=2),
        console=Console(file=io.StringIO(), width=300),
    )


def test_parameters_that_exploded_in_a_finite_step_are_not_saved(tmp_path):
    run = exploding(tmp_path, 8, keep=1, at=4, factor=1e30)
    with pytest.raises(FloatingPointError):
        loop.train(run)
    assert steps_of(tmp_path) == [3]
    assert "Step 4 is not saved: its parameters are not finite." in output(run)


def test_the_checkpoint_before_parameters_jump_is_kept(tmp_path):
    run = exploding(tmp_path, 6, keep=1, at=3, factor=1e4)
    loop.train(run)
    assert steps_of(tmp_path) == [2, 6]
    assert "the checkpoint of step 2 is kept in any case" in output(run)
    # Also by later starts.
    metadata = tmp_path / "checkpoints" / "6" / "run" / "metadata"
    assert json.loads(metadata.read_text())["kept_checkpoints"] == [2]
    loop.train(exploding(tmp_path, 8, keep=1, at=0, factor=1))
    assert steps_of(tmp_path) == [2, 8]


class Boom(Exception):
    pass


@pytest.mark.parametrize("error", [Boom, KeyboardInterrupt, SystemExit, MemoryError])
def test_the_checkpoint_in_flight_is_completed_whatever_ends_the_run(error, tmp_path, monkeypatch):
    run = small(tmp_path, 9, checkpoint_period=2)
    original = run.batches

    def batches(start):
        for step, batch in enumerate(original(start), start + 1):
            if step == 5:
                raise error("the first error")
            yield batch

    object.__setattr__(run, "batches", batches)
    with pytest.raises(error, match="the first error"):
        loop.train(run)
    assert steps_of(tmp_path) == [2, 4]
    assert not list((tmp_path / "checkpoints").glob("*tmp*"))
    assert checksums.find_damage(tmp_path / "checkpoints" / "4") is None
    resumed = small(tmp_path, 5)
    loop.train(resumed)
    assert "Resuming from step 4" in output(resumed)


def test_data_that_cannot_be_used_or_ends_is_one_sentence(tmp_path):
    run = small(tmp_path, 9)
    original = run.batches
    object.__setattr__(run, "batches", lambda start: iter([next(original(0))]))
    with pytest.raises(loop.RunError, match="The data ended after step 1 of 9"):
        loop.train(run)
    assert steps_of(tmp_path) == [1]

    def invalid(start):
        raise ValueError("Every record of step 1 is invalid.")
        yield

    object.__setattr__(run, "batches", invalid)
    with pytest.raises(loop.RunError, match="Every record of step 1 is invalid"):
        loop.train(run)


# ------------------------------------------------------------------------------------- full disks


class FullDisk:
    """A metric writer on a disk that is full for some events."""

    def __init__(self, full):
        self.full, self.written = full, []

    def write_scalars(self, step, scalars):
        if step in self.full:
            raise RuntimeError(f"Failed to flush 1 events\n{'trace ' * 100}")
        self.written.append(step)

    def flush(self):
        pass


def test_events_that_cannot_be_written_are_one_sentence_and_training_continues(
    tmp_path, monkeypatch, caplog
):
    disk = FullDisk({2, 3, 5})
    opened = []
    monkeypatch.setattr(
        event_writer,
        "open_tensorboard",
        lambda *arguments, **options: opened.append(arguments) or disk,
    )
    run = small(tmp_path, 6, checkpoint_period=6)
    object.__setattr__(run, "writer", EventWriter(run.model_dir))
    assert not opened, "no file before the run is accepted"
    with caplog.at_level(logging.WARNING):
        loop.train(run)
    assert disk.written == [1, 4, 6]
    sentences = [r.getMessage() for r in caplog.records if "TensorBoard" in r.getMessage()]
    assert len(sentences) == 2, "one for each series of failures"
    assert all("training goes on" in text and "\n" not in text for text in sentences)


def test_results_that_cannot_be_written_are_one_sentence_each(tmp_path, monkeypatch):
    def full(path, value):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run = make_run(tmp_path, validation=True, total_steps=2, log_period=1, checkpoint_period=1)
    monkeypatch.setattr(files, "write_json", full)
    results = loop.train(run)
    assert set(results) == {"first", "second"}
    assert output(run).count("No space left on device") == 2
    assert steps_of(tmp_path) == [1, 2]


def limit_file_size():
    """Lets every file end at four kilobytes, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


def test_a_disk_that_is_really_full_ends_in_one_sentence_and_keeps_the_last_checkpoint(tmp_path):
    """The process itself cannot write; nothing is imitated."""
    command = [*DRIVER, str(tmp_path), "--checkpoint_period=1"]
    options = dict(cwd=ROOT, env=environment(1), capture_output=True, text=True)
    done = subprocess.run([*command, "--steps=2"], **options)
    assert done.returncode == 0, done.stderr[-2000:]
    done = subprocess.run([*command, "--steps=9"], **options, preexec_fn=limit_file_size)
    assert done.returncode != 0
    text = done.stdout + done.stderr
    assert text.count("could not be written") >= 2
    assert text.count("(File too large)") >= 2
    assert "Traceback" not in text, text[text.find("Traceback") - 300 :][:4000]
    assert len(text.splitlines()) < 60
    assert steps_of(tmp_path) == [1, 2]
    for step in (1, 2):
        assert checksums.find_damage(tmp_path / "checkpoints" / str(step)) is None
    done = subprocess.run([*command, "--steps=3"], **options)
    assert done.returncode == 0 and "Resuming from step 2 of 3" in done.stdout


def test_of_several_failed_writes_of_a_checkpoint_asyncio_logs_none(tmp_path, caplog):
    manager.Checkpoints(tmp_path).close()
    logger = python_logging.getLogger("asyncio")
    task = "future: <Task finished coro=<write() done, defined at /x/orbax/checkpoint/y.py:1>>"
    logger.error(f"Task exception was never retrieved\n{task}")
    logger.error("Task exception was never retrieved\nfuture: <Task finished coro=<mine()>>")
    assert [record.getMessage().endswith("<mine()>>") for record in caplog.records] == [True]


# -------------------------------------------------------------------------------- dead processes


class Slow:
    """A source whose process ends at one of its elements."""

    def __len__(self):
        return 1000

    def __getitem__(self, step):
        if step == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"findings": [], "number": np.array([step])}


def test_a_dead_worker_process_is_one_sentence():
    loader = Loader([], {}, 0, num_workers=1)
    batches = loader._prefetched(Slow())
    with pytest.raises(LoaderError, match="A process that makes batches has ended"):
        for _ in batches:
            pass


def test_ctrl_c_is_noticed_after_a_step_if_a_callback_lost_it():
    class Callback:
        def __del__(self):  # Python prints and ignores what is raised here
            signal.raise_signal(signal.SIGINT)  # arrives at once, unlike that of os.kill

    ignored = []
    with pytest.MonkeyPatch.context() as patch, preemption.Preemption() as stop:
        patch.setattr(sys, "unraisablehook", ignored.append)
        del_me = Callback()
        del del_me
        assert [type(one.exc_value) for one in ignored] == [KeyboardInterrupt]
        with pytest.raises(KeyboardInterrupt):
            stop.requested(3)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_is_quiet_and_has_its_own_exit_code(tmp_path):
    command = [
        sys.executable,
        "-c",
        "import sys\nsys.path.insert(0, 'tests/helpers')\nimport fault_run\n"
        "from ofa_jax.cli import errors\n"
        "with errors.interruptible('Run the same command to resume.'):\n"
        "    fault_run.main(sys.argv[1:])",
        str(tmp_path),
        "--steps=1000",
        "--step_seconds=0.05",
        "--checkpoint_period=1",
    ]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(1),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("step 4/"):
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == "Stopped (Ctrl-C). Run the same command to resume."
    newest = max(steps_of(tmp_path))
    assert newest >= 3 and not list((tmp_path / "checkpoints").glob("*tmp*"))
    assert checksums.find_damage(tmp_path / "checkpoints" / str(newest)) is None
