"""Accepts a run directory, locks it and writes what describes the run; nothing before that.

    check the path ─▶ lock it, if it exists ─▶ check model, vocabulary, checkpoint, fingerprint
      ─▶ accepted: make the folder ─▶ set damaged checkpoints aside ─▶ write model.json ...

A run that is refused leaves the directory as it was, to the byte.
"""

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from ofa_jax.checkpoints import resume, storage, warm_start
from ofa_jax.checkpoints.manager import SaveError
from ofa_jax.checkpoints.resume import ResumePoint
from ofa_jax.tokenizers import processor as processors
from ofa_jax.training.run import TRAINED_SECONDS, Run, RunError
from ofa_jax.utils import files, locks, state_files
from ofa_jax.utils.bad_input import Treatment, declare
from ofa_jax.utils.text_files import DamagedFileError

__all__ = ["CHECKPOINTS", "CONFIG_FILE", "is_over", "open_run_directory", "write_findings"]

CHECKPOINTS = "checkpoints"
CONFIG_FILE = "config.gin"
_FOLDERS = (CHECKPOINTS, processors.FOLDER)
_BAD_INPUT_FILE = "bad_input.json"
_FILES = (
    CONFIG_FILE,
    storage.MODEL_FILE,
    "validation.json",
    "validations.json",
    "baselines.json",
    _BAD_INPUT_FILE,
)
_MAX_LINES = 20
_NEW_RUN, _REFUSED = -1, -2

FOREIGN_RUN = declare(
    "MODEL_DIR is of another run",
    Treatment.REFUSED,
    "The model, the vocabulary, the optimizer's state or what determines the order of the examples "
    "(seed, streams, rates, numbers of records) differ from those of the checkpoints in MODEL_DIR. "
    "Training is refused before anything is written or compiled.",
    __name__,
)
LOCKED = declare(
    "folder is in use",
    Treatment.REFUSED,
    "Another process trains in MODEL_DIR, or writes to OUTPUT_DIR. The lock ends with the process, "
    "however it ends.",
    __name__,
)


@contextlib.contextmanager
def open_run_directory(run: Run, log: Callable[[str], None]) -> Iterator[ResumePoint]:
    """Accepts and prepares the directory of a run, which is locked within the block.

    Collective: the first host decides for all, and writes.

    Args:
      run: to train.
      log: prints a message.

    Yields:
      Where the run continues.

    Raises:
      RunError: the directory cannot be used, or is of another run; nothing was changed.
      SaveError: it cannot be written to.
    """
    with contextlib.ExitStack() as lock:
        point, error = ResumePoint(), None
        if jax.process_index() == 0:
            try:
                point = _accept(run, log, lock)
            except (RunError, SaveError) as refusal:
                error = refusal
        yield _agreed(run, point, error)


def _agreed(run: Run, point: ResumePoint, error: Exception | None) -> ResumePoint:
    """Returns the first host's resume point on all hosts, or raises its error."""
    if jax.process_count() > 1:
        own = _REFUSED if error else _NEW_RUN if point.step is None else point.step
        step = int(multihost_utils.broadcast_one_to_all(np.int32(own)))
        if jax.process_index() > 0:
            if step == _REFUSED:
                raise RunError(f"The first host does not accept {run.model_dir}: see its message.")
            if step == _NEW_RUN:
                return ResumePoint()
            folder = storage.absolute_path(run.model_dir) / CHECKPOINTS / str(step)
            return ResumePoint(step, storage.read_run_metadata(folder))
    if error is not None:
        raise error
    return point


def _accept(run: Run, log: Callable[[str], None], lock: contextlib.ExitStack) -> ResumePoint:
    """Checks everything, then writes; runs on the first host alone."""
    directory = storage.absolute_path(run.model_dir)
    try:
        _check_path(directory)
        exists = directory.is_dir()
        if exists:
            lock.enter_context(locks.directory_lock(directory, "MODEL_DIR"))
        point = _check_contents(run, directory)
    except locks.LockedError as error:
        raise RunError(f"{error.strerror}.") from error
    except (OSError, ValueError) as error:
        raise error if isinstance(error, RunError) else RunError(str(error)) from error
    try:
        if not exists:
            directory.mkdir(parents=True, exist_ok=True)
            lock.enter_context(locks.directory_lock(directory, "MODEL_DIR"))
        _remove_unfinished(directory)
        resume.apply(point, directory / CHECKPOINTS, log)
        _write_description(run, directory, point, log)
    except locks.LockedError as error:
        raise RunError(f"{error.strerror}.") from error
    except OSError as error:
        raise SaveError(
            f"MODEL_DIR {run.model_dir} cannot be written to ({error}): free some space or choose "
            "another folder, and start the run again."
        ) from error
    return point


# -------------------------------------------------------------------------------------- checking


def _check_path(directory: epath.Path) -> None:
    """Raises RunError if a path cannot be a run directory."""
    if not files.is_local(directory):
        return
    existing = next(path for path in (directory, *directory.parents) if os.path.lexists(path))
    if not existing.is_dir():
        kind = "a file" if existing.is_file() else "not a folder"
        raise RunError(f"MODEL_DIR is {directory}, but {existing} is {kind}: choose a folder.")
    for name in _FOLDERS:
        if os.path.lexists(directory / name) and not (directory / name).is_dir():
            raise RunError(
                f"{directory / name} is not a folder, so {directory} is not the directory of a "
                "run: choose another MODEL_DIR."
            )
    for name in _FILES:
        if (directory / name).is_dir():
            raise RunError(
                f"{directory / name} is a folder, so {directory} is not the directory of a run: "
                "choose another MODEL_DIR."
            )
    written = [directory / name for name in _FOLDERS if (directory / name).is_dir()]
    for folder in (existing, *written):
        if not os.access(folder, os.W_OK | os.X_OK):
            reason = os.strerror(errno.EACCES)
            raise RunError(
                f"MODEL_DIR {directory} cannot be written to ({reason}: {folder}): choose another "
                "folder, or change its permissions."
            )


def _check_contents(run: Run, directory: epath.Path) -> ResumePoint:
    """Returns where the run continues; changes nothing.

    Raises:
      RunError: the directory is of another run.
      ValueError: its checkpoints are damaged, or of another model.
    """
    checkpoints = directory / CHECKPOINTS
    has_checkpoints = checkpoints.is_dir() and any(
        storage.step_of(path.name) is not None for path in checkpoints.iterdir()
    )
    # Without checkpoints nothing would be lost: a run that failed at once is begun again.
    if has_checkpoints:
        _check_model(run, directory)
        _check_vocabulary(run, directory)
    point = resume.find_resume_point(checkpoints)
    if point.step is not None:
        _check_fingerprint(run, point.metadata)
        folder = checkpoints / str(point.step)
        storage.check_shapes(storage.read_arrays_tree(folder), run.abstract_state, folder)
    return point


def _check_model(run: Run, directory: epath.Path) -> None:
    """Raises RunError if `model.json` describes another model; a damaged one is written anew."""
    path = directory / storage.MODEL_FILE
    if run.model is None or not path.exists():
        return
    try:
        saved = storage.parse_model_config(path)
    except (OSError, DamagedFileError):
        return
    if differences := warm_start.list_differences(saved, run.model):
        raise RunError(
            f"MODEL_DIR {run.model_dir} is of another model: {'; '.join(differences)}. Continue "
            "with its own config.gin, or choose another MODEL_DIR."
        )


def _check_vocabulary(run: Run, directory: epath.Path) -> None:
    """Raises RunError if the directory has another vocabulary; a damaged one is written anew."""
    if run.processor is None:
        return
    try:
        saved = processors.load_vocabulary(directory)
    except (OSError, ValueError):
        return
    if saved != run.processor.vocabulary:
        raise RunError(
            f"MODEL_DIR {run.model_dir} was trained with another vocabulary ({saved}) than that of "
            f"the data now ({run.processor.vocabulary}): use the data set it was trained on, or "
            "choose another MODEL_DIR."
        )


def _check_fingerprint(run: Run, saved: Mapping[str, Any]) -> None:
    """Raises RunError if the saved fingerprint differs from that of the run."""
    # Through JSON: what was saved has lists where ours has tuples.
    for name, value in json.loads(json.dumps(dict(run.run_fingerprint))).items():
        if name not in saved and name in run.new_in_fingerprint:
            continue
        if saved.get(name) != value:
            raise RunError(
                f"The run in {run.model_dir} was started with {name} = {saved.get(name)}, but "
                f"now it is {value}: some examples would be repeated and others skipped. "
                "Continue with its own config.gin, or choose another MODEL_DIR."
            )


def is_over(run: Run, point: ResumePoint) -> bool:
    """Returns whether a run has made all its steps, or trained for as long as it may."""
    if point.step is None:
        return False
    minutes = run.config.max_minutes
    seconds = point.metadata.get(TRAINED_SECONDS, 0.0)
    time_is_up = minutes is not None and seconds >= 60 * minutes
    return point.step >= run.config.total_steps or time_is_up


# --------------------------------------------------------------------------------------- writing


def _remove_unfinished(directory: epath.Path) -> None:
    """Deletes what writes that were killed have left; the lock is held, so none is under way."""
    for folder in (directory, directory / processors.FOLDER):
        for path in folder.iterdir() if folder.is_dir() else ():
            names = (*_FILES, *processors.FILES)
            if path.name.endswith(".tmp") and any(path.name.startswith(f".{n}.") for n in names):
                with contextlib.suppress(OSError):
                    path.unlink()


def _write_description(
    run: Run, directory: epath.Path, point: ResumePoint, log: Callable[[str], None]
) -> None:
    """Writes config.gin, model.json and interface/ where they differ from those of the run.

    Of a run that is over, only what is missing or damaged is written.
    """
    keep = is_over(run, point)
    if run.model is not None:
        path = directory / storage.MODEL_FILE
        saved = state_files.read_or_set_aside(path, lambda: storage.parse_model_config(path), log)
        if saved is None or (saved != run.model and not keep):
            storage.write_model_config(directory, run.model)
    if run.processor is not None:
        _write_processor(run.processor, directory, keep, log)
    path = directory / CONFIG_FILE
    if run.config_text is not None and not (keep and path.exists()):
        files.write_text(path, run.config_text)


def _write_processor(
    processor: processors.Processor, directory: epath.Path, keep: bool, log: Callable[[str], None]
) -> None:
    """Writes the processor unless the directory has it."""
    try:
        saved = processors.Processor.load(directory)
    except FileNotFoundError:
        saved = None
    except (OSError, ValueError) as error:
        log(f"{error} It is written anew.")
        saved = None
    if saved is None or not (keep or saved.equals(processor)):
        processor.save(directory)


def write_findings(run: Run, log: Callable[[str], None]) -> None:
    """Logs the counts of bad input, and writes them to `bad_input.json`.

    The counts are those of the first host.
    """
    counts = sorted(run.findings().items(), key=lambda item: (-item[1], item[0]))
    if not counts:
        return
    lines = [f"  {count:>8,}  {task}: {reason}" for (task, reason), count in counts[:_MAX_LINES]]
    if len(counts) > _MAX_LINES:
        lines.append(f"  ... and {len(counts) - _MAX_LINES} more, see {_BAD_INPUT_FILE}")
    log("\n".join(["Bad input so far:", *lines]))
    by_task: dict[str, dict[str, int]] = {}
    for (task, reason), count in counts:
        by_task.setdefault(task, {})[reason] = count
    state_files.write_own_json(run.model_dir / _BAD_INPUT_FILE, by_task, log)
