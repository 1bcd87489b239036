"""VQAv2: one way of training, three of decoding.

vqa         every candidate is scored, and the most probable one is taken
vqa_trie    beam search among the candidates
vqa_free    beam search over all text
"""

import functools
from typing import Any

from ofa_jax.evaluation.eval_spec import EvalSpec
from ofa_jax.evaluation.metrics.vqa import vqa_accuracy
from ofa_jax.preprocessing.downstream import question_answering
from ofa_jax.preprocessing.records import Record

from . import downstream

_LONGEST = 30


def references(record: Record) -> dict[str, Any]:
    """Returns the answers and their confidences; none in the test set."""
    return {
        "answers": list(record.get("reference_answers", ())),
        "confidences": [float(x) for x in record.get("reference_confidences", ())],
    }


def candidates(settings: downstream.DownstreamSettings) -> tuple[str, ...]:
    """Returns the candidate answers."""
    return downstream.with_leading_space(settings.choices("vqa_answers"))


def describe(name: str, settings: downstream.DownstreamSettings) -> EvalSpec:
    """Returns the evaluation by VQA accuracy; scores are sums of log-probabilities."""
    spec = EvalSpec(
        name,
        kind="text",
        references=references,
        metrics=(vqa_accuracy,),
        decoding=downstream.label_decoding(settings, _LONGEST, normalize_scores=False),
    )
    if name == "vqa_free":
        return spec
    choices = functools.partial(candidates, settings)
    return spec.replace(candidates=choices, score_all=name == "vqa")


for _name in ("vqa", "vqa_trie", "vqa_free"):
    downstream.add_task(_name, "vqa", question_answering, functools.partial(describe, _name))
