"""The pretraining objectives with other wordings of their instructions, for evaluation.

    <objective> + TRAINED_WORDINGS    wordings that training with several has (`several_wordings`)
    <objective> + UNSEEN_WORDINGS     wordings that no training has
    reworded_pairs, reworded_images, reworded_text    both, for the streams of a run

Over the data set of the run. The wordings are those of `ofa_jax.preprocessing.prompts`; the
objectives themselves are evaluated with the published one.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ofa_jax.data.pretraining_settings import PRETRAINING
from ofa_jax.data.registration import add_mixture, add_pretraining_task
from ofa_jax.evaluation import eval_spec, seqio_metrics
from ofa_jax.evaluation.eval_spec import EvalSpec
from ofa_jax.preprocessing import objectives, prompts, wordings
from ofa_jax.preprocessing.examples import Example
from ofa_jax.preprocessing.objective_config import ObjectiveConfig
from ofa_jax.preprocessing.records import Record

from . import pretraining  # noqa: F401  registers the specifications that these build on

TRAINED_WORDINGS, UNSEEN_WORDINGS = "_trained_wordings", "_unseen_wordings"
SUFFIXES: Mapping[str, Mapping[str, Sequence[str]]] = {
    TRAINED_WORDINGS: prompts.TRAINED_WORDINGS,
    UNSEEN_WORDINGS: prompts.UNSEEN_WORDINGS,
}


def reworded(
    objective: str,
    chosen: Mapping[str, Mapping[str, float]],
    record: Record,
    rng: np.random.Generator,
    config: ObjectiveConfig,
) -> Example:
    """Returns an example of an objective with one of some wordings of its instruction."""
    config = dataclasses.replace(config, prompts=chosen)
    return objectives.OBJECTIVES[objective](record, rng, config)


def _renamed(name: str, objective: str, settings: Any) -> EvalSpec:
    return eval_spec.find(objective, settings).replace(task=name)


def _rate(objective: str, default: float) -> Callable[[Any], float]:
    """Returns a rate function that leaves out what the settings leave out of training."""
    return lambda task: PRETRAINING.of().rates.get(objective, default)


def _mixture(name: str, rates: Mapping[str, float]) -> None:
    """Registers the reworded tasks of some objectives, and their mixture."""
    tasks = []
    for objective, rate in rates.items():
        for suffix, own in SUFFIXES.items():
            task = objective + suffix
            add_pretraining_task(
                task,
                objectives.RECORD_KIND[objective],
                functools.partial(reworded, objective, wordings.equally(own)),
                evaluation=seqio_metrics.of_spec(task),
            )
            eval_spec.register_factory(task, functools.partial(_renamed, task, objective))
            tasks.append((task, _rate(objective, rate)))
    add_mixture(name, tasks)


_mixture("reworded_pairs", objectives.PAIR_RATES)
_mixture("reworded_images", objectives.IMAGE_RATES)
_mixture("reworded_text", objectives.TEXT_RATES)
