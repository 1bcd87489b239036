"""The line index of a large text file: built in one pass, stored, and memory-mapped.

An index file has one line of JSON and then, each aligned to 64 bytes,

    starts    int64[N + 1]   the offset of each line, and the file's size
    widths    uint8[N]       the number of columns of each line; 255 stands for more as well
    keys      uint8[N]       which of the header's `keys` is in the key column; see NO_KEY
    blanks    int64[B]       for each blank line that does not count, the number of lines before it
    checksum  of all bytes before it

It is rebuilt, and a warning says so, when it is damaged, of another version, or does not fit the
file: other size, other modification time, or other content at the places that are compared. The
`.index` files of the reference implementation are pickles, which can execute code: they are neither
read nor needed.
"""

import array
import collections
import contextlib
import errno
import hashlib
import json
import os
import pathlib
import stat
import tempfile
import zlib
from collections.abc import Iterator
from typing import IO, Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from ofa_jax.utils import progress

SUFFIX = ".offsets"
NO_KEY, OTHER_KEY = 255, 254
"""Keys of lines that are too short to have one, and of lines whose key is not in the header."""

MAX_WIDTH = 255
_FORMAT = "ofa_jax line index 2"
_MAX_KEYS = 200
_MAX_KEY_LENGTH = 100
_MAX_LINE_LENGTH = 1 << 30
_ALIGNMENT = 64
_SECONDS_BETWEEN_LINES = 10
_MAX_REPORTS = 10_000
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Content that is compared: all of a small file, else this many samples of this many bytes.
_SAMPLES, _SAMPLE_BYTES = 64, 4096


class IndexOptions(NamedTuple):
    """What an index depends on besides the file.

    Attributes:
      key_column: a column with few different values, which the index stores for every line.
      skip_blank: blank lines do not count as lines; `LineIndex.blanks` says where they are.
      known_keys: keys that have a code in any case, however many others come before them.
    """

    key_column: int | None = None
    skip_blank: bool = False
    known_keys: tuple[str, ...] = ()


class LineIndex(NamedTuple):
    """The content of an index, memory-mapped.

    Attributes:
      starts: the offset of each line, and the file's size.
      widths: the number of columns of each line.
      key_codes: each line's index into `keys`, or NO_KEY or OTHER_KEY.
      blanks: for each blank line that does not count, the number of lines before it.
      keys: the different values of the key column.
      num_columns: the number of columns of most lines.
    """

    starts: Int64[np.ndarray, " lines_plus_1"]
    widths: UInt8[np.ndarray, " lines"]
    key_codes: UInt8[np.ndarray, " lines"]
    blanks: Int64[np.ndarray, " blanks"]
    keys: tuple[str, ...]
    num_columns: int


class FileState(NamedTuple):
    """What an index must have been built from.

    Attributes:
      size: of the file, in bytes.
      mtime_ns: its modification time.
      samples: a hash of parts of its content, of all of it if it is small.
    """

    size: int
    mtime_ns: int
    samples: str

    @classmethod
    def of(cls, path: str) -> "FileState":
        """Returns the state of a file."""
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            return cls(status.st_size, status.st_mtime_ns, _hash_samples(file, status.st_size))


def _hash_samples(file: BinaryIO, size: int) -> str:
    """Returns a hash of the content at evenly spaced places, the start and the end included."""
    digest = hashlib.blake2b(digest_size=16)
    places = [0]
    length = size
    if size > _SAMPLES * _SAMPLE_BYTES:
        length = _SAMPLE_BYTES
        places = [k * (size - length) // (_SAMPLES - 1) for k in range(_SAMPLES)]
    for place in places:
        file.seek(place)
        digest.update(file.read(length))
    file.seek(0)
    return digest.hexdigest()


class UnusableIndexError(ValueError):
    """An index file that must be built again; the message says what it is."""


def read_index(index_path: pathlib.Path, state: FileState, options: IndexOptions) -> LineIndex:
    """Opens the index of a file in this state.

    Raises:
      FileNotFoundError: there is none.
      UnusableIndexError: it is damaged, or of another file, state, version or other options.
    """
    try:
        status = os.stat(index_path)
    except FileNotFoundError:
        raise
    except NotADirectoryError as error:
        raise FileNotFoundError(str(error)) from error
    except OSError as error:
        raise UnusableIndexError(f"cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(status.st_mode):
        raise UnusableIndexError("is not a file")
    try:
        with open(index_path, "rb") as file:
            first = file.readline(1 << 20)
            # Before the checksum, which an index of another version does not have.
            header = _parse_header(first, state, options)
            end = len(first) + sum(map(_align, _array_bytes(header))) + _ALIGNMENT
            if os.fstat(file.fileno()).st_size != end:
                raise UnusableIndexError("is not complete")
            if not _checksum_fits(file, end):
                raise UnusableIndexError("is damaged")
    except (OSError, RecursionError) as error:
        raise UnusableIndexError("cannot be read") from error
    return _map_arrays(index_path, header, len(first))


def _parse_header(first: bytes, state: FileState, options: IndexOptions) -> dict[str, Any]:
    """Returns the header. Raises UnusableIndexError if it is not that of the wanted index."""
    if not first:
        raise UnusableIndexError("is empty")
    try:
        header = json.loads(first)
        version = header["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise UnusableIndexError("is damaged, or not an index") from error
    if version != _FORMAT:
        raise UnusableIndexError("is of another version")
    expected = {**state._asdict(), **options._asdict()}
    expected["known_keys"] = list(options.known_keys)
    differ = [name for name in expected if header.get(name) != expected[name]]
    if set(differ) & set(FileState._fields):
        raise UnusableIndexError("is of another file, or the file has changed since")
    if differ:
        raise UnusableIndexError("was built with other options")
    counts = (header.get("num_lines"), header.get("num_blanks"), header.get("num_columns"))
    keys = header.get("keys")
    if (
        not all(type(count) is int and 0 <= count < 1 << 48 for count in counts)
        or not isinstance(keys, list)
        or not all(isinstance(key, str) for key in keys)
    ):
        raise UnusableIndexError("is damaged")
    return header


def _checksum_fits(file: BinaryIO, size: int) -> bool:
    """Returns whether the last bytes are the checksum of all bytes before them."""
    file.seek(0)
    checksum, left = 0, size - _ALIGNMENT
    while left and (part := file.read(min(left, 1 << 20))):
        checksum = zlib.crc32(part, checksum)
        left -= len(part)
    return not left and file.read() == _format_checksum(checksum)


def _format_checksum(checksum: int) -> bytes:
    return f"{checksum:08x}".encode().ljust(_ALIGNMENT - 1) + b"\n"


def _map_arrays(index_path: pathlib.Path, header: dict[str, Any], offset: int) -> LineIndex:
    count = header["num_lines"]
    starts, offset = _map_array(index_path, np.int64, count + 1, offset)
    widths, offset = _map_array(index_path, np.uint8, count, offset)
    key_codes, offset = _map_array(index_path, np.uint8, count, offset)
    blanks, _ = _map_array(index_path, np.int64, header["num_blanks"], offset)
    return LineIndex(
        starts, widths, key_codes, blanks, tuple(header["keys"]), header["num_columns"]
    )


def _map_array(path: pathlib.Path, dtype: type, count: int, offset: int) -> tuple[np.ndarray, int]:
    """Memory-maps an array; returns it and the offset of the next one."""
    if not count:  # cannot be mapped
        return np.zeros(0, dtype), offset
    mapped = np.memmap(path, dtype, "r", offset, (count,))
    return mapped, offset + _align(mapped.nbytes)


def _array_bytes(header: dict[str, Any]) -> tuple[int, ...]:
    num_lines = header["num_lines"]
    return 8 * (num_lines + 1), num_lines, num_lines, 8 * header["num_blanks"]


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
        stage = _Indexing(path, os.fstat(lines.fileno()).st_size)
        with progress.show_stage(stage, seconds=_SECONDS_BETWEEN_LINES, has_summary=False):
            header, arrays = _scan_lines(path, lines, options, stage)
        first = json.dumps(header).encode()
        # Padded with blanks, so that the arrays are aligned.
        first = first.ljust(_align(len(first) + 1) - 1) + b"\n"
        index.write(first)
        checksum = zlib.crc32(first)
        for values in arrays:
            data = values.tobytes()
            data = data.ljust(_align(len(data)), b"\0")
            index.write(data)
            checksum = zlib.crc32(data, checksum)
        index.write(_format_checksum(checksum))


def _scan_lines(
    path: str, lines: BinaryIO, options: IndexOptions, stage: "_Indexing"
) -> tuple[dict[str, Any], tuple[array.array, ...]]:
    """Returns the header and the arrays of an index; tells the stage how much is read."""
    key_column, skip_blank, known_keys = options
    starts, widths, codes = array.array("q"), array.array("B"), array.array("B")
    blanks = array.array("q")
    keys = {key.encode(): code for code, key in enumerate(known_keys)}
    width_counts: collections.Counter[int] = collections.Counter()
    status = os.fstat(lines.fileno())
    samples = _hash_samples(lines, status.st_size)
    position = reported = lone_returns = 0
    while line := lines.readline(_MAX_LINE_LENGTH):
        if len(line) == _MAX_LINE_LENGTH:
            raise ValueError(
                f"{path}: line {len(starts) + len(blanks) + 1} is longer than a gigabyte, so this "
                "is not a file with one example per line."
            )
        start = position
        position += len(line)
        lone_returns = 0 if start else line.count(b"\r") - line.endswith((b"\r", b"\r\n"))
        if not start and line.startswith(_BYTE_ORDER_MARK):
            start, line = len(_BYTE_ORDER_MARK), line[len(_BYTE_ORDER_MARK) :]
        if skip_blank and (not line or line.isspace()):
            blanks.append(len(starts))
        else:
            starts.append(start)
            width = line.count(b"\t") + 1
            width_counts[width] += 1
            widths.append(min(width, MAX_WIDTH))
            codes.append(_key_code(line, width, key_column, keys))
        # Not at every line of a large file: its lines may be short.
        if (position - reported) * _MAX_REPORTS >= status.st_size:
            reported = position
            stage.num_lines = len(starts)
            stage.update(position)
    if lone_returns:  # in the one line
        raise ValueError(
            f"{path} ends its lines with a carriage return alone, as old programs do: save it with "
            "the line ends of Unix or Windows."
        )
    if not starts:
        raise ValueError(f"The file {path} has only blank lines.")
    starts.append(position)
    header = {
        "format": _FORMAT,
        "size": position,
        "mtime_ns": status.st_mtime_ns,
        "samples": samples,
        "num_lines": len(widths),
        "num_blanks": len(blanks),
        "num_columns": width_counts.most_common(1)[0][0],
        "key_column": key_column,
        "skip_blank": skip_blank,
        "known_keys": list(known_keys),
        "keys": [key.decode("utf-8", "replace") for key in keys],
    }
    return header, (starts, widths, codes, blanks)


def _key_code(line: bytes, width: int, key_column: int | None, keys: dict[bytes, int]) -> int:
    """Returns the number of the line's key in `keys`; adds a new key as long as there are few."""
    if key_column is None or width <= key_column:
        return NO_KEY
    key = line.split(b"\t", key_column + 1)[key_column].strip()[:_MAX_KEY_LENGTH]
    if key not in keys:
        if len(keys) >= _MAX_KEYS:
            return OTHER_KEY
        keys[key] = len(keys)
    return keys[key]


@contextlib.contextmanager
def _atomic_write(path: str, index_path: pathlib.Path) -> Iterator[IO[bytes]]:
    """Opens a file that is renamed to the index when complete; several hosts may do so at once."""

    def unwritable(error: OSError) -> OSError:
        return OSError(
            f"The index of {path} cannot be written to {index_path.parent} ({error.strerror}): "
            "give a folder that can be written to as index_dir."
        )

    try:
        index_path.parent.mkdir(parents=True, exist_ok=True)
        partial = tempfile.NamedTemporaryFile(  # noqa: SIM115  closed below
            dir=index_path.parent, prefix=f".{index_path.name}-", delete=False
        )
    except OSError as error:
        raise unwritable(error) from error
    try:
        with partial:
            yield partial
        os.chmod(partial.name, 0o644)
        os.replace(partial.name, index_path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EISDIR, errno.ENOTEMPTY):
            raise unwritable(error) from error
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(partial.name)


class _Indexing(progress.Stage):
    """The reading of a file, in bytes, which also says how many lines it has."""

    def __init__(self, path: str, size: int):
        super().__init__(f"Indexing {path}", size, "bytes")
        self.num_lines = 0

    def text(self) -> str:
        """Returns the line of the stage."""
        done, size = (count / 1e9 for count in (self.done, self.total or 0))
        parts = [
            f"{done:.1f} of {size:.1f} GB",
            f"{self.num_lines:,} lines",
            self.rate_text(),
            self.left_text(),
        ]
        return f"{self.name}: {', '.join(filter(None, parts))}"
