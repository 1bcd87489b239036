r"""Converts any data set to ArrayRecord files, or to the TSV files of the reference implementation.

    python -m tools.convert --gin_file=my_run.gin --output_dir=data/converted
    python -m tools.convert --gin_file=my_run.gin --output_dir=data/tsv --format=tsv --kinds text

The data set is that of the run in the gin files (`PretrainingSettings.data_set`; `--gin.NAME=value`
overrides them). The files are those that `OfaArrayRecords` and `OfaTsv` read: `vision_language`
(captions, questions, regions), `text`, `images` (with codes) and `detection`. TSV has one caption,
question or region a line, ArrayRecord one image a record. Images are not encoded again; those that
cannot be decoded, and other invalid records, are left out, counted by reason and listed. The
negative samples are written too, so that matching trains as before. An output appears under its
name only when it is complete.

Both formats are decoded as stored: convert photographs with an EXIF orientation or transparency
only if `PretrainingSettings.options` sets `decode_options` in the new run too.
"""

import argparse
import base64
import collections
import contextlib
import dataclasses
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ofa_jax.cli import common, gin_registry
from ofa_jax.data.pretraining_settings import PretrainingSettings
from ofa_jax.data.sources.array_record_writer import (
    WrittenShard,
    shard_name,
    write_description,
    write_shard,
)
from ofa_jax.data.sources.array_records import FIELDS_OF_FILE, NEGATIVES, serialise
from ofa_jax.data.sources.base import DataSet, RecordSource, refuse_endless
from ofa_jax.data.sources.ofa_tsv import ANSWERS_FILE, CAPTIONS_FILE, NAMES_FILE
from ofa_jax.model.named_config import model_config
from ofa_jax.preprocessing import images
from ofa_jax.preprocessing.boxes import as_boxes
from ofa_jax.preprocessing.record_fields import EMPTY, MISSING
from ofa_jax.preprocessing.records import InvalidRecordError, Record
from ofa_jax.training.build import build_run
from ofa_jax.utils import files, modules, progress
from ofa_jax.utils.bad_input import as_invalid_record
from ofa_jax.utils.decode_options import AS_SEEN
from ofa_jax.utils.text_files import DamagedFileError

from . import output_folders
from .command import user_command

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
_SEPARATORS = re.compile(r"[\t\r\n]+|&&|\|!\+")


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


# ----------------------------------------------------------------------------------------- TSV


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


# ----------------------------------------------------------------------------------- ArrayRecord


def usable_for(
    file_kind: str, sources: Mapping[str, RecordSource], options: Any, counts: Counts
) -> Iterator[Record]:
    """Yields the records of a file that can be serialised."""
    for kind, records in sources.items():
        for record in usable_records(kind, records, options, counts):
            try:
                serialise(record, FIELDS_OF_FILE[file_kind])
            except Exception as raised:  # noqa: BLE001  fields of odd types
                counts.skip(as_invalid_record(raised, "it cannot be written"), str(record["id"]))
                continue
            counts.written += 1
            yield record


def write_array_records(
    folder: pathlib.Path,
    file_kind: str,
    split: str,
    sources: Mapping[str, RecordSource],
    options: Any,
    shard_bytes: int,
) -> Counts:
    """Writes a folder of ArrayRecord files, which `OfaArrayRecords` reads."""
    counts = Counts()
    records = usable_for(file_kind, sources, options, counts)
    shards: list[WrittenShard] = []
    for first in records:
        path = folder / f"shard-{len(shards)}"
        shards.append(write_shard(path, file_kind, _shard_of(first, records, shard_bytes)))
    for number in range(len(shards)):
        name = shard_name(file_kind, split, number, len(shards))
        (folder / f"shard-{number}").rename(folder / name)
    if not counts.written:  # the caller says so
        return counts
    source = {
        "records": counts.written,
        "skipped": dict(sorted(counts.skipped.items())),
        "skipped_lines": counts.named,
    }
    write_description(folder, file_kind, split, shards, source)
    return counts


def _shard_of(first: Record, others: Iterator[Record], limit: int) -> Iterator[Record]:
    """Yields the first record and as many others as a file holds."""
    size = len(first.get("image", first.get("text", "")))
    yield first
    while size < limit:
        record = next(others, None)
        if record is None:
            return
        size += len(record.get("image", record.get("text", "")))
        yield record


# ------------------------------------------------------------------------------------ the command


def open_sources(
    data_set: DataSet, kinds: Sequence[str], split: str
) -> dict[str, dict[str, RecordSource]]:
    """Returns kind of file -> kind of record -> records, of what a data set has.

    Raises:
      ValueError: a split has nothing of these kinds.
    """
    found: dict[str, dict[str, RecordSource]] = {}
    problem = None
    for file_kind, own in KINDS_OF_FILE.items():
        for kind in own:
            if kind not in kinds:
                continue
            try:
                records = data_set.records(kind, split)
            except DamagedFileError:
                raise
            except ValueError as error:
                problem = problem or error
                continue
            refuse_endless(records, "converted")
            found.setdefault(file_kind, {})[kind] = records
    if not found:
        raise problem or ValueError(f"There is nothing to convert in the split {split}.")
    return found


def convert(
    data_set: DataSet,
    output_dir: pathlib.Path,
    file_format: str,
    kinds: Sequence[str] = KINDS,
    splits: Sequence[str] | None = None,
    shard_bytes: int = 256 << 20,
) -> None:
    """Converts a data set; see the module.

    Raises:
      ValueError: an output is there already, or nothing can be used.
    """
    options = getattr(data_set, "decode_options", AS_SEEN)
    names: set[str] = set(data_set.negatives().object_names)
    plans = {split: open_sources(data_set, kinds, split) for split in splits or data_set.splits}
    output_folders.create(output_dir, "--output_dir")
    for split, by_file in plans.items():
        for file_kind, sources in by_file.items():
            is_tsv = file_format == "tsv"
            name = f"{file_kind}-{split}.tsv" if is_tsv else f"{file_kind}/{split}"
            target = output_dir / name
            if target.exists():
                raise ValueError(f"{target} exists: choose another --output_dir, or remove it.")
            try:
                counts = _write(target, file_kind, split, sources, options, shard_bytes)
            except NothingUsableError as error:
                # Every record with an image is asked for codes, which only some data sets have.
                if file_kind == "images" and len(kinds) > 1 and error.is_missing:
                    if file_format == "array_record":
                        with contextlib.suppress(OSError):  # another split is in it
                            target.parent.rmdir()
                    print(f"{target}: left out: no image that can be read has codes.")
                    continue
                raise
            names |= counts.names
            _report(target, counts)
    _write_negatives(data_set, output_dir / NEGATIVES, sorted(names))


class NothingUsableError(ValueError):
    """None of the records of a file can be used.

    Attributes:
      is_missing: whether records lack a field that the kind of file needs.
    """

    def __init__(self, target: pathlib.Path, counts: Counts) -> None:
        """Makes the sentence."""
        self.is_missing = MISSING.name in counts.skipped
        named = f", e.g. {counts.named[0]}" if counts.named else ""
        super().__init__(
            f"{target} would be empty: no record can be used{named}. Leave its kinds out with "
            "--kinds."
        )


def _write(
    target: pathlib.Path,
    file_kind: str,
    split: str,
    sources: Mapping[str, RecordSource],
    options: Any,
    shard_bytes: int,
) -> Counts:
    """Writes one output, a TSV file by its name or a folder. Raises NothingUsableError."""
    total = sum(map(len, sources.values()))
    with progress.stage(f"converting {file_kind} {split}", total, "records"):
        if target.suffix == ".tsv":
            with files.atomic_path(target) as temporary:
                counts = write_tsv(pathlib.Path(temporary), sources, options)
                if not counts.written:
                    raise NothingUsableError(target, counts)
        else:
            with output_folders.complete_or_absent(target) as folder:
                counts = write_array_records(
                    folder, file_kind, split, sources, options, shard_bytes
                )
                if not counts.written:
                    raise NothingUsableError(target, counts)
    return counts


def _report(target: pathlib.Path, counts: Counts) -> None:
    print(f"{target}: {counts.written:,} written; {counts.skipped.total():,} records skipped.")
    for reason, count in sorted(counts.skipped.items()):
        print(f"    {count:>12,} skipped: {reason}")
    for line in counts.named:
        print(f"    e.g. {line}")


def _write_negatives(data_set: DataSet, target: pathlib.Path, names: Sequence[str]) -> None:
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


def data_set_of(arguments: Sequence[str]) -> DataSet:
    """Returns the data set of the run that gin files configure.

    Raises:
      ValueError: the run has none.
    """
    gin_registry.register({"train": build_run, "model_config": model_config})
    common.parse_arguments("python -m tools.convert", __doc__ or "", arguments, {"MODEL_DIR": ""})
    modules.import_modules(gin_registry.bound_value("train.mixture_or_task_module"))
    settings = gin_registry.bound_value("train.settings")
    if not isinstance(settings, PretrainingSettings):
        raise ValueError(
            "The run has no pretraining data: its train.settings must be @PretrainingSettings()."
        )
    return settings.data_set


@user_command
def main(arguments: Sequence[str]) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--output_dir", required=True, help="where the files go")
    parser.add_argument("--format", choices=("array_record", "tsv"), default="array_record")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of records")
    parser.add_argument("--splits", nargs="+", help="all of the data set by default")
    parser.add_argument(
        "--shard_megabytes", type=int, default=256, help="of an ArrayRecord file (default: 256)"
    )
    options, gin_arguments = parser.parse_known_args(arguments)
    if not gin_arguments:
        parser.error("give --gin_file=RUN.gin, whose data set is converted")
    if options.shard_megabytes < 1:
        parser.error("--shard_megabytes must be at least 1")
    convert(
        data_set_of(gin_arguments),
        pathlib.Path(options.output_dir),
        options.format,
        options.kinds,
        options.splits,
        options.shard_megabytes << 20,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
