"""What all metrics share: checks of their arguments, and which references they can use.

Called directly, a metric raises ValueError for an example without a reference. `ofa_jax.evaluation.
scoring` asks `usable_reference` first, and gives a metric only the examples that it can score: a
test set may publish no references at all, and one malformed reference drops that reference alone.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any, TypeVar

import numpy as np

_M = TypeVar("_M", bound=Callable[..., Any])
_CLEAN = "clean_reference"
_CORPUS = "needs_corpus"


class NothingToScoreError(ValueError):
    """The references of all examples are empty, so the metric has no value."""


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


# ------------------------------------------------------------------------------ usable references


def accepts(clean: Callable[[Any], Any]) -> Callable[[_M], _M]:
    """Declares which references a metric can use.

    Args:
      clean: a reference as it was read -> the part of it that the metric can use; None if there is
        nothing to compare a prediction with.
    """

    def declare(metric: _M) -> _M:
        setattr(metric, _CLEAN, clean)
        return metric

    return declare


def of_corpus(metric: _M) -> _M:
    """Declares that a metric says nothing of one example: it needs a corpus, or takes long."""
    setattr(metric, _CORPUS, True)
    return metric


def needs_corpus(metric: Callable[..., Any]) -> bool:
    """Returns whether a metric was declared `of_corpus`."""
    while isinstance(metric, functools.partial):
        metric = metric.func
    return bool(getattr(metric, _CORPUS, False))


def usable_reference(metric: Callable[..., Any], reference: Any) -> Any:
    """Returns the part of a reference that a metric can use; None if there is none.

    A metric that declares nothing gets every reference that is not empty, unchanged.
    """
    while isinstance(metric, functools.partial):
        metric = metric.func
    clean = getattr(metric, _CLEAN, None)
    if clean is None:
        return None if is_empty(reference) else reference
    try:
        return clean(reference)
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError):
        return None  # malformed in a way that the metric does not know


def is_empty(reference: Any) -> bool:
    """Returns whether there is nothing in a reference to compare a prediction with.

    That is: None, a blank text, NaN, an empty list, a list of such values, or a mapping whose lists
    (without lists: whose values) are such values.
    """
    if reference is None:
        return True
    if isinstance(reference, str | bytes):
        return not reference.strip()
    if isinstance(reference, float):
        return math.isnan(reference)
    if isinstance(reference, np.ndarray):
        return not reference.size
    if isinstance(reference, Mapping):
        values = list(reference.values())
        lists = [value for value in values if isinstance(value, list | tuple | np.ndarray)]
        return all(map(is_empty, lists or values))
    if isinstance(reference, Sequence | set | frozenset):
        return all(map(is_empty, reference))
    return False


def one_text(reference: Any) -> str | None:
    """Returns a text that is not blank; None for anything else."""
    return reference if isinstance(reference, str) and reference.strip() else None


def texts(reference: Any) -> list[str] | None:
    """Returns the texts of a list that are not blank; None if there are none."""
    if isinstance(reference, str | bytes | Mapping):
        return None
    return [own for own in reference if one_text(own) is not None] or None


def box(reference: Any) -> list[float] | None:
    """Returns a box of four finite numbers; None for anything else."""
    corners = np.asarray(reference, np.float64)
    return reference if corners.shape == (4,) and np.isfinite(corners).all() else None


def objects(reference: Any) -> Mapping[str, Any] | None:
    """Returns objects without those whose box or label is malformed; None if they do not pair up.

    An image without objects is a reference like any other.
    """
    boxes, labels = reference["boxes"], reference["labels"]
    if len(boxes) != len(labels) or isinstance(boxes, str | Mapping):
        return None
    kept = [
        (own, label)
        for own, label in zip(boxes, labels, strict=True)
        if one_text(label) is not None and _is_box(own)
    ]
    if len(kept) == len(labels):
        return reference
    return {**reference, "boxes": [own for own, _ in kept], "labels": [label for _, label in kept]}


def tokens(reference: Any) -> Any:
    """Returns whole numbers; None if there are none."""
    array = np.asarray(reference)
    usable = array.ndim == 1 and array.size and np.issubdtype(array.dtype, np.integer)
    return reference if usable else None


def is_finite(value: Any) -> bool:
    """Returns whether a value is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def _is_box(reference: Any) -> bool:
    """Returns whether a reference is a box."""
    try:
        return box(reference) is not None
    except (TypeError, ValueError):
        return False
