"""Checkpoints of a run directory: `checkpoints/<step>`, written by Orbax while training goes on.

Each becomes valid at once, with the checksums of its files in it; what does not match them later is
not restored.
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
from ofa_jax.checkpoints.storage import absolute, check_fits
from ofa_jax.sharding import TrainState

_MOST_FAILED_SAVES = 3
_NONE, _NONE_GOOD = -1, -2


class SaveError(OSError):
    """No checkpoint can be written: going on would train for nothing."""


@dataclasses.dataclass(frozen=True)
class _Best(PreservationPolicy):
    """Keeps the checkpoint that a function of all steps names."""

    choose: Callable[[Sequence[int]], int | None]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        best = self.choose([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step == best for checkpoint in checkpoints]


class Checkpoints:
    """The checkpoints of one run.

    A save that fails (a full disk, most likely) is said, and training goes on: its checkpoint is
    missing, and what it had written is removed. Three in a row stop the run. On several hosts one
    does, because hosts that disagree on what is saved would wait for each other: the supervisor
    starts them again from the newest good one.
    """

    def __init__(
        self,
        model_dir: str,
        keep: int | None = 3,
        keep_period: int | None = None,
        best: Callable[[Sequence[int]], int | None] | None = None,
        say: Callable[[str], None] = logging.warning,
    ):
        """Opens the folder, which need not exist yet. All hosts must do it together.

        Args:
          model_dir: of the run, which all hosts share.
          keep: how many of the newest stay; None for all.
          keep_period: the steps that it divides stay for good.
          best: steps -> the one that stays because it is the best so far; None where not known.
          say: tells people what happened.
        """
        self.directory = absolute(model_dir) / "checkpoints"
        self._say = say
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
        """The newest checkpoint, if there is any; whether it is good is not known."""
        return self._manager.latest_step()

    # --------------------------------------------------------------------------------- saving

    def save(self, step: int, state: TrainState, run: Mapping[str, Any]) -> None:
        """Starts to write a checkpoint; returns when the state may be changed again.

        Args:
          step: of the state.
          state: to save.
          run: what must be the same when the run goes on (seed, streams ...), as JSON.

        Raises:
          SaveError: this or an earlier one could not be written, see the class.
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
                force=True,  # or Orbax asks about preemption, which is the loop's to ask
            )
        except Exception as error:  # noqa: BLE001  a file system raises what it likes
            self._count_failure(error)

    def _write_checksums(self) -> None:
        """Orbax calls it when all files are written, before they become a checkpoint."""
        if jax.process_index() == 0:
            (folder,) = self._folders_of(self._saving)
            checksums.write(folder)

    def _folders_of(self, step: int) -> list[epath.Path]:
        """What is being written for a step."""
        return [
            path
            for path in self.directory.iterdir()
            # Where folders cannot be renamed (object stores) it has its name from the start.
            if path.name == str(step) or path.name.startswith(f"{step}.orbax-checkpoint-tmp")
        ]

    def _finish_save(self) -> None:
        """Waits for the save that is under way, if any, and looks how it went."""
        if self._saving is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # noqa: BLE001  see save
            self._count_failure(error)
        else:
            self._saving, self._failed_saves = None, 0

    def _count_failure(self, error: Exception) -> None:
        step, self._failed_saves = self._saving, self._failed_saves + 1
        self._saving = None
        what = (
            f"The checkpoint of step {step} could not be written to {self.directory} "
            f"({_first_line(error)})."
        )
        if jax.process_count() > 1 or self._failed_saves >= _MOST_FAILED_SAVES:
            raise SaveError(
                f"{what} Make room, or mend the file system, and start it again."
            ) from error
        for folder in self._folders_of(step):
            folder.rmtree()
        self._manager.reload()
        good = self.latest_step
        self._say(
            f"{what} Training goes on, and the next one is tried at its time; until then "
            + ("there is none." if good is None else f"the newest one is of step {good}.")
        )

    def close(self) -> None:
        """Waits for what is being written.

        Raises:
          SaveError: the last one could not be written.
        """
        self._finish_save()
        self._manager.close()
        if self._failed_saves:
            raise SaveError(
                f"The last checkpoint could not be written to {self.directory}: what was trained "
                "since the one before is lost. Make room, and start it again."
            )

    # ------------------------------------------------------------------------------ restoring

    def newest_good_step(self) -> int | None:
        """The step to go on from: the newest whose files are as they were written.

        What is newer and not good is set aside under another name, and said. Checkpoints without
        checksums, which were made before there were any, are taken only where none has some. All
        hosts must ask together, and get one answer.

        Raises:
          ValueError: there are checkpoints, but every one is damaged.
        """
        chosen = self._choose() if jax.process_index() == 0 else _NONE
        if jax.process_count() > 1:
            chosen = int(multihost_utils.broadcast_one_to_all(np.int32(chosen)))
        self._manager.reload()
        if chosen == _NONE_GOOD:
            raise ValueError(
                f"Every checkpoint in {self.directory} is damaged, so the run cannot go on. To "
                "begin again, choose another MODEL_DIR, or move the folder away."
            )
        return None if chosen == _NONE else chosen

    def _choose(self) -> int:
        reasons: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            folder = self.directory / str(step)
            if not checksums.has_checksums(folder):
                reasons[step] = "unverified"
            elif (problem := checksums.damage(folder)) is not None:
                self._say(f"The checkpoint of step {step} is damaged: {problem}.")
                reasons[step] = "damaged"
            else:
                self._set_aside(reasons, step)
                return step
        for step, reason in reasons.items():
            if reason == "unverified":
                self._say(
                    f"The checkpoint of step {step} has no checksums ({checksums.FILE}): it was "
                    "made before they were written, and is used without being verified."
                )
                self._set_aside({k: v for k, v in reasons.items() if k > step}, step)
                return step
        return _NONE_GOOD if reasons else _NONE

    def _set_aside(self, reasons: Mapping[int, str], chosen: int) -> None:
        """Renames what is not used, so that the run can save at those steps again."""
        for step, reason in reasons.items():
            kept = self.directory / f"{step}.{reason}"
            if kept.exists():
                kept.rmtree()
            (self.directory / str(step)).rename(kept)
            self._say(
                f"Falling back to the checkpoint of step {chosen}: that of step {step} is "
                f"{reason}, and is kept as {kept}."
            )

    def run_of(self, step: int) -> dict[str, Any]:
        """What was saved as `run`."""
        return self._manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))[
            "run"
        ]

    def restore(self, step: int, abstract_state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state of a step, on the mesh of `abstract_state` whatever mesh it was saved on.

        Returns:
          (state, what was saved as `run`).

        Raises:
          ValueError: the checkpoint is of another model or optimiser.
        """
        saved = self._manager.item_metadata(step)["state"]
        # Before restoring: Orbax's own words are long, and name only the first misfit.
        check_fits(saved, abstract_state, self.directory / str(step))
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract_state), run=ocp.args.JsonRestore()
            ),
        )
        return restored["state"], restored["run"]


def _first_line(error: Exception) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if len(line) < 400 else f"{line[:200]} ... {line[-200:]}"
