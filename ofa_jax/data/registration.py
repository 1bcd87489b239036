"""Registers tasks that run over the settings of a run, with this project's registry and seqio's.

    def count_objects(record, rng, config): ...        # config: an ObjectiveConfig

    add_pretraining_task("counting", "objects", count_objects)
    add_mixture("counting_and_captions", [("counting", 3), ("image_captioning", 1)])

The task then reads the records, uses the vocabulary and the sizes, and mixes with the tasks of the
run that it is part of. Both are there for seqio too (`task_registry`); a run that needs no more
than this does not import it. `fill_features` lets a task with tf.data preprocessors mix with them.
"""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ofa_jax.data import task_registry
from ofa_jax.data.pretraining_settings import PRETRAINING
from ofa_jax.data.seqio_evaluation import SeqioEvaluation
from ofa_jax.data.sources.base import RecordSource
from ofa_jax.data.task_registry import Rate
from ofa_jax.data.task_settings import (
    SettingsSource,
    TaskContext,
    available_splits,
    configured,
    open_configured,
)

if TYPE_CHECKING:
    import seqio

    from ofa_jax.data.seqio_mixing import fill_features as fill_features
    from ofa_jax.data.seqio_tasks import RecordDataSource, numpy_preprocessor

    PRETRAINING_FEATURES: dict[str, seqio.Feature]

PRETRAINING_SPLITS = ("train", "validation", "test", "test_shifted")


def __getattr__(name: str) -> Any:
    """Returns what only users of seqio need, which is imported when they ask for it.

    `PRETRAINING_FEATURES` are the output features of the pretraining tasks and of all that are
    mixed with them; `fill_features` is the preprocessor of `seqio_mixing`.
    """
    if name == "PRETRAINING_FEATURES":
        from ofa_jax.data.seqio_registration import features_of

        return features_of(PRETRAINING)
    if name == "fill_features":
        from ofa_jax.data import seqio_mixing

        return seqio_mixing.fill_features
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def add_task(
    name: str,
    source: SettingsSource,
    open_records: str | Callable[[str, TaskContext], RecordSource],
    kind: str,
    splits: Sequence[str],
    function: Callable[..., Any],
    evaluation: SeqioEvaluation | None = None,
) -> None:
    """Registers a task of one preprocessor.

    Args:
      name: in the seqio registry.
      source: of the settings that the task runs over.
      open_records: the name under which the settings open its records, or (split, context) ->
        records.
      kind: which fields the records have, a key of RECORD_FIELDS or DOWNSTREAM_FIELDS.
      splits: the names of the splits.
      function: `(record, rng, config) -> example`, with the configuration of the settings.
      evaluation: the metrics of plain seqio, see `ofa_jax.evaluation.seqio_metrics`.
    """
    find_splits = None
    if isinstance(open_records, str):
        find_splits = functools.partial(available_splits, source, open_records)
        open_records = functools.partial(open_configured, source, open_records)
    task_registry.add(
        task_registry.Task(
            name, source, open_records, kind, splits, function, evaluation, find_splits
        )
    )


def add_mixture(
    name: str,
    tasks: Sequence[str | tuple[str, Rate]],
    default_rate: Rate | None = None,
) -> None:
    """Registers a mixture of tasks that are registered already.

    Args:
      name: in the registry.
      tasks: names of tasks or mixtures, alone or with their rates: numbers, or functions that are
        given the task and may read its name.
      default_rate: of those without one.

    Raises:
      ValueError: one has no rate or is not registered, or the name is taken.
    """
    rates: dict[str, Rate] = {}
    for entry in tasks:
        task, rate = (entry, default_rate) if isinstance(entry, str) else entry
        if rate is None:
            raise ValueError(f"{task} has no rate in the mixture {name}: give one, e.g. 1.0.")
        rates[task] = rate
    task_registry.add(task_registry.Mixture(name, rates))


def pretraining_source(
    kind: str, open_records: Callable[[str, TaskContext], RecordSource] | None = None
) -> "RecordDataSource":
    """Returns a seqio source over the records of a pretraining run.

    Args:
      kind: of record, a key of RECORD_FIELDS.
      open_records: (split, context) -> records; by default the data set's of that kind.
    """
    from ofa_jax.data.seqio_tasks import RecordDataSource

    open_records = open_records or functools.partial(open_configured, PRETRAINING, kind)
    return RecordDataSource(open_records, kind, PRETRAINING_SPLITS, takes_context=True)


def pretraining_preprocessor(function: Callable[..., Any]) -> "numpy_preprocessor":
    """Lifts `(record, rng, config) -> example` to a preprocessor of a pretraining run."""
    from ofa_jax.data.seqio_tasks import numpy_preprocessor

    return numpy_preprocessor(configured(function, PRETRAINING), factory=True)


def add_pretraining_task(
    name: str,
    kind: str,
    function: Callable[..., Any],
    open_records: Callable[[str, TaskContext], RecordSource] | None = None,
    evaluation: SeqioEvaluation | None = None,
) -> None:
    """Registers a task that runs over the data set of a pretraining run.

    Args:
      name: in the seqio registry.
      kind: of record, a key of RECORD_FIELDS.
      function: `(record, rng, config) -> example`, with the run's `ObjectiveConfig`.
      open_records: (split, context) -> records; by default the data set's of that kind.
      evaluation: the metrics of plain seqio, see `ofa_jax.evaluation.seqio_metrics`.
    """
    records = open_records or kind
    add_task(name, PRETRAINING, records, kind, PRETRAINING_SPLITS, function, evaluation)
