"""Saves and restores a run's checkpoints, `checkpoints/<step>`, asynchronously with Orbax.

A checkpoint appears atomically, with the checksums of its files; one that does not match its
checksums is not restored.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    EveryNSteps,
    LatestN,
    PreservationPolicy,
)

from ofa_jax.checkpoints import checksums
from ofa_jax.checkpoints.storage import absolute_path, check_shapes
from ofa_jax.sharding import TrainState

__all__ = ["Checkpoints", "SaveError"]

_MAX_FAILED_SAVES = 3
_NONE, _NONE_INTACT = -1, -2


class SaveError(OSError):
    """Checkpoints cannot be written, so further training would be lost."""


@dataclasses.dataclass(frozen=True)
class _Best(PreservationPolicy):
    """Preserves the best checkpoint, as a function of all steps."""

    choose: Callable[[Sequence[int]], int | None]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Returns for each checkpoint whether to preserve it."""
        best = self.choose([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step == best for checkpoint in checkpoints]


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
        self._failed_saves = 0
        policies: list[PreservationPolicy] = [LatestN(keep)]
        if keep_period is not None:
            policies.append(EveryNSteps(keep_period))
        if best is not None:
            policies.append(_Best(best))
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
        for folder in self._folders_of(step):
            folder.rmtree()
        self._manager.reload()
        latest = self.latest_step
        self._log(
            f"{what} Training goes on, and the next one is written as scheduled; "
            + ("there is none yet." if latest is None else f"the newest one is of step {latest}.")
        )

    def close(self) -> None:
        """Waits for the current save and closes the manager.

        Raises:
          SaveError: the last checkpoint could not be written.
        """
        self._finish_save()
        self._manager.close()
        if self._failed_saves:
            raise SaveError(
                f"The last checkpoint could not be written to {self.directory}: the training since "
                "the one before is lost. Free some space, and start the run again."
            )

    # ------------------------------------------------------------------------------ restoring

    def latest_intact_step(self) -> int | None:
        """Returns the step of the newest checkpoint whose files match their checksums.

        Newer checkpoints are renamed, and this is logged. A checkpoint without checksums (of an
        early version) is used only if none has checksums. Collective: all hosts must call it.

        Returns:
          None if there is no checkpoint.

        Raises:
          ValueError: all checkpoints are damaged.
        """
        chosen = self._choose() if jax.process_index() == 0 else _NONE
        if jax.process_count() > 1:
            chosen = int(multihost_utils.broadcast_one_to_all(np.int32(chosen)))
        self._manager.reload()
        if chosen == _NONE_INTACT:
            raise ValueError(
                f"Every checkpoint in {self.directory} is damaged, so the run cannot continue. To "
                "start again, choose another MODEL_DIR, or move the folder away."
            )
        return None if chosen == _NONE else chosen

    def _choose(self) -> int:
        """Returns the step to restore, _NONE or _NONE_INTACT, and renames newer checkpoints."""
        reasons: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            folder = self.directory / str(step)
            if not checksums.has_checksums(folder):
                reasons[step] = "unverified"
            elif (problem := checksums.find_damage(folder)) is not None:
                self._log(f"The checkpoint of step {step} is damaged: {problem}.")
                reasons[step] = "damaged"
            else:
                self._set_aside(reasons, step)
                return step
        for step, reason in reasons.items():
            if reason == "unverified":
                self._log(
                    f"The checkpoint of step {step} has no checksums ({checksums.FILE}): it is of "
                    "an early version, and is used without being verified."
                )
                self._set_aside({k: v for k, v in reasons.items() if k > step}, step)
                return step
        return _NONE_INTACT if reasons else _NONE

    def _set_aside(self, reasons: Mapping[int, str], chosen: int) -> None:
        """Renames unused checkpoints, so that the run can save at those steps again."""
        for step, reason in reasons.items():
            kept = self.directory / f"{step}.{reason}"
            if kept.exists():
                kept.rmtree()
            (self.directory / str(step)).rename(kept)
            self._log(
                f"Falling back to the checkpoint of step {chosen}: that of step {step} is "
                f"{reason}, and is kept as {kept}."
            )

    def read_run_metadata(self, step: int) -> dict[str, Any]:
        """Reads what was saved as `run`."""
        return self._manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))[
            "run"
        ]

    def restore(self, step: int, abstract_state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Restores a state with the shardings of `abstract_state`, on any mesh.

        Returns:
          (state, what was saved as `run`).

        Raises:
          ValueError: the checkpoint is of another model or optimizer.
        """
        saved = self._manager.item_metadata(step)["state"]
        # Orbax's own message is long, and names only the first mismatch.
        check_shapes(saved, abstract_state, self.directory / str(step))
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract_state), run=ocp.args.JsonRestore()
            ),
        )
        return restored["state"], restored["run"]


def _first_line(error: Exception) -> str:
    """Returns the first line of an error's message, shortened."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if len(line) < 400 else f"{line[:200]} ... {line[-200:]}"
