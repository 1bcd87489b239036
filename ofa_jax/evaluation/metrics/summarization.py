"""ROUGE of summaries (Lin 2004), by rouge-score."""

import math
from collections.abc import Sequence

from rouge_score.rouge_scorer import RougeScorer

from ofa_jax.evaluation.metrics import inputs

_KINDS = ("rouge1", "rouge2", "rougeL")


def rouge(references: Sequence[str], answers: Sequence[str | None]) -> dict[str, float]:
    """ "rouge1", "rouge2" and "rougeL": mean F-measures, words stemmed, as the original OFA's."""
    inputs.check_pairs("rouge", references, answers)
    scorer = RougeScorer(_KINDS, use_stemmer=True)
    scores = [
        scorer.score(reference, inputs.text(answer))
        for reference, answer in zip(references, answers, strict=True)
    ]
    return {kind: math.fsum(x[kind].fmeasure for x in scores) / len(scores) for kind in _KINDS}
