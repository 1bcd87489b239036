"""The tasks and mixtures of this project, registered without seqio until something uses seqio.

Importing seqio imports TensorFlow and Keras, which takes longer than everything else at the start
of a run. So a task waits here, and the loader finds it here, until seqio is imported by whom ever:
then all that wait are registered with seqio at once, and later ones immediately. From then on
seqio's registry is the only one, and nothing here is looked up any more.

    import tasks.pretraining               # registered here
    import seqio                           # now with seqio too, whichever import comes first
    seqio.get_mixture_or_task("ofa_pretrain")
"""

import dataclasses
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import wrapt

from ofa_jax.data.seqio_evaluation import SeqioEvaluation
from ofa_jax.data.sources.base import RecordSource
from ofa_jax.data.task_settings import SettingsSource, TaskContext, configured, default_settings
from ofa_jax.preprocessing.records import DOWNSTREAM_FIELDS, RECORD_FIELDS
from ofa_jax.utils.suggestions import nearest

__all__ = [
    "Mixture",
    "Task",
    "add",
    "check_kind",
    "check_split",
    "find",
    "forget_cache_dirs",
    "names",
    "rates",
    "seqio_is_imported",
    "unknown_name",
]

_SEQIO = "seqio"
# What registration with seqio needs, and what imports seqio itself.
_NEEDED = (
    "ofa_jax.data.seqio_mixing",
    "ofa_jax.data.seqio_vocabulary",
    "ofa_jax.data.seqio_tasks",
    "ofa_jax.data.seqio_registration",
)
_NAME = re.compile(r"[\w\d.:_#]+")
"""As seqio has it."""

KINDS = (*RECORD_FIELDS, *DOWNSTREAM_FIELDS)


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A task of one preprocessor that runs over the settings of a run.

    Attributes:
      name: in the registry.
      source: of the settings.
      open_records: (split, context) -> records.
      kind: which fields the records have.
      splits: names of the splits that it may have.
      function: `(record, rng, config) -> example`.
      evaluation: the metrics of plain seqio.
      available_splits: returns those of `splits` that have data, if that is known.
    """

    name: str
    source: SettingsSource
    open_records: Callable[[str, TaskContext], RecordSource]
    kind: str
    splits: Sequence[str]
    function: Callable[..., Any]
    evaluation: SeqioEvaluation | None = None
    available_splits: Callable[[], Sequence[str] | None] | None = None

    def __post_init__(self) -> None:
        check_kind(self.kind)

    @property
    def tasks(self) -> "tuple[Task, ...]":
        """Itself, as the only task of a mixture."""
        return (self,)

    def records(self, split: str, context: TaskContext) -> RecordSource:
        """Opens the records of a split; raises ValueError if there is none of that name."""
        check_split(split, self.splits)
        return self.open_records(split, context)

    def preprocessor(self, context: TaskContext) -> Callable[..., Any]:
        """Returns `(record, rng) -> example` for the settings of a run."""
        return configured(self.function, self.source)(context)


Rate = float | Callable[[Any], float]
"""The rate of a task in a mixture, or a function of the task, of which it reads the name."""


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """Tasks and mixtures with their rates; as `seqio.Mixture` computes them.

    Attributes:
      name: in the registry.
      rates: the name of a task or mixture -> its rate.
      parts: the same names -> what they mean; none once seqio has them.
    """

    name: str
    rates: Mapping[str, Rate]
    parts: "Mapping[str, Task | Mixture]" = dataclasses.field(default_factory=dict)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks in it, in the order of their names."""
        found = {task.name: task for part in self.parts.values() for task in part.tasks}
        return tuple(found[name] for name in sorted(found))

    @property
    def total_rate(self) -> float:
        """The sum of the rates."""
        return sum(_rate(self.rates[name], part) for name, part in self.parts.items())

    def rate_of(self, task: Task) -> float:
        """Returns the rate of a task; the rate of a mixture is shared out by its own rates."""
        value = 0.0
        for name, part in self.parts.items():
            if isinstance(part, Mixture) and task in part.tasks:
                value += _rate(self.rates[name], part) * part.rate_of(task) / part.total_rate
        if task.name in self.rates:
            value += _rate(self.rates[task.name], task)
        return value


def _rate(rate: Rate, part: Task | Mixture) -> float:
    return float(rate(part) if callable(rate) else rate)


_lock = threading.Lock()
_registered: dict[str, Task | Mixture] = {}
"""Everything that seqio does not have yet, in the order of registration."""


def seqio_is_imported() -> bool:
    """Returns whether seqio is imported, so that its registry has everything."""
    return _SEQIO in sys.modules


def add(entry: Task | Mixture) -> None:
    """Registers a task or mixture: here, or with seqio if that is imported.

    Raises:
      ValueError: the name is taken or no name, or a part of the mixture is not registered.
    """
    if not seqio_is_imported():
        with _lock:
            _add_here(entry)
        return
    _registered[entry.name] = entry
    _hand_over()  # without the lock: it imports modules, which other threads may be importing


def _add_here(entry: Task | Mixture) -> None:
    if not _NAME.fullmatch(entry.name):
        raise ValueError(
            f"A task cannot be called {entry.name!r}: use letters, digits and any of . : _ #."
        )
    if entry.name in _registered:
        raise ValueError(
            f"A task or mixture is called {entry.name!r} already: choose another name."
        )
    if isinstance(entry, Mixture):
        entry = _with_parts(entry)
    _registered[entry.name] = entry


def _with_parts(mixture: Mixture) -> Mixture:
    """Returns a mixture with what its names mean; raises ValueError if one means nothing."""
    if not mixture.rates:
        raise ValueError(f"The mixture {mixture.name} has no tasks: give it at least one.")
    return dataclasses.replace(mixture, parts={name: find(name) for name in mixture.rates})


def names() -> tuple[str, ...]:
    """Returns the names of everything that is registered here, and not yet with seqio."""
    return tuple(_registered)


def find(name: str) -> Task | Mixture:
    """Returns what is registered here under a name.

    Raises:
      ValueError: nothing is; the message gives the nearest name.
    """
    if name not in _registered:
        raise ValueError(unknown_name(name, names()))
    return _registered[name]


def unknown_name(name: str, known: Sequence[str]) -> str:
    """Returns the sentence for a name that no task or mixture has."""
    return (
        f"No task or mixture is called {name!r}.{nearest(name, known)} Known are "
        f"{', '.join(sorted(known)) or 'none: set MIXTURE_OR_TASK_MODULE'}."
    )


def rates(name: str, settings: Any = None) -> dict[str, float]:
    """Returns task name -> its rate within a mixture; see `seqio_bridge.rates`."""
    found = find(name)
    if isinstance(found, Task):
        return {found.name: 1.0}
    with default_settings(settings):  # rate functions get the task alone, as those of seqio
        return {task.name: found.rate_of(task) for task in found.tasks}


def check_split(split: str, splits: Sequence[str]) -> None:
    """Raises ValueError if a task has no split of that name."""
    if split not in splits:
        raise ValueError(f"There is no split {split!r}: choose from {', '.join(splits)}.")


def check_kind(kind: str) -> None:
    """Raises ValueError if there are no records of that kind."""
    if kind not in KINDS:
        raise ValueError(f"There is no kind of record {kind!r}: choose one of {', '.join(KINDS)}.")


# ------------------------------------------------------------------------- handing over to seqio


def forget_cache_dirs() -> None:
    """Lets seqio read no caches, now or once it is imported: our commands read the data itself."""
    wrapt.register_post_import_hook(lambda module: module.set_global_cache_dirs([]), _SEQIO)


def _hand_over(module: ModuleType | None = None) -> None:
    """Registers with seqio what waits.

    Args:
      module: that has just been imported, seqio or one of `_NEEDED`. If another of these is still
        under way, which has imported this one, the rest of it is needed first; it calls again.
    """
    waits = any(
        getattr(getattr(found, "__spec__", None), "_initializing", False)
        for found in map(sys.modules.get, _NEEDED)
        if found is not None and found is not module
    )
    if waits or not seqio_is_imported():
        return
    with _lock:
        entries = list(_registered.values())
        _registered.clear()
    if not entries:
        return
    from ofa_jax.data import seqio_registration

    for entry in entries:
        seqio_registration.register(entry)


for _name in (_SEQIO, *_NEEDED):
    wrapt.register_post_import_hook(_hand_over, _name)
