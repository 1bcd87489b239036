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

Entries that training could not use, such as a box without area, are dropped; a space stands for
what TSV cannot hold. Both are counted, and fields that neither format stores are named.

Both formats are decoded as stored, so boxes of photographs with an EXIF orientation would lie
elsewhere: such images and those with transparency are counted, with the option of the new run that
decodes them as they were.
"""

import argparse
import contextlib
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ofa_jax.cli import common, gin_registry
from ofa_jax.data.pretraining_settings import PretrainingSettings
from ofa_jax.data.sources.array_records import NEGATIVES
from ofa_jax.data.sources.base import (
    DataSet,
    NoRecordsError,
    RecordSource,
    WrongDataOptionError,
    refuse_endless,
)
from ofa_jax.model.named_config import model_config
from ofa_jax.preprocessing.record_fields import MISSING
from ofa_jax.training.build import build_run
from ofa_jax.utils import files, modules, progress
from ofa_jax.utils.bad_input import Finding, collect
from ofa_jax.utils.decode_options import AS_SEEN, AS_STORED
from ofa_jax.utils.options import IsPath
from ofa_jax.utils.text_files import DamagedFileError, replace_surrogates
from ofa_jax.utils.wrong_files import shorten

from . import output_folders
from .array_records_writer import write_array_records
from .command import user_command
from .tsv_writer import write_negatives, write_tsv
from .usable_records import KINDS, KINDS_OF_FILE, Counts, fields_not_stored

_SHOWN = 10
_SPLIT = re.compile(r"\w[\w-]*")


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
            except (DamagedFileError, WrongDataOptionError):
                raise
            except ValueError as error:
                problem = problem or error
                continue
            refuse_endless(records, "converted")
            found.setdefault(file_kind, {})[kind] = records
    if problem is not None and not found:
        error = NoRecordsError if isinstance(problem, NoRecordsError) else ValueError
        raise error(f"{problem} (Choose what is converted by --kinds and --splits.)")
    if not found:
        raise ValueError(f"There is nothing to convert in the split {split}.")
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
    with collect() as findings:
        names: set[str] = set(data_set.negatives().object_names)
        plans = {split: open_sources(data_set, kinds, split) for split in splits or data_set.splits}
    targets = _targets(output_dir, file_format, plans)
    output_folders.create(output_dir, "--output_dir")
    _report_source(findings)
    stored_otherwise = 0
    problem: NothingUsableError | None = None
    left_out: NothingUsableError | None = None
    for split, by_file in plans.items():
        _name_lost_fields(data_set, split, by_file)
        for file_kind, sources in by_file.items():
            target = targets[file_kind, split]
            try:
                counts = _write(target, file_kind, split, sources, options, shard_bytes)
            except NothingUsableError as error:
                if file_format == "array_record":
                    with contextlib.suppress(OSError):  # another split is in it
                        target.parent.rmdir()
                # Every record with an image is asked for codes, which only some data sets have.
                if file_kind == "images" and len(kinds) > 1 and error.is_missing:
                    print(f"{target}: left out: no image that can be read has codes.")
                    left_out = left_out or error
                else:
                    problem = problem or error  # after the other files
                continue
            names |= counts.names
            stored_otherwise += counts.stored_otherwise
            _report(target, counts)
    if not any(target.exists() for target in targets.values()):
        problem = problem or left_out
    else:
        write_negatives(data_set, output_dir / NEGATIVES, sorted(names))
    if stored_otherwise and options != AS_STORED:
        print(
            f"{stored_otherwise:,} records have an image with an EXIF orientation or transparency, "
            "which the new files are read without. Decode them as before, with their boxes, by "
            "PretrainingSettings.options = {'decode_options': @DecodeOptions()} in the new run."
        )
    if problem is not None:
        raise problem


def _targets(
    output_dir: pathlib.Path, file_format: str, plans: Mapping[str, Mapping[str, Any]]
) -> dict[tuple[str, str], pathlib.Path]:
    """Returns (kind of file, split) -> the file or folder to write. Raises ValueError."""
    targets = {}
    for split, by_file in plans.items():
        if not _SPLIT.fullmatch(split):
            raise ValueError(
                f"The split {shorten(repr(split))} cannot be part of the names of files: give it a "
                "name of letters, digits, - and _ in the options of the data set."
            )
        for file_kind in by_file:
            is_tsv = file_format == "tsv"
            name = f"{file_kind}-{split}.tsv" if is_tsv else f"{file_kind}/{split}"
            target = output_dir / name
            if target.exists():
                raise ValueError(f"{target} exists: choose another --output_dir, or remove it.")
            targets[file_kind, split] = target
    return targets


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


def _report_source(findings: Sequence[Finding]) -> None:
    """Says what the source left out when it was opened."""
    by_reason: dict[str, dict[str, None]] = {}
    for finding in findings:
        by_reason.setdefault(finding.reason.name, {})[finding.detail] = None
    for reason, details in by_reason.items():
        for detail in list(details)[:_SHOWN]:
            print(f"In the source: {replace_surrogates(detail)} ({reason}).")
        if (others := len(details) - _SHOWN) > 0:
            print(f"In the source: {others:,} more ({reason}).")


def _report(target: pathlib.Path, counts: Counts) -> None:
    print(f"{target}: {counts.written:,} written; {counts.skipped.total():,} records skipped.")
    for reason, count in sorted(counts.skipped.items()):
        print(f"    {count:>12,} skipped: {reason}")
    for reason, count in sorted(counts.changed.items()):
        print(f"    {count:>12,} entries dropped or replaced: {reason}")
        print(f"                 e.g. {counts.examples[reason]}")
    for line in counts.named:
        print(f"    e.g. {line}")


def _name_lost_fields(
    data_set: DataSet, split: str, by_file: Mapping[str, Mapping[str, RecordSource]]
) -> None:
    """Says which fields of the records no kind of file stores."""
    sources = {kind: records for own in by_file.values() for kind, records in own.items()}
    if lost := fields_not_stored(data_set, split, sources):
        false = "; texts whose label is no are true in the new files" * ("label" in lost)
        print(f"Not stored by the format, in the split {split}: {', '.join(lost)}{false}.")


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
    if not options.output_dir.strip() or not IsPath().holds(options.output_dir):
        parser.error(f"--output_dir must be {IsPath().phrase}, and not empty")
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
