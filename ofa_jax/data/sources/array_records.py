"""The official pretraining data, converted to ArrayRecord by `python -m tools.convert_tsv`.

    <data_dir>/<kind of file>/<split>/
        <kind>-<split>.array_record-00000-of-00004    serialised tf.train.Examples, in file order
        types.npy             uint8[N], of vision-language: the index of each record in PAIR_TYPES
        conversion.json       the source, and the number of records and of skipped lines by reason
        features.json, dataset_info.json              for tfds.builder_from_directory
    <data_dir>/negative_samples/                      all_captions.txt, object.txt, type2ans.json

The format is ArrayRecord, and not parquet as for Scenes, because it reads single records from disk;
a parquet column would have to fit into the memory of every process.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Integer, UInt8

from ofa_jax.data.sources.base import NoRecordsError
from ofa_jax.data.sources.example_message import example_class
from ofa_jax.data.sources.ofa_tsv import (
    FILE_OF_KIND,
    PRETRAINING_FILES,
    TYPES_OF_KIND,
    read_negatives,
)
from ofa_jax.data.sources.shards import (
    check_counts,
    complete_shards,
    damaged_record,
    stored_counts,
)
from ofa_jax.data.sources.tfds_parquet import parse_example
from ofa_jax.data.sources.tsv_columns import CAPTION, PAIR_TYPES, QUESTION, REGION
from ofa_jax.preprocessing.negatives import NegativePool
from ofa_jax.preprocessing.records import Record
from ofa_jax.utils import options, text_files
from ofa_jax.utils.decode_options import AS_STORED, DecodeOptions
from ofa_jax.utils.files import open_regular
from ofa_jax.utils.option_checks import checked
from ofa_jax.utils.wrong_files import check_placeholder

DESCRIPTION, TYPES, NEGATIVES = "conversion.json", "types.npy", "negative_samples"

_CONVERT_AGAIN = "convert the files again with `python -m tools.convert_tsv --overwrite`"

_PAIR = {"id": "string", "image": "bytes", "data_set": "string", "object_labels": "strings"}
FIELDS_OF_TYPE: Mapping[str, Mapping[str, str]] = {
    CAPTION: {**_PAIR, "captions": "strings"},
    QUESTION: {
        **_PAIR,
        "questions": "strings",
        "answers": "strings",
        "answer_confidences": "floats",
    },
    REGION: {**_PAIR, "phrases": "strings", "phrase_boxes": "boxes"},
}
"""The type of a vision-language record -> its fields and their kinds; see `tfds_parquet`."""

FIELDS_OF_FILE: Mapping[str, Mapping[str, str]] = {
    "vision_language": {
        name: kind for fields in FIELDS_OF_TYPE.values() for name, kind in fields.items()
    },
    "text": {"id": "string", "text": "string"},
    "images": {"id": "string", "image": "bytes", "codes": "ints"},
    "detection": {
        "id": "string",
        "image": "bytes",
        "object_labels": "strings",
        "object_boxes": "boxes",
    },
}
"""Kind of file -> all fields of its records and their kinds."""


def type_of(record: Record) -> str:
    """Returns the type of a vision-language record."""
    if "captions" in record:
        return CAPTION
    return QUESTION if "questions" in record else REGION


def serialise(record: Record, fields: Mapping[str, str]) -> bytes:
    """Serialises a record as a tf.train.Example with these fields; missing ones become empty."""
    example = example_class()()
    for name, kind in fields.items():
        feature, value = example.features.feature[name], record.get(name)
        if kind in ("string", "bytes"):
            value = b"" if value is None else value
            feature.bytes_list.value.append(value.encode() if isinstance(value, str) else value)
        elif kind == "strings":
            feature.bytes_list.value.extend(text.encode() for text in value or ())
        elif kind == "ints":
            feature.int64_list.value.extend([] if value is None else value.tolist())
        else:
            numbers = [] if value is None else np.asarray(value, np.float32).reshape(-1).tolist()
            feature.float_list.value.extend(numbers)
    # The order of the fields would be random, and the same records other bytes each time.
    return example.SerializeToString(deterministic=True)


@dataclasses.dataclass(frozen=True)
class ArrayRecords:
    """A RecordSource over one folder of ArrayRecord files.

    Attributes:
      directory: `<data_dir>/<kind of file>/<split>`.
      file_kind: a key of FIELDS_OF_FILE.
      types: only records of these types; all records if None.
    """

    directory: str
    file_kind: str
    types: tuple[str, ...] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @functools.cached_property
    def _source(self) -> Any:
        """The source of all records; it opens files lazily and is thread-safe."""
        folder = pathlib.Path(self.directory)
        paths = complete_shards(folder.glob("*.array_record-*-of-*"))
        if not paths:
            raise FileNotFoundError(
                f"There are no ArrayRecord files in {folder}: convert the files again with "
                "`python -m tools.convert_tsv`."
            )
        try:
            source = open_shards(paths)
        except RuntimeError:
            for path in paths:  # one by one, to name the damaged one
                _open_shard(path)
            raise
        stored = stored_counts(folder, folder.name)
        if stored is not None and (len(stored) != len(paths) or sum(stored) != len(source)):
            check_counts(paths, [len(_open_shard(path)) for path in paths], stored)
        if (expected := read_description(folder)["records"]) != len(source):
            raise ValueError(
                f"{folder} has {len(source):,} records, but {DESCRIPTION} says {expected:,}: "
                f"{_CONVERT_AGAIN}."
            )
        return source

    @functools.cached_property
    def _types(self) -> UInt8[np.ndarray, " stored"] | None:
        """The type of each record; None for files without types."""
        path = pathlib.Path(self.directory) / TYPES
        if not path.exists():
            return None
        count = len(self._source)  # may raise an error about the shards
        try:
            open_regular(path).close()
            types = np.load(path, mmap_mode="r", allow_pickle=False)
            valid = types.dtype == np.uint8 and types.shape == (count,)
        except (ValueError, EOFError, OSError, AttributeError) as error:
            raise text_files.DamagedFileError(
                f"{path} is damaged ({error}): {_CONVERT_AGAIN}."
            ) from error
        counts = np.bincount(types, minlength=len(PAIR_TYPES)).tolist() if valid else []
        expected = read_description(pathlib.Path(self.directory)).get("types")
        if not valid or (expected and counts != [expected.get(kind) for kind in PAIR_TYPES]):
            raise text_files.DamagedFileError(
                f"{path} does not fit the records or {DESCRIPTION}: {_CONVERT_AGAIN}."
            )
        return types

    @functools.cached_property
    def _numbers(self) -> Integer[np.ndarray, " records"] | range:
        """The numbers of the selected records in the folder, in 4 bytes each if that is enough."""
        if self.types is None:
            return range(len(self._source))
        if self._types is None:
            raise FileNotFoundError(
                f"There is no {TYPES} in {self.directory}, which lists the types of its records: "
                "convert the files again with `python -m tools.convert_tsv`."
            )
        selected = [PAIR_TYPES.index(kind) for kind in self.types]
        numbers = np.flatnonzero(np.isin(self._types, selected))
        return numbers.astype(np.uint32) if len(self._types) < 1 << 32 else numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"There is no record {index}: there are {len(self)}.")
        number = int(self._numbers[index])
        fields = FIELDS_OF_FILE[self.file_kind]
        if self._types is not None:
            fields = FIELDS_OF_TYPE[PAIR_TYPES[self._types[number]]]
        try:
            stored = self._source[number]
        except RuntimeError as error:  # the reader's, for any damage
            raise damaged_record(f"its stored bytes are damaged ({_shorten(error)})") from error
        return parse_example(stored, fields)

    def location(self, index: int) -> str:
        """Returns the folder and the number of a record, for messages."""
        return f"{self.directory}, record {int(self._numbers[index])}"


def open_shards(paths: Sequence[pathlib.Path]) -> Any:
    """Opens ArrayRecord files as one sequence. Raises RuntimeError for a damaged one."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    for path in paths:
        open_regular(path).close()
    return ArrayRecordDataSource(list(map(str, paths)))


def _shorten(error: RuntimeError) -> str:
    """Returns what the reader says without hashes, places and quoted bytes."""
    return str(error).partition(" (computed")[0].partition(";")[0].partition(", chunk")[0][:80]


def _open_shard(path: pathlib.Path) -> Any:
    """Opens a single file. Raises DamagedFileError."""
    try:
        return open_shards([path])
    except RuntimeError as error:
        check_placeholder(path)
        raise text_files.DamagedFileError(
            f"{path} is damaged, or no ArrayRecord file ({_shorten(error)}): copy it again, or "
            f"{_CONVERT_AGAIN}."
        ) from error


def read_description(folder: pathlib.Path) -> dict[str, Any]:
    """Reads conversion.json of a folder of records. Raises DamagedFileError."""
    description = text_files.read_json(folder / DESCRIPTION)
    types = description.get("types", {}) if isinstance(description, dict) else None
    if not isinstance(types, dict) or type(description.get("records")) is not int:
        raise text_files.DamagedFileError(
            f"{folder / DESCRIPTION} is not what a conversion writes: {_CONVERT_AGAIN}."
        )
    return description


@checked
@dataclasses.dataclass(frozen=True)
class OfaArrayRecords:
    """The converted files as a DataSet, with the same records as `OfaTsv`.

    Attributes:
      data_dir: the folder that `tools.convert_tsv` wrote; by default `ofa` in the environment's
        OFA_DATA_DIR, else in "data".
    """

    data_dir: options.Path | None = None

    decode_options: ClassVar[DecodeOptions] = AS_STORED
    """How its images are decoded, where a run says nothing else."""

    @property
    def directory(self) -> pathlib.Path:
        """The folder with the kinds of files."""
        if self.data_dir is not None:
            return pathlib.Path(self.data_dir)
        return pathlib.Path(os.environ.get("OFA_DATA_DIR") or "data") / "ofa"

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of any kind of file."""
        found = {
            path.parent.name
            for kind in PRETRAINING_FILES
            for path in (self.directory / kind).glob(f"*/{DESCRIPTION}")
            if not path.parent.name.startswith(".")
        }
        return tuple(sorted(found, key=lambda split: (split != "train", split)))

    def records(self, kind: str, split: str) -> ArrayRecords:
        """Returns the records of one of the kinds in `RECORD_FIELDS`.

        Raises:
          FileNotFoundError: no such records were converted; NoRecordsError, if others were.
          ValueError: there is no such kind, or no record of it.
        """
        if kind not in FILE_OF_KIND:
            raise ValueError(
                f"There is no kind of record {kind!r}: choose one of {', '.join(FILE_OF_KIND)}."
            )
        file_kind, types = FILE_OF_KIND[kind], TYPES_OF_KIND.get(kind)
        folder = self.directory / file_kind / split
        if not (folder / DESCRIPTION).is_file():
            error = NoRecordsError if split in self.splits else FileNotFoundError
            raise error(
                f"There are no {file_kind} records in {folder}: convert them with `python -m "
                f"tools.convert_tsv --output_dir={self.directory} --split={split} "
                f"--{file_kind} FILE.tsv`, or leave tasks out with PretrainingSettings.rates."
            )
        records = ArrayRecords(str(folder), file_kind, types)
        if not len(records):
            kinds = f" of type {' or '.join(types)}" if types else ""
            raise ValueError(
                f"{folder} has no records{kinds}: leave their tasks out with "
                "PretrainingSettings.rates."
            )
        return records

    def description(self, file_kind: str, split: str) -> dict[str, Any]:
        """Returns the content of conversion.json."""
        return read_description(self.directory / file_kind / split)

    def negatives(self) -> NegativePool:
        """Returns the negative samples; an empty pool if none were converted."""
        folder = self.directory / NEGATIVES
        return read_negatives(folder) if folder.is_dir() else NegativePool()
