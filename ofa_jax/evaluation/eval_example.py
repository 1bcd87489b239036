"""What an evaluation knows of an example; a bad record becomes an example with an error."""

import dataclasses
from collections.abc import Callable
from typing import Any

from ofa_jax.data.features import Features
from ofa_jax.evaluation.postprocess import BoxTransform
from ofa_jax.preprocessing.records import Record
from ofa_jax.utils.bad_input import Treatment, as_invalid_record, collect, declare, note
from ofa_jax.utils.json_values import to_json
from ofa_jax.utils.text_files import replace_surrogates

NO_REFERENCES = declare(
    "unreadable references",
    Treatment.DROPPED,
    "The references of a record in an evaluation are malformed. The record is predicted, and left "
    "out of the metrics.",
    __name__,
)


@dataclasses.dataclass(frozen=True)
class EvalExample:
    """What the evaluation knows of an example besides its features.

    Attributes:
      index: position in the split.
      id: id of its record; the index where the record has none.
      instruction: the input as text.
      references: what a prediction is compared with.
      box_transform: from the model's image to the stored one; None without an image.
      error: why the example has no features; None if it has.
      reason: the name of the reason under which an error is counted.
      notes: what was dropped or replaced in the record, as (name of the reason, detail).
    """

    index: int
    id: str
    instruction: str = ""
    references: Any = None
    box_transform: BoxTransform | None = None
    error: str | None = None
    reason: str | None = None
    notes: tuple[tuple[str, str], ...] = ()


def make_guarded_row(
    index: int,
    record: Callable[[], Record],
    make_row: Callable[[], tuple[Features, EvalExample]],
    empty_row: Callable[[], Features],
) -> tuple[Features, EvalExample]:
    """Returns a row with the notes about its record, or an empty one with what is wrong with it.

    Whatever a record raises ends at this boundary.

    Args:
      index: of the example.
      record: reads its record once more, for its id.
      make_row: reads the record and converts it.
      empty_row: returns the features in place of an invalid one.
    """
    with collect() as findings:
        try:
            features, example = make_row()
        except Exception as error:  # noqa: BLE001  a record of odd types may raise anything
            invalid = as_invalid_record(error, "cannot be evaluated")
            features, example = (
                empty_row(),
                EvalExample(
                    index,
                    _id_of_invalid(record, index),
                    error=str(invalid),
                    reason=invalid.reason.name,
                ),
            )
    notes = tuple((finding.reason.name, finding.detail) for finding in findings)
    return features, dataclasses.replace(example, notes=notes) if notes else example


def _id_of_invalid(record: Callable[[], Record], index: int) -> str:
    """Returns the id of an invalid record if it can be read, else its index."""
    try:
        with collect():
            return record_id(record(), index)
    except Exception:  # noqa: BLE001  a corrupt file can make a source raise anything
        return str(index)


def describe_error(error: BaseException) -> str:
    """Returns an exception in one short line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def record_id(record: Record, index: int) -> str:
    """Returns the id of a record as text; its index if it has none."""
    value = record.get("id")
    value = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    text = "" if value is None else replace_surrogates(str(value))
    return text or str(index)


def read_references(references: Callable[[Record], Any], record: Record) -> Any:
    """Returns the references of a record as JSON; None if it has none that can be used.

    A test set may lack the very field that they are in.
    """
    try:
        return to_json(references(record))
    except (KeyError, IndexError):
        return None
    except Exception as error:  # noqa: BLE001  a record of odd types may raise anything
        note(NO_REFERENCES, f"its references cannot be read ({describe_error(error)})")
        return None
