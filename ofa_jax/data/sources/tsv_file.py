"""The lines of large text files, with random access by a stored index (see `tsv_index`).

The official OFA files have one example per line: columns separated by tabs, no header, images in
base64. They are larger than memory, so a line is read only when it is needed.
"""

import binascii
import dataclasses
import functools
import os
import pathlib
import stat
import threading
import weakref
import zlib
from collections.abc import Sequence
from typing import overload

import numpy as np
from absl import logging
from jaxtyping import Bool, UInt8

from ofa_jax.data.sources.tsv_index import (
    MAX_WIDTH,
    SUFFIX,
    FileState,
    IndexOptions,
    LineIndex,
    UnusableIndexError,
    build_index,
    read_index,
)
from ofa_jax.preprocessing.records import InvalidRecordError
from ofa_jax.utils.bad_input import Reason, Treatment, declare, note
from ofa_jax.utils.wrong_files import describe_pointer

ENDS_TOO_EARLY = declare(
    "line ends too early",
    Treatment.SKIPPED,
    "The TSV file has become shorter since it was indexed.",
    __name__,
)
CHANGED_FILE = declare(
    "changed file",
    Treatment.SKIPPED,
    "The TSV file has changed since it was opened: what is where the line was is not one line.",
    __name__,
)
REBUILT_INDEX = declare(
    "rebuilt line index",
    Treatment.RECOVERED,
    "The line index of a text file is damaged, of another version, of other options, or does not "
    "fit the file (size, modification time, samples of the content); a warning says so.",
    __name__,
)
REPLACED_BYTES = declare(
    "line is not UTF-8",
    Treatment.REPLACED,
    "Bytes of a line of plain text (captions to sample from) are not UTF-8: U+FFFD stands for "
    "them.",
    __name__,
)
WRONG_COLUMNS = declare(
    "wrong number of columns",
    Treatment.SKIPPED,
    "The TSV line does not have as many columns as the format, or as most lines of the file.",
    __name__,
)
BAD_BASE64 = declare(
    "bad base64", Treatment.SKIPPED, "The image column of the TSV line is not base64.", __name__
)


class InvalidLineError(InvalidRecordError):
    """A line that cannot be used."""

    def __init__(self, reason: Reason, detail: str):
        super().__init__(detail, reason)

    def __reduce__(self) -> tuple:
        return InvalidLineError, (self.reason, str(self))


@dataclasses.dataclass(frozen=True)
class TsvFile:
    """The path of a file and the options of its index; pickles as that.

    Attributes:
      path: a file on a local disk or a mount.
      key_column: a column with few different values, which the index stores for every line.
      index_dir: the folder of the index; None for that of the file.
      skip_blank: blank lines do not count as lines.
      known_keys: keys that the index stores in any case, however many others the file has.
    """

    path: str
    key_column: int | None = None
    index_dir: str | None = None
    skip_blank: bool = False
    known_keys: tuple[str, ...] = ()

    @property
    def index_path(self) -> pathlib.Path:
        """The path of the index."""
        path = pathlib.Path(self.path)
        if self.index_dir is None:
            return path.with_name(path.name + SUFFIX)
        # Files with the same name in different folders have different indices.
        checksum = zlib.crc32(str(path.absolute()).encode())
        return pathlib.Path(self.index_dir) / f"{path.name}-{checksum:08x}{SUFFIX}"

    @property
    def index_options(self) -> IndexOptions:
        """The options of the index."""
        return IndexOptions(self.key_column, self.skip_blank, self.known_keys)

    def open(self) -> "OpenTsv":
        """Opens the file; all threads of a process share one handle.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: the file is empty or has no lines.
          OSError: the index cannot be written.
        """
        try:
            status = os.stat(self.path)
        except (FileNotFoundError, ValueError):  # ValueError: a null byte in the path
            remote = " (only files on a disk or a mount can be read)" if "://" in self.path else ""
            raise FileNotFoundError(
                f"There is no file {self.path}{remote}: check the path."
            ) from None
        if not stat.S_ISREG(status.st_mode):
            kind = "folder" if stat.S_ISDIR(status.st_mode) else "pipe or a device"
            raise ValueError(
                f"{self.path} is a {kind}: its lines can be read in any order only from a file."
            )
        if not status.st_size:
            raise ValueError(f"The file {self.path} is empty.")
        with _OPEN_LOCK:
            # The inode too: another file may have been moved here, with the same size and time.
            return _open(self, status.st_size, status.st_mtime_ns, status.st_ino)


_OPEN_LOCK = threading.Lock()


@functools.lru_cache(maxsize=64)
def _open(file: TsvFile, size: int, mtime_ns: int, inode: int) -> "OpenTsv":
    """Opens a file, and builds its index if there is none for its present state."""
    del size, mtime_ns, inode  # only for the cache
    refuse_binary(file.path)
    state = FileState.of(file.path)
    try:
        return OpenTsv(file.path, read_index(file.index_path, state, file.index_options))
    except FileNotFoundError:
        pass
    except UnusableIndexError as error:
        logging.warning(
            "The index %s %s: it is built again (%s).",
            file.index_path,
            error,
            REBUILT_INDEX.name,
        )
    build_index(file.path, file.index_path, file.index_options)
    try:
        return OpenTsv(file.path, read_index(file.index_path, state, file.index_options))
    except (FileNotFoundError, UnusableIndexError) as error:
        raise OSError(f"{file.path} is being written to: wait until it is complete.") from error


class OpenTsv:
    """The lines of an open file.

    Attributes:
      path: of the file.
      keys: the different values of the key column; `key_codes` are indices into it.
      widths: the number of columns of each line.
      key_codes: each line's key; see `tsv_index`.
      num_columns: the number of columns of most lines; others are malformed.
    """

    def __init__(self, path: str, index: LineIndex):
        self.path = path
        self.keys: tuple[str, ...] = index.keys
        self.num_columns: int = index.num_columns
        self.widths: UInt8[np.ndarray, " lines"] = index.widths
        self.key_codes: UInt8[np.ndarray, " lines"] = index.key_codes
        self._starts = index.starts
        self._blanks = index.blanks
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def __len__(self) -> int:
        return len(self.widths)

    def line_number(self, number: int) -> int:
        """Returns where an editor shows line `number`: counted from 1, blank lines included."""
        return number + 1 + int(np.searchsorted(self._blanks, number, side="right"))

    def num_bytes(self, number: int) -> int:
        """Returns the size of line `number` with its end, before it is read."""
        return int(self._starts[number + 1] - self._starts[number])

    def line(self, number: int) -> bytes:
        """Returns line `number`, counted from 0, without its end.

        Raises:
          InvalidLineError: the file has changed since it was indexed.
        """
        start, stop = int(self._starts[number]), int(self._starts[number + 1])
        start -= number > 0  # with the end of the line before
        parts = []
        while start < stop:
            # pread does not move a shared position, so threads do not interfere.
            part = os.pread(self._descriptor, stop - start, start)
            if not part:
                raise InvalidLineError(
                    ENDS_TOO_EARLY, "the file has become shorter since it was indexed"
                )
            parts.append(part)
            start += len(part)
        # After the line there may be blank ones that do not count, and nothing else.
        text = b"".join(parts)
        before, text = (text[:1], text[1:]) if number else (b"\n", text)
        line, end, blank = text.partition(b"\n")
        if before != b"\n" or blank.strip() or not (end or number == len(self) - 1):
            raise InvalidLineError(CHANGED_FILE, "the file has changed since it was indexed")
        return line.rstrip(b"\r")

    def columns(self, number: int) -> list[bytes]:
        """Returns the columns of line `number`.

        Raises:
          InvalidLineError: the line does not have as many columns as most lines.
        """
        columns = self.line(number).split(b"\t")
        if len(columns) != self.num_columns:
            raise InvalidLineError(
                WRONG_COLUMNS,
                f"it has {len(columns)} columns instead of {self.num_columns}",
            )
        return columns

    def malformed_lines(self) -> Bool[np.ndarray, " lines"]:
        """Returns which lines `columns` rejects."""
        return self.widths != min(self.num_columns, MAX_WIDTH)


@dataclasses.dataclass(frozen=True)
class TextFileLines(Sequence[str]):
    """The lines of a text file as a sequence of stripped strings, without blank lines.

    Uses no memory, however large the file is, and pickles as its path.
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

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has no line {index}.")
        line = self._lines.line(index)
        try:
            return line.decode("utf-8").strip()
        except UnicodeDecodeError:
            where = f"{self.path}, line {self._lines.line_number(index)}"
            note(REPLACED_BYTES, f"{where}: what is not UTF-8 in it is replaced by U+FFFD")
            return line.decode("utf-8", "replace").strip()


BINARY_SIGNATURES = {
    b"\x1f\x8b": "compressed with gzip: unpack it",
    **{b"BZh%d1AY&SY" % level: "compressed with bzip2: unpack it" for level in range(1, 10)},
    b"\xfd7zXZ": "compressed with xz: unpack it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it",
    b"PK\x03\x04": "a zip archive or a spreadsheet: save it as text, its columns separated by tabs",
    b"\xff\xfe": "UTF-16 text: save it as UTF-8",
    b"\xfe\xff": "UTF-16 text: save it as UTF-8",
    b"PAR1\x15": "a Parquet file: give text, its columns separated by tabs",
}
"""How files begin that are not text in UTF-8 -> what they are, and what to do.

All the bytes that a kind begins with are compared: `PAR1` or `BZh` may also begin a line of text.
"""


def refuse_binary(path: str) -> None:
    """Raises ValueError, which says what the file is, if it is not text in UTF-8 or alike."""
    with open(path, "rb") as file:
        head = file.read(4096)
    if pointer := describe_pointer(head):
        raise ValueError(f"{path} {pointer}.")
    for begin, advice in BINARY_SIGNATURES.items():
        if head.startswith(begin):
            raise ValueError(f"{path} is {advice}.")
    zeros = head.count(0)
    if zeros > len(head) // 8:  # fewer are a few damaged lines, which are skipped
        what = "UTF-16 text" if zeros > len(head) // 3 else "not text: it has null bytes"
        raise ValueError(f"{path} is {what}: save it as text in UTF-8.")


_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")


def decode_base64(text: bytes) -> bytes:
    """Decodes base64 in the URL-safe or the standard alphabet.

    Raises:
      InvalidLineError: the text is not base64. (The reference implementation drops all other
        characters, and decodes a corrupted image.)
    """
    try:
        return binascii.a2b_base64(text.translate(_STANDARD_ALPHABET), strict_mode=True)
    except binascii.Error as error:
        raise InvalidLineError(BAD_BASE64, f"its image is not base64 ({error})") from error
