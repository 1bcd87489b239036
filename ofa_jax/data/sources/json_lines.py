"""JSON lines with image paths.

    {"image": "images/0.jpg", "captions": ["a red apple", "an apple"]}

A JSON line is one record, its fields as in `preprocessing.records`, or as `fields` says. A file is
read in any order through the line index of `tsv_index`; one that ends in `.gz` is unpacked once, to
a file beside it. Boxes are in pixels, unless `box_format` and `relative_boxes` say otherwise.
"""

import dataclasses
import errno
import functools
import gzip
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Integer

from ofa_jax.data.sources.derived_files import make_derived_file
from ofa_jax.data.sources.field_table import Row, has_value
from ofa_jax.data.sources.file_patterns import UNPACKED_SUFFIX, Files, find_files, splits_of
from ofa_jax.data.sources.table_rows import JoinedRows, Rows
from ofa_jax.data.sources.tables import TableDataSet
from ofa_jax.data.sources.tsv_file import OpenTsv, TsvFile
from ofa_jax.preprocessing.records import InvalidRecordError
from ofa_jax.utils import options, progress, strict_json
from ofa_jax.utils.bad_input import Treatment, declare
from ofa_jax.utils.files import open_regular
from ofa_jax.utils.option_checks import checked
from ofa_jax.utils.text_files import DamagedFileError

BAD_JSON = declare(
    "bad JSON line",
    Treatment.SKIPPED,
    "The line is not a JSON object in UTF-8, is nested too deeply, has numbers that are not "
    "finite, or has a field twice, of which nobody knows which one is meant.",
    __name__,
)
_SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
_MAX_LINE_BYTES = 256 << 20
_UNKNOWN = np.uint16(np.iinfo(np.uint16).max)
_PART_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class JsonRows:
    """The lines of one file.

    Attributes:
      path: of the file, unpacked.
      shown: the path as it was given.
      image_folder: that paths are relative to.
      index_dir: the folder of the line index; None for that of the file.
    """

    path: str
    shown: str
    image_folder: str
    index_dir: str | None = None

    @property
    def name(self) -> str:
        """The path of the file as it was given."""
        return self.shown

    @functools.cached_property
    def _lines(self) -> OpenTsv:
        return TsvFile(self.path, None, self.index_dir, skip_blank=True).open()

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __len__(self) -> int:
        return len(self._lines)

    def folder_of(self, index: int) -> str:
        """Returns the folder that paths of images are relative to."""
        del index
        return self.image_folder

    def row(self, index: int, fields: Sequence[str] | None = None) -> Row:
        """Parses a line. Raises InvalidRecordError if it is not a JSON object."""
        del fields
        if (size := self._lines.num_bytes(index)) > _MAX_LINE_BYTES:
            raise InvalidRecordError(f"its line has {size:,} bytes", BAD_JSON)
        return parse_line(self._lines.line(index))

    def location(self, index: int) -> str:
        """Returns the file and the line as an editor shows it."""
        return f"{self.shown}, line {self._lines.line_number(index)}"

    def select(self, needed: Sequence[Sequence[str]]) -> Integer[np.ndarray, " rows"] | None:
        """Returns the lines that have all fields of one of the sets, and the damaged ones."""
        status = os.stat(self.path)
        codes, present = _scan(self, status.st_size, status.st_mtime_ns, status.st_ino)
        fitting = [
            code
            for code, names in enumerate(present)
            if any(all(_top(name, names) in names for name in wanted) for wanted in needed)
        ]
        if len(fitting) == len(present):
            return None
        numbers = np.flatnonzero(np.isin(codes, fitting) | (codes == _UNKNOWN))
        # Damaged lines alone are no records of the kind.
        return numbers.astype(np.uint32) if fitting else numbers[:0]


def _top(name: str, names: frozenset[str]) -> str:
    """Returns the field of a line that a name with dots leads into."""
    return name if name in names else name.split(".")[0]


def parse_line(line: bytes) -> Row:
    """Parses a JSON line. Raises InvalidRecordError if it is not a JSON object."""
    try:
        value = strict_json.parse(line.decode("utf-8"))
    except RecursionError:
        raise InvalidRecordError("its line is nested too deeply", BAD_JSON) from None
    except UnicodeDecodeError:
        raise InvalidRecordError("its line is not UTF-8", BAD_JSON) from None
    except strict_json.RepeatedKeyError as error:
        raise InvalidRecordError(
            f"its line is ambiguous: {error} in one object: keep one of the two", BAD_JSON
        ) from None
    except ValueError as error:
        raise InvalidRecordError(f"its line is not JSON: {error}", BAD_JSON) from None
    if not isinstance(value, dict):
        raise InvalidRecordError(
            f"its line is a JSON {type(value).__name__} instead of an object", BAD_JSON
        )
    return value


def sample_texts(suffix: str, content: bytes) -> Mapping[str, Any]:
    """Returns the fields of a text or JSON file that belongs to an image.

    Args:
      suffix: "json" for the fields of a record; another one for captions, one a line.
      content: of the file.

    Raises:
      InvalidRecordError: it is no UTF-8, or no JSON object.
    """
    if suffix == "json":
        return parse_line(content.removeprefix(b"\xef\xbb\xbf"))
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidRecordError(f"its {suffix} is not UTF-8", BAD_JSON) from None
    lines = [line.strip() for line in text.replace("\r\n", "\n").split("\n")]
    return {"captions": [line for line in lines if line]}


@functools.lru_cache(maxsize=64)
def _scan(
    rows: JsonRows, size: int, mtime_ns: int, inode: int
) -> tuple[Integer[np.ndarray, " lines"], tuple[frozenset[str], ...]]:
    """Parses every line once.

    Returns:
      For each line the number of its set of fields with values, or _UNKNOWN; and these sets.

    Raises:
      DamagedFileError: no line of the file is a JSON object.
    """
    del size, mtime_ns, inode  # only for the cache
    codes = np.full(len(rows), _UNKNOWN)
    known: dict[frozenset[str], int] = {}
    problem = None
    with progress.substage(f"reading {rows.shown}", len(rows), "lines") as stage:
        for number in range(len(rows)):
            stage.advance()
            try:
                row = rows.row(number)
            except InvalidRecordError as error:
                problem = problem or f"{rows.location(number)}: {error}"
                continue
            names = frozenset(name for name in row if has_value(row, name))
            if names in known or len(known) < _UNKNOWN:
                codes[number] = known.setdefault(names, len(known))
    if not known:
        raise DamagedFileError(
            f"{rows.shown} is not JSON lines, one object a line: no line of it can be used "
            f"({problem}).{_advice(rows)}"
        )
    return codes, tuple(known)


def _advice(rows: JsonRows) -> str:
    """Returns a sentence for a file in another form, after a space; "" where none is known."""
    if rows.shown.lower().endswith((".csv", ".tsv")):
        return " Tables in text are not read: write each row as an object, or a Parquet file."
    with open_regular(rows.path) as file:
        if file.read(_PART_BYTES).lstrip()[:1] == b"[":
            return " Write the objects of its list one a line, e.g. by `jq -c '.[]'`."
    return ""


def unpack(path: str, index_dir: str | None, max_bytes: int) -> str:
    """Unpacks a gzip file unless that is done already; returns the path of what is in it.

    Raises:
      DamagedFileError: the file is damaged, or larger than `max_bytes`.
      OSError: there is no such file, or the other one cannot be written.
    """
    write = functools.partial(_unpack_to, path, max_bytes)
    try:
        return make_derived_file(path, index_dir, UNPACKED_SUFFIX, f"What is in {path}", write)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DamagedFileError(
            f"{path} is damaged, or not compressed with gzip ({error}): get it again."
        ) from error


def _unpack_to(path: str, max_bytes: int, target: epath.Path) -> None:
    """Writes the content of a gzip file to another file, piece by piece."""
    if shutil.disk_usage(target.parent).free < os.stat(path).st_size:
        raise OSError(errno.ENOSPC, "the disk has no room")
    written = 0
    with (
        target.open("wb") as output,
        open_regular(path) as packed,
        gzip.GzipFile(fileobj=packed) as lines,
    ):
        while part := lines.read(_PART_BYTES):
            written += len(part)
            if written > max_bytes:
                raise DamagedFileError(
                    f"{path} has more than {max_bytes:,} bytes when it is unpacked: unpack it "
                    "yourself, or raise JsonData.max_unpacked_bytes."
                )
            output.write(part)


@checked
@dataclasses.dataclass(frozen=True)
class JsonData(TableDataSet):
    """JSON lines: one record a line, its image a path, which is relative to the file's folder.

    Attributes:
      files: a path, a pattern such as "part-*.jsonl.gz", a list of either, or a dict from split to
        them; "train" is the split where there is no dict.
      image_folder: that paths of images are relative to; None for the folder of each file.
      data_dir: the folder that `files` and `image_folder` are relative to.
      index_dir: the folder of line indices and of unpacked files; None for that of the files.
      max_unpacked_bytes: of a file that ends in .gz.
    """

    files: Files
    image_folder: options.Path | None = None
    data_dir: options.Folder = ""
    index_dir: options.Path | None = None
    max_unpacked_bytes: options.Amount = 1 << 40

    @property
    def splits(self) -> Sequence[str]:
        """The names of the splits."""
        return splits_of(self.files)

    def rows(self, split: str) -> Rows:
        """Opens the lines of a split."""
        paths = find_files("JsonData", self.files, split, self.data_dir, _SUFFIXES)
        return JoinedRows(tuple(map(self._open, paths)))

    def _open(self, path: str) -> JsonRows:
        unpacked = path
        if path.endswith(".gz"):
            unpacked = unpack(path, self.index_dir, self.max_unpacked_bytes)
        folder = os.path.dirname(path)
        if self.image_folder is not None:
            folder = os.path.join(self.data_dir, self.image_folder)
        rows = JsonRows(unpacked, path, folder or ".", self.index_dir)
        try:
            len(rows)  # builds the index now
        except ValueError as error:  # what is in a gzip file is called by the name of that
            raise ValueError(str(error).replace(unpacked, path)) from error
        return rows
