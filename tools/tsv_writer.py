"""Writes records as the TSV files of the reference implementation, and the negative samples."""

import base64
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ofa_jax.data.sources.base import DataSet, RecordSource
from ofa_jax.data.sources.ofa_tsv import ANSWERS_FILE, CAPTIONS_FILE, NAMES_FILE
from ofa_jax.preprocessing.boxes import as_boxes
from ofa_jax.preprocessing.record_fields import EMPTY, MISSING
from ofa_jax.preprocessing.records import InvalidRecordError, Record
from ofa_jax.utils import files
from ofa_jax.utils.bad_input import as_invalid_record

from . import output_folders
from .usable_records import Counts, usable_records

_SEPARATORS = re.compile(r"[\t\r\n]+|&&|\|!\+")


def tsv_lines(kind: str, record: Record) -> Iterator[list[str]]:
    """Yields the columns of the lines of a record. Raises InvalidRecordError."""
    head = [_clean(record.get("id", "")), ""]
    if "image" in record:
        head[1] = base64.urlsafe_b64encode(record["image"]).decode()
    objects = "&&".join(map(_clean, record.get("object_labels", ())))
    tail = [objects, _clean(record.get("data_set", ""))]
    if kind == "text":
        yield [head[0], _nonempty(record["text"])]
    elif kind == "images":
        yield [*head, " ".join(str(int(code)) for code in record["codes"])]
    elif kind == "objects":
        boxes = zip(as_boxes(record["object_boxes"]), record["object_labels"], strict=True)
        yield [*head, "&&".join(f"{_box(box)},0,{_nonempty(label)}" for box, label in boxes)]
    elif kind == "captions":
        for caption in record["captions"]:
            yield [*head, _nonempty(caption), "", "", *tail, "caption"]
    elif kind == "questions":
        fields = (record["questions"], record["answers"], record["answer_confidences"])
        for question, answer, confidence in zip(*fields, strict=True):
            refs = f"{float(confidence):g}|!+{_nonempty(answer)}"
            yield [*head, "", _nonempty(question), refs, *tail, "qa"]
    else:
        for phrase, box in zip(record["phrases"], as_boxes(record["phrase_boxes"]), strict=True):
            yield [*head, _nonempty(phrase), "", _box(box), *tail, "visual_grounding"]


def _clean(text: Any) -> str:
    """Returns a text without what separates columns and entries."""
    decoded = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
    return _SEPARATORS.sub(" ", decoded).encode("utf-8", "replace").decode()


def _nonempty(text: Any) -> str:
    if cleaned := _clean(text).strip():
        return cleaned
    raise InvalidRecordError("one of its texts is empty", EMPTY)


def _box(box: np.ndarray) -> str:
    if not np.isfinite(box).all():
        raise InvalidRecordError("one of its boxes is not four numbers", MISSING)
    return ",".join(f"{float(number):.9g}" for number in box)


def write_tsv(path: pathlib.Path, sources: Mapping[str, RecordSource], options: Any) -> Counts:
    """Writes a TSV file of records of some kinds."""
    counts = Counts()
    with path.open("w", encoding="utf-8", newline="\n") as output:
        for kind, records in sources.items():
            for record in usable_records(kind, records, options, counts):
                try:
                    lines = list(tsv_lines(kind, record))
                except (InvalidRecordError, ValueError, TypeError) as raised:
                    counts.skip(as_invalid_record(raised, "it cannot be written"), record["id"])
                    continue
                output.writelines("\t".join(line) + "\n" for line in lines)
                counts.written += len(lines)
    return counts


def write_negatives(data_set: DataSet, target: pathlib.Path, names: Sequence[str]) -> None:
    """Writes the negative samples, where there are captions to sample from."""
    pool = data_set.negatives()
    if not len(pool.captions) or target.exists():
        return
    if not names:
        # The format needs one; it occurs in no caption, so that nothing is replaced by it.
        names = ["object"]
    with output_folders.complete_or_absent(target) as folder:
        with (folder / CAPTIONS_FILE).open("w", encoding="utf-8") as output:
            captions = (_clean(pool.captions[index]) for index in range(len(pool.captions)))
            output.writelines(f"{caption}\n" for caption in captions if caption.strip())
        (folder / NAMES_FILE).write_text("".join(f"{_clean(name)}\n" for name in names))
        answers = {
            kind: sorted({found[index] for index in range(len(found))})
            for kind, found in pool.answers_by_type.items()
        }
        files.write_json(folder / ANSWERS_FILE, answers)
    print(f"{target}: {len(pool.captions):,} captions, {len(names):,} names of objects.")
