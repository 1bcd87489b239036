"""Finds, reads and writes checkpoints without a train state.

A run directory holds them as `checkpoints/<step>`, with the model's configuration in `model.json`.
`ofa_jax.checkpoints.manager` writes them during training.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from ofa_jax.checkpoints import checksums
from ofa_jax.model import OFAConfig

__all__ = [
    "absolute_path",
    "check_shapes",
    "count_parameters",
    "find_checkpoint",
    "list_checkpoints",
    "load_numpy_variables",
    "read_model_config",
    "read_run_metadata",
    "restore_variables",
    "save_variables",
    "write_model_config",
]

_AVERAGE = "ema_params"


def restore_variables(
    path: epath.PathLike, abstract_variables: Mapping[str, Any], averaged: bool = False
) -> dict[str, Any]:
    """Restores parameters and batch statistics of a checkpoint, without the optimizer state.

    Args:
      path: a folder `checkpoints/<step>`, or a run directory for its newest checkpoint.
      abstract_variables: {"params", "batch_stats"} of ShapeDtypeStructs with shardings.
      averaged: whether to restore the averaged parameters (EMA), if the checkpoint has them.

    Returns:
      {"params", "batch_stats"}.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the checkpoint is of another model, or damaged.
    """
    folder = find_checkpoint(path)
    _check_intact(folder)
    item: dict[str, Any] = dict(abstract_variables)
    with ocp.PyTreeCheckpointer() as checkpointer:
        saved = checkpointer.metadata(folder / "state").item_metadata.tree
        if averaged and saved.get(_AVERAGE):
            item[_AVERAGE] = item.pop("params")
        check_shapes({name: saved.get(name, {}) for name in item}, item, folder)
        restored = checkpointer.restore(
            folder / "state",
            args=ocp.args.PyTreeRestore(
                item=item,
                restore_args=ocp.checkpoint_utils.construct_restore_args(item),
                partial_restore=True,
            ),
        )
    if _AVERAGE in restored:
        restored["params"] = restored.pop(_AVERAGE)
    return restored


def absolute_path(path: epath.PathLike) -> epath.Path:
    """Returns an absolute path, as Orbax needs it; gs://... is absolute already."""
    path = epath.Path(path)
    return path if path.is_absolute() else path.resolve()


def _check_intact(folder: epath.Path) -> None:
    """Raises ValueError on the first host if a checkpoint does not match its checksums."""
    if jax.process_index() or not checksums.has_checksums(folder):
        return
    problem = checksums.find_damage(folder)
    if problem is not None:
        raise ValueError(
            f"The checkpoint {folder} is damaged: {problem}. Choose another one beside it."
        )


def check_shapes(saved: Any, wanted: Any, folder: epath.Path) -> None:
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
    """Returns path -> shape, alike for our classes and for the plain containers of Orbax."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }


def save_variables(
    directory: epath.PathLike, variables: Mapping[str, Any], step: int = 0
) -> epath.Path:
    """Writes a checkpoint of parameters and batch statistics, without an optimizer state.

    Args:
      directory: a run directory; the checkpoint is its `checkpoints/<step>`.
      variables: {"params", "batch_stats"}.
      step: of the checkpoint.

    Returns:
      The checkpoint's folder.

    Raises:
      FileExistsError: the checkpoint exists already.
    """
    folder = absolute_path(directory) / "checkpoints" / str(step)
    if folder.exists():
        raise FileExistsError(f"There is a checkpoint in {folder} already: choose another folder.")
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", dict(variables))
    if jax.process_index() == 0:
        checksums.write(folder)
    return folder


def has_average(path: epath.PathLike) -> bool:
    """Returns whether a checkpoint has averaged parameters (EMA) besides the last ones."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        saved = checkpointer.metadata(find_checkpoint(path) / "state").item_metadata.tree
    return bool(saved.get(_AVERAGE))


def load_numpy_variables(path: epath.PathLike, averaged: bool = False) -> dict[str, Any]:
    """Loads parameters and batch statistics of any model as numpy arrays.

    Args:
      path: as for `find_checkpoint`.
      averaged: whether to load the averaged parameters (EMA), if the checkpoint has them.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: it is damaged.
    """
    _check_intact(find_checkpoint(path))
    folder = find_checkpoint(path) / "state"
    with ocp.PyTreeCheckpointer() as checkpointer:
        saved = checkpointer.metadata(folder).item_metadata.tree
        params = _AVERAGE if averaged and saved.get(_AVERAGE) else "params"
        item = {name: saved[name] for name in (params, "batch_stats")}
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        restored = checkpointer.restore(
            folder,
            args=ocp.args.PyTreeRestore(item=item, restore_args=as_numpy, partial_restore=True),
        )
    return {"params": restored[params], "batch_stats": restored["batch_stats"]}


def write_model_config(directory: epath.PathLike, config: OFAConfig) -> None:
    """Writes the model's configuration into a run directory, as `model.json`."""
    path = epath.Path(directory) / "model.json"
    path.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def read_model_config(path: epath.PathLike) -> OFAConfig:
    """Reads the configuration of a checkpoint's model.

    Args:
      path: as for `find_checkpoint`.

    Raises:
      FileNotFoundError: there is no checkpoint, or no `model.json` beside it.
    """
    folder = find_checkpoint(path)
    for directory in (folder, *folder.parents[:2]):
        if (directory / "model.json").is_file():
            fields = json.loads((directory / "model.json").read_text())
            return OFAConfig(**fields | {"resnet_layers": tuple(fields["resnet_layers"])})
    raise FileNotFoundError(f"There is no model.json beside {folder}, so its model is unknown.")


def list_checkpoints(path: epath.PathLike) -> dict[int, epath.Path]:
    """Returns step -> folder of all checkpoints in a run directory (or in its `checkpoints`)."""
    folder = absolute_path(path)
    for root in (folder / "checkpoints", folder):
        if root.is_dir():
            found = {int(p.name): p for p in root.iterdir() if p.name.isdigit()}
            if found:
                return dict(sorted(found.items()))
    return {}


def find_checkpoint(path: epath.PathLike) -> epath.Path:
    """Returns the folder of one checkpoint.

    Args:
      path: a folder `checkpoints/<step>`, or a run directory for its newest checkpoint.

    Raises:
      FileNotFoundError: there is no checkpoint.
    """
    folder = absolute_path(path)
    if (folder / "state").is_dir():
        return folder
    if found := list_checkpoints(path):
        return found[max(found)]
    raise FileNotFoundError(
        f"There is no checkpoint in {path}: give a folder checkpoints/<step>, or a run directory "
        "that has one."
    )


def read_run_metadata(path: epath.PathLike) -> dict[str, Any]:
    """Reads the JSON beside a checkpoint's state: the run's fingerprint and training time.

    Args:
      path: as for `find_checkpoint`.

    Raises:
      FileNotFoundError: there is no checkpoint, or training did not write it.
    """
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        return checkpointer.restore(find_checkpoint(path) / "run")


def count_parameters(path: epath.PathLike) -> int:
    """Returns the number of parameters of a checkpoint's model."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        saved = checkpointer.metadata(find_checkpoint(path) / "state").item_metadata.tree
    return sum(math.prod(shape) for shape in _shapes(saved["params"]).values())
