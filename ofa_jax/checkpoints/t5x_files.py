"""Reads and writes checkpoints of t5x, without t5x.

A MODEL_DIR of t5x has `checkpoint_STEP/state`, written by Orbax as ours are, with

    target          the parameters
    flax_mutables   {"batch_stats": running statistics of batch norm}
    state           {"step", "param_states": the state of the optimizer}

`param_states` is the state of optax with the fields of its tuples by name or number and without
its empty parts. That of `OptimizerConfig`'s AdamW maps to ours and back; `skipped_steps` of ours
is the number of steps that its counter lacks. Averaged parameters (EMA) have no place in it.

Beside the checkpoints, `model.json` and `interface` are those of a run of ours. `ofa_run.json` is
what one of our checkpoints had of its run, so that `ofa-train` continues it when it has come back.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from etils import epath

from ofa_jax.checkpoints import storage
from ofa_jax.sharding import TrainState
from ofa_jax.utils import files
from ofa_jax.utils.text_files import DamagedFileError, read_json

__all__ = [
    "T5XState",
    "find",
    "from_opt_state",
    "is_t5x",
    "read",
    "read_ours",
    "to_train_state",
    "write",
]

RUN_FILE = "ofa_run.json"
_PREFIX = _LEGACY = "checkpoint"
"""Of the name of a checkpoint; and a file of msgpack in one that t5x wrote without Orbax, or in the
`state` of one that an old Orbax wrote."""
_METADATA = "_METADATA"
"""The names and kinds of the arrays, in JSON."""


@dataclasses.dataclass(frozen=True)
class T5XState:
    """What a checkpoint of t5x holds.

    Attributes:
      step: number of updates.
      variables: {"params", "batch_stats"}.
      param_states: state of the optimizer as t5x names its parts; None without one.
      run: of `ofa_run.json`; None if the training was never one of ours.
      unread: why the optimizer's state that it has was not read; "" if it was.
    """

    step: int
    variables: dict[str, Any]
    param_states: dict[str, Any] | None = None
    run: Mapping[str, Any] | None = None
    unread: str = ""


# --------------------------------------------------------------------------------------- finding


def is_t5x(path: epath.PathLike) -> bool:
    """Returns whether a path is a checkpoint of t5x, or a folder that has some."""
    return bool(_checkpoints(path))


def find(path: epath.PathLike) -> epath.Path:
    """Returns the folder of one checkpoint of t5x.

    Args:
      path: a folder `checkpoint_STEP`, or a MODEL_DIR for its newest one.

    Raises:
      FileNotFoundError: there is none.
      ValueError: t5x wrote it without Orbax, or with an old one.
    """
    found = _checkpoints(path)
    if not found:
        raise FileNotFoundError(
            f"There is no checkpoint of t5x in {path}: give a folder checkpoint_STEP, or the "
            "MODEL_DIR that has it."
        )
    folder = found[max(found)]
    if not storage.has_state(folder):
        raise ValueError(
            f"t5x wrote {folder} with use_orbax = False, which is not read: let t5x restore it and "
            "save it with use_orbax = True, its default."
        )
    state = folder / "state"
    if not (state / _METADATA).is_file() and (state / _LEGACY).is_file():
        raise ValueError(
            f"An old version of Orbax wrote {folder}, without {_METADATA}, which is not read: let "
            "t5x restore it and save it again."
        )
    return folder


def _checkpoints(path: epath.PathLike) -> dict[int, epath.Path]:
    """Returns step -> folder."""
    folder = storage.absolute_path(path)
    candidates = [folder]
    if _step_of(folder) is None and folder.is_dir():
        candidates = list(folder.iterdir())
    steps = {candidate: _step_of(candidate) for candidate in candidates}
    return {
        step: candidate
        for candidate, step in steps.items()
        if step is not None
        if storage.has_state(candidate) or (candidate / _LEGACY).is_file()
    }


def _step_of(folder: epath.Path) -> int | None:
    """Returns the step of a folder `checkpoint_STEP`; None for other names."""
    prefix, _, number = folder.name.partition("_")
    return storage.step_of(number) if prefix == _PREFIX else None


# --------------------------------------------------------------------------------------- reading


def read(
    path: epath.PathLike, with_optimizer: bool = True, wanted: Mapping[str, Any] | None = None
) -> T5XState:
    """Reads a checkpoint of t5x as numpy arrays, the variables in float32.

    Nothing vouches for the files, which have no checksums, so that shapes and types are compared
    before memory is taken.

    Args:
      path: as for `find`.
      with_optimizer: whether to read the optimizer's state, which is twice as large as the model.
      wanted: {"params", "batch_stats"} of arrays with the shapes that they should have.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is damaged, or of another model than `wanted`, or of one without batch
        statistics.
    """
    folder = find(path)
    tree = storage.read_arrays_tree(folder)
    mutables = tree.get("flax_mutables")
    if "target" not in tree or not isinstance(mutables, Mapping) or "batch_stats" not in mutables:
        raise ValueError(
            f"{folder} is not a checkpoint of OFA: it has no target and flax_mutables/batch_stats, "
            "which ofa_jax.t5x.OFAModel has."
        )
    saved = {"params": tree["target"], "batch_stats": mutables["batch_stats"]}
    if wanted is not None:
        storage.check_shapes(saved, wanted, folder)
        if _largest(saved) > _largest(wanted):
            raise storage.unreadable(folder, ValueError("it is stored in too large pieces"))
    _check_types(saved, folder)
    item = {"target": tree["target"], "flax_mutables": {"batch_stats": mutables["batch_stats"]}}
    unread = ""
    if with_optimizer and "state" in tree:
        if _largest(tree["state"]) > _largest(saved):
            unread = "it has an array that is larger than every parameter"
        else:
            item["state"] = tree["state"]
    held = storage.load_numpy(folder, item)
    state = held.get("state")
    step = _step_of(folder)
    assert step is not None
    return T5XState(
        step=step,
        variables={
            "params": _as_float32(held["target"]),
            "batch_stats": _as_float32(held["flax_mutables"]["batch_stats"]),
        },
        param_states=from_opt_state(state["param_states"])
        if isinstance(state, Mapping) and "param_states" in state
        else None,
        run=_read_run(folder),
        unread=unread,
    )


def _check_types(saved: Any, folder: epath.Path) -> None:
    """Raises ValueError if an array of a checkpoint's variables does not hold real numbers."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(saved):
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise DamagedFileError(
                f"The checkpoint {folder} is damaged: {name} has the type {dtype} and should have "
                "float32. Choose another one beside it."
            )


def _largest(tree: Any) -> int:
    """Returns the number of elements of the largest array of a tree, or of a piece in its file."""
    leaves = jax.tree.leaves(tree)
    shapes = [getattr(leaf, "shape", None) for leaf in leaves]
    shapes += [getattr(getattr(leaf, "storage", None), "chunk_shape", None) for leaf in leaves]
    return max((math.prod(shape or ()) for shape in shapes), default=0)


def _as_float32(tree: Any) -> Any:
    return jax.tree.map(lambda array: np.asarray(array, np.float32), tree)


def _read_run(folder: epath.Path) -> Mapping[str, Any] | None:
    """Returns what MODEL_DIR has of a run of ours."""
    path = folder.parent / RUN_FILE
    if not path.is_file():
        return None
    found = read_json(path)
    if not isinstance(found, dict):
        raise DamagedFileError(f"{path} is not a JSON object: delete it to convert without it.")
    return found


def read_ours(path: epath.PathLike, averaged: bool = False) -> T5XState:
    """Reads a checkpoint of ours in t5x's terms.

    Args:
      path: as for `storage.find_checkpoint`.
      averaged: whether to take the averaged parameters (EMA); the optimizer's state, which belongs
        to the last ones, is then left out.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: it is damaged.
    """
    folder = storage.find_checkpoint(path)
    variables = storage.load_numpy_variables(folder, averaged)
    tree = storage.read_arrays_tree(folder)
    param_states = run = None
    if not averaged and tree.get("opt_state"):
        part = storage.load_numpy(folder, {"opt_state": tree["opt_state"]})
        param_states = from_opt_state(part["opt_state"])
        if (folder / "run").is_dir():
            run = storage.read_run_metadata(folder)
    step = storage.step_of(folder.name)
    return T5XState(0 if step is None else step, variables, param_states, run)


# ------------------------------------------------------------------------------------ optimizers


class _OtherOptimizerError(Exception):
    """A state is not that of `make_optimizer`."""


def from_opt_state(opt_state: Any) -> dict[str, Any] | None:
    """Returns a state of optax, as Orbax reads it, in the form of t5x's `param_states`."""
    found = _without_empty(opt_state)
    return found if isinstance(found, dict) else None


def _without_empty(tree: Any) -> Any:
    """Returns dicts for tuples and lists, without parts that are empty; None if nothing is left."""
    if isinstance(tree, list | tuple):
        tree = {str(index): part for index, part in enumerate(tree)}
    if not isinstance(tree, Mapping):
        return tree
    parts = {str(name): _without_empty(part) for name, part in tree.items()}
    return {name: part for name, part in parts.items() if part is not None} or None


def to_train_state(state: T5XState) -> TrainState | None:
    """Returns the train state of ours; None if the optimizer is another one, or there is none."""
    if state.param_states is None:
        return None
    params = state.variables["params"]
    try:
        if set(state.param_states) == {"inner_states"}:  # some groups are not trained
            inner = _parts(_parts(state.param_states["inner_states"], "learn")[0], "inner_state")
            learned = _adamw_state(inner[0], params)
            opt_state: Any = optax.MultiTransformState(
                {
                    "learn": optax.MaskedState(learned),
                    "rest": optax.MaskedState(optax.EmptyState()),
                }
            )
        else:
            opt_state = learned = _adamw_state(state.param_states, params)
    except _OtherOptimizerError:
        return None
    skipped = max(state.step - int(learned[1][0].count), 0)
    counters: Any = [np.array(number, np.int32) for number in (state.step, skipped)]
    return TrainState(
        step=counters[0],
        skipped_steps=counters[1],
        params=params,
        batch_stats=state.variables["batch_stats"],
        opt_state=opt_state,
    )


def _adamw_state(states: Any, params: Any) -> Any:
    """Returns the state of clipping and AdamW; raises _OtherOptimizerError for others."""
    adam, schedule = _parts(_parts(states, "1")[0], "0", "2")
    count, mu, nu = _parts(adam, "count", "mu", "nu")
    (updates,) = _parts(schedule, "count")
    for number in (count, updates):
        if np.shape(number) or np.asarray(number).dtype.kind not in "iu" or int(number) < 0:
            raise _OtherOptimizerError
    adam_state = optax.ScaleByAdamState(count, _like(mu, params), _like(nu, params))
    return (
        optax.EmptyState(),
        (adam_state, optax.EmptyState(), optax.ScaleByScheduleState(updates)),
    )


def _parts(states: Any, *names: str) -> list[Any]:
    """Returns the parts of a state that has just these."""
    if not isinstance(states, Mapping) or set(states) != set(names):
        raise _OtherOptimizerError
    return [states[name] for name in names]


def _like(moments: Any, params: Any) -> Any:
    """Returns moments in the structure of the parameters, masked where there are none."""
    if not isinstance(params, Mapping):
        if moments is None:
            return optax.MaskedNode()
        if np.shape(moments) != np.shape(params) or not jnp.issubdtype(moments.dtype, jnp.floating):
            raise _OtherOptimizerError
        return moments
    moments = {} if moments is None else moments
    if not isinstance(moments, Mapping) or set(moments) - set(params):
        raise _OtherOptimizerError
    return {name: _like(moments.get(name), part) for name, part in params.items()}


# --------------------------------------------------------------------------------------- writing


def write(directory: epath.PathLike, state: T5XState) -> epath.Path:
    """Writes a checkpoint as t5x does with Orbax.

    Args:
      directory: the MODEL_DIR.
      state: to write. Without `param_states` t5x trains from it with `fallback_to_scratch`.

    Returns:
      The folder `checkpoint_STEP`.
    """
    folder = storage.absolute_path(directory) / f"checkpoint_{state.step}"
    held: dict[str, Any] = {"step": np.array(state.step, np.int32)}
    if state.param_states is not None:
        held["param_states"] = state.param_states
    content = {
        "target": state.variables["params"],
        "state": held,
        "flax_mutables": {"batch_stats": state.variables["batch_stats"]},
    }
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", content)
    if state.run is not None:
        files.write_json(folder.parent / RUN_FILE, dict(state.run))
    return folder
