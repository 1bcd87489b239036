"""Finds, reads and writes checkpoints without a train state.

A run directory holds them as `checkpoints/<step>`, with the model's configuration in `model.json`.
`ofa_jax.checkpoints.manager` writes them during training.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from ofa_jax.checkpoints import checksums, orbax_logs
from ofa_jax.model import OFAConfig
from ofa_jax.sharding import TrainState
from ofa_jax.utils import files
from ofa_jax.utils.text_files import DamagedFileError, read_json

__all__ = [
    "MODEL_FILE",
    "absolute_path",
    "check_readable",
    "check_shapes",
    "count_parameters",
    "find_checkpoint",
    "list_checkpoints",
    "load_numpy",
    "load_numpy_variables",
    "parse_model_config",
    "read_arrays_tree",
    "read_model_config",
    "read_run_metadata",
    "restore_variables",
    "has_state",
    "save_variables",
    "step_of",
    "unreadable",
    "write_model_config",
]

MODEL_FILE = "model.json"
orbax_logs.quiet()

_AVERAGE = "ema_params"
_LAST_STEP = 2**31 - 1
"""The largest step that a state can count."""
_CLASS = re.compile(r"<class '(?:\w+\.)*(\w+)'>")
"""As messages of other libraries name a class."""


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
    saved = read_arrays_tree(folder)
    if averaged and saved.get(_AVERAGE):
        item[_AVERAGE] = item.pop("params")
    check_shapes({name: saved.get(name, {}) for name in item}, item, folder)
    restored = _restore(folder, item, ocp.checkpoint_utils.construct_restore_args(item))
    if _AVERAGE in restored:
        restored["params"] = restored.pop(_AVERAGE)
    return restored


def _restore(
    folder: epath.Path, item: Any, restore_args: Any, alone: bool = False
) -> dict[str, Any]:
    """Restores a part of a checkpoint's arrays. Collective, unless this host does it `alone`.

    Raises:
      DamagedFileError: they cannot be read.
    """
    options = ocp.options.MultiprocessingOptions()
    if alone:
        own = jax.process_index()
        options = ocp.options.MultiprocessingOptions(own, {own}, f"alone_{own}")
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
    args = ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=True)
    try:
        with ocp.Checkpointer(handler, multiprocessing_options=options) as checkpointer:
            return checkpointer.restore(folder / "state", args=args)
    except Exception as error:  # noqa: BLE001  Orbax and TensorStore raise many types
        if "RESOURCE_EXHAUSTED" in str(error):
            raise  # the devices' memory, not the checkpoint
        raise unreadable(folder, error) from error


def unreadable(folder: epath.Path, error: Exception) -> DamagedFileError:
    """Returns the error of a checkpoint whose files cannot be read as what they should be."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    reason = _CLASS.sub(r"\1", reason)[:200]
    return DamagedFileError(
        f"The checkpoint {folder} is damaged or incomplete, it cannot be read ({reason}): choose "
        "another one beside it."
    )


def read_arrays_tree(folder: epath.Path) -> dict[str, Any]:
    """Reads the tree of the arrays of a checkpoint: their shapes and types, without their values.

    Args:
      folder: `checkpoints/<step>`.

    Raises:
      DamagedFileError: it is damaged.
    """
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            found = checkpointer.metadata(folder / "state").item_metadata
        if found is None:
            raise ValueError("it has no _METADATA of its arrays")
        tree = found.tree  # None where Orbax could not read it
        if not isinstance(tree, dict):
            raise TypeError("it holds no arrays by name")
    except Exception as error:  # noqa: BLE001  see _restore
        raise unreadable(folder, error) from error
    return tree


def check_readable(folder: epath.Path) -> None:
    """Reads everything that training needs of a checkpoint, on this host alone.

    Raises:
      FileNotFoundError: training did not write it.
      DamagedFileError: it is damaged.
    """
    read_run_metadata(folder)
    for name, part in read_arrays_tree(folder).items():
        if jax.tree.leaves(part):
            item = {name: part}
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
            _restore(folder, item, as_numpy, alone=True)


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
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(
            getattr(leaf, "shape", None) or ()
        )
        for path, leaf in leaves
    }


def save_variables(
    directory: epath.PathLike,
    variables: Mapping[str, Any] | TrainState,
    step: int = 0,
    run: Mapping[str, Any] | None = None,
) -> epath.Path:
    """Writes a checkpoint of parameters and batch statistics, or of a whole train state.

    Args:
      directory: a run directory; the checkpoint is its `checkpoints/<step>`.
      variables: {"params", "batch_stats"}, without an optimizer state, or a train state.
      step: of the checkpoint.
      run: what training saves beside a train state, so that it continues from there; None for a
        checkpoint that runs are only initialised from.

    Returns:
      The checkpoint's folder.

    Raises:
      FileExistsError: the checkpoint exists already.
    """
    folder = absolute_path(directory) / "checkpoints" / str(step)
    if folder.exists():
        raise FileExistsError(f"There is a checkpoint in {folder} already: choose another folder.")
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(
            folder / "state", variables if isinstance(variables, TrainState) else dict(variables)
        )
    if run is not None and jax.process_index() == 0:
        (folder / "run").mkdir()
        files.write_json(folder / "run" / "metadata", dict(run))
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
    folder = find_checkpoint(path)
    _check_intact(folder)
    saved = read_arrays_tree(folder)
    params = _AVERAGE if averaged and saved.get(_AVERAGE) else "params"
    item = {name: _part(saved, name, folder) for name in (params, "batch_stats")}
    restored = load_numpy(folder, item)
    return {"params": restored[params], "batch_stats": restored["batch_stats"]}


def load_numpy(folder: epath.Path, item: Mapping[str, Any]) -> dict[str, Any]:
    """Loads parts of a checkpoint as numpy arrays.

    Args:
      folder: of the checkpoint.
      item: parts of its tree, see `read_arrays_tree`.

    Raises:
      DamagedFileError: they cannot be read.
    """
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), dict(item))
    return _restore(folder, dict(item), as_numpy)


def _part(saved: Mapping[str, Any], name: str, folder: epath.Path) -> Any:
    """Returns a part of a checkpoint's tree; raises DamagedFileError if it lacks the part."""
    if name not in saved and "target" in saved:
        raise ValueError(
            f"{folder} is a checkpoint of t5x: convert it with ofa-convert first, see "
            "docs/guides/t5x.md."
        )
    if name not in saved:
        raise unreadable(folder, ValueError(f"it has no {name}"))
    return saved[name]


def write_model_config(directory: epath.PathLike, config: OFAConfig) -> None:
    """Writes the model's configuration into a run directory, as `model.json`."""
    files.write_json(epath.Path(directory) / MODEL_FILE, dataclasses.asdict(config))


def parse_model_config(path: epath.PathLike) -> OFAConfig:
    """Reads a `model.json`.

    Raises:
      FileNotFoundError: there is no such file.
      DamagedFileError: it is not a configuration of a model.
    """
    fields = read_json(path)
    try:
        return OFAConfig(**fields | {"resnet_layers": tuple(fields["resnet_layers"])})
    except (TypeError, KeyError, ValueError) as error:
        raise DamagedFileError(
            f"{path} does not describe a model of OFA ({error}): it is damaged, or of another "
            "program. Starting the training of its run again writes it anew."
        ) from error


def read_model_config(path: epath.PathLike) -> OFAConfig:
    """Reads the configuration of a checkpoint's model.

    Args:
      path: as for `find_checkpoint`.

    Raises:
      FileNotFoundError: there is no checkpoint, or no `model.json` beside it.
      DamagedFileError: the `model.json` is damaged.
    """
    folder = find_checkpoint(path)
    for directory in (folder, *folder.parents[:2]):
        if (directory / MODEL_FILE).exists():
            try:
                return parse_model_config(directory / MODEL_FILE)
            except OSError as error:
                raise DamagedFileError(f"{error}: the model of {folder} is unknown.") from error
    raise FileNotFoundError(f"There is no model.json beside {folder}, so its model is unknown.")


def step_of(name: str) -> int | None:
    """Returns the step of a checkpoint's folder; None for names that training does not give."""
    if not (name.isascii() and name.isdecimal()) or str(int(name[:20])) != name:
        return None
    step = int(name)
    return step if step <= _LAST_STEP else None


def list_checkpoints(path: epath.PathLike) -> dict[int, epath.Path]:
    """Returns step -> folder of all checkpoints in a run directory (or in its `checkpoints`).

    Whatever else is there is ignored: files, and folders without a state.
    """
    folder = absolute_path(path)
    for root in (folder / "checkpoints", folder):
        if root.is_dir():
            steps = {p: step_of(p.name) for p in root.iterdir()}
            found = {step: p for p, step in steps.items() if step is not None if has_state(p)}
            if found:
                return dict(sorted(found.items()))
    return {}


def has_state(folder: epath.Path) -> bool:
    """Returns whether a folder is a checkpoint, intact or not."""
    return (folder / "state").is_dir()


def find_checkpoint(path: epath.PathLike) -> epath.Path:
    """Returns the folder of one checkpoint.

    Args:
      path: a folder `checkpoints/<step>`, or a run directory for its newest checkpoint.

    Raises:
      FileNotFoundError: there is no checkpoint.
    """
    folder = absolute_path(path)
    if has_state(folder):
        return folder
    if found := list_checkpoints(path):
        newest = found[max(found)]
        for other in sorted(newest.parent.iterdir()):
            if (step_of(other.name) or 0) > max(found):
                logging.warning("%s is not a complete checkpoint; %s is used.", other, newest.name)
        return newest
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
      DamagedFileError: it is damaged.
    """
    folder = find_checkpoint(path)
    if not (folder / "run").is_dir():
        raise FileNotFoundError(f"The checkpoint {folder} was not written by training.")
    # Not through Orbax, which would wait for the other hosts.
    try:
        metadata = read_json(folder / "run" / "metadata")
    except (OSError, ValueError) as error:
        raise unreadable(folder, error) from error
    if not isinstance(metadata, dict):
        raise unreadable(folder, ValueError("run/metadata is not an object"))
    return metadata


def count_parameters(path: epath.PathLike) -> int:
    """Returns the number of parameters of a checkpoint's model."""
    folder = find_checkpoint(path)
    shapes = _shapes(_part(read_arrays_tree(folder), "params", folder))
    return sum(math.prod(shape) for shape in shapes.values())
