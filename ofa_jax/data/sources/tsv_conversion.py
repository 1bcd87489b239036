"""One kind of the official TSV files, read record by record for its conversion to ArrayRecord."""

import dataclasses
import os

import numpy as np

from ofa_jax.data.sources.tsv_records import TsvRecords
from ofa_jax.preprocessing import images
from ofa_jax.preprocessing.records import InvalidRecordError, Record
from ofa_jax.utils.bad_input import as_invalid_record

_MEGABYTE = 1 << 20


@dataclasses.dataclass(frozen=True)
class Conversion:
    """One kind of file of one split.

    Attributes:
      file_kind: one of PRETRAINING_FILES.
      split: e.g. "train".
      paths: of the TSV files, or patterns.
      selected_cols: as the official flag of that name; the usual columns when None.
      index_dir: where indices of the TSV files go; None for beside them.
      shard_bytes: of TSV that make one output file.
      check_images: whether images are decoded, to leave out what cannot be.
    """

    file_kind: str
    split: str
    paths: tuple[str, ...]
    selected_cols: str | None = None
    index_dir: str | None = None
    shard_bytes: int = 256 * _MEGABYTE
    check_images: bool = True

    def open(self) -> TsvRecords:
        """Opens every line of the files, checked as in training."""
        return TsvRecords.open(self.paths, self.file_kind, self.selected_cols, self.index_dir)

    def identity(self, records: TsvRecords) -> dict:
        """Returns what the result depends on."""
        stats = {file.path: os.stat(file.path) for file in records.files}
        return {
            "sources": [
                {"path": os.path.abspath(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
                for path, stat in stats.items()
            ],
            "selected_cols": list(records.selected_cols),
            "shard_bytes": self.shard_bytes,
            "check_images": self.check_images,
        }

    def read(self, records: TsvRecords, index: int) -> Record:
        """Reads a record. Raises InvalidRecordError if it cannot be used."""
        try:
            record = records[index]
            if self.check_images and "image" in record:
                _check_image(record["image"], records, index)
            return record
        except Exception as error:  # noqa: BLE001  one odd line must not end the conversion
            raise as_invalid_record(
                error, f"{records.location(index)}: it cannot be read"
            ) from error

    def shard_bounds(self, records: TsvRecords) -> list[int]:
        """Returns where the output files begin and end: their number and 1 of record numbers."""
        size = sum(os.path.getsize(file.path) for file in records.files)
        count = max(1, min(len(records), -(-size // self.shard_bytes)))
        return np.linspace(0, len(records), count + 1).astype(int).tolist()


def _check_image(encoded: bytes, records: TsvRecords, index: int) -> None:
    try:
        images.decode(encoded, images.AS_STORED)
    except InvalidRecordError as error:
        raise InvalidRecordError(f"{records.location(index)}: {error}", error.reason) from error
