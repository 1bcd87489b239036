r"""Converts the official pretraining TSV files to ArrayRecord files with fast random access.

    python -m tools.convert_tsv --output_dir=data/ofa --num_workers=16 \
      --vision_language vision_language_examples.tsv --text text_examples.tsv \
      --images image_examples.tsv --detection detection_examples.tsv \
      --negative_samples negative_sample

writes ArrayRecord files (see ofa_jax/data/sources/array_records.py), a quarter smaller than the
base64 of the TSV and faster to read. gin_configs/runs/pretrain_ofa_records.gin trains on them; a
second call with --split=validation makes a validation split. Invalid lines, such as those with an
unreadable image, are left out, counted by reason and listed. The result depends on files and
options, not on the number of workers, and appears under its name only when it is complete; a
complete one is not written again.
"""

import argparse
import collections
import contextlib
import dataclasses
import filecmp
import functools
import os
import pathlib
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from ofa_jax.data.sources.array_record_writer import (
    WrittenShard,
    shard_name,
    write_description,
    write_shard,
)
from ofa_jax.data.sources.array_records import (
    DESCRIPTION,
    NEGATIVES,
    ArrayRecords,
    read_description,
)
from ofa_jax.data.sources.ofa_tsv import (
    ANSWERS_FILE,
    CAPTIONS_FILE,
    NAMES_FILE,
    NEGATIVE_FILES,
    PRETRAINING_FILES,
    TYPES_OF_KIND,
    check_negative_files,
    read_negatives,
)
from ofa_jax.data.sources.tsv_conversion import Conversion
from ofa_jax.data.sources.tsv_records import TsvRecords
from ofa_jax.preprocessing.records import InvalidRecordError, Record
from ofa_jax.utils import progress

from . import output_folders
from .command import user_command, worker_processes

_UNFINISHED = ".unfinished-"
_NAMED = 10
_MEGABYTE = 1 << 20


@dataclasses.dataclass
class _Shard:
    """What a worker reports of one output file."""

    written: WrittenShard
    skipped: collections.Counter
    named: list[str]

    @property
    def records(self) -> int:
        return self.written.records


@dataclasses.dataclass(frozen=True)
class _Plan:
    """A conversion that was checked, and can be written.

    Attributes:
      conversion: what is converted.
      records: its opened files.
      target: the folder to write.
      is_complete: whether it is there already.
    """

    conversion: Conversion
    records: TsvRecords
    target: pathlib.Path
    is_complete: bool


def convert(
    conversion: Conversion,
    output_dir: pathlib.Path,
    *,
    num_workers: int = 0,
    overwrite: bool = False,
) -> pathlib.Path:
    """Converts files unless that is done already; returns the folder.

    Raises:
      FileNotFoundError, ValueError: the files are missing or something else; other records are
        there and `overwrite` is not set; nothing can be used.
    """
    return _execute(_check(conversion, output_dir, overwrite), num_workers)


def _check(conversion: Conversion, output_dir: pathlib.Path, overwrite: bool) -> _Plan:
    """Checks a conversion before anything is written. Raises as `convert`."""
    if not re.fullmatch(r"\w+", conversion.split):
        raise ValueError(
            f"--split={conversion.split}: the name of a split has letters, digits and underscores."
        )
    target = output_dir / conversion.file_kind / conversion.split
    records = conversion.open()
    output_folders.refuse_foreign(target, DESCRIPTION, "--output_dir")
    complete = not overwrite and target.exists()
    if complete:
        _check_complete(target, conversion, conversion.identity(records))
    return _Plan(conversion, records, target, complete)


def _check_complete(target: pathlib.Path, conversion: Conversion, identity: dict) -> None:
    """Raises ValueError if a folder has records of something else, or is damaged."""
    known = read_description(target)
    if different := [name for name, value in identity.items() if known.get(name) != value]:
        raise ValueError(
            f"{target} was converted with other {' and '.join(different)}: add --overwrite to "
            "replace it, or choose another --output_dir."
        )
    types = TYPES_OF_KIND["captions"] if conversion.file_kind == "vision_language" else None
    len(ArrayRecords(str(target), conversion.file_kind, types))  # raises if a shard is missing


def _execute(plan: _Plan, num_workers: int) -> pathlib.Path:
    """Writes what was checked; returns the folder."""
    target, conversion = plan.target, plan.conversion
    if plan.is_complete:
        print(f"{target} is complete: nothing to do.")
        return target
    output_folders.create(target.parent, "--output_dir")
    prefix = f".{conversion.split}{_UNFINISHED}"
    output_folders.remove_stale(target.parent, prefix)
    unfinished = target.parent / output_folders.own_name(prefix)
    started = time.monotonic()
    try:
        description = _write(conversion, plan.records, unfinished / "new", num_workers)
        output_folders.put_in_place(unfinished / "new", target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    _report(target, description, time.monotonic() - started)
    return target


def _write(
    conversion: Conversion, records: TsvRecords, folder: pathlib.Path, num_workers: int
) -> dict:
    """Writes everything into a new folder, its description last."""
    folder.mkdir(parents=True)
    bounds = conversion.shard_bounds(records)
    tasks = [
        (folder / f"shard-{number}", *bounds[number : number + 2])
        for number in range(len(bounds) - 1)
    ]
    write = functools.partial(_write_shard, conversion, records)
    what = f"converting {conversion.file_kind} {conversion.split}"
    # The processes count their lines themselves: a file of theirs takes minutes.
    with progress.stage(what, len(records), "lines"), _mapper(num_workers) as mapper:
        shards = list(mapper(write, tasks))
    total = sum(shard.records for shard in shards)
    skipped = sum((shard.skipped for shard in shards), collections.Counter())
    if not total:
        raise ValueError(
            f"Not one line of {', '.join(conversion.paths)} can be used, e.g. {shards[0].named[0]}."
        )
    # An ArrayRecord file without records cannot be read: leave out what has none.
    kept = [(path, shard) for (path, *_), shard in zip(tasks, shards, strict=True)]
    for path, shard in kept:
        if not shard.records:
            path.unlink()
    kept = [(path, shard) for path, shard in kept if shard.records]
    for number, (path, _) in enumerate(kept):
        name = shard_name(conversion.file_kind, conversion.split, number, len(kept))
        path.rename(folder / name)
    source = conversion.identity(records) | {
        "records": total,
        "skipped": dict(sorted(skipped.items())),
        "skipped_lines": [line for shard in shards for line in shard.named][:_NAMED],
    }
    written = [shard.written for _, shard in kept]
    return write_description(folder, conversion.file_kind, conversion.split, written, source)


def _write_shard(
    conversion: Conversion, records: TsvRecords, task: tuple[pathlib.Path, int, int]
) -> _Shard:
    """Converts a range of lines into one file."""
    path, start, stop = task
    skipped: collections.Counter = collections.Counter()
    named: list[str] = []

    def read() -> Iterator[Record]:
        for index in range(start, stop):
            progress.advance()
            try:
                yield conversion.read(records, index)
            except InvalidRecordError as error:
                skipped[error.reason.name] += 1
                if len(named) < _NAMED:
                    named.append(str(error))

    return _Shard(write_shard(path, conversion.file_kind, read()), skipped, named)


@contextlib.contextmanager
def _mapper(num_workers: int) -> Iterator:
    """Yields an ordered lazy map over worker processes."""
    if num_workers < 1:
        yield map
        return
    with worker_processes(num_workers) as executor:
        yield executor.map


def _report(target: pathlib.Path, description: dict, seconds: float) -> None:
    skipped = description["skipped"]
    print(
        f"{target}: {description['records']:,} records in {seconds:.0f} s; "
        f"{sum(skipped.values()):,} lines skipped."
    )
    for kind, count in description.get("types", {}).items():
        print(f"    {count:>12,} of type {kind}")
    for reason, count in skipped.items():
        print(f"    {count:>12,} skipped: {reason}")
    for line in description["skipped_lines"]:
        print(f"    e.g. {line}")


def check_negatives(folder: str, output_dir: pathlib.Path, overwrite: bool) -> bool:
    """Checks negative samples before anything is written; returns whether they are to be copied.

    Raises:
      FileNotFoundError, ValueError: a file is missing or not as it should be; other negative
        samples are there and `overwrite` is not set.
    """
    source, target = pathlib.Path(folder), output_dir / NEGATIVES
    check_negative_files(source)
    output_folders.refuse_foreign(target, ANSWERS_FILE, "--output_dir")
    if overwrite or not target.exists():
        return True
    for name in NEGATIVE_FILES:
        if not filecmp.cmp(source / name, target / name, shallow=False):
            raise ValueError(
                f"{target} has another {name}: add --overwrite to replace it, or choose another "
                "--output_dir."
            )
    print(f"{target} is complete: nothing to do.")
    return False


def copy_negatives(folder: str, output_dir: pathlib.Path) -> None:
    """Copies the negative samples."""
    target = output_dir / NEGATIVES
    output_folders.create(output_dir, "--output_dir")
    prefix = f".{NEGATIVES}{_UNFINISHED}"
    output_folders.remove_stale(output_dir, prefix)
    unfinished = output_dir / output_folders.own_name(prefix)
    try:
        (unfinished / "new").mkdir(parents=True)
        for name in NEGATIVE_FILES:
            shutil.copyfile(pathlib.Path(folder) / name, unfinished / "new" / name)
        pool = read_negatives(unfinished / "new")
        output_folders.put_in_place(unfinished / "new", target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(
        f"{target}: {len(pool.captions):,} captions, {len(pool.object_names):,} object names, "
        f"{len(pool.answers_by_type):,} types of answers."
    )


def _parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.convert_tsv",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output_dir", required=True, help="where the records go")
    parser.add_argument("--split", default="train", help="of the TSV files (default: train)")
    columns = {
        "vision_language": "8 columns: id, image, caption, question, refs, objects, data set, type",
        "text": "2 columns: id, text",
        "images": "3 columns: id, image, 256 codes",
        "detection": "3 columns: id, image, objects",
    }
    for kind in PRETRAINING_FILES:
        parser.add_argument(
            f"--{kind}", nargs="+", metavar="TSV", help=f"files or quoted patterns; {columns[kind]}"
        )
        parser.add_argument(
            f"--{kind}_cols",
            metavar="COLUMNS",
            help="their places in a line, counted from 0, where they are others",
        )
    parser.add_argument(
        "--negative_samples",
        metavar="FOLDER",
        help=f"with {CAPTIONS_FILE}, {NAMES_FILE} and {ANSWERS_FILE}; is copied",
    )
    parser.add_argument(
        "--num_workers",
        type=int,
        default=os.cpu_count() or 1,
        help="processes; 0 converts in this one (default: one for each core)",
    )
    parser.add_argument(
        "--shard_megabytes",
        type=int,
        default=256,
        help="of TSV that become one output file (default: 256)",
    )
    parser.add_argument(
        "--no_image_check",
        action="store_true",
        help="do not decode images: faster, but unreadable ones are kept, and "
        "then skipped whenever training meets them",
    )
    parser.add_argument(
        "--index_dir", help="where the line indices of the TSV files go, if not beside them"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace what was converted from other files or with other options",
    )
    return parser


def _parse(arguments: Sequence[str]) -> dict[str, Any]:
    """Parses the command line and checks options against each other."""
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    if not any(options[kind] for kind in PRETRAINING_FILES) and not options["negative_samples"]:
        parser.error(
            f"nothing to convert: give --{', --'.join(PRETRAINING_FILES)} or --negative_samples"
        )
    if options["shard_megabytes"] < 1:
        parser.error("--shard_megabytes must be at least 1")
    return options


@user_command
def main(arguments: Sequence[str]) -> int:
    """Runs the command line; returns the exit code."""
    options = _parse(arguments)
    output_dir = pathlib.Path(options["output_dir"])
    # Everything is checked before the first file is written.
    plans = [
        _check(
            Conversion(
                kind,
                options["split"],
                tuple(options[kind]),
                options[f"{kind}_cols"],
                options["index_dir"],
                options["shard_megabytes"] * _MEGABYTE,
                not options["no_image_check"],
            ),
            output_dir,
            options["overwrite"],
        )
        for kind in PRETRAINING_FILES
        if options[kind]
    ]
    negatives = options["negative_samples"]
    if negatives and check_negatives(negatives, output_dir, options["overwrite"]):
        copy_negatives(negatives, output_dir)
    for plan in plans:
        _execute(plan, options["num_workers"])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
