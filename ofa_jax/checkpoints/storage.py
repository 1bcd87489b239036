"""Checkpoints as files: finding one, its parameters, what model it is of.

A run directory has them as `checkpoints/<step>`; `run_checkpoints` writes them while training goes
on.
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

_AVERAGE = "ema_params"


def restore_variables(
    path: str, abstract_variables: Mapping[str, Any], averaged: bool = False
) -> dict[str, Any]:
    """Parameters and batch statistics of a checkpoint, without the optimiser's moments.

    Args:
      path: a folder `checkpoints/<step>`, or a run directory (its newest checkpoint then).
      abstract_variables: {"params", "batch_stats"} of ShapeDtypeStructs with shardings.
      averaged: take the averaged parameters, if the run kept any.

    Returns:
      {"params", "batch_stats"}.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: it is of another model, or damaged.
    """
    folder = find(path)
    _refuse_damaged(folder)
    item = dict(abstract_variables)
    with ocp.PyTreeCheckpointer() as checkpointer:
        saved = checkpointer.metadata(folder / "state").item_metadata.tree
        if averaged and saved.get(_AVERAGE):
            item[_AVERAGE] = item.pop("params")
        check_fits({name: saved.get(name, {}) for name in item}, item, folder)
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


def absolute(path: str) -> epath.Path:
    """As Orbax wants it; gs://... is so already."""
    path = epath.Path(path)
    return path if path.is_absolute() else path.resolve()


def _refuse_damaged(folder: epath.Path) -> None:
    if jax.process_index() or not checksums.has_checksums(folder):
        return
    problem = checksums.damage(folder)
    if problem is not None:
        raise ValueError(
            f"The checkpoint {folder} is damaged: {problem}. Choose another one beside it."
        )


def check_fits(saved: Any, wanted: Any, folder: epath.Path) -> None:
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


def save_variables(directory: str, variables: Mapping[str, Any], step: int = 0) -> epath.Path:
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
    folder = absolute(directory) / "checkpoints" / str(step)
    if folder.exists():
        raise FileExistsError(f"There is a checkpoint in {folder} already: choose another folder.")
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", dict(variables))
    if jax.process_index() == 0:
        checksums.write(folder)
    return folder


def load_variables(path: str) -> dict[str, Any]:
    """Parameters and batch statistics as numpy arrays, whatever model they are of.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: it is damaged.
    """
    _refuse_damaged(find(path))
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
    path = epath.Path(directory) / "model.json"
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


def steps(path: str) -> dict[int, epath.Path]:
    """Step -> folder of every checkpoint of a run directory (or of its `checkpoints`), in order."""
    folder = absolute(path)
    for root in (folder / "checkpoints", folder):
        if root.is_dir():
            found = {int(p.name): p for p in root.iterdir() if p.name.isdigit()}
            if found:
                return dict(sorted(found.items()))
    return {}


def find(path: str) -> epath.Path:
    """The folder of one checkpoint: `path` itself, or the newest below it.

    Raises:
      FileNotFoundError: there is none.
    """
    folder = absolute(path)
    if (folder / "state").is_dir():
        return folder
    if found := steps(path):
        return found[max(found)]
    raise FileNotFoundError(
        f"There is no checkpoint in {path}: give a folder checkpoints/<step>, or a run directory "
        "that has one."
    )


def read_run(path: str) -> dict[str, Any]:
    """What a run has saved beside its state: what it was begun with, and how long it trained.

    Args:
      path: as for `find`.

    Raises:
      FileNotFoundError: there is no checkpoint of a run.
    """
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        return checkpointer.restore(find(path) / "run")


def count_parameters(path: str) -> int:
    """How many numbers a checkpoint's model has learned."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        saved = checkpointer.metadata(find(path) / "state").item_metadata.tree
    return sum(math.prod(shape) for shape in _shapes(saved["params"]).values())
