"""Classification into a few labels, computed by scikit-learn.

References and predictions are strings, compared without surrounding spaces. A prediction that is
none of the labels is wrong.
"""

from collections.abc import Sequence

from ofa_jax.evaluation.metrics import inputs

Labels = Sequence[str | None]


@inputs.accepts(inputs.one_text)
def accuracy(references: Labels, predictions: Labels) -> dict[str, float]:
    """Computes "accuracy"."""
    from sklearn.metrics import accuracy_score

    return {"accuracy": float(accuracy_score(*_labels("accuracy", references, predictions)))}


@inputs.of_corpus
@inputs.accepts(inputs.one_text)
def matthews_correlation(references: Labels, predictions: Labels) -> dict[str, float]:
    """Computes "matthews_correlation", CoLA's: -1 to 1; 0 where all predictions are the same."""
    from sklearn.metrics import matthews_corrcoef

    labels = _labels("matthews_correlation", references, predictions)
    return {"matthews_correlation": float(matthews_corrcoef(*labels))}


@inputs.accepts(inputs.one_text)
def f1(references: Labels, predictions: Labels, positive: str = "yes") -> dict[str, float]:
    """Computes "f1" of the positive label; 0 where neither side has it."""
    from sklearn.metrics import f1_score

    true, predicted = (
        [label == positive for label in side] for side in _labels("f1", references, predictions)
    )
    return {"f1": float(f1_score(true, predicted, zero_division=0))}


@inputs.accepts(inputs.one_text)
def accuracy_and_f1(
    references: Labels, predictions: Labels, positive: str = "yes"
) -> dict[str, float]:
    """Computes both, as MRPC and QQP report them."""
    return accuracy(references, predictions) | f1(references, predictions, positive)


def _labels(metric: str, references: Labels, predictions: Labels) -> tuple[list[str], list[str]]:
    """Returns both sides without surrounding spaces, checked."""
    inputs.check_pairs(metric, references, predictions)
    return [inputs.text(x) for x in references], [inputs.text(x) for x in predictions]
