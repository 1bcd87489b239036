"""WebDataset tars: the files of a sample have one name and several endings, one after the other.

    00017.jpg  00017.txt  00017.json   ->  image, captions (one a line), other fields of the record

A tar has no list of what is in it. It is read once, from header to header, and an index with the
place of every file is kept beside it (or in `index_dir`); after that any sample is read directly.
The endings and what they become: images -> `image`, `txt` and `caption` -> `captions`, `cls` ->
`label`, `json` -> fields of the record, each other one -> the field of that name.
"""

import dataclasses
import functools
import io
import os
import pathlib
import tarfile
import threading
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer

from ofa_jax.data.sources.field_table import Row
from ofa_jax.data.sources.json_lines import IMAGE_SUFFIXES, sample_texts
from ofa_jax.data.sources.shards import damaged_record
from ofa_jax.data.sources.tables import (
    Files,
    JoinedRows,
    Rows,
    TableDataSet,
    find_files,
    splits_of,
)
from ofa_jax.data.sources.tsv_index import FileState
from ofa_jax.utils import options, progress
from ofa_jax.utils.array_files import load_arrays
from ofa_jax.utils.decode_options import AS_SEEN
from ofa_jax.utils.files import atomic_path, open_regular
from ofa_jax.utils.option_checks import checked
from ofa_jax.utils.text_files import DamagedFileError
from ofa_jax.utils.wrong_files import describe

INDEX_SUFFIX = ".members.npz"
_IMAGES = tuple(suffix[1:] for suffix in IMAGE_SUFFIXES)
_TEXTS = ("txt", "text", "caption", "captions")
_FORMAT = "ofa_jax tar index 1"
_BLOCK = 512
_MAX_MEMBER_BYTES = AS_SEEN.max_encoded_bytes


class TarIndex(NamedTuple):
    """Where everything is in a tar.

    Attributes:
      starts: the first file of each sample, and the number of files.
      suffixes: of each file, the number of its ending in `endings`.
      offsets: of each file's content.
      sizes: of each file's content, in bytes.
      key_ends: where each sample's key ends in `keys`.
      keys: of all samples, in UTF-8, one after the other.
      endings: all different endings.
    """

    starts: Integer[np.ndarray, " samples_plus_1"]
    suffixes: Integer[np.ndarray, " files"]
    offsets: Integer[np.ndarray, " files"]
    sizes: Integer[np.ndarray, " files"]
    key_ends: Integer[np.ndarray, " samples"]
    keys: bytes
    endings: tuple[str, ...]

    def key(self, index: int) -> str:
        """Returns what the files of a sample have in common."""
        start = int(self.key_ends[index - 1]) if index else 0
        return self.keys[start : int(self.key_ends[index])].decode("utf-8", "replace")


@dataclasses.dataclass(frozen=True)
class TarRows:
    """The samples of one tar.

    Attributes:
      path: of the tar.
      index_dir: the folder of the index; None for that of the tar.
    """

    path: str
    index_dir: str | None = None

    @property
    def name(self) -> str:
        """The path of the tar."""
        return self.path

    @property
    def _index(self) -> TarIndex:
        status = os.stat(self.path)
        with _OPEN_LOCK:
            return _open_index(self, status.st_size, status.st_mtime_ns, status.st_ino)

    def __len__(self) -> int:
        return len(self._index.key_ends)

    def folder_of(self, index: int) -> str:
        """Returns the folder of the tar, for images that a sample names by a path."""
        del index
        return os.path.dirname(self.path) or "."

    def location(self, index: int) -> str:
        """Returns the tar and the key of a sample."""
        return f"{self.path}, sample {self._index.key(index)}"

    def row(self, index: int, fields: Sequence[str] | None = None) -> Row:
        """Reads the files of a sample. Raises InvalidRecordError if one of them is damaged."""
        found = self._index
        row: dict[str, Any] = {"id": found.key(index)}
        with open_regular(self.path) as tar:
            for number in range(int(found.starts[index]), int(found.starts[index + 1])):
                ending = found.endings[found.suffixes[number]]
                is_image = ending.rpartition(".")[2] in _IMAGES
                if is_image and fields is not None and "image" not in fields:
                    continue
                size = int(found.sizes[number])
                if size > _MAX_MEMBER_BYTES:
                    raise damaged_record(f"its {ending} has {size:,} bytes")
                tar.seek(int(found.offsets[number]))
                content = tar.read(size)
                if len(content) != size:
                    raise damaged_record("its tar has become shorter since it was indexed")
                _add(row, ending, content, is_image)
        return row

    def select(self, needed: Sequence[Sequence[str]]) -> Integer[np.ndarray, " rows"] | None:
        """Returns the samples that have an image, and a text where one is needed."""
        found = self._index
        if not len(self):
            return np.zeros(0, np.uint32)
        chosen = np.zeros(len(self), bool)
        for names in needed:
            own = np.ones(len(self), bool)
            if "image" in names:
                own &= self._has(found, lambda ending: ending.rpartition(".")[2] in _IMAGES)
            if others := set(names) - {"image"}:
                own &= self._has(found, lambda ending: _may_have(ending, others))
            chosen |= own
        return None if chosen.all() else np.flatnonzero(chosen).astype(np.uint32)

    @staticmethod
    def _has(found: TarIndex, fits: Any) -> np.ndarray:
        """Returns which samples have a file with a fitting ending."""
        fitting = np.array([fits(ending) for ending in found.endings], bool)
        counts = np.concatenate([[0], np.cumsum(fitting[found.suffixes])])
        return counts[found.starts[1:]] > counts[found.starts[:-1]]


def _may_have(ending: str, names: set[str]) -> bool:
    """Returns whether a file of a sample may have one of some fields of a row."""
    return ending == "json" or ending in names or (ending in _TEXTS and "captions" in names)


def _add(row: dict[str, Any], ending: str, content: bytes, is_image: bool) -> None:
    """Adds what a file of a sample holds to its row. Raises InvalidRecordError."""
    if is_image:
        row.setdefault("image", content)
        row[ending] = content
    elif ending == "json":
        for name, value in sample_texts("json", content).items():
            if name != "image":  # that of the tar is there
                row.setdefault(name, value) if name != "id" else row.update(id=value)
    elif ending in _TEXTS:
        texts = sample_texts("txt", content)["captions"]
        row["captions"] = row[ending] = texts
    else:
        text = content.decode("utf-8", "replace").strip()
        row["label" if ending == "cls" else ending] = int(text) if text.isdecimal() else text


_OPEN_LOCK = threading.Lock()


@functools.lru_cache(maxsize=4096)
def _open_index(rows: TarRows, size: int, mtime_ns: int, inode: int) -> TarIndex:
    """Reads the index of a tar, and builds it if there is none for its present state."""
    del size, mtime_ns, inode  # only for the cache
    state = FileState.of(rows.path)
    path = pathlib.Path(rows.path)
    target = path.with_name(f".{path.name}{INDEX_SUFFIX}")
    if rows.index_dir is not None:
        checksum = zlib.crc32(str(path.absolute()).encode())
        target = pathlib.Path(rows.index_dir) / f"{path.name}-{checksum:08x}{INDEX_SUFFIX}"
    wanted = f"{_FORMAT} {state.size} {state.mtime_ns} {state.samples}"
    if (stored := _read_index(target, wanted, state.size)) is not None:
        return stored
    index = build_index(rows.path)
    arrays: dict[str, Any] = {
        name: value for name, value in index._asdict().items() if isinstance(value, np.ndarray)
    }
    arrays["keys"] = np.frombuffer(index.keys, np.uint8)
    arrays["endings"] = np.frombuffer("\n".join(index.endings).encode(), np.uint8)
    arrays["state"] = np.frombuffer(wanted.encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(target) as temporary:
            temporary.write_bytes(buffer.getvalue())
    except PermissionError as error:
        raise OSError(
            f"The index of {rows.path} cannot be written to {target.parent} ({error.strerror}): "
            "give a folder that can be written to as index_dir."
        ) from error
    return index


def _read_index(path: pathlib.Path, wanted: str, size: int) -> TarIndex | None:
    """Reads an index; returns None if it is damaged, or not that of this file."""
    try:
        arrays = load_arrays(path)
        if arrays.pop("state").tobytes().decode() != wanted:
            return None
        keys = arrays.pop("keys").tobytes()
        endings = tuple(arrays.pop("endings").tobytes().decode().split("\n"))
        index = TarIndex(keys=keys, endings=endings, **arrays)
        fits = (
            len(index.starts) == len(index.key_ends) + 1
            and (np.diff(index.starts) > 0).all()
            and len(index.suffixes) == len(index.offsets) == len(index.sizes) == index.starts[-1]
            and (index.suffixes < len(endings)).all()
            and (index.offsets + index.sizes <= size).all()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None
    return index if fits else None


def build_index(path: str) -> TarIndex:
    """Reads the headers of a tar, from the first to the last.

    Raises:
      DamagedFileError: it is no tar, is compressed, is cut off or is damaged.
    """
    starts, suffixes, offsets, sizes, key_ends = [0], [], [], [], []
    endings: dict[str, int] = {}
    keys, last = bytearray(), None
    total = os.stat(path).st_size
    try:
        with (
            open_regular(path) as file,
            progress.substage(f"indexing {path}", total, "bytes") as stage,
            tarfile.open(fileobj=file, mode="r:") as tar,
        ):
            for member in tar:
                stage.update(member.offset)
                if member.offset_data + member.size > total:
                    raise tarfile.ReadError("it ends within a file")
                folder, base = os.path.split(member.name)
                stem, dot, ending = base.partition(".")
                if not member.isreg() or member.issparse() or not dot or not stem:
                    continue
                key = os.path.join(folder, stem)
                if key != last:
                    if last is not None:
                        starts.append(len(sizes))
                    keys += key.encode("utf-8", "replace")
                    key_ends.append(len(keys))
                    last = key
                suffixes.append(endings.setdefault(ending.lower(), len(endings)))
                offsets.append(member.offset_data)
                sizes.append(member.size)
                tar.members = []  # type: ignore[attr-defined]  # which it would keep
            # tarfile takes a damaged header for the end.
            file.seek(tar.offset)
            rest = file.read(_BLOCK)
            if rest.strip(b"\0"):
                raise tarfile.ReadError("a header is damaged")
    except (tarfile.TarError, EOFError, OverflowError, ValueError) as error:
        what = describe(path)
        if what is None or "tar archive" in what:
            what = f"is damaged, or no tar ({error}): copy it again"
        raise DamagedFileError(f"{path} {what}.") from error
    if not sizes:
        raise DamagedFileError(f"{path} has no samples: there are no files in it.")
    starts.append(len(sizes))
    return TarIndex(
        np.array(starts, np.int64),
        np.array(suffixes, np.uint16),
        np.array(offsets, np.int64),
        np.array(sizes, np.int64),
        np.array(key_ends, np.int64),
        bytes(keys),
        tuple(endings),
    )


@checked
@dataclasses.dataclass(frozen=True)
class WebDatasetData(TableDataSet):
    """WebDataset tars.

    Attributes:
      files: a tar, a folder of tars, a pattern such as "pairs-*.tar", a list of them, or a dict
        from split to any of these; "train" is the split where there is no dict.
      data_dir: the folder that `files` is relative to.
      index_dir: the folder of the indices; None for that of the tars.
    """

    files: Files
    data_dir: options.Folder = ""
    index_dir: options.Path | None = None

    @property
    def splits(self) -> Sequence[str]:
        """The names of the splits."""
        return splits_of(self.files)

    def rows(self, split: str) -> Rows:
        """Opens the tars of a split, and indexes those that are not indexed yet."""
        paths = find_files("WebDatasetData", self.files, split, self.data_dir, (".tar",))
        rows = JoinedRows(tuple(TarRows(path, self.index_dir) for path in paths))
        len(rows)  # builds the indices now
        return rows
