"""SNLI-VE: task `snli_ve`, and `snli_ve_without_premise`, which sees only the image."""

import functools

from ofa_jax.evaluation.eval_spec import EvalSpec
from ofa_jax.evaluation.metrics.classification import accuracy
from ofa_jax.preprocessing.downstream import entailment, entailment_without_premise

from . import downstream

LABELS = ("yes", "maybe", "no")
_LONGEST = 5


def describe(name: str, settings: downstream.DownstreamSettings) -> EvalSpec:
    """Returns the evaluation by beam search among yes, maybe and no."""
    return EvalSpec(
        name,
        kind="text",
        references=downstream.label_of,
        metrics=(accuracy,),
        decoding=downstream.label_decoding(settings, _LONGEST, normalize_scores=False),
        candidates=lambda: downstream.with_leading_space(LABELS),
    )


for _name, _task in (
    ("snli_ve", entailment),
    ("snli_ve_without_premise", entailment_without_premise),
):
    downstream.add_task(_name, "snli_ve", _task, functools.partial(describe, _name))
