"""Checkpoints of a run directory: `checkpoints/<step>`, written by Orbax while training goes on."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from ofa_jax.model import OFAConfig
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
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "run": ocp.JsonCheckpointHandler(),
            },
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
        saved = self._manager.item_metadata(step)["state"]
        # Before restoring: Orbax's own words are long, and name only the first misfit.
        _check_fits(saved, abstract_state, self.directory / str(step))
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract_state), run=ocp.args.JsonRestore()
            ),
        )
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
    with ocp.PyTreeCheckpointer() as checkpointer:
        saved = checkpointer.metadata(folder / "state").item_metadata.tree
        _check_fits({name: saved.get(name, {}) for name in item}, item, folder)
        return checkpointer.restore(
            folder / "state",
            args=ocp.args.PyTreeRestore(
                item=item,
                restore_args=ocp.checkpoint_utils.construct_restore_args(item),
                partial_restore=True,
            ),
        )


def _check_fits(saved: Any, wanted: Any, folder: pathlib.Path) -> None:
    """Raises ValueError that names the arrays that are missing, unexpected or misshapen."""
    saved, wanted = _shapes(saved), _shapes(wanted)
    misfits = [f"{name} is missing" for name in wanted if name not in saved]
    misfits += [f"{name} is not expected" for name in saved if name not in wanted]
    misfits += [
        f"{name} is {list(saved[name])} and should be {list(shape)}"
        for name, shape in wanted.items()
        if name in saved and saved[name] != shape
    ]
    if misfits:
        more = f" and {len(misfits) - 5} more" if len(misfits) > 5 else ""
        raise ValueError(
            f"The checkpoint {folder} is of another model or optimiser: {'; '.join(misfits[:5])}"
            f"{more}. Use the configuration it was made with (config.gin beside its checkpoints), "
            "or choose another one."
        )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Path -> shape; the same for our classes and for the plain containers that Orbax gives."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    part = lambda key: str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", ""))))  # noqa: E731
    return {"/".join(map(part, path)): tuple(leaf.shape) for path, leaf in leaves}


def save_variables(directory: str, variables: Mapping[str, Any], step: int = 0) -> pathlib.Path:
    """Writes parameters and batch statistics alone, as a run directory that others start from.

    Args:
      directory: a run directory; `checkpoints/<step>` is made in it.
      variables: {"params", "batch_stats"}.
      step: its number.

    Returns:
      The checkpoint's folder.

    Raises:
      FileExistsError: there is one already.
    """
    folder = pathlib.Path(directory).resolve() / "checkpoints" / str(step)
    if folder.exists():
        raise FileExistsError(f"There is a checkpoint in {folder} already: choose another folder.")
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", dict(variables))
    return folder


def load_variables(path: str) -> dict[str, Any]:
    """Parameters and batch statistics as numpy arrays, whatever model they are of.

    Raises:
      FileNotFoundError: there is no checkpoint.
    """
    folder = find(path) / "state"
    with ocp.PyTreeCheckpointer() as checkpointer:
        saved = checkpointer.metadata(folder).item_metadata.tree
        item = {name: saved[name] for name in ("params", "batch_stats")}
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        return checkpointer.restore(
            folder,
            args=ocp.args.PyTreeRestore(item=item, restore_args=as_numpy, partial_restore=True),
        )


def write_model(directory: str, config: OFAConfig) -> None:
    """Writes `model.json`: the configuration that the checkpoints of a run directory are of."""
    path = pathlib.Path(directory) / "model.json"
    path.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def read_model(path: str) -> OFAConfig:
    """The configuration beside a checkpoint.

    Raises:
      FileNotFoundError: there is none.
    """
    folder = find(path)
    for directory in (folder, *folder.parents[:2]):
        if (directory / "model.json").is_file():
            fields = json.loads((directory / "model.json").read_text())
            return OFAConfig(**fields | {"resnet_layers": tuple(fields["resnet_layers"])})
    raise FileNotFoundError(
        f"There is no model.json beside {folder}, which says what model it is of."
    )


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
