"""What every metric asks of its arguments, said in sentences."""

from collections.abc import Sequence
from typing import Any


def check_pairs(metric: str, references: Sequence[Any], answers: Sequence[Any]) -> None:
    """Raises ValueError where there is nothing to compare, or not one answer per example."""
    if len(references) != len(answers):
        raise ValueError(
            f"{metric} got the references of {len(references)} examples and {len(answers)} "
            "answers: give one answer per example, in the same order."
        )
    if not len(references):
        raise ValueError(f"{metric} got no examples: there is nothing to judge.")


def check_references(metric: str, references: Sequence[Sequence[Any]]) -> None:
    """Raises ValueError for an example that has nothing to be compared with."""
    for number, own in enumerate(references):
        if not len(own):
            raise ValueError(
                f"{metric}: example {number} has no references; leave it out, or give at least one."
            )


def text(answer: str | None) -> str:
    """An answer without surrounding spaces; "" where it could not be read."""
    return "" if answer is None else answer.strip()
