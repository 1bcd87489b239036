"""Finds the checkpoint that a run continues from, without changing anything.

`find_resume_point` reads; `apply` then renames what cannot be used, once the run is accepted.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from ofa_jax.checkpoints import checksums, storage
from ofa_jax.utils import files
from ofa_jax.utils.bad_input import Treatment, declare

__all__ = ["ResumePoint", "apply", "find_resume_point"]

DAMAGED, UNVERIFIED = "damaged", "unverified"
_COMMITTED = "commit_success.txt"
_ORBAX_METADATA = "_CHECKPOINT_METADATA"

DAMAGED_CHECKPOINT = declare(
    "checkpoint is damaged",
    Treatment.RECOVERED,
    "A checkpoint does not match its checksums (SHA256SUMS), or is incomplete. It is renamed to "
    "STEP.damaged, and training continues from the newest good one. The run is refused if there is "
    "none.",
    __name__,
)


@dataclasses.dataclass(frozen=True)
class ResumePoint:
    """Where a run continues, and what is in its way there.

    Attributes:
      step: of the checkpoint to continue from; None for a new run.
      metadata: what that checkpoint has of the run: its fingerprint and training time.
      set_aside: name of a folder or file that is not used -> DAMAGED or UNVERIFIED.
      messages: sentences about what was found.
    """

    step: int | None = None
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    set_aside: Mapping[str, str] = dataclasses.field(default_factory=dict)
    messages: tuple[str, ...] = ()


def find_resume_point(directory: epath.Path) -> ResumePoint:
    """Finds the newest checkpoint whose files match their checksums; changes nothing.

    A checkpoint without checksums (of an early version) is used only if none has checksums.

    Args:
      directory: the folder `checkpoints` of a run; it may be missing.

    Raises:
      ValueError: there are checkpoints, but all of them are damaged, or the newest good one was not
        written by training.
    """
    problems: dict[int, str] = {}
    messages: list[str] = []
    folders = _step_folders(directory)
    for step in sorted(folders, reverse=True):
        problem = _find_problem(folders[step])
        if problem is None:
            return _resume_at(step, folders, problems, messages)
        problems[step] = UNVERIFIED if problem == UNVERIFIED else DAMAGED
        if problem != UNVERIFIED:
            messages.append(f"The checkpoint of step {step} is damaged: {problem}.")
    for step, reason in problems.items():
        if reason == UNVERIFIED and _unreadable(folders[step]) is None:
            messages.append(
                f"The checkpoint of step {step} has no checksums ({checksums.FILE}): it is of an "
                "early version, and is used without being verified."
            )
            newer = {k: v for k, v in problems.items() if k > step}
            return _resume_at(step, folders, newer, messages)
    if problems:
        raise ValueError(
            f"Every checkpoint in {directory} is damaged, so the run cannot continue. To start "
            "again, choose another MODEL_DIR, or move the folder away."
        )
    return ResumePoint()


def _step_folders(directory: epath.Path) -> dict[int, epath.Path]:
    """Returns step -> what has the name of a checkpoint; it may be a file, or empty."""
    if not directory.is_dir():
        return {}
    found = {}
    for path in directory.iterdir():
        step = storage.step_of(path.name)
        # Object stores cannot rename folders: an unfinished save has the final name there.
        unfinished = not files.is_local(path) and not (path / _COMMITTED).exists()
        if step is not None and not unfinished:
            found[step] = path
    return found


def _find_problem(folder: epath.Path) -> str | None:
    """Describes the damage of a checkpoint; UNVERIFIED without checksums; None if it is intact."""
    if not folder.is_dir():
        return "it is not a folder"
    if not storage.has_state(folder):
        return "it has no folder state"
    if not checksums.has_checksums(folder):
        return UNVERIFIED
    return checksums.find_damage(folder)


def _unreadable(folder: epath.Path) -> str | None:
    """Describes why a checkpoint without checksums cannot be used; None if it can."""
    try:
        storage.check_readable(folder)
    except FileNotFoundError:
        return None  # readable, but not of training: `_resume_at` says so
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _resume_at(
    step: int, folders: Mapping[int, epath.Path], problems: Mapping[int, str], messages: list[str]
) -> ResumePoint:
    """Returns the resume point of a chosen step; `problems` are those of newer steps.

    Raises:
      ValueError: the checkpoint was not written by training.
    """
    try:
        metadata = storage.read_run_metadata(folders[step])
    except FileNotFoundError as error:
        raise ValueError(
            f"The checkpoint {folders[step]} has a model, but no state of training: give it as "
            "INITIAL_CHECKPOINT_PATH, and choose another MODEL_DIR."
        ) from error
    set_aside = {folders[newer].name: reason for newer, reason in problems.items()}
    for newer, reason in problems.items():
        messages.append(
            f"Falling back to the checkpoint of step {step}: that of step {newer} is {reason}, and "
            f"is kept as {folders[newer].parent / f'{newer}.{reason}'}."
        )
    # Older ones without a state would be counted and deleted as checkpoints.
    for older, folder in folders.items():
        if older < step and not storage.has_state(folder):
            set_aside[folder.name] = DAMAGED
            messages.append(f"{folder} is not a checkpoint; it is kept as {folder}.{DAMAGED}.")
    return ResumePoint(step, metadata, set_aside, tuple(messages))


def apply(point: ResumePoint, directory: epath.Path, log: Callable[[str], None]) -> None:
    """Renames what is not used, so that the run can save at those steps again.

    Args:
      point: of `find_resume_point`.
      directory: the same folder.
      log: prints the messages.
    """
    for message in point.messages:
        log(message)
    for name, reason in point.set_aside.items():
        kept = directory / f"{name}.{reason}"
        if kept.is_dir():
            kept.rmtree()
        elif kept.exists():
            kept.unlink()
        (directory / name).rename(kept)
    for step in storage.list_checkpoints(directory):
        _mend_orbax_metadata(directory / str(step))


def _mend_orbax_metadata(folder: epath.Path) -> None:
    """Deletes Orbax's own record of a checkpoint if it is damaged.

    It is not covered by the checksums, as Orbax writes it last. Orbax restores without it, but not
    with a wrong one.
    """
    path = folder / _ORBAX_METADATA
    try:
        if isinstance(json.loads(files.read_bytes(path)), dict):
            return
    except FileNotFoundError:
        return
    except (OSError, ValueError, RecursionError):
        pass
    if path.is_dir():
        path.rmtree()
    else:
        path.unlink(missing_ok=True)
