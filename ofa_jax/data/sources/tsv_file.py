"""Lines of large text files with random access: an index of them is made in one pass, and kept.

The files of the original hold one example a line: columns separated by tabs, no header, images in
base64 (section 7 of the spec). They are larger than memory, so a line is read when it is asked for.

An index file holds one line of JSON and then, each aligned to 64 bytes,

    starts   int64[N + 1]   where each line starts, and the file's size
    widths   uint8[N]       columns of each line; 255 stands for more, too
    keys     uint8[N]       which of the header's `keys` stands in the key column; see NO_KEY

and is made anew when the size or the time of the file has changed. The original's own `.index`
files are pickles, which could run code: they are neither read nor needed.
"""

import array
import binascii
import collections
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import sys
import tempfile
import threading
import time
import weakref
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np

from ofa_jax.preprocessing.records import InvalidRecordError

SUFFIX = ".offsets"
NO_KEY, OTHER_KEY = 255, 254
"""Keys of lines that are too short to have one, and of lines whose key is not in the header."""

_FORMAT = "ofa_jax line index 1"
_MOST_KEYS = 200
_LONGEST_KEY = 100
_LONGEST_LINE = 1 << 30
_MOST_WIDTH = 255
_ALIGNMENT = 64
_SECONDS_BETWEEN_LINES = 10


class InvalidLineError(InvalidRecordError):
    """A line that cannot be used.

    Attributes:
      reason: in a few words that are the same for all lines of this fault, to be counted by.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason = reason

    def __str__(self) -> str:
        return self.args[1]


@dataclasses.dataclass(frozen=True)
class TsvFile:
    """A file by name; pickles as that.

    Attributes:
      path: a file on a disk of this machine.
      key_column: a column of few different values, which the index remembers for every line.
      index_dir: where the index goes; None for beside the file.
      skip_blank: blank lines are no lines (they become part of the line before).
    """

    path: str
    key_column: int | None = None
    index_dir: str | None = None
    skip_blank: bool = False

    @property
    def index_path(self) -> pathlib.Path:
        """The index's file."""
        path = pathlib.Path(self.path)
        if self.index_dir is None:
            return path.with_name(path.name + SUFFIX)
        # Files of one name in different folders have different indices.
        place = zlib.crc32(str(path.absolute()).encode())
        return pathlib.Path(self.index_dir) / f"{path.name}-{place:08x}{SUFFIX}"

    def open(self) -> "OpenTsv":
        """The lines. There is one handle per process, which all threads share.

        Raises:
          FileNotFoundError: no such file.
          ValueError: an empty file, or one that has no lines.
          OSError: the index cannot be written.
        """
        try:
            stat = os.stat(self.path)
        except FileNotFoundError:
            remote = " (only files on a disk or a mount can be read)" if "://" in self.path else ""
            raise FileNotFoundError(
                f"There is no file {self.path}{remote}: check the path."
            ) from None
        if not stat.st_size:
            raise ValueError(f"The file {self.path} is empty.")
        with _OPENING:
            return _open(self, stat.st_size, stat.st_mtime_ns)


class OpenTsv:
    """The lines of a file.

    Attributes:
      keys: the different values of the key column, as text; `key_codes` are indices into it.
      widths: uint8[N], columns of each line.
      key_codes: uint8[N].
      num_columns: of most lines; others are torn.
    """

    def __init__(self, file: TsvFile, header: dict, offset: int):
        self.path = file.path
        self.keys: tuple[str, ...] = tuple(header["keys"])
        self.num_columns: int = header["num_columns"]
        count = header["num_lines"]
        self._starts, offset = _view(file.index_path, np.int64, count + 1, offset)
        self.widths, offset = _view(file.index_path, np.uint8, count, offset)
        self.key_codes, _ = _view(file.index_path, np.uint8, count, offset)
        self._descriptor = os.open(file.path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def __len__(self) -> int:
        return len(self.widths)

    def line(self, number: int) -> bytes:
        """Line `number`, counted from 0, without its end."""
        start, stop = int(self._starts[number]), int(self._starts[number + 1])
        parts = []
        while start < stop:
            # Reads at a position of its own: threads do not disturb each other.
            part = os.pread(self._descriptor, stop - start, start)
            if not part:
                raise InvalidLineError(
                    "ends too early", "the file has become shorter since it was indexed"
                )
            parts.append(part)
            start += len(part)
        return b"".join(parts).rstrip(b"\r\n")

    def columns(self, number: int) -> list[bytes]:
        """The columns of line `number`.

        Raises:
          InvalidLineError: it has not as many as the other lines.
        """
        columns = self.line(number).split(b"\t")
        if len(columns) != self.num_columns:
            raise InvalidLineError(
                "wrong number of columns",
                f"it has {len(columns)} columns instead of {self.num_columns}",
            )
        return columns

    def torn(self) -> np.ndarray:
        """bool[N]: the lines that `columns` refuses."""
        return self.widths != min(self.num_columns, _MOST_WIDTH)


@dataclasses.dataclass(frozen=True)
class TextLines(Sequence[str]):
    """The lines of a text file as strings, without white space around them; blank ones left out.

    Takes no memory, however large the file is, and pickles as its path.
    """

    path: str
    index_dir: str | None = None

    @functools.cached_property
    def _lines(self) -> OpenTsv:
        return TsvFile(self.path, None, self.index_dir, skip_blank=True).open()

    def __getstate__(self) -> dict[str, str | None]:
        return {"path": self.path, "index_dir": self.index_dir}

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has no line {index}.")
        return self._lines.line(index).decode("utf-8", "replace").strip()


_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")


def decode_base64(text: bytes) -> bytes:
    """Bytes of base64 in the URL-safe or the standard alphabet.

    Raises:
      InvalidLineError: it is something else. (The original's decoder drops characters that do not
        belong there, and gives torn images.)
    """
    try:
        return binascii.a2b_base64(text.translate(_STANDARD_ALPHABET), strict_mode=True)
    except binascii.Error as error:
        raise InvalidLineError("bad base64", f"its image is no base64 ({error})") from error


# --------------------------------------------------------------------------------------- the index

_OPENING = threading.Lock()


@functools.lru_cache(maxsize=64)
def _open(file: TsvFile, size: int, mtime_ns: int) -> OpenTsv:
    index_path = file.index_path
    wanted = {
        "size": size,
        "mtime_ns": mtime_ns,
        "key_column": file.key_column,
        "skip_blank": file.skip_blank,
    }
    found = _read_header(index_path, wanted)
    if found is None:
        build_index(file)
        found = _read_header(index_path, wanted)
        if found is None:
            raise OSError(f"{file.path} is being written to: wait until it is complete.")
    return OpenTsv(file, *found)


def _read_header(path: pathlib.Path, wanted: dict) -> tuple[dict, int] | None:
    """The header of an index and where it ends; None if there is none, or it does not fit."""
    try:
        with open(path, "rb") as file:
            first = file.readline(1 << 20)
            header = json.loads(first)
            end = len(first) + sum(_aligned(n) for n in _array_bytes(header["num_lines"]))
            complete = os.fstat(file.fileno()).st_size == end
        fits = header["format"] == _FORMAT and all(header[name] == wanted[name] for name in wanted)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (header, len(first)) if complete and fits else None


def _array_bytes(num_lines: int) -> tuple[int, int, int]:
    return 8 * (num_lines + 1), num_lines, num_lines


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _view(path: pathlib.Path, dtype: type, count: int, offset: int) -> tuple[np.ndarray, int]:
    mapped = np.memmap(path, dtype, "r", offset, (count,))
    return mapped, offset + _aligned(mapped.nbytes)


def build_index(file: TsvFile) -> None:
    """Reads a file once, line by line, and writes its index; says on stderr how far it is.

    Raises:
      ValueError: a line that is no line of text.
      OSError: the index cannot be written.
    """
    # Opened first: better to learn now than after an hour that it cannot be written.
    with _atomic(file) as index, open(file.path, "rb", buffering=1 << 20) as lines:
        header, arrays = _read_lines(file, lines)
        first = json.dumps(header).encode()
        # Blanks before the line's end, so that what follows is aligned.
        index.write(first.ljust(_aligned(len(first) + 1) - 1) + b"\n")
        for values in arrays:
            data = values.tobytes()
            index.write(data.ljust(_aligned(len(data)), b"\0"))


def _read_lines(file: TsvFile, lines: BinaryIO) -> tuple[dict, tuple[array.array, ...]]:
    """The header and the arrays of an index."""
    starts, widths, codes = array.array("q"), array.array("B"), array.array("B")
    keys: dict[bytes, int] = {}
    usual: collections.Counter[int] = collections.Counter()
    stat = os.fstat(lines.fileno())
    position, show = 0, _Progress(file.path, stat.st_size)
    while line := lines.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE:
            raise ValueError(
                f"{file.path}: line {len(starts) + 1} is longer than a gigabyte, so this is no "
                "file of one example a line."
            )
        if not (file.skip_blank and line.isspace()):
            # A blank line at the start becomes part of the first line.
            starts.append(position if starts or not file.skip_blank else 0)
            width = line.count(b"\t") + 1
            usual[width] += 1
            widths.append(min(width, _MOST_WIDTH))
            has_key = file.key_column is not None and width > file.key_column
            codes.append(_key_code(line, file.key_column, keys) if has_key else NO_KEY)
        position += len(line)
        show(position, len(starts))
    if not starts:
        raise ValueError(f"The file {file.path} has only blank lines.")
    starts.append(position)
    header = {
        "format": _FORMAT,
        "size": position,
        "mtime_ns": stat.st_mtime_ns,
        "num_lines": len(widths),
        "num_columns": usual.most_common(1)[0][0],
        "key_column": file.key_column,
        "skip_blank": file.skip_blank,
        "keys": [key.decode("utf-8", "replace") for key in keys],
    }
    return header, (starts, widths, codes)


def _key_code(line: bytes, key_column: int, keys: dict[bytes, int]) -> int:
    """The key's number in `keys`; a new one is added, as long as there are few."""
    key = line.split(b"\t", key_column + 1)[key_column].strip()[:_LONGEST_KEY]
    if key not in keys:
        if len(keys) == _MOST_KEYS:
            return OTHER_KEY
        keys[key] = len(keys)
    return keys[key]


@contextlib.contextmanager
def _atomic(file: TsvFile) -> Iterator:
    """A file that gets the index's name when it is complete; hosts may write it at once."""
    target = file.index_path
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = tempfile.NamedTemporaryFile(  # noqa: SIM115  closed below
            dir=target.parent, prefix=f".{target.name}-", delete=False
        )
    except OSError as error:
        raise OSError(
            f"The index of {file.path} cannot be written to {target.parent} ({error.strerror}): "
            "give a folder that can be written to as index_dir."
        ) from error
    try:
        with unfinished:
            yield unfinished
        os.chmod(unfinished.name, 0o644)
        os.replace(unfinished.name, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(unfinished.name)


class _Progress:
    """A line on stderr every ten seconds."""

    def __init__(self, path: str, size: int):
        self._path, self._size = path, size
        self._started = self._last = time.monotonic()

    def __call__(self, position: int, num_lines: int) -> None:
        now = time.monotonic()
        if now - self._last < _SECONDS_BETWEEN_LINES:
            return
        self._last = now
        speed = position / (now - self._started)
        print(
            f"Indexing {self._path}: {position / 1e9:.1f} of {self._size / 1e9:.1f} GB, "
            f"{num_lines:,} lines, {speed / 1e6:.0f} MB/s, "
            f"{(self._size - position) / speed:.0f} s left.",
            file=sys.stderr,
            flush=True,
        )
