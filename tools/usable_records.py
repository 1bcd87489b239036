"""The records of a data set that a conversion writes; the others are counted by reason."""

import collections
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from ofa_jax.data.sources.base import RecordSource
from ofa_jax.preprocessing import images
from ofa_jax.preprocessing.record_fields import MISSING
from ofa_jax.preprocessing.records import InvalidRecordError, Record
from ofa_jax.utils import progress
from ofa_jax.utils.bad_input import as_invalid_record

KINDS_OF_FILE: Mapping[str, tuple[str, ...]] = {
    "vision_language": ("captions", "questions", "regions"),
    "text": ("text",),
    "images": ("images",),
    "detection": ("objects",),
}
"""Kind of file -> the kinds of records that go into it."""
KINDS = tuple(kind for kinds in KINDS_OF_FILE.values() for kind in kinds)
_PARALLEL: Mapping[str, tuple[str, ...]] = {
    "captions": ("captions",),
    "questions": ("questions", "answers", "answer_confidences"),
    "regions": ("phrases", "phrase_boxes"),
    "objects": ("object_labels", "object_boxes"),
    "images": ("codes",),
    "text": ("text",),
}
_NAMED = 10


@dataclasses.dataclass
class Counts:
    """What became of the records of one file.

    Attributes:
      written: records or lines.
      names: of objects, as negative samples.
      skipped: reason -> records that were left out.
      named: some of them, for people.
    """

    written: int = 0
    names: set[str] = dataclasses.field(default_factory=set)
    skipped: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    named: list[str] = dataclasses.field(default_factory=list)

    def skip(self, error: InvalidRecordError, where: str) -> None:
        """Counts a record that is left out."""
        self.skipped[error.reason.name] += 1
        if len(self.named) < _NAMED:
            self.named.append(f"{where}: {error}")


def usable_records(
    kind: str, records: RecordSource, options: images.DecodeOptions, counts: Counts
) -> Iterator[Record]:
    """Yields the records of a kind that can be used, with the fields of that kind alone."""
    locate = getattr(records, "location", lambda index: f"record {index}")
    for index in range(len(records)):
        progress.advance()
        try:
            record = records[index]
            found = _of_kind(record, kind)
            if "image" in record:
                images.decode(record["image"], options)
            labels = found.get("object_labels", ())
            counts.names.update(label for label in labels if isinstance(label, str))
            yield found
        except Exception as raised:  # noqa: BLE001  one odd record must not end the conversion
            counts.skip(as_invalid_record(raised, "it cannot be read"), locate(index))


def _of_kind(record: Record, kind: str) -> dict[str, Any]:
    """Returns the fields of a record that a kind of file holds. Raises InvalidRecordError."""
    needed = _PARALLEL[kind]
    found = {name: record[name] for name in needed if record.get(name) is not None}
    for name in needed:
        if name == "answer_confidences":
            found.setdefault(name, [1.0] * len(found.get("questions", ())))
        elif name not in found or not len(found[name]):
            raise InvalidRecordError(f"it has no {name}", MISSING)
    if len({len(found[name]) for name in needed}) > 1:
        raise InvalidRecordError(f"its {' and '.join(needed)} differ in number", MISSING)
    common_fields = ("id", "image", "data_set")
    found |= {name: record[name] for name in common_fields if name in record}
    if kind in ("captions", "questions", "regions") and record.get("object_labels"):
        found["object_labels"] = list(record["object_labels"])
    return found
