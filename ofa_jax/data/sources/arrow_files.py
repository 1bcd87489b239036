"""Parquet files, and what Hugging Face `datasets` saved (`save_to_disk`), read with pyarrow.

    ArrowData.files = 'my_dataset'              what `save_to_disk` wrote: Arrow files
    ArrowData.files = 'data/train-*.parquet'    Parquet shards, as repositories of the hub have them

Arrow files are memory-mapped. Parquet has no access to single rows, so a Parquet file is rewritten
once to an Arrow file beside it (or in `index_dir`), which all processes share. The package
`datasets` is not needed, nothing is fetched, and no code that a data set brings is run. Images are
bytes, paths, or the structs of `datasets`; numbers of classes get their names from its metadata.
"""

import dataclasses
import errno
import functools
import json
import os
import pathlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Integer

from ofa_jax.data.sources.arrow_folders import (
    DATASET_DICT,
    STATE,
    complete_shards_of,
    partition_of,
    saved_files,
    saved_splits,
    splits_of_folder,
)
from ofa_jax.data.sources.base import WrongDataOptionError
from ofa_jax.data.sources.derived_files import UNWRITABLE, make_derived_file
from ofa_jax.data.sources.field_table import FieldTable, Row
from ofa_jax.data.sources.file_patterns import (
    ARROW_SUFFIX,
    Files,
    find_files,
    splits_of,
)
from ofa_jax.data.sources.shards import damaged_record
from ofa_jax.data.sources.table_rows import JoinedRows, Rows
from ofa_jax.data.sources.tables import TableDataSet
from ofa_jax.utils import options, progress, text_files
from ofa_jax.utils.files import open_regular
from ofa_jax.utils.option_checks import checked
from ofa_jax.utils.wrong_files import check_placeholder, shorten

CACHE_SUFFIX = ARROW_SUFFIX
_BATCH_ROWS = 256
_METADATA = b"huggingface"
_LISTS = ("Sequence", "List", "LargeList")


@dataclasses.dataclass(frozen=True)
class ArrowRows:
    """The rows of one Arrow file, memory-mapped.

    Attributes:
      path: of an Arrow file, in the format of streams or of files.
      shown: the path as it was given.
      image_folder: that paths of images are relative to.
      partition: the names and values of its folders, such as `language=en`: columns that
        partitioned data sets do not store in the file.
    """

    path: str
    shown: str
    image_folder: str
    partition: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """The path of the file as it was given."""
        return self.shown

    @property
    def _table(self) -> Any:
        with _OPEN_LOCK:
            return _open(self.path, self.shown)

    def __len__(self) -> int:
        return self._table.num_rows

    def folder_of(self, index: int) -> str:
        """Returns the folder that paths of images are relative to."""
        del index
        return self.image_folder

    def location(self, index: int) -> str:
        """Returns the file and the number of a row."""
        return f"{self.shown}, row {index}"

    def row(self, index: int, fields: Sequence[str] | None = None) -> Row:
        """Reads a row. Raises InvalidRecordError if its stored bytes are damaged."""
        table = self._table
        if fields is not None:
            table = table.select([name for name in fields if name in table.column_names])
        # One row of one file, checked in full: an offset of a damaged file may lead anywhere.
        try:
            part = table.slice(index, 1)
            part.validate(full=True)
            return {**dict(self.partition), **part.to_pylist()[0]}
        except Exception as error:  # pyarrow's own errors have several bases
            raise damaged_record(
                f"its stored bytes are damaged ({shorten(' '.join(str(error).split()))})"
            ) from error

    def select(self, needed: Sequence[Sequence[str]]) -> Integer[np.ndarray, " rows"] | None:
        """Returns all rows, where the file has all columns of one of the sets, or none."""
        names = set(self._table.column_names) | set(dict(self.partition))
        sets = [
            [name if name in names else name.split(".")[0] for name in wanted] for wanted in needed
        ]
        fitting = [wanted for wanted in sets if names.issuperset(wanted)]
        if not fitting:
            return np.zeros(0, np.uint32)
        valid = np.zeros(len(self), bool)
        for wanted in fitting:
            own = np.ones(len(self), bool)
            for name in set(wanted) & set(self._table.column_names):
                column = self._table.column(name)
                if column.null_count:
                    own &= column.is_valid().to_numpy()
            valid |= own
        return None if valid.all() else np.flatnonzero(valid).astype(np.uint32)

    def class_names(self) -> Mapping[str, tuple[str, ...]]:
        """Returns column -> the names of its classes, which `datasets` stores in the schema."""
        metadata = self._table.schema.metadata or {}
        try:
            found = json.loads(metadata.get(_METADATA, b"{}"))["info"]["features"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return {}
        return dict(_class_labels(found)) if isinstance(found, dict) else {}


def _class_labels(
    features: Mapping[str, Any], prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yields the columns whose values are numbers of classes, with the names of these."""
    for name, feature in features.items():
        while isinstance(feature, dict) and feature.get("_type") in _LISTS:
            feature = feature.get("feature")
        while isinstance(feature, list) and feature:
            feature = feature[0]
        if not isinstance(feature, dict) or depth > 8:
            continue
        names = feature.get("names")
        if feature.get("_type") == "ClassLabel" and isinstance(names, list):
            yield prefix + name, tuple(map(str, names))
        elif "_type" not in feature:
            yield from _class_labels(feature, f"{prefix}{name}.", depth + 1)


_OPEN_LOCK = threading.Lock()


@functools.lru_cache(maxsize=4096)
def _open(path: str, shown: str) -> Any:
    """Memory-maps an Arrow file. Raises DamagedFileError."""
    import pyarrow

    try:
        open_regular(path).close()
        source = pyarrow.memory_map(path)
        try:
            table = pyarrow.ipc.open_stream(source).read_all()
        except pyarrow.ArrowInvalid:  # the format of files, which Feather is too
            source.seek(0)
            table = pyarrow.ipc.open_file(source).read_all()
        table.validate()
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file may make pyarrow raise anything
        check_placeholder(path)
        problem = shorten(" ".join(str(error).split()))
        raise text_files.DamagedFileError(
            f"{shown} is damaged, or no Arrow file ({problem}): copy it again."
        ) from error
    _refuse_double_columns(shown, table.column_names)
    return table


def _refuse_double_columns(path: str, names: Sequence[str]) -> None:
    """Raises WrongDataOptionError if two columns have the same name."""
    if double := sorted({name for name in names if names.count(name) > 1}):
        raise WrongDataOptionError(
            f"{path} has several columns called {', '.join(map(shorten, double))}: rename them."
        )


def rewrite(path: str, index_dir: str | None) -> str:
    """Writes the rows of a Parquet file to an Arrow file, unless that is done; returns its path.

    Raises:
      DamagedFileError: the file is damaged.
      OSError: there is no such file, or the other one cannot be written.
    """
    write = functools.partial(_rewrite_to, path)
    return make_derived_file(path, index_dir, CACHE_SUFFIX, f"The rows of {path}", write)


def _rewrite_to(path: str, target: epath.Path) -> None:
    """Writes the rows of a Parquet file to an Arrow file, batch by batch."""
    import pyarrow
    import pyarrow.parquet

    try:
        open_regular(path).close()
        file = pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)
        schema = _large(file.schema_arrow)
        _refuse_double_columns(path, schema.names)
        with (
            progress.substage(f"unpacking {path}", file.metadata.num_rows, "rows") as stage,
            pyarrow.OSFile(str(target), "wb") as sink,
            pyarrow.ipc.new_stream(sink, schema) as writer,
        ):
            for batch in file.iter_batches(_BATCH_ROWS):
                table = pyarrow.Table.from_batches([batch]).cast(schema)
                writer.write_table(table)
                stage.advance(batch.num_rows)
    except WrongDataOptionError:
        raise
    except Exception as error:  # a damaged file may make pyarrow raise anything
        if getattr(error, "errno", None) in (errno.ENOENT, *UNWRITABLE):
            raise
        check_placeholder(path)
        problem = shorten(" ".join(str(error).split()))
        raise text_files.DamagedFileError(
            f"{path} is damaged, or no Parquet file ({problem}): copy it again."
        ) from error


def _large(schema: Any) -> Any:
    """Returns a schema without dictionaries, which a stream would have to replace."""
    import pyarrow

    fields = [
        field.with_type(field.type.value_type) if pyarrow.types.is_dictionary(field.type) else field
        for field in schema
    ]
    return pyarrow.schema(fields, schema.metadata)


# ------------------------------------------------------------------------------------ the data set


@checked
@dataclasses.dataclass(frozen=True)
class ArrowData(TableDataSet):
    """Parquet files, or what `save_to_disk` of Hugging Face `datasets` wrote.

    Attributes:
      files: a folder that `save_to_disk` wrote; a folder, a path or a pattern of Parquet or Arrow
        files, or a list of them; or a dict from split to any of these. The splits of a folder are
        those that `save_to_disk` names in it, or those of the names of its Parquet files,
        "train-00000-of-00002.parquet".
      image_folder: that paths of images are relative to; None for the folder of each file.
      data_dir: the folder that `files` and `image_folder` are relative to.
      index_dir: the folder of rewritten Parquet files; None for that of the files.
    """

    files: Files
    image_folder: options.Path | None = None
    data_dir: options.Folder = ""
    index_dir: options.Path | None = None

    @functools.cached_property
    def _by_split(self) -> Files:
        """Split -> what was given for it; a single folder is looked into."""
        if not isinstance(self.files, str):
            return self.files
        folder = pathlib.Path(self.data_dir, self.files)
        if (folder / DATASET_DICT).is_file():
            names = saved_splits(folder)
            return {name: os.path.join(self.files, name) for name in names}
        if folder.is_dir() and not (folder / STATE).is_file():
            return splits_of_folder(folder, self.files) or self.files
        return self.files

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def splits(self) -> Sequence[str]:
        """The names of the splits."""
        return splits_of(self._by_split)

    def rows(self, split: str) -> Rows:
        """Opens the rows of a split."""
        by_split = self._by_split
        given = by_split[split] if isinstance(by_split, Mapping) else by_split
        paths: list[str] = []
        for name in [given] if isinstance(given, str) else given:
            folder = pathlib.Path(self.data_dir, name)
            if (folder / STATE).is_file():
                paths += saved_files(folder)
            else:
                found = find_files(
                    "ArrowData", {split: name}, split, self.data_dir, (".parquet", ".arrow")
                )
                if not folder.is_file():
                    complete_shards_of(found)
                paths += found
        return JoinedRows(tuple(map(self._open, paths)))

    def _open(self, path: str) -> ArrowRows:
        is_parquet = path.endswith(".parquet") or _begins_with(path, b"PAR1")
        stored = rewrite(path, self.index_dir) if is_parquet else path
        folder = os.path.dirname(path)
        if self.image_folder is not None:
            folder = os.path.join(self.data_dir, self.image_folder)
        return ArrowRows(stored, path, folder or ".", partition_of(path))

    def table_of(self, rows: Rows) -> FieldTable:
        """Returns the table, with the names of classes that the files know."""
        if self.class_names is not None or not isinstance(rows, JoinedRows):
            return self.table
        known = rows.parts[0].class_names()
        table = self.table
        for field in ("object_labels", "label", "phrases"):
            if names := known.get(table.source_of(field)):
                return dataclasses.replace(table, class_names=names)
        return table

    def object_names(self) -> tuple[str, ...]:
        """Returns the names of the classes."""
        if self.class_names is None:
            return self.table_of(self.rows("train")).class_names
        return tuple(self.class_names)


def _begins_with(path: str, magic: bytes) -> bool:
    with open_regular(path) as file:
        return file.read(len(magic)) == magic
