"""Mixtures whose examples know their loss group, so that t5x's one batch has the pretraining loss.

    utils.DatasetConfig.mixture_or_task_name = @ofa_t5x.grouped_mixture()
    ofa_t5x.grouped_mixture.mixture = 'ofa_pretrain'

`ofa_train` divides the loss of each group of streams by its own number of tokens and adds the
groups, so that the pairs weigh as much as text, detection and image infilling together, however
long their targets are. t5x takes one batch a step; in a plain mixture all its tokens weigh the
same. In a grouped mixture every example carries the number of its group, and `OFAModel.loss_fn`
divides the tokens of each group in the batch by their number.
"""

from collections.abc import Mapping

import seqio
import tensorflow as tf

from ofa_jax.data.feature_converter import OFAFeatureConverter
from ofa_jax.preprocessing.objectives import IMAGE_RATES, PAIR_RATES, TEXT_RATES

__all__ = ["LOSS_GROUPS", "GroupedFeatureConverter", "group_names", "grouped_mixture"]

LOSS_GROUPS = "loss_groups"
"""The array int32 [B] of a batch."""
_FEATURE = "loss_group"
_PRETRAINING_GROUPS: Mapping[str, str] = {name: "pairs" for name in PAIR_RATES} | {
    name: "others" for name in (*IMAGE_RATES, *TEXT_RATES)
}
_groups: dict[str, dict[str, str]] = {}
"""Grouped mixture -> its tasks, as they were called -> their groups."""


def grouped_mixture(mixture: str, groups: Mapping[str, str] | None = None) -> str:
    """Registers a mixture like another one, whose examples carry their loss group.

    Args:
      mixture: name in the seqio registry.
      groups: name of a task -> name of its group; those of pretraining when None.

    Returns:
      Its name, `MIXTURE:grouped`, for the `Stream` and for t5x's `DatasetConfig`. Its tasks are
      called `TASK:MIXTURE`.

    Raises:
      ValueError: a task has no group, or the mixture was registered with other groups.
    """
    known = _PRETRAINING_GROUPS if groups is None else groups
    original = seqio.MixtureRegistry.get(mixture)
    if missing := [task.name for task in original.tasks if task.name not in known]:
        raise ValueError(
            f"grouped_mixture.groups has no group for {', '.join(missing)}: give one for every "
            f"task of {mixture}."
        )
    name = f"{mixture}:grouped"
    chosen = {task.name: known[task.name] for task in original.tasks}
    if name in _groups:
        if _groups[name] != chosen:
            raise ValueError(f"{name} has other groups in this program: choose them once.")
        return name
    _groups[name] = chosen
    numbers = group_names(name)
    rates = []
    for task in original.tasks:
        grouped = f"{task.name}:{mixture}"
        seqio.TaskRegistry.add_provider(
            grouped, _with_group(task, grouped, numbers.index(chosen[task.name]))
        )
        # A rate may follow from the settings of a run, which know the task without a group.
        rates.append((grouped, lambda _, task=task: original.get_rate(task)))
    seqio.MixtureRegistry.add(name, rates)
    return name


def group_names(mixture_or_task_name: str) -> tuple[str, ...]:
    """Returns the groups of a grouped mixture in the order of their numbers; () for others."""
    return tuple(sorted(set(_groups.get(mixture_or_task_name, {}).values())))


def _with_group(task: seqio.Task, name: str, group: int) -> seqio.Task:
    """Returns a task like another one, whose examples carry the number of their group."""
    feature = seqio.Feature(seqio.PassThroughVocabulary(1), add_eos=False, dtype=tf.int32)

    def add_group(dataset: tf.data.Dataset) -> tf.data.Dataset:
        number = tf.constant([group], tf.int32)
        return dataset.map(lambda example: dict(example) | {_FEATURE: number})

    return task.replace(
        name=name,
        preprocessors=[*task.preprocessors, add_group],
        output_features={**task.output_features, _FEATURE: feature},
    )


class GroupedFeatureConverter(OFAFeatureConverter):
    """Converts the examples of a grouped mixture; each batch has their `loss_groups`."""

    def _pass_on(self, example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns the number of an example's group."""
        return {LOSS_GROUPS: tf.reshape(example[_FEATURE], [])}
