"""The eight pretraining objectives and their mixtures, over a data set that is chosen in gin.

    ofa_pretrain_pairs    captioning, questions, matching, grounding, grounded captioning
    ofa_pretrain_images   image infilling, detection
    ofa_pretrain_text     text infilling
    ofa_pretrain          all eight

Tasks have the names of the objectives. They are registered when this module is imported; data set,
vocabulary and sizes follow from the settings of a run (`train.settings`, a `PretrainingSettings`),
and are those of Scenes where there are none. With plain seqio, `ofa_jax.data.default_settings`
names others.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ofa_jax.data.pretraining_settings import PRETRAINING
from ofa_jax.data.registration import add_mixture, add_pretraining_task
from ofa_jax.evaluation import seqio_metrics
from ofa_jax.preprocessing import objectives
from ofa_jax.preprocessing.objectives import IMAGE_RATES, PAIR_RATES, TEXT_RATES

from . import pretraining_eval

for _name, _objective in objectives.OBJECTIVES.items():
    add_pretraining_task(
        _name,
        objectives.RECORD_KIND[_name],
        _objective,
        evaluation=seqio_metrics.of_spec(_name),
    )
pretraining_eval.register()


def _rate(default: float) -> Callable[[Any], float]:
    """Returns a rate function that lets the settings override a task's rate."""
    return lambda task: PRETRAINING.of().rates.get(task.name, default)


def _mixture(name: str, default_rates: Mapping[str, float]) -> None:
    add_mixture(name, [(task, _rate(rate)) for task, rate in default_rates.items()])


_mixture("ofa_pretrain_pairs", PAIR_RATES)
_mixture("ofa_pretrain_images", IMAGE_RATES)
_mixture("ofa_pretrain_text", TEXT_RATES)
# As the official configuration: 8 pairs (16 examples) to 2 texts, 1 image to infill and 1 image
# with objects.
_PER_PAIR_EXAMPLE = 16 / sum(PAIR_RATES.values())
_mixture(
    "ofa_pretrain",
    {name: rate * _PER_PAIR_EXAMPLE for name, rate in PAIR_RATES.items()}
    | {"image_infilling": 1.0, "object_detection": 1.0, "text_infilling": 2.0},
)
