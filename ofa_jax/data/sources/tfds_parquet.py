"""Records of a TFDS data set that is stored as parquet, with random access and no TensorFlow.

TFDS's parquet files have a single column `data`, whose rows are serialised tf.train.Examples. This
source parses them to plain Python and numpy values. The files of a data set are read once per
process, however many sources use them, and a source pickles as its paths.
"""

import dataclasses
import functools
import pathlib
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from ofa_jax.data.sources.example_message import example_class
from ofa_jax.data.sources.shards import (
    check_counts,
    complete_shards,
    damaged_record,
    stored_counts,
)
from ofa_jax.utils import text_files
from ofa_jax.utils.files import open_regular
from ofa_jax.utils.wrong_files import check_placeholder

FIELD_KINDS = ("string", "strings", "bytes", "floats", "boxes", "ints")
"""How a field is parsed: str, list[str], bytes, list[float], float32[n, 4], or int32[n]."""


@dataclasses.dataclass(frozen=True)
class TfdsParquetRecords:
    """A RecordSource over the parquet files of one split.

    Attributes:
      paths: the files in the order of their shards.
      fields: the fields to read, as (name, one of FIELD_KINDS).
    """

    paths: tuple[str, ...]
    fields: tuple[tuple[str, str], ...]

    @classmethod
    def from_directory(
        cls, directory: str | pathlib.Path, split: str, fields: Mapping[str, str]
    ) -> "TfdsParquetRecords":
        """Opens a split in the folder of a data set, `<data_dir>/<name>/.../<version>`.

        Raises:
          FileNotFoundError: there is no such split, or a shard of it is missing.
          ValueError: shards of different sets are there.
        """
        paths = complete_shards(pathlib.Path(directory).glob(f"*-{split}.parquet-*-of-*"))
        if not paths:
            raise FileNotFoundError(
                f"There are no parquet files of a split {split!r} in {directory}: build the data "
                "set with file_format='parquet', or choose another split."
            )
        return cls(tuple(map(str, paths)), tuple(fields.items()))

    def __len__(self) -> int:
        return len(_column(self.paths))

    def __getitem__(self, index: int) -> dict[str, Any]:
        count = len(self)
        if not 0 <= index < count:
            raise IndexError(f"There is no record {index}: the split has {count} records.")
        return parse_example(_column(self.paths)[int(index)].as_py(), dict(self.fields))


def parse_example(serialised: bytes, fields: Mapping[str, str]) -> dict[str, Any]:
    """Parses the fields of a serialised tf.train.Example; a missing field becomes empty.

    Raises:
      InvalidRecordError: the bytes are damaged, or there is no image where one is wanted.
    """
    try:
        stored = example_class().FromString(serialised).features.feature
    except Exception as error:  # noqa: BLE001  protobuf's own error, without depending on protobuf
        raise damaged_record("its stored bytes are not a tf.train.Example") from error
    return {name: _parse_feature(stored[name], name, kind) for name, kind in fields.items()}


def _parse_feature(feature: Any, name: str, kind: str) -> Any:
    """Parses a feature of a tf.train.Example as one of FIELD_KINDS."""
    texts = feature.bytes_list.value
    try:
        if kind == "bytes":
            if not texts:
                raise damaged_record(f"its stored bytes have no {name}")
            return texts[0]
        if kind == "string":
            return texts[0].decode() if texts else ""
        if kind == "strings":
            return [value.decode() for value in texts]
        if kind == "ints":
            return np.array(feature.int64_list.value, np.int32)
    except (UnicodeDecodeError, OverflowError) as error:
        raise damaged_record(f"its {name} is damaged ({type(error).__name__})") from error
    values = np.array(feature.float_list.value, np.float32)
    if kind != "boxes":
        return values.tolist()
    if len(values) % 4:
        raise damaged_record(f"its {name} are not four numbers each")
    return values.reshape(-1, 4)


_READ_LOCK = threading.Lock()


def _column(paths: tuple[str, ...]) -> Any:
    """Returns the column `data` of all files, in memory; one thread reads it for all threads."""
    with _READ_LOCK:
        return _read_column(paths)


@functools.lru_cache(maxsize=16)
def _read_column(paths: tuple[str, ...]) -> Any:
    """Reads the column `data` of all files into one array.

    Raises:
      DamagedFileError: a file is damaged, or not Parquet of TFDS.
      ValueError: a file has another number of records than TFDS stored.
    """
    import pyarrow

    tables = [_read_table(path) for path in paths]
    files = list(map(pathlib.Path, paths))
    if (split := _split_of(files[0])) is not None:
        stored = stored_counts(files[0].parent, split)
        check_counts(files, [table.num_rows for table in tables], stored)
    return pyarrow.concat_tables(tables).column(0).combine_chunks()


def _read_table(path: str) -> Any:
    """Reads the column `data` of one file. Raises DamagedFileError."""
    import pyarrow
    import pyarrow.parquet

    # With 64-bit offsets one array may hold more than 2 GB.
    schema = pyarrow.schema([("data", pyarrow.large_binary())])
    try:
        open_regular(path).close()
        # Not read_table, which imports pandas.
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            return file.read(columns=["data"]).cast(schema)
    except FileNotFoundError:
        raise
    # A damaged file may make it raise anything; ArrowInvalid and OSError are the usual ones.
    except Exception as error:
        check_placeholder(path)
        problem = " ".join(str(error).split())
        raise text_files.DamagedFileError(
            f"{path} is damaged, or not a Parquet file of TFDS ({problem}): copy it again, or "
            "build the data set again."
        ) from error


def _split_of(path: pathlib.Path) -> str | None:
    """Returns the split in the name of a file, `<name>-<split>.parquet-00000-of-00001`."""
    name, separator, _ = path.name.rpartition(".parquet-")
    return name.rpartition("-")[2] if separator else None
