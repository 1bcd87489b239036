"""Reads the records of a damaged file, and makes examples of them, as training does."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from fuzz import good
from fuzz.cases import attempt, check, check_record_error
from ofa_jax.preprocessing.records import InvalidRecordError


def read_all(records: Any) -> list[Any]:
    """Reads all records; None stands for those that are skipped."""
    found = []
    for index in range(len(records)):
        record, error = attempt(lambda index=index: records[index], InvalidRecordError)
        if error is not None:
            check_record_error(error)
        found.append(record)
    return found


def make_examples(
    objectives: Iterable[Any], found: Iterable[Any], generator: np.random.Generator
) -> None:
    """Makes the examples of all objectives; InvalidRecordError alone is allowed.

    Args:
      objectives: (record, generator) -> example.
      found: what `read_all` has returned.
      generator: of the random draws.
    """
    objectives = list(objectives)
    for record in found:
        for objective in objectives if record is not None else ():
            _make_example(objective, record, generator)


def _make_example(objective: Any, record: Any, generator: np.random.Generator) -> None:
    example, error = attempt(lambda: objective(record, generator), InvalidRecordError)
    if error is not None:
        check_record_error(error)
        return
    assert example is not None
    made = good.features(example)
    finite = all(np.isfinite(array).all() for array in made.values())
    check(finite, "the features of a record are not finite")
