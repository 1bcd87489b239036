"""Answers that are one of a few labels; scikit-learn does the arithmetic.

References and answers are strings, compared without surrounding spaces. An answer that is none of
the labels is wrong.
"""

from collections.abc import Sequence

from ofa_jax.evaluation.metrics import inputs

Labels = Sequence[str | None]


def accuracy(references: Labels, answers: Labels) -> dict[str, float]:
    """ "accuracy"."""
    from sklearn.metrics import accuracy_score

    return {"accuracy": float(accuracy_score(*_labels("accuracy", references, answers)))}


def matthews_correlation(references: Labels, answers: Labels) -> dict[str, float]:
    """ "matthews_correlation", CoLA's: between -1 and 1, and 0 where all answers are the same."""
    from sklearn.metrics import matthews_corrcoef

    labels = _labels("matthews_correlation", references, answers)
    return {"matthews_correlation": float(matthews_corrcoef(*labels))}


def f1(references: Labels, answers: Labels, positive: str = "yes") -> dict[str, float]:
    """ "f1" of one label, the positive one; 0 where neither side has it."""
    from sklearn.metrics import f1_score

    true, given = (
        [label == positive for label in side] for side in _labels("f1", references, answers)
    )
    return {"f1": float(f1_score(true, given, zero_division=0))}


def accuracy_and_f1(references: Labels, answers: Labels, positive: str = "yes") -> dict[str, float]:
    """Both, as MRPC and QQP report them."""
    return accuracy(references, answers) | f1(references, answers, positive)


def _labels(metric: str, references: Labels, answers: Labels) -> tuple[list[str], list[str]]:
    inputs.check_pairs(metric, references, answers)
    return [inputs.text(x) for x in references], [inputs.text(x) for x in answers]
