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
        """Opens a split in the folder of a data set, `<data_dir>/<name>/.../<version>`."""
        paths = sorted(pathlib.Path(directory).glob(f"*-{split}.parquet-*-of-*"))
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
    """Parses the fields of a serialised tf.train.Example; a missing field becomes empty."""
    # TFDS has the message's definition without TensorFlow; it is imported late as it takes 0.3 s.
    from tensorflow_datasets.proto import tf_example_pb2

    stored = tf_example_pb2.Example.FromString(serialised).features.feature
    record: dict[str, Any] = {}
    for name, kind in fields.items():
        feature = stored[name]
        if kind == "bytes":
            record[name] = feature.bytes_list.value[0]
        elif kind == "string":
            record[name] = feature.bytes_list.value[0].decode()
        elif kind == "strings":
            record[name] = [value.decode() for value in feature.bytes_list.value]
        elif kind == "ints":
            record[name] = np.array(feature.int64_list.value, np.int32)
        else:
            values = np.array(feature.float_list.value, np.float32)
            record[name] = values.reshape(-1, 4) if kind == "boxes" else values.tolist()
    return record


_READ_LOCK = threading.Lock()


def _column(paths: tuple[str, ...]) -> Any:
    """Returns the column `data` of all files, in memory; one thread reads it for all threads."""
    with _READ_LOCK:
        return _read_column(paths)


@functools.lru_cache(maxsize=16)
def _read_column(paths: tuple[str, ...]) -> Any:
    """Reads the column `data` of all files into one array."""
    import pyarrow
    import pyarrow.parquet

    # With 64-bit offsets one array may hold more than 2 GB.
    schema = pyarrow.schema([("data", pyarrow.large_binary())])
    tables = [pyarrow.parquet.read_table(path, columns=["data"]).cast(schema) for path in paths]
    return pyarrow.concat_tables(tables).column(0).combine_chunks()
