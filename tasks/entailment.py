"""SNLI-VE: task `snli_ve`, and `snli_ve_without_premise`, which sees the picture alone."""

import functools

from ofa_jax.data.downstream import entailment, entailment_without_premise
from ofa_jax.evaluation.judging import Judging
from ofa_jax.evaluation.metrics.classification import accuracy
from tasks import downstream

ANSWERS = ("yes", "maybe", "no")
_LONGEST = 5


def describe(name: str) -> Judging:
    """Beam search among yes, maybe and no."""
    return Judging(
        name,
        kind="text",
        references=downstream.label_of,
        metrics=(accuracy,),
        decoding=downstream.answer_decoding(_LONGEST, normalize_scores=False),
        answers=lambda: downstream.spaced(ANSWERS),
    )


for _name, _task in (
    ("snli_ve", entailment),
    ("snli_ve_without_premise", entailment_without_premise),
):
    downstream.add_task(_name, "snli_ve", _task, functools.partial(describe, _name))
