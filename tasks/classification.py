"""ImageNet-1K: one way of training, two of decoding.

imagenet           beam search among the names of the classes
imagenet_all       every name is scored, and the most probable one is taken
"""

import functools

from ofa_jax.decoding import DecodingConfig
from ofa_jax.evaluation.eval_spec import EvalSpec
from ofa_jax.evaluation.metrics.classification import accuracy
from ofa_jax.preprocessing.classification import classification

from . import downstream

_LONGEST = 30


def class_names(settings: downstream.DownstreamSettings) -> tuple[str, ...]:
    """Returns the names of the classes, the candidates."""
    return downstream.with_leading_space(settings.choices("class_names"))


def describe(name: str, settings: downstream.DownstreamSettings) -> EvalSpec:
    """Returns the evaluation by top-1 accuracy; scores are not divided by lengths."""
    return EvalSpec(
        name,
        kind="text",
        references=downstream.label_of,
        metrics=(accuracy,),
        decoding=DecodingConfig(max_length=_LONGEST, normalize_scores=False),
        candidates=functools.partial(class_names, settings),
        score_all=name == "imagenet_all",
    )


for _name in ("imagenet", "imagenet_all"):
    downstream.add_task(_name, "imagenet", classification, functools.partial(describe, _name))
