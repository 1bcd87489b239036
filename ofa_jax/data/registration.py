"""Registers tasks with seqio that run over the settings of a run.

    def count_objects(record, rng, config): ...        # config: an ObjectiveConfig

    add_pretraining_task("counting", "objects", count_objects)

The task then reads the records, uses the vocabulary and the sizes, and mixes with the tasks of the
run that it is part of. `fill_features` lets a task with tf.data preprocessors mix with them too.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import seqio

from ofa_jax.data.pretraining_settings import PRETRAINING
from ofa_jax.data.seqio_evaluation import SeqioEvaluation
from ofa_jax.data.seqio_mixing import fill_features as fill_features
from ofa_jax.data.seqio_tasks import RecordDataSource, numpy_preprocessor, output_features
from ofa_jax.data.seqio_vocabulary import TaskVocabulary
from ofa_jax.data.sources.base import RecordSource
from ofa_jax.data.task_settings import (
    SettingsSource,
    TaskContext,
    available_splits,
    configured,
    open_configured,
)

PRETRAINING_SPLITS = ("train", "validation", "test", "test_shifted")
PRETRAINING_FEATURES = output_features(TaskVocabulary(PRETRAINING))
"""The output features of the pretraining tasks and of all that are mixed with them."""


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
    seqio.TaskRegistry.add(
        name,
        source=RecordDataSource(
            open_records,
            kind,
            splits,
            takes_context=True,
            evaluation=evaluation,
            available_splits=find_splits,
        ),
        # First, so that `seqio_cache_tasks` stores records, and all random draws come after it.
        preprocessors=[
            seqio.CacheDatasetPlaceholder(),
            numpy_preprocessor(configured(function, source), factory=True, evaluation=evaluation),
        ],
        output_features=output_features(TaskVocabulary(source)),
        postprocess_fn=None if evaluation is None else evaluation.postprocess,
        metric_fns=() if evaluation is None else evaluation.metrics,
    )


def pretraining_source(
    kind: str, open_records: Callable[[str, TaskContext], RecordSource] | None = None
) -> RecordDataSource:
    """Returns a seqio source over the records of a pretraining run.

    Args:
      kind: of record, a key of RECORD_FIELDS.
      open_records: (split, context) -> records; by default the data set's of that kind.
    """
    open_records = open_records or functools.partial(open_configured, PRETRAINING, kind)
    return RecordDataSource(open_records, kind, PRETRAINING_SPLITS, takes_context=True)


def pretraining_preprocessor(function: Callable[..., Any]) -> numpy_preprocessor:
    """Lifts `(record, rng, config) -> example` to a preprocessor of a pretraining run."""
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
