"""Saves and restores a run's checkpoints, `checkpoints/<step>`, asynchronously with Orbax.

A checkpoint appears atomically, with the checksums of its files. Which one a run continues from is
found by `resume`.
"""

import contextlib
import dataclasses
import logging as python_logging
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    EveryNSteps,
    LatestN,
    PreservationPolicy,
)

from ofa_jax.checkpoints import checksums, storage
from ofa_jax.checkpoints.storage import absolute_path, check_shapes
from ofa_jax.sharding import TrainState
from ofa_jax.utils.bad_input import Treatment, declare

__all__ = ["Checkpoints", "SaveError"]

_MAX_FAILED_SAVES = 3
_MAX_WAIT_SECONDS = 60
"""How long a host that fails waits for a save in which the others take part."""

CHECKPOINT_NOT_WRITTEN = declare(
    "checkpoint cannot be written",
    Treatment.RECOVERED,
    "A checkpoint cannot be written, mostly because the disk is full. One sentence says so, its "
    "partial files are deleted, older checkpoints stay, and training goes on; after the third "
    "failure in a row the run stops.",
    __name__,
)


class _FurtherFailedWrites(python_logging.Filter):
    """Drops what asyncio logs of writes that failed after the first one of a save.

    Orbax writes the arrays of a checkpoint in tasks and raises the first error. Those of the other
    tasks are retrieved by nobody, so asyncio logs each with a traceback whenever they are freed.
    """

    def filter(self, record: python_logging.LogRecord) -> bool:
        """Returns whether to log a record."""
        message = record.getMessage()
        return not (message.startswith("Task exception was never retrieved") and "orbax" in message)


class SaveError(OSError):
    """Checkpoints cannot be written, so further training would be lost."""


_FURTHER_FAILED_WRITES = _FurtherFailedWrites()
"""One, so that a logger takes it once."""


@dataclasses.dataclass(frozen=True)
class _Best(PreservationPolicy):
    """Preserves the best checkpoint, as a function of all steps."""

    choose: Callable[[Sequence[int]], int | None]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Returns for each checkpoint whether to preserve it."""
        best = self.choose([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step == best for checkpoint in checkpoints]


@dataclasses.dataclass(frozen=True)
class _Pinned(PreservationPolicy):
    """Preserves checkpoints whatever newer ones there are."""

    steps: AbstractSet[int]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Returns for each checkpoint whether to preserve it."""
        return [checkpoint.step in self.steps for checkpoint in checkpoints]


class Checkpoints:
    """The checkpoints of one run.

    If a save fails (most likely because the disk is full), the failure is logged, the partial files
    are deleted and training goes on without this checkpoint. Three failures in a row stop the run.
    On several hosts one failure does, because hosts that disagree on what was saved would wait for
    each other: the supervisor restarts them from the newest intact checkpoint.
    """

    def __init__(
        self,
        model_dir: epath.PathLike,
        keep: int | None = 3,
        keep_period: int | None = None,
        best: Callable[[Sequence[int]], int | None] | None = None,
        log: Callable[[str], None] = logging.warning,
    ):
        """Opens or creates the folder. Collective: all hosts must call it.

        Args:
          model_dir: the run directory, shared by all hosts.
          keep: number of newest checkpoints to keep; None for all.
          keep_period: checkpoints of steps that are multiples of it are never deleted.
          best: maps the steps to the best one, which is kept; it returns None if unknown.
          log: prints a message.
        """
        self.directory = absolute_path(model_dir) / "checkpoints"
        self._log = log
        self._saving: int | None = None
        self._is_closed = False
        self._failed_saves = 0
        self._pinned: set[int] = set()
        policies: list[PreservationPolicy] = [LatestN(keep), _Pinned(self._pinned)]
        if keep_period is not None:
            policies.append(EveryNSteps(keep_period))
        if best is not None:
            policies.append(_Best(best))
        python_logging.getLogger("asyncio").addFilter(_FURTHER_FAILED_WRITES)
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy(policies),
                create=True,
                cleanup_tmp_directories=True,  # of a run that was killed while it saved
                async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums),
            ),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "run": ocp.JsonCheckpointHandler(),
            },
        )

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, intact or not; None if there is none."""
        return self._manager.latest_step()

    @property
    def steps(self) -> list[int]:
        """Steps of all checkpoints."""
        return sorted(self._manager.all_steps())

    @property
    def pinned(self) -> list[int]:
        """Steps of the checkpoints that `pin` keeps."""
        return sorted(self._pinned & set(self._manager.all_steps()))

    def pin(self, step: int) -> None:
        """Keeps a checkpoint for as long as this object exists, however many newer ones follow."""
        self._pinned.add(step)

    # --------------------------------------------------------------------------------- saving

    def save(self, step: int, state: TrainState, run: Mapping[str, Any]) -> None:
        """Starts to write a checkpoint; returns when the state may be changed again.

        Args:
          step: of the state.
          state: to save.
          run: JSON of the run's fingerprint (seed, streams ...) and training time.

        Raises:
          SaveError: this or an earlier checkpoint could not be written; see the class.
        """
        self._finish_save()
        if step in self._manager.all_steps():
            return
        self._saving = step
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(dict(run))
                ),
                force=True,  # skips Orbax's check for preemption: the training loop has its own
            )
        except Exception as error:  # noqa: BLE001  file systems raise many types
            self._count_failure(error)

    def _write_checksums(self) -> None:
        """Writes the checksums; Orbax calls it after all files are written, before it commits."""
        if jax.process_index() == 0 and self._saving is not None:
            (folder,) = self._folders_of(self._saving)
            checksums.write(folder)

    def _folders_of(self, step: int) -> list[epath.Path]:
        """Returns the folders of a step, temporary or final."""
        return [
            path
            for path in self.directory.iterdir()
            # Object stores cannot rename folders: there it has its final name from the start.
            if path.name == str(step) or path.name.startswith(f"{step}.orbax-checkpoint-tmp")
        ]

    def _finish_save(self) -> None:
        """Waits for the current save, if any, and counts its failure."""
        if self._saving is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # noqa: BLE001  see save
            self._count_failure(error)
        else:
            self._saving, self._failed_saves = None, 0

    def _count_failure(self, error: Exception) -> None:
        """Logs a failed save and deletes its files; raises SaveError if training must stop."""
        assert self._saving is not None
        step, self._failed_saves = self._saving, self._failed_saves + 1
        self._saving = None
        what = (
            f"The checkpoint of step {step} could not be written to {self.directory} "
            f"({_first_line(error)})."
        )
        if jax.process_count() > 1 or self._failed_saves >= _MAX_FAILED_SAVES:
            raise SaveError(
                f"{what} Free some space, or repair the file system, and start the run again."
            ) from error
        # On a vanished or broken disk these fail, too; the next save then says so.
        with contextlib.suppress(OSError):
            for folder in self._folders_of(step):
                folder.rmtree()
        with contextlib.suppress(Exception):
            self._manager.reload()
        latest = self.latest_step
        self._log(
            f"{what} Training goes on, and the next one is written as scheduled; "
            + ("there is none yet." if latest is None else f"the newest one is of step {latest}.")
        )

    def newest_complete(self) -> int | None:
        """Waits for the current save, and returns the step of the newest checkpoint."""
        with contextlib.suppress(SaveError):
            self._finish_save()
        return self.latest_step

    def close(self) -> None:
        """Waits for the current save and closes the manager.

        Raises:
          SaveError: the last checkpoint could not be written.
        """
        self._finish_save()
        self._manager.close()
        self._is_closed = True
        if self._failed_saves:
            raise SaveError(
                f"The last checkpoint could not be written to {self.directory}: the training since "
                "the one before is lost. Free some space, and start the run again."
            )

    def abandon(self) -> None:
        """Completes the current save after an error elsewhere, and logs its own failure, if any.

        The others of several hosts may never complete their part, so there the wait is limited.
        """
        if self._is_closed:
            return
        waiting = threading.Thread(target=self._complete_quietly, daemon=True)
        waiting.start()
        waiting.join(_MAX_WAIT_SECONDS if jax.process_count() > 1 else None)

    def _complete_quietly(self) -> None:
        """Waits for the current save; logs a failure."""
        try:
            self._finish_save()
            self._manager.close()
        except SaveError as error:
            self._log(str(error))
        except Exception:  # noqa: BLE001  a failure that was reported before
            return

    # ------------------------------------------------------------------------------ restoring

    def read_run_metadata(self, step: int) -> dict[str, Any]:
        """Reads what was saved as `run`."""
        return storage.read_run_metadata(self.directory / str(step))

    def restore(self, step: int, abstract_state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Restores a state with the shardings of `abstract_state`, on any mesh.

        Returns:
          (state, what was saved as `run`).

        Raises:
          ValueError: the checkpoint is of another model or optimizer, or damaged.
        """
        folder = self.directory / str(step)
        # Orbax's own message is long, and names only the first mismatch.
        check_shapes(storage.read_arrays_tree(folder), abstract_state, folder)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract_state), run=ocp.args.JsonRestore()
                ),
            )
        except Exception as error:  # noqa: BLE001  Orbax and TensorStore raise many types
            if "RESOURCE_EXHAUSTED" in str(error):
                raise  # the devices' memory, not the checkpoint
            raise storage.unreadable(folder, error) from error
        return restored["state"], restored["run"]


def _first_line(error: Exception) -> str:
    """Returns the first line of an error's message, shortened; of TensorStore's, the reason."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    if code := re.search(r"os_error_code='(\d+)'", line):
        return os.strerror(int(code[1]))
    return line if len(line) < 400 else f"{line[:200]} ... {line[-200:]}"
