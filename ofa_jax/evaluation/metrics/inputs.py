"""Checks of the arguments that all metrics share."""

from collections.abc import Sequence, Sized
from typing import Any


def check_pairs(metric: str, references: Sequence[Any], predictions: Sequence[Any]) -> None:
    """Raises ValueError if there is no example, or not one prediction per example."""
    if len(references) != len(predictions):
        raise ValueError(
            f"{metric} got the references of {len(references)} examples and {len(predictions)} "
            "predictions: give one prediction per example, in the same order."
        )
    if not len(references):
        raise ValueError(f"{metric} got no examples: give at least one.")


def check_references(metric: str, references: Sequence[Sized]) -> None:
    """Raises ValueError if an example has no reference."""
    for index, own_references in enumerate(references):
        if not len(own_references):
            raise ValueError(
                f"{metric}: example {index} has no references; leave it out, or give at least one."
            )


def text(prediction: str | None) -> str:
    """Returns a prediction without surrounding spaces; "" if it could not be parsed."""
    return "" if prediction is None else prediction.strip()
