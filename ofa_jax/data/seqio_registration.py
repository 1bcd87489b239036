"""Registers the tasks and mixtures of `task_registry` with seqio, once seqio is imported."""

import functools

import seqio

from ofa_jax.data.seqio_tasks import RecordDataSource, numpy_preprocessor, output_features
from ofa_jax.data.seqio_vocabulary import TaskVocabulary
from ofa_jax.data.task_registry import Mixture, Task
from ofa_jax.data.task_settings import SettingsSource, configured

__all__ = ["features_of", "register"]


def register(entry: Task | Mixture) -> None:
    """Registers a task or a mixture; raises ValueError if seqio has one of that name."""
    if isinstance(entry, Mixture):
        seqio.MixtureRegistry.add(entry.name, list(entry.rates.items()))
    else:
        _register_task(entry)


def _register_task(task: Task) -> None:
    evaluation = task.evaluation
    preprocess = configured(task.function, task.source)
    seqio.TaskRegistry.add(
        task.name,
        source=RecordDataSource(
            task.open_records,
            task.kind,
            task.splits,
            takes_context=True,
            evaluation=evaluation,
            available_splits=task.available_splits,
        ),
        # First, so that `seqio_cache_tasks` stores records, and all random draws come after it.
        preprocessors=[
            seqio.CacheDatasetPlaceholder(),
            numpy_preprocessor(preprocess, factory=True, evaluation=evaluation),
        ],
        output_features=features_of(task.source),
        postprocess_fn=None if evaluation is None else evaluation.postprocess,
        metric_fns=() if evaluation is None else evaluation.metrics,
    )


@functools.cache
def features_of(source: SettingsSource) -> dict[str, seqio.Feature]:
    """Returns the output features of all tasks that run over the same settings."""
    return output_features(TaskVocabulary(source))
