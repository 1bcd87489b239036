"""The job `convert_tsv`: the official pretraining TSV files to ArrayRecord.

It writes what `python -m tools.convert_tsv` writes, `<output_dir>/<kind>/<split>/`, which
OfaArrayRecords reads, and the dead letters beside it.
"""

import argparse
import base64
import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from ofa_jax.data.sources import array_record_writer
from ofa_jax.data.sources.ofa_tsv import PRETRAINING_FILES
from ofa_jax.data.sources.tsv_conversion import Conversion
from ofa_jax.data.sources.tsv_records import TsvRecords
from ofa_jax.jobs.outputs import DeadLetters, JobOutput, Manifest
from ofa_jax.preprocessing.records import InvalidRecordError, Record

__all__ = ["ConvertTsv", "add_arguments", "prepare"]

_MEGABYTE = 1 << 20


@dataclasses.dataclass(frozen=True)
class ConvertTsv:
    """The job; see `pipeline.Job`.

    Attributes:
      conversion: which files are converted, and how.
      records: the opened files.
    """

    conversion: Conversion
    records: TsvRecords

    def open(self) -> TsvRecords:
        """Opens the files."""
        len(self.records)
        return self.records

    def write(
        self,
        opened: TsvRecords,
        numbers: range,
        path: pathlib.Path,
        letters: DeadLetters,
        details: dict[str, Any],
    ) -> None:
        """Converts the lines of some numbers."""

        def read() -> Iterator[Record]:
            for number in numbers:
                try:
                    yield self.conversion.read(opened, number)
                except InvalidRecordError as error:
                    letters.add(opened.location(number), number, error)

        written = array_record_writer.write_shard(path, self.conversion.file_kind, read())
        details |= {
            "records": written.records,
            "num_bytes_of_records": written.num_bytes,
            "types": base64.b64encode(written.types).decode(),
        }

    def identity(self) -> dict[str, Any]:
        """Returns what the output depends on, JSON."""
        return {
            "job": "convert_tsv",
            "file_kind": self.conversion.file_kind,
            "split": self.conversion.split,
            **self.conversion.identity(self.records),
        }

    def finish(self, output: JobOutput, manifests: list[Manifest], summary: dict[str, Any]) -> dict:
        """Gives the files their final names, and describes them; returns file -> SHA-256."""
        kind, split = self.conversion.file_kind, self.conversion.split

        def named(number: int, count: int) -> str:
            return array_record_writer.shard_name(kind, split, number, count)

        kept = output.rename(manifests, named)
        written = [
            array_record_writer.WrittenShard(
                m.records, m.details["num_bytes_of_records"], base64.b64decode(m.details["types"])
            )
            for m in kept
        ]
        source = self.conversion.identity(self.records) | summary
        folder = pathlib.Path(output.directory)
        array_record_writer.write_description(folder, kind, split, written, source)
        return {named(n, len(kept)): m.sha256 for n, m in enumerate(kept)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the job's arguments."""
    parser.add_argument(
        "--input", nargs="+", required=True, help="TSV files or quoted patterns of one kind"
    )
    parser.add_argument("--kind", required=True, choices=PRETRAINING_FILES, help="of the files")
    parser.add_argument("--selected_cols", help="as the official flag of that name")
    parser.add_argument(
        "--shard_megabytes", type=float, default=256, help="of TSV in one file (default: 256)"
    )
    parser.add_argument(
        "--no_image_check",
        action="store_true",
        help="do not decode images, which is faster; training then finds what cannot be opened",
    )
    parser.add_argument("--index_dir", help="where indices of TSV files go, if not beside them")


def prepare(options: argparse.Namespace) -> tuple[ConvertTsv, list[int], str]:
    """Checks the arguments, and opens the files; returns as `encode_images.prepare`.

    Raises:
      FileNotFoundError, ValueError: a sentence for the user.
    """
    if not re.fullmatch(r"\w+", options.split):
        raise ValueError(
            f"--split={options.split}: the name of a split has letters, digits and underscores."
        )
    if not options.shard_megabytes > 0:
        raise ValueError(f"--shard_megabytes is {options.shard_megabytes}; give more than 0.")
    conversion = Conversion(
        options.kind,
        options.split,
        tuple(options.input),
        options.selected_cols,
        options.index_dir,
        max(1, int(options.shard_megabytes * _MEGABYTE)),
        not options.no_image_check,
    )
    records = conversion.open()
    directory = os.path.join(options.output_dir, options.kind, options.split)
    return ConvertTsv(conversion, records), conversion.shard_bounds(records), directory
