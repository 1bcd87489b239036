"""The records of a data set that a conversion writes, with the entries that training can use.

Records that cannot be used are left out, as are entries such as a box without area or an empty
caption. Both are counted by reason.
"""

import collections
import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ofa_jax.data.sources.array_records import FIELDS_OF_FILE
from ofa_jax.data.sources.base import DataSet, RecordSource
from ofa_jax.preprocessing import image_files
from ofa_jax.preprocessing.record_fields import (
    decode_image,
    get_required,
    get_text,
    has_entries,
    optional_texts,
    record_error,
    usable_texts,
)
from ofa_jax.preprocessing.record_questions import questions_as_written
from ofa_jax.preprocessing.record_regions import WRONG_CODES, usable_regions
from ofa_jax.preprocessing.records import RECORD_FIELDS, InvalidRecordError, Record
from ofa_jax.tokenizers.encodable_text import make_encodable
from ofa_jax.utils import progress
from ofa_jax.utils.bad_input import Finding, as_invalid_record, collect
from ofa_jax.utils.decode_options import DecodeOptions
from ofa_jax.utils.text_files import replace_surrogates

KINDS_OF_FILE: Mapping[str, tuple[str, ...]] = {
    "vision_language": ("captions", "questions", "regions"),
    "text": ("text",),
    "images": ("images",),
    "detection": ("objects",),
}
"""Kind of file -> the kinds of records that go into it."""
KINDS = tuple(kind for kinds in KINDS_OF_FILE.values() for kind in kinds)
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "captions": ("captions",),
    "questions": ("questions", "answers"),
    "regions": ("phrases", "phrase_boxes"),
    "objects": ("object_labels", "object_boxes"),
    "images": ("codes",),
    "text": ("text",),
}
_NAMED, _SAMPLED = 10, 100
_LARGEST_CODE = np.iinfo(np.int32).max


@dataclasses.dataclass
class Counts:
    """What became of the records of one file.

    Attributes:
      written: records or lines.
      names: of objects, as negative samples.
      skipped: reason -> records that were left out.
      changed: reason -> parts of records that were dropped or replaced.
      named: some of the records that were left out, for people.
      examples: reason -> the first part that was dropped or replaced.
      stored_otherwise: images whose pixels depend on `DecodeOptions`.
    """

    written: int = 0
    names: set[str] = dataclasses.field(default_factory=set)
    skipped: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    changed: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    named: list[str] = dataclasses.field(default_factory=list)
    examples: dict[str, str] = dataclasses.field(default_factory=dict)
    stored_otherwise: int = 0

    def skip(self, error: InvalidRecordError, where: str) -> None:
        """Counts a record that is left out."""
        self.skipped[error.reason.name] += 1
        if len(self.named) < _NAMED:
            self.named.append(replace_surrogates(f"{where}: {error}"))

    def change(self, findings: Sequence[Finding], where: str) -> None:
        """Counts what was dropped or replaced of a record that is written."""
        for finding in findings:
            name = finding.reason.name
            self.changed[name] += 1
            self.examples.setdefault(name, replace_surrogates(f"{where}: {finding.detail}"))


def usable_records(
    kind: str, records: RecordSource, options: DecodeOptions, counts: Counts
) -> Iterator[tuple[Record, str]]:
    """Yields the records of a kind that can be used, with the fields of that kind alone.

    Args:
      kind: of the records.
      records: are read in order.
      options: how their images are decoded, in whose pixels the boxes are.
      counts: are added to.

    Yields:
      A record, and where it is.
    """
    locate = getattr(records, "location", lambda index: f"record {index}")
    for index in range(len(records)):
        progress.advance()
        try:
            with collect() as findings:
                record = records[index]
                found = _of_kind(record, kind, options)
                otherwise = "image" in found and image_files.is_stored_otherwise(found["image"])
        except Exception as raised:  # noqa: BLE001  one odd record must not end the conversion
            counts.skip(as_invalid_record(raised, "it cannot be read"), locate(index))
            continue
        counts.change(findings, locate(index))
        counts.names.update(label.strip() for label in found.get("object_labels", ()))
        counts.stored_otherwise += otherwise
        yield found, locate(index)


def _of_kind(record: Record, kind: str, options: DecodeOptions) -> dict[str, Any]:
    """Returns the fields of a record that a kind of file holds. Raises InvalidRecordError."""
    for name in _NEEDED[kind]:
        get_required(record, name)
    found: dict[str, Any] = {"id": _as_text(record.get("id"))}
    if kind == "text":
        return found | {"text": make_encodable(get_text(record, "text"), None)}
    image = decode_image(record, options)
    found |= {"image": bytes(record["image"])}
    if kind == "images":
        return found | {"codes": _codes(record)}
    if kind != "objects":
        found["data_set"] = _as_text(record.get("data_set"))
        found["object_labels"] = _encodable(optional_texts(record, "object_labels"))
    return found | _entries(record, kind, image)


def _entries(record: Record, kind: str, image: Image.Image) -> dict[str, Any]:
    """Returns the parallel fields of a kind, without entries that no training could use.

    Raises:
      InvalidRecordError: none is left, or they differ in number.
    """
    if kind == "captions":
        return {"captions": _encodable(usable_texts(record, "captions"))}
    if kind == "questions":
        questions = questions_as_written(record)
        return {
            "questions": _encodable([one.question for one in questions]),
            "answers": _encodable([one.answer for one in questions]),
            "answer_confidences": [one.confidence for one in questions],
        }
    names, boxes = _NEEDED[kind]
    texts, found = usable_regions(record, image.size, names, boxes)
    return {names: _encodable(texts), boxes: found}


def _encodable(texts: list[str]) -> list[str]:
    return [make_encodable(text, None) for text in texts]


def _as_text(value: Any) -> str:
    """Returns an id or the name of a data set; empty if there is none."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return "" if value is None else make_encodable(str(value), None)


def _codes(record: Record) -> np.ndarray:
    """Returns image codes as int32. Raises InvalidRecordError."""
    codes = np.asarray(record["codes"])
    if codes.dtype.kind not in "iu" or codes.ndim != 1:
        raise record_error(record, "its image codes are not a list of whole numbers", WRONG_CODES)
    if codes.min() < 0 or codes.max() > _LARGEST_CODE:
        raise record_error(
            record, f"its image codes go from {codes.min()} to {codes.max()}", WRONG_CODES
        )
    return codes.astype(np.int32)


def fields_not_stored(
    data_set: DataSet, split: str, sources: Mapping[str, RecordSource]
) -> tuple[str, ...]:
    """Returns the fields of the records that no kind of file stores, of a sample of the records.

    Args:
      data_set: the sources' own.
      split: theirs.
      sources: kind -> records.
    """
    known = dict(sources)
    if "captions" in sources or "questions" in sources:  # matching reads them with more fields
        with contextlib.suppress(ValueError, OSError):
            known["pairs"] = data_set.records("pairs", split)
    stored = {name for fields in FIELDS_OF_FILE.values() for name in fields}
    found: dict[str, None] = {}
    for kind, records in known.items():
        others = [name for name in RECORD_FIELDS[kind] if name not in stored]
        for index in _spread(len(records)) if others else ():
            with contextlib.suppress(Exception), collect():  # it is counted when it is converted
                record = records[index]
                found.update((name, None) for name in others if has_entries(record, name))
    return tuple(found)


def _spread(count: int) -> list[int]:
    """Returns the numbers of some records, spread over all of them."""
    return np.linspace(0, count - 1, min(count, _SAMPLED)).astype(int).tolist()
