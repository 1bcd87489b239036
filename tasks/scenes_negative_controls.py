"""Negative controls over Scenes: tasks that a model must fail if it uses its images.

    <objective> + SWAPPED           the objective's instructions with the image of the next record
    visual_grounding_absent_noun    phrases that name an object that the image does not show
    scenes_controls                 all of them, for an evaluation's stream

They are evaluated as the objectives are. Captioning, detection and infilling, whose instruction is
always the same, need no task: their predictions are compared with the next image's references.
"""

import functools
from collections.abc import Callable
from typing import Any

from ofa_jax.data.pretraining_settings import PRETRAINING
from ofa_jax.data.registration import add_mixture, add_pretraining_task
from ofa_jax.data.sources.base import RecordSource
from ofa_jax.data.sources.negative_controls import (
    ABSENT_NOUN,
    SWAPPED,
    SWAPPED_OBJECTIVES,
    AbsentNouns,
    SwappedImages,
)
from ofa_jax.data.task_settings import TaskContext, open_configured
from ofa_jax.evaluation import eval_spec, seqio_metrics
from ofa_jax.evaluation.eval_spec import EvalSpec
from ofa_jax.preprocessing import objectives

from . import pretraining  # noqa: F401  registers the specifications that these build on


def _swapped(kind: str, split: str, context: TaskContext) -> RecordSource:
    return SwappedImages(open_configured(PRETRAINING, kind, split, context))


def _absent(split: str, context: TaskContext) -> RecordSource:
    data_set = PRETRAINING.of(context.settings).data_set
    return AbsentNouns(
        open_configured(PRETRAINING, "regions", split, context),
        data_set.records("objects", split),
        data_set.negatives().object_names,
    )


def _renamed(name: str, objective: str, settings: Any) -> EvalSpec:
    return eval_spec.find(objective, settings).replace(task=name)


def _register(
    name: str, objective: str, open_records: Callable[[str, TaskContext], RecordSource]
) -> None:
    function, kind = objectives.OBJECTIVES[objective], objectives.RECORD_KIND[objective]
    add_pretraining_task(name, kind, function, open_records, seqio_metrics.of_spec(name))
    eval_spec.register_factory(name, functools.partial(_renamed, name, objective))


for _objective in SWAPPED_OBJECTIVES:
    _register(
        f"{_objective}{SWAPPED}",
        _objective,
        functools.partial(_swapped, objectives.RECORD_KIND[_objective]),
    )
_register(ABSENT_NOUN, "visual_grounding", _absent)
add_mixture(
    "scenes_controls",
    [*(f"{_objective}{SWAPPED}" for _objective in SWAPPED_OBJECTIVES), ABSENT_NOUN],
    default_rate=1.0,
)
