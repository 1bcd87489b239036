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
import json
import os
import pathlib
import tarfile
import threading
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer

from ofa_jax.data.sources.derived_files import written_to
from ofa_jax.data.sources.field_table import Row
from ofa_jax.data.sources.file_patterns import TAR_INDEX_SUFFIX, Files, find_files, splits_of
from ofa_jax.data.sources.image_folders import IMAGE_SUFFIXES
from ofa_jax.data.sources.json_lines import sample_texts
from ofa_jax.data.sources.shards import damaged_record
from ofa_jax.data.sources.table_rows import JoinedRows, Rows
from ofa_jax.data.sources.tables import TableDataSet
from ofa_jax.data.sources.tsv_index import FileState
from ofa_jax.utils import options, progress
from ofa_jax.utils.array_files import load_arrays
from ofa_jax.utils.bad_input import Treatment, declare, note
from ofa_jax.utils.decode_options import AS_SEEN
from ofa_jax.utils.files import atomic_path, open_regular
from ofa_jax.utils.option_checks import checked
from ofa_jax.utils.text_files import DamagedFileError, replace_surrogates
from ofa_jax.utils.wrong_files import describe, shorten

INDEX_SUFFIX = TAR_INDEX_SUFFIX
LEFT_OUT = declare(
    "file of a tar left out",
    Treatment.DROPPED,
    "A file of a WebDataset tar is a link to no earlier file of the tar, a sparse file, a device "
    "or a pipe. Links within the tar are followed.",
    __name__,
)
SEVERAL_IMAGES = declare(
    "one of several images",
    Treatment.DROPPED,
    "A sample of a WebDataset tar has several images, none of which has a plain ending such as "
    "`jpg`: the first is taken. `WebDatasetData.fields = {'image': 'left.jpg'}` names one.",
    __name__,
)
_IMAGES = tuple(suffix[1:] for suffix in IMAGE_SUFFIXES)
_TEXTS = ("txt", "text", "caption", "captions")
_FORMAT = "ofa_jax tar index 2"
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
      image_ending: of the image that is meant where a sample has several; None for the first.
    """

    path: str
    index_dir: str | None = None
    image_ending: str | None = None

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
                if is_image and fields is not None and not {"image", ending} & set(fields):
                    continue
                size = int(found.sizes[number])
                if size > _MAX_MEMBER_BYTES:
                    raise damaged_record(f"its {ending} has {size:,} bytes")
                tar.seek(int(found.offsets[number]))
                content = tar.read(size)
                if len(content) != size:
                    raise damaged_record("its tar has become shorter since it was indexed")
                _add(row, ending, content, is_image)
        images = [name for name in row if name.rpartition(".")[2] in _IMAGES and name != "image"]
        images = [name for name in images if isinstance(row[name], bytes)]
        if len(images) > 1 and self.image_ending not in row:
            plain = [name for name in images if "." not in name]
            row["image"] = row[(plain or images)[0]]
            if len(plain) != 1:
                where = f"{self.location(index)} has the images {', '.join(images)}"
                note(SEVERAL_IMAGES, f"{where}: {(plain or images)[0]} is taken")
        return row

    def select(self, needed: Sequence[Sequence[str]]) -> Integer[np.ndarray, " rows"] | None:
        """Returns the samples that have an image, and a text where one is needed."""
        found = self._index
        if not len(self):
            return np.zeros(0, np.uint32)
        chosen = np.zeros(len(self), bool)
        for names in needed:
            own = np.ones(len(self), bool)
            for name in set(names) - {"id"}:
                own &= self._has(found, functools.partial(_may_have, name=name))
            chosen |= own
        return None if chosen.all() else np.flatnonzero(chosen).astype(np.uint32)

    @staticmethod
    def _has(found: TarIndex, fits: Any) -> np.ndarray:
        """Returns which samples have a file with a fitting ending."""
        fitting = np.array([fits(ending) for ending in found.endings], bool)
        counts = np.concatenate([[0], np.cumsum(fitting[found.suffixes])])
        return counts[found.starts[1:]] > counts[found.starts[:-1]]


def _may_have(ending: str, name: str) -> bool:
    """Returns whether a file of a sample may have a field of a row."""
    if name == "image":
        return ending.rpartition(".")[2] in _IMAGES
    known = {"cls": "label"} | dict.fromkeys(_TEXTS, "captions")
    return ending in ("json", name) or known.get(ending) == name


def _add(row: dict[str, Any], ending: str, content: bytes, is_image: bool) -> None:
    """Adds what a file of a sample holds to its row. Raises InvalidRecordError."""
    if is_image:
        row.setdefault("image", content)
        row[ending] = content
    elif ending == "json":
        for name, value in sample_texts("json", content).items():
            if name == "id" and isinstance(value, str | int):
                row["id"] = value
            elif name != "image":  # that of the tar is there
                row.setdefault(name, value)
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
    arrays["endings"] = np.frombuffer(json.dumps(index.endings).encode(), np.uint8)
    arrays["state"] = np.frombuffer(wanted.encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    with written_to(target.parent, f"The index of {rows.path}", rows.path):
        with atomic_path(target) as temporary:
            temporary.write_bytes(buffer.getvalue())
    return index


def _read_index(path: pathlib.Path, wanted: str, size: int) -> TarIndex | None:
    """Reads an index; returns None if it is damaged, or not that of this file."""
    try:
        arrays = load_arrays(path)
        if arrays.pop("state").tobytes().decode() != wanted:
            return None
        keys = arrays.pop("keys").tobytes()
        endings = tuple(map(str, json.loads(arrays.pop("endings").tobytes())))
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


class _Member(NamedTuple):
    """A file of a tar: its ending, and where its content is."""

    ending: str
    offset: int
    size: int


class _Samples:
    """Sorts the files of a tar by sample, in the order of the tar.

    Files of one name belong together wherever they are. A file whose ending its sample has already
    begins another sample of the same name, as in tars that were appended to.
    """

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.members: list[list[_Member]] = []
        self._latest: dict[str, int] = {}
        self._by_name: dict[str, _Member] = {}
        self.left_out: dict[str, str] = {}

    def add(self, member: tarfile.TarInfo) -> None:
        """Adds what a header describes; other things than files with an ending are left out."""
        folder, base = os.path.split(member.name)
        stem, dot, ending = base.partition(".")
        if member.isdir() or not dot or not stem:
            return
        if member.islnk() or member.issym():  # nothing outside of the tar is looked at
            link = member.linkname
            where = link if member.islnk() else os.path.join(folder, link)
            target = self._by_name.get(os.path.normpath(where))
            if target is None:
                self.left_out[member.name] = "is a link to no earlier file of the tar"
                return
            found = _Member(ending.lower(), target.offset, target.size)
        elif member.isreg() and not member.issparse():
            found = _Member(ending.lower(), member.offset_data, member.size)
        else:
            self.left_out[member.name] = "is a sparse file, a device or a pipe"
            return
        self._by_name[os.path.normpath(member.name)] = found
        key = os.path.join(folder, stem)
        number = self._latest.get(key)
        if number is None or any(own.ending == found.ending for own in self.members[number]):
            number = self._latest[key] = len(self.keys)
            self.keys.append(key)
            self.members.append([])
        self.members[number].append(found)

    def index(self) -> TarIndex:
        """Returns the index of what was added."""
        endings: dict[str, int] = {}
        members = [member for own in self.members for member in own]
        suffixes = [endings.setdefault(one.ending, len(endings)) for one in members]
        # What is no UTF-8 in a name becomes a surrogate, which cannot be encoded.
        keys = [key.encode("utf-8", "replace") for key in self.keys]
        return TarIndex(
            np.cumsum([0, *map(len, self.members)], dtype=np.int64),
            np.array(suffixes, np.uint32),
            np.array([member.offset for member in members], np.int64),
            np.array([member.size for member in members], np.int64),
            np.cumsum([len(key) for key in keys], dtype=np.int64),
            b"".join(keys),
            tuple(map(replace_surrogates, endings)),
        )


def build_index(path: str) -> TarIndex:
    """Reads the headers of a tar, from the first to the last.

    Raises:
      DamagedFileError: it is no tar, is compressed, is cut off or is damaged.
    """
    samples = _Samples()
    total = os.stat(path).st_size
    try:
        with (
            open_regular(path) as file,
            progress.substage(f"indexing {path}", total, "bytes") as stage,
            tarfile.open(fileobj=file, mode="r:") as tar,
        ):
            for member in tar:
                stage.update(member.offset)
                if member.isreg() and member.offset_data + member.size > total:
                    raise tarfile.ReadError("it ends within a file")
                samples.add(member)
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
    for name, problem in samples.left_out.items():
        note(LEFT_OUT, f"{path}: {shorten(name)} {problem}")
    if not samples.keys:
        raise DamagedFileError(f"{path} has no samples: there are no files in it.")
    return samples.index()


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
        ending = self.fields.get("image")
        rows = JoinedRows(tuple(TarRows(path, self.index_dir, ending) for path in paths))
        len(rows)  # builds the indices now
        return rows
