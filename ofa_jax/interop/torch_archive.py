"""Finds the pickle and the storages of a file of torch's, in both of its formats, without copying.

Since torch 1.6 a file is a zip archive of `data.pkl` and of storages, which are not compressed;
before, it was a row of pickles with the storages behind them. Every size and place is compared with
the file before anything is read or allocated.
"""

import dataclasses
import io
import mmap
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from ofa_jax.interop import inert_pickle
from ofa_jax.utils.bad_input import Treatment, declare
from ofa_jax.utils.text_files import DamagedFileError
from ofa_jax.utils.wrong_files import shorten

DAMAGED = declare(
    "checkpoint of others is damaged",
    Treatment.REFUSED,
    "A `.pt`, `.bin` or `.safetensors` file is cut off, differs from its checksums, has tensors "
    "beyond its storages, or is something else: a pointer of Git LFS, a web page, an archive.",
    __name__,
)
FORBIDDEN = declare(
    "checkpoint asks for code",
    Treatment.REFUSED,
    "The pickle of a checkpoint names a class or function besides tensors, plain containers and "
    "the configuration of training. Nothing of it is executed.",
    __name__,
)
_LOCAL_HEADER = struct.Struct("<4s22x2H")
_ENCRYPTED, _UTF8 = 1, 0x800
# What zipfile raises for a damaged directory.
_ZIP_ERRORS = (
    zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error, OSError,
    IndexError, KeyError,
)  # fmt: skip
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def is_legacy(head: bytes) -> bool:
    """Returns whether a file with these first bytes is one of torch before 1.6."""
    return head[:1] == b"\x80" and _LEGACY_MAGIC.to_bytes(10, "little") in head[:32]


@dataclasses.dataclass
class Storage:
    """A raw array of a file.

    Attributes:
      array: a read-only view of the file.
      content: the bytes whose checksum is known.
      crc: their CRC-32; None once it was compared, and in formats that have none.
      name: of the file and storage, for the error.
    """

    array: np.ndarray
    content: memoryview
    crc: int | None
    name: str

    def verify(self) -> None:
        """Compares the bytes with their checksum, the first time; this reads them once.

        Raises:
          DamagedFileError: they differ.
        """
        if self.crc is not None and zlib.crc32(self.content) != self.crc:
            raise DamagedFileError(
                f"{self.name} differs from its checksum: the file is damaged; copy or download it "
                "again."
            )
        self.crc = None


class ZipArchive:
    """A file of torch 1.6 or later."""

    def __init__(
        self, path: pathlib.Path, file: BinaryIO, mapped: mmap.mmap, torchscript: bool = False
    ):
        """Reads the archive's directory.

        Args:
          path: of the file.
          file: the file.
          mapped: its content.
          torchscript: whether it may be a TorchScript program, of which only `data.pkl` is read.

        Raises:
          DamagedFileError: it is damaged, or torch did not write it.
        """
        self._path, self._content = path, memoryview(mapped)
        try:
            with zipfile.ZipFile(file) as archive:
                infos, self._end = archive.infolist(), archive.start_dir
        except _ZIP_ERRORS as error:
            raise DamagedFileError(
                f"{path} is a damaged or cut off zip archive ({shorten(str(error))}): copy or "
                "download it again."
            ) from error
        self._members = {info.filename: info for info in infos}
        if len(self._members) < len(infos):
            raise self._damaged("has two parts of the same name")
        roots = [name.removesuffix("/data.pkl") for name in self._members if
                 name.endswith("/data.pkl")]  # fmt: skip
        if len(roots) != 1:
            what = "no data.pkl" if not roots else "more than one data.pkl"
            raise DamagedFileError(f"{path} has {what}: torch did not write this zip archive.")
        (self._root,) = roots
        if not torchscript and f"{self._root}/constants.pkl" in self._members:
            raise DamagedFileError(
                f"{path} is a TorchScript program (torch.jit.save), not a state dict: save the "
                "module's state_dict() with torch.save."
            )
        self._places = self._find_places()
        order = self._members.get(f"{self._root}/byteorder")
        if order is not None and bytes(self._read(order)[:8]) != b"little":
            raise DamagedFileError(
                f"{path} was written on a big-endian machine: load it with torch and save it on "
                "this one."
            )

    def _find_places(self) -> dict[str, tuple[int, int]]:
        """Returns where the content of each member begins and ends; none overlaps another."""
        places, last = {}, 0
        for info in sorted(self._members.values(), key=lambda info: info.header_offset):
            if info.flag_bits & _ENCRYPTED:
                raise DamagedFileError(f"{self._path} is encrypted: decrypt it first.")
            header = info.header_offset
            start = header + _LOCAL_HEADER.size
            if header < last or start > self._end:
                raise self._damaged("has parts that overlap")
            # The local header's extra field differs from the directory's: torch pads with it.
            mark, name_length, extra_length = _LOCAL_HEADER.unpack_from(self._content, header)
            name = bytes(self._content[start : start + name_length])
            start += name_length + extra_length
            last = start + info.compress_size
            encoding = "utf-8" if info.flag_bits & _UTF8 else "cp437"
            if mark != b"PK\x03\x04" or name != info.orig_filename.encode(encoding, "replace"):
                raise self._damaged(f"has another part in the place of {shorten(info.filename)}")
            if last > self._end:
                raise self._damaged(f"has a part that is cut off ({shorten(info.filename)})")
            places[info.filename] = start, last
        return places

    def _read(self, info: zipfile.ZipInfo) -> memoryview | bytes:
        """Returns the content of a small member, whose size and checksum are those it declares."""
        start, end = self._places[info.filename]
        content: memoryview | bytes = self._content[start:end]
        if info.file_size > inert_pickle.MAX_BYTES:
            raise self._damaged(f"has a {shorten(info.filename)} of {info.file_size:,} bytes")
        if info.compress_type == zipfile.ZIP_DEFLATED:
            decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
            try:
                # Never more than it declares: a few bytes can inflate to gigabytes.
                content = decompressor.decompress(content, info.file_size + 1)
            except zlib.error as error:
                raise self._damaged(f"cannot decompress {shorten(info.filename)}") from error
        elif info.compress_type != zipfile.ZIP_STORED:
            raise self._damaged(f"compresses {shorten(info.filename)} in an unknown way")
        if len(content) != info.file_size or zlib.crc32(content) != info.CRC:
            raise self._damaged(f"has a {shorten(info.filename)} that differs from its checksum")
        return content

    def pickled(self) -> io.BytesIO:
        """Returns the pickle."""
        return io.BytesIO(self._read(self._members[f"{self._root}/data.pkl"]))

    def storage(self, key: str, dtype: np.dtype, length: int) -> Storage:
        """Returns a storage.

        Raises:
          DamagedFileError: the file does not hold it, or not all of it.
        """
        name = f"{self._root}/data/{key}"
        if name not in self._members:
            raise DamagedFileError(f"{self._path} lacks the storage {shorten(key)}: it is damaged.")
        info = self._members[name]
        if info.compress_type != zipfile.ZIP_STORED:
            raise DamagedFileError(
                f"{self._path} was compressed after torch wrote it: unpack it and zip it again "
                "without compression (zip -0)."
            )
        start, end = self._places[name]
        if not 0 <= length * dtype.itemsize <= end - start:
            raise self._damaged(f"has a storage {shorten(key)} that is cut off")
        content = self._content[start:end]
        array = np.frombuffer(content, dtype, length)
        return Storage(array, content, info.CRC, f"{self._path}: the storage {shorten(key)}")

    def _damaged(self, predicate: str) -> DamagedFileError:
        return DamagedFileError(
            f"{self._path} {predicate}: the file is damaged; copy or download it again."
        )


FindStorage = Callable[[str, np.dtype, int], Storage]


class LegacyFile:
    """A file of torch before 1.6, such as older weights of torchvision and fairseq.

    It is the magic number, the version, a description of the machine, the content and the list of
    storages, each a pickle; then, for each storage, its length (int64) and its bytes. There are no
    checksums.
    """

    def __init__(self, path: pathlib.Path, mapped: mmap.mmap, interpret: Callable[..., Any]):
        """Finds the storages.

        Args:
          path: of the file.
          mapped: its content.
          interpret: reads a pickle from a stream, given a FindStorage; makes no tensors.

        Raises:
          DamagedFileError: the file is damaged.
          ContentError: a pickle is.
        """
        self._path, self._content = path, memoryview(mapped)
        # Ends within the storages, unless the pickles are too large; then reading them fails.
        self._stream = io.BytesIO(self._content[: inert_pickle.MAX_BYTES])
        found: dict[str, tuple[np.dtype, int]] = {}

        def note(key: str, dtype: np.dtype, length: int) -> Storage:
            if found.setdefault(key, (dtype, length)) != (dtype, length):
                raise self._damaged(f"gives two sizes of the storage {shorten(key)}")
            return Storage(np.empty(0, dtype), memoryview(b""), None, "")

        magic, protocol, machine = (interpret(self._stream, note) for _ in range(3))
        if magic != _LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL:
            raise self._damaged("is of an unknown version")
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise self._damaged("does not say that a little-endian machine wrote it")
        self._start = self._stream.tell()
        interpret(self._stream, note)
        keys = interpret(self._stream, note)
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise self._damaged("has no list of its storages")
        if len(set(keys)) != len(keys) or set(keys) != set(found):
            raise self._damaged("lists other storages than its content refers to")
        self._arrays = self._find_arrays(keys, found, self._stream.tell())

    def _find_arrays(
        self, keys: list[str], found: dict[str, tuple[np.dtype, int]], place: int
    ) -> dict[str, np.ndarray]:
        """Returns views of the storages, which begin at `place` and fill the rest of the file."""
        arrays = {}
        for key in keys:
            dtype, length = found[key]
            declared = int.from_bytes(self._content[place : place + 8], "little", signed=True)
            start, place = place + 8, place + 8 + length * dtype.itemsize
            if declared != length or place > len(self._content):
                raise self._damaged(f"is cut off or garbled at the storage {shorten(key)}")
            arrays[key] = np.frombuffer(self._content[start:place], dtype, length)
        if place != len(self._content):
            raise self._damaged("goes on behind its last storage")
        return arrays

    def pickled(self) -> io.BytesIO:
        """Returns the pickle of the content."""
        self._stream.seek(self._start)
        return self._stream

    def storage(self, key: str, dtype: np.dtype, length: int) -> Storage:
        """Returns a storage."""
        return Storage(self._arrays[key], memoryview(b""), None, "")

    def _damaged(self, predicate: str) -> DamagedFileError:
        return DamagedFileError(
            f"{self._path}, in the format of torch before 1.6, {predicate}: the file is damaged; "
            "copy or download it again."
        )
