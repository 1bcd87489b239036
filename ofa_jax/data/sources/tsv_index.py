"""The line index of a large text file: built in one pass, stored, and memory-mapped.

An index file has one line of JSON and then, each aligned to 64 bytes,

    starts   int64[N + 1]   the offset of each line, and the file's size
    widths   uint8[N]       the number of columns of each line; 255 stands for more as well
    keys     uint8[N]       which of the header's `keys` is in the key column; see NO_KEY

It is rebuilt when the size or the modification time of the file has changed. The `.index` files of
the reference implementation are pickles, which can execute code: they are neither read nor needed.
"""

import array
import collections
import contextlib
import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import IO, Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

SUFFIX = ".offsets"
NO_KEY, OTHER_KEY = 255, 254
"""Keys of lines that are too short to have one, and of lines whose key is not in the header."""

MAX_WIDTH = 255
_FORMAT = "ofa_jax line index 1"
_MAX_KEYS = 200
_MAX_KEY_LENGTH = 100
_MAX_LINE_LENGTH = 1 << 30
_ALIGNMENT = 64
_SECONDS_BETWEEN_LINES = 10


class IndexOptions(NamedTuple):
    """What an index depends on besides the file.

    Attributes:
      key_column: a column with few different values, which the index stores for every line.
      skip_blank: blank lines do not count as lines; they become part of the line before.
    """

    key_column: int | None = None
    skip_blank: bool = False


class LineIndex(NamedTuple):
    """The content of an index, memory-mapped.

    Attributes:
      starts: the offset of each line, and the file's size.
      widths: the number of columns of each line.
      key_codes: each line's index into `keys`, or NO_KEY or OTHER_KEY.
      keys: the different values of the key column.
      num_columns: the number of columns of most lines.
    """

    starts: Int64[np.ndarray, " lines_plus_1"]
    widths: UInt8[np.ndarray, " lines"]
    key_codes: UInt8[np.ndarray, " lines"]
    keys: tuple[str, ...]
    num_columns: int


def read_index(
    index_path: pathlib.Path, size: int, mtime_ns: int, options: IndexOptions
) -> LineIndex | None:
    """Opens the index of a file of this size and time; None if there is none or it is outdated."""
    expected = {"size": size, "mtime_ns": mtime_ns, **options._asdict()}
    try:
        with open(index_path, "rb") as file:
            first = file.readline(1 << 20)
            header = json.loads(first)
            end = len(first) + sum(_align(n) for n in _array_bytes(header["num_lines"]))
            complete = os.fstat(file.fileno()).st_size == end
        fits = header["format"] == _FORMAT and all(
            header[name] == value for name, value in expected.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return _map_arrays(index_path, header, len(first)) if complete and fits else None


def _map_arrays(index_path: pathlib.Path, header: dict[str, Any], offset: int) -> LineIndex:
    count = header["num_lines"]
    starts, offset = _map_array(index_path, np.int64, count + 1, offset)
    widths, offset = _map_array(index_path, np.uint8, count, offset)
    key_codes, _ = _map_array(index_path, np.uint8, count, offset)
    return LineIndex(starts, widths, key_codes, tuple(header["keys"]), header["num_columns"])


def _map_array(path: pathlib.Path, dtype: type, count: int, offset: int) -> tuple[np.ndarray, int]:
    """Memory-maps an array; returns it and the offset of the next one."""
    mapped = np.memmap(path, dtype, "r", offset, (count,))
    return mapped, offset + _align(mapped.nbytes)


def _array_bytes(num_lines: int) -> tuple[int, int, int]:
    return 8 * (num_lines + 1), num_lines, num_lines


def _align(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def build_index(path: str, index_path: pathlib.Path, options: IndexOptions) -> None:
    """Reads a file once, line by line, and writes its index; reports its progress on stderr.

    Raises:
      ValueError: the file has a line that is too long, or only blank lines.
      OSError: the index cannot be written.
    """
    # The index is opened first, so that a folder without write access fails at once.
    with _atomic_write(path, index_path) as index, open(path, "rb", buffering=1 << 20) as lines:
        header, arrays = _scan_lines(path, lines, options)
        first = json.dumps(header).encode()
        # Padded with blanks, so that the arrays are aligned.
        index.write(first.ljust(_align(len(first) + 1) - 1) + b"\n")
        for values in arrays:
            data = values.tobytes()
            index.write(data.ljust(_align(len(data)), b"\0"))


def _scan_lines(
    path: str, lines: BinaryIO, options: IndexOptions
) -> tuple[dict[str, Any], tuple[array.array, ...]]:
    """Returns the header and the arrays of an index."""
    key_column, skip_blank = options
    starts, widths, codes = array.array("q"), array.array("B"), array.array("B")
    keys: dict[bytes, int] = {}
    width_counts: collections.Counter[int] = collections.Counter()
    stat = os.fstat(lines.fileno())
    position, report = 0, _Progress(path, stat.st_size)
    while line := lines.readline(_MAX_LINE_LENGTH):
        if len(line) == _MAX_LINE_LENGTH:
            raise ValueError(
                f"{path}: line {len(starts) + 1} is longer than a gigabyte, so this is not "
                "a file with one example per line."
            )
        if not (skip_blank and line.isspace()):
            # A blank line at the start becomes part of the first line.
            starts.append(position if starts or not skip_blank else 0)
            width = line.count(b"\t") + 1
            width_counts[width] += 1
            widths.append(min(width, MAX_WIDTH))
            codes.append(_key_code(line, width, key_column, keys))
        position += len(line)
        report(position, len(starts))
    if not starts:
        raise ValueError(f"The file {path} has only blank lines.")
    starts.append(position)
    header = {
        "format": _FORMAT,
        "size": position,
        "mtime_ns": stat.st_mtime_ns,
        "num_lines": len(widths),
        "num_columns": width_counts.most_common(1)[0][0],
        "key_column": key_column,
        "skip_blank": skip_blank,
        "keys": [key.decode("utf-8", "replace") for key in keys],
    }
    return header, (starts, widths, codes)


def _key_code(line: bytes, width: int, key_column: int | None, keys: dict[bytes, int]) -> int:
    """Returns the number of the line's key in `keys`; adds a new key as long as there are few."""
    if key_column is None or width <= key_column:
        return NO_KEY
    key = line.split(b"\t", key_column + 1)[key_column].strip()[:_MAX_KEY_LENGTH]
    if key not in keys:
        if len(keys) == _MAX_KEYS:
            return OTHER_KEY
        keys[key] = len(keys)
    return keys[key]


@contextlib.contextmanager
def _atomic_write(path: str, index_path: pathlib.Path) -> Iterator[IO[bytes]]:
    """Opens a file that is renamed to the index when complete; several hosts may do so at once."""
    try:
        index_path.parent.mkdir(parents=True, exist_ok=True)
        partial = tempfile.NamedTemporaryFile(  # noqa: SIM115  closed below
            dir=index_path.parent, prefix=f".{index_path.name}-", delete=False
        )
    except OSError as error:
        raise OSError(
            f"The index of {path} cannot be written to {index_path.parent} ({error.strerror}): "
            "give a folder that can be written to as index_dir."
        ) from error
    try:
        with partial:
            yield partial
        os.chmod(partial.name, 0o644)
        os.replace(partial.name, index_path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(partial.name)


class _Progress:
    """Prints a line to stderr every ten seconds."""

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
