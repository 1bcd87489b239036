"""ROUGE of summaries (Lin 2004), by rouge-score."""

import math
from collections.abc import Sequence

from ofa_jax.evaluation.metrics import inputs

_KINDS = ("rouge1", "rouge2", "rougeL")


@inputs.accepts(inputs.one_text)
def rouge(references: Sequence[str], predictions: Sequence[str | None]) -> dict[str, float]:
    """Computes "rouge1", "rouge2" and "rougeL": mean F-measures of stemmed words.

    These are the settings of the reference implementation.
    """
    # Imported only now: it loads nltk and scikit-learn, which no other task needs.
    from rouge_score.rouge_scorer import RougeScorer

    inputs.check_pairs("rouge", references, predictions)
    scorer = RougeScorer(_KINDS, use_stemmer=True)
    scores = [
        scorer.score(reference, inputs.text(prediction))
        for reference, prediction in zip(references, predictions, strict=True)
    ]
    return {kind: math.fsum(x[kind].fmeasure for x in scores) / len(scores) for kind in _KINDS}
