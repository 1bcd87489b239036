"""Answers that must be just so: strings, and sequences of codes."""

from collections.abc import Sequence

import numpy as np

from ofa_jax.evaluation.metrics import inputs


def exact_match(references: Sequence[str], answers: Sequence[str | None]) -> dict[str, float]:
    """ "exact_match": how many strings are the same but for surrounding spaces."""
    inputs.check_pairs("exact_match", references, answers)
    same = [
        answer is not None and reference.strip() == answer.strip()
        for reference, answer in zip(references, answers, strict=True)
    ]
    return {"exact_match": sum(same) / len(same)}


def one_of_several(
    references: Sequence[Sequence[str]], answers: Sequence[str | None]
) -> dict[str, float]:
    """For answers of which several are right.

    Args:
      references: all right answers to each question, first the one that was written down for it.
      answers: one each; None is wrong.

    Returns:
      "accuracy": how many are one of the right ones, but for surrounding spaces; "exact_match":
      how many are the first of them.
    """
    inputs.check_pairs("one_of_several", references, answers)
    right = first = 0
    for known, answer in zip(references, answers, strict=True):
        if answer is not None:
            right += answer.strip() in {reference.strip() for reference in known}
            first += answer.strip() == known[0].strip()
    return {"accuracy": right / len(answers), "exact_match": first / len(answers)}


def token_accuracy(references: Sequence, answers: Sequence) -> dict[str, float]:
    """ "token_accuracy": how many of the true tokens, over all examples, are at their place.

    Args:
      references: int [n] each, e.g. the codes of an image.
      answers: int [m] each, or None; what is missing is wrong, and what is too much is not seen.
    """
    inputs.check_pairs("token_accuracy", references, answers)
    inputs.check_references("token_accuracy", references)
    right = total = 0
    for reference, answer in zip(references, answers, strict=True):
        reference = np.asarray(reference)
        answer = np.asarray([] if answer is None else answer)[: len(reference)]
        right += int((reference[: len(answer)] == answer).sum())
        total += len(reference)
    return {"token_accuracy": right / total}
