"""Exact match of strings and of token sequences."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ofa_jax.evaluation.metrics import inputs


@inputs.accepts(inputs.one_text)
def exact_match(references: Sequence[str], predictions: Sequence[str | None]) -> dict[str, float]:
    """Computes "exact_match", the share of equal strings; surrounding spaces do not count."""
    inputs.check_pairs("exact_match", references, predictions)
    equal = [
        prediction is not None and reference.strip() == prediction.strip()
        for reference, prediction in zip(references, predictions, strict=True)
    ]
    return {"exact_match": sum(equal) / len(equal)}


@inputs.accepts(inputs.texts)
def one_of_several(
    references: Sequence[Sequence[str]], predictions: Sequence[str | None]
) -> dict[str, float]:
    """Computes the accuracy where several texts are correct.

    Args:
      references: all correct texts of each example, first the one of its own record.
      predictions: one per example; None is wrong.

    Returns:
      "accuracy": the share that equals one of the correct texts; "exact_match": the share that
      equals the first of them. Surrounding spaces do not count.
    """
    inputs.check_pairs("one_of_several", references, predictions)
    correct = first = 0
    for texts, prediction in zip(references, predictions, strict=True):
        if prediction is not None:
            correct += prediction.strip() in {text.strip() for text in texts}
            first += prediction.strip() == texts[0].strip()
    return {"accuracy": correct / len(predictions), "exact_match": first / len(predictions)}


@inputs.accepts(inputs.tokens)
def token_accuracy(
    references: Sequence[ArrayLike], predictions: Sequence[ArrayLike | None]
) -> dict[str, float]:
    """Computes "token_accuracy", the share of all reference tokens predicted at their position.

    Args:
      references: int [n] each, e.g. the codes of an image.
      predictions: int [m] each, or None; missing tokens are wrong, surplus ones are ignored.
    """
    inputs.check_pairs("token_accuracy", references, predictions)
    true = [np.asarray(reference) for reference in references]
    inputs.check_references("token_accuracy", true)
    correct = total = 0
    for reference, prediction in zip(true, predictions, strict=True):
        tokens = np.asarray([] if prediction is None else prediction)[: len(reference)]
        correct += int((reference[: len(tokens)] == tokens).sum())
        total += len(reference)
    return {"token_accuracy": correct / total}


@inputs.accepts(inputs.one_text)
def word_accuracy(references: Sequence[str], predictions: Sequence[str | None]) -> dict[str, float]:
    """Computes "word_accuracy", the share of all reference words predicted at their position.

    Missing words are wrong, surplus ones are ignored.
    """
    inputs.check_pairs("word_accuracy", references, predictions)
    correct = total = 0
    for reference, prediction in zip(references, predictions, strict=True):
        words, found = reference.split(), inputs.text(prediction).split()
        correct += sum(word == own for word, own in zip(words, found, strict=False))
        total += len(words)
    return {"word_accuracy": correct / total}
