"""Records in seqio's offline caches, with random access: what `cache_tasks` or seqio has written.

    <directory>/<task>/<split>.tfrecord-00002-of-00004     tf.train.Examples, see `RECORD_SIGNATURE`
    <directory>/<task>/info.<split>.json, stats.<split>.json
    <directory>/<task>/COMPLETED                           written last

A TFRecord file has no index, but each record begins with its length: the first access goes over the
file once, from length to length.
"""

import dataclasses
import functools
import os
import pathlib
import struct
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ofa_jax.data.sources.ofa_tsv import read_negatives
from ofa_jax.data.sources.shards import complete_shards, damaged_record
from ofa_jax.data.sources.tfds_parquet import parse_example
from ofa_jax.preprocessing.negatives import NegativePool
from ofa_jax.preprocessing.records import RECORD_FIELDS, Record
from ofa_jax.utils import options, text_files
from ofa_jax.utils.decode_options import AS_STORED, DecodeOptions
from ofa_jax.utils.files import open_regular
from ofa_jax.utils.option_checks import checked

__all__ = ["CachedRecords", "CachedTasks"]

_KINDS: Mapping[str, str] = {
    "id": "string",
    "image": "bytes",
    "data_set": "string",
    "text": "string",
    "summary": "string",
    "label": "string",
    "codes": "ints",
    "answer_confidences": "floats",
    "reference_confidences": "floats",
    "phrase_boxes": "boxes",
    "true_phrase_boxes": "boxes",
    "object_boxes": "boxes",
    "captions": "strings",
    "negative_captions": "strings",
    "questions": "strings",
    "answers": "strings",
    "answer_types": "strings",
    "reference_answers": "strings",
    "phrases": "strings",
    "true_phrases": "strings",
    "object_labels": "strings",
}
"""Field of a record -> its kind, see `tfds_parquet`; other fields are texts."""

_HEADER, _AFTER = struct.Struct("<QI"), 4
"""Length and its checksum before a record; the checksum of the record after it."""


@dataclasses.dataclass(frozen=True)
class CachedRecords:
    """A RecordSource over one split of a cached task.

    Attributes:
      directory: of the task.
      split: of its data.
    """

    directory: str
    split: str

    def __getstate__(self) -> dict[str, str]:
        return {"directory": self.directory, "split": self.split}

    @functools.cached_property
    def _paths(self) -> list[pathlib.Path]:
        folder = pathlib.Path(self.directory)
        return complete_shards(folder.glob(f"{self.split}.tfrecord-*-of-*"))

    @functools.cached_property
    def _places(self) -> np.ndarray:
        """int64 [N, 3]: the file, offset and length of each record.

        Raises:
          DamagedFileError: a file is cut off, or has not as many records as were written.
        """
        found = [
            (number, *place)
            for number, path in enumerate(self._paths)
            for place in _record_places(path)
        ]
        stats = text_files.read_json(pathlib.Path(self.directory) / f"stats.{self.split}.json")
        expected = stats.get("examples") if isinstance(stats, dict) else None
        if expected != len(found):
            raise text_files.DamagedFileError(
                f"{self.directory} has {len(found):,} records of the split {self.split}, but "
                f"{expected} were written: cache the task again."
            )
        return np.array(found, np.int64).reshape(-1, 3)

    @functools.cached_property
    def fields(self) -> dict[str, str]:
        """The fields of the records and their kinds."""
        info = text_files.read_json(pathlib.Path(self.directory) / f"info.{self.split}.json")
        features = info.get("features") if isinstance(info, dict) else None
        if not isinstance(features, dict):
            raise text_files.DamagedFileError(
                f"{self.directory}/info.{self.split}.json is damaged: cache the task again."
            )
        return {name: _KINDS.get(name, "string") for name in features if not name.startswith("_")}

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"There is no record {index}: there are {len(self)}.")
        file, offset, length = self._places[index].tolist()
        with open_regular(self._paths[file]) as opened:
            opened.seek(offset)
            data = opened.read(length)
        if len(data) < length:
            raise damaged_record("its file has become shorter since it was opened")
        record = parse_example(data, self.fields)
        return {name: value for name, value in record.items() if not _is_empty(value)}

    def location(self, index: int) -> str:
        """Returns the folder, the split and the number of a record, for messages."""
        return f"{self.directory}, {self.split}, record {index}"


def _is_empty(value: Any) -> bool:
    """Returns whether a field is as one that the record lacked."""
    return len(value) == 0


def _record_places(path: pathlib.Path) -> list[tuple[int, int]]:
    """Returns the offset and the length of each record of a TFRecord file."""
    places, offset, size = [], 0, os.path.getsize(path)
    with open_regular(path) as file:
        while offset < size:
            file.seek(offset)
            header = file.read(_HEADER.size)
            length = _HEADER.unpack(header)[0] if len(header) == _HEADER.size else size
            if offset + _HEADER.size + length + _AFTER > size:
                raise text_files.DamagedFileError(
                    f"{path} is cut off or damaged: cache the task again."
                )
            places.append((offset + _HEADER.size, length))
            offset += _HEADER.size + length + _AFTER
    return places


@checked
@dataclasses.dataclass(frozen=True)
class CachedTasks:
    """The cached pretraining tasks as a DataSet, with the records that they were cached from.

    Attributes:
      directory: the `--output_dir` of `cache_tasks`, or the `--output_cache_dir` of seqio.
      negative_samples: the folder with all_captions.txt, object.txt and type2ans.json, which
        image-text matching needs where its records have no false captions.
    """

    directory: options.Path
    negative_samples: options.Path | None = None

    decode_options: ClassVar[DecodeOptions] = AS_STORED
    """How its images are decoded, where a run says nothing else."""

    def _tasks(self) -> list[pathlib.Path]:
        """Returns the folders of complete caches."""
        return sorted(path.parent for path in pathlib.Path(self.directory).glob("*/COMPLETED"))

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of any task."""
        names = {
            path.name.removeprefix("info.").removesuffix(".json")
            for folder in self._tasks()
            for path in folder.glob("info.*.json")
        }
        return tuple(sorted(names, key=lambda split: (split != "train", split)))

    def records(self, kind: str, split: str) -> CachedRecords:
        """Returns the records of one of the kinds in `RECORD_FIELDS`.

        Raises:
          FileNotFoundError: no task with such records was cached.
          ValueError: there is no such kind.
        """
        if kind not in RECORD_FIELDS:
            raise ValueError(
                f"There is no kind of record {kind!r}: choose one of {', '.join(RECORD_FIELDS)}."
            )
        for folder in self._tasks():
            records = CachedRecords(str(folder), split)
            if (folder / f"info.{split}.json").is_file():
                if set(records.fields) == set(RECORD_FIELDS[kind]):
                    return records
        raise FileNotFoundError(
            f"{self.directory} has no cached task with {kind} and the split {split}: cache one "
            "with `python -m ofa_jax.jobs cache_tasks`, or leave tasks out with "
            "PretrainingSettings.rates."
        )

    def negatives(self) -> NegativePool:
        """Returns the negative samples; an empty pool without a folder of them."""
        return read_negatives(self.negative_samples) if self.negative_samples else NegativePool()
