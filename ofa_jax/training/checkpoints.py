"""Checkpoints of a run directory: `checkpoints/<step>`, written by Orbax while training goes on."""

import pathlib
from collections.abc import Mapping
from typing import Any

import orbax.checkpoint as ocp

from ofa_jax.training.state import TrainState


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, model_dir: str, keep: int | None = 3):
        """Opens the folder, which need not exist yet.

        Args:
          model_dir: of the run.
          keep: how many of the newest stay; None for all.
        """
        self.directory = pathlib.Path(model_dir).resolve() / "checkpoints"
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
            item_names=("state", "run"),
        )

    @property
    def latest_step(self) -> int | None:
        """The newest complete checkpoint, if there is any."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, run: Mapping[str, Any]) -> None:
        """Starts to write a checkpoint; returns when the state may be changed again.

        Args:
          step: of the state.
          state: to save.
          run: what must be the same when the run goes on (seed, streams ...), as JSON.
        """
        if step == self.latest_step:
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(dict(run))
            ),
        )

    def restore(self, step: int, abstract_state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state of a step, on the mesh of `abstract_state` whatever mesh it was saved on.

        Returns:
          (state, what was saved as `run`).

        Raises:
          ValueError: the checkpoint is of another model or optimiser.
        """
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract_state), run=ocp.args.JsonRestore()
                ),
            )
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"The checkpoint {self.directory / str(step)} does not fit this model and "
                f"optimiser: go on with the run's own config.gin, or choose another MODEL_DIR. "
                f"({' '.join(str(error).split())[:300]})"
            ) from error
        return restored["state"], restored["run"]

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.wait_until_finished()
        self._manager.close()


def restore_variables(path: str, abstract_variables: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters and batch statistics of a checkpoint, without the optimiser's moments.

    Args:
      path: a folder `checkpoints/<step>`, or a run directory (its newest checkpoint then).
      abstract_variables: {"params", "batch_stats"} of ShapeDtypeStructs with shardings.

    Returns:
      {"params", "batch_stats"}.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: it is of another model.
    """
    folder = find(path)
    item = dict(abstract_variables)
    restore_args = ocp.checkpoint_utils.construct_restore_args(item)
    try:
        return ocp.PyTreeCheckpointer().restore(
            folder / "state",
            args=ocp.args.PyTreeRestore(
                item=item, restore_args=restore_args, partial_restore=True
            ),
        )
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"The checkpoint {folder} does not fit this model: is it of another size or "
            f"vocabulary? ({' '.join(str(error).split())[:300]})"
        ) from error


def find(path: str) -> pathlib.Path:
    """The folder of one checkpoint: `path` itself, or the newest below it.

    Raises:
      FileNotFoundError: there is none.
    """
    folder = pathlib.Path(path).resolve()
    if (folder / "state").is_dir():
        return folder
    for root in (folder / "checkpoints", folder):
        if root.is_dir():
            steps = [int(p.name) for p in root.iterdir() if p.name.isdigit()]
            if steps:
                return root / str(max(steps))
    raise FileNotFoundError(
        f"There is no checkpoint in {path}: give a folder checkpoints/<step>, or a run directory "
        "that has one."
    )
