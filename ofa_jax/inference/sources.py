"""Where many requests come from: JSON lines, TSV, folders of images. Random access, no memory.

    source = JsonLines("questions.jsonl", instruction="what does the image describe?")
    entry = source[7]                            # Entry(id, instruction, image, region)
    image = entry.encoded()                    # its bytes; read only now

What is wrong with an entry raises InvalidRecordError where it is read; its place says its name
even then.
"""

import binascii
import dataclasses
import functools
import json
import os
import pathlib
import string
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ofa_jax.data.sources.tsv_columns import TSV_FORMATS
from ofa_jax.data.sources.tsv_file import OpenTsv, TsvFile, decode_base64
from ofa_jax.inference.requests import Box
from ofa_jax.preprocessing.records import InvalidRecordError

FIELDS = ("id", "instruction", "image", "region")
_LONGEST_PATH = 4096


@dataclasses.dataclass(frozen=True)
class Entry:
    """What a source says of a request.

    Attributes:
      id: the source's own; its place where it has none.
      instruction: as a person writes it.
      image: a path, base64, or None.
      region: x0, y0, x1, y1 in pixels of the image, or None.
      folder: that paths are relative to.
    """

    id: str
    instruction: str
    image: str | None = None
    region: Box | None = None
    folder: str = "."

    def encoded(self) -> bytes | None:
        """The image's file.

        Raises:
          InvalidRecordError: `image` is neither a file nor base64.
        """
        if self.image is None:
            return None
        text = self.image.strip()
        path = os.path.join(self.folder, text)
        # False also for what is too long to be a name.
        if len(text) < _LONGEST_PATH and os.path.isfile(path):
            try:
                return pathlib.Path(path).read_bytes()
            except OSError as error:
                raise InvalidRecordError(
                    f"its image {text} cannot be read ({error.strerror})"
                ) from error
        if text.startswith("data:"):
            text = text.partition("base64,")[2]
        try:
            # A missing file's name is no base64: that has no dots and comes in fours.
            return decode_base64("".join(text.split()).encode("ascii"))
        except (InvalidRecordError, UnicodeEncodeError, binascii.Error):
            shown = text if len(text) <= 80 else f"{text[:77]}..."
            raise InvalidRecordError(f"its image {shown!r} is neither a file nor base64") from None


class InvalidEntry(InvalidRecordError):
    """An entry that cannot be used, though it says its name.

    Attributes:
      id: of the entry.
    """

    def __init__(self, identity: str, reason: str):
        super().__init__(identity, reason)
        self.id = identity

    def __str__(self) -> str:
        return self.args[1]


class Source(Protocol):
    """Requests by number. Picklable."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Entry:
        """Raises InvalidRecordError; InvalidEntry where the id is known."""

    def location(self, index: int) -> str:
        """What stands for an id where there is none."""


@dataclasses.dataclass(frozen=True)
class _Lines:
    """The lines of one file or of several, which `path` matches.

    Attributes:
      path: a file, or a pattern such as `questions-*.jsonl` (in the order of the names).
      instruction: where a line has none; names in braces stand for what the line has of that name:
        `which region does the text " {phrase} " describe?`
      image_dir: that paths of images are relative to; the folder of the file when None.
      index_dir: where the index of the lines is kept; beside the file when None.
    """

    path: str
    instruction: str | None = None
    image_dir: str | None = None
    index_dir: str | None = None

    @functools.cached_property
    def _files(self) -> tuple[tuple[str, ...], np.ndarray]:
        """The files, and with which line of all each begins: int64 [F + 1]."""
        path = pathlib.Path(self.path)
        paths = [path]
        if not path.exists() and any(sign in self.path for sign in "*?["):
            anchor = path.anchor or "."
            paths = sorted(pathlib.Path(anchor).glob(str(path.relative_to(path.anchor))))
            if not paths:
                raise FileNotFoundError(f"No file matches {self.path}: check the path.")
        counts = [len(self._open(str(path))) for path in paths]
        return tuple(map(str, paths)), np.cumsum([0, *counts])

    def _open(self, path: str) -> OpenTsv:
        return TsvFile(path, None, self.index_dir, skip_blank=True).open()

    def __getstate__(self) -> dict[str, Any]:
        names = {field.name for field in dataclasses.fields(self)}
        return {name: value for name, value in self.__dict__.items() if name in names}

    def __len__(self) -> int:
        return int(self._files[1][-1])

    def _at(self, index: int) -> tuple[str, int]:
        """File and line of it, from 0."""
        files, starts = self._files
        number = int(np.searchsorted(starts, index, side="right")) - 1
        return files[number], index - int(starts[number])

    def _line(self, index: int) -> bytes:
        path, line = self._at(index)
        return self._open(path).line(line)

    def location(self, index: int) -> str:
        """File and line, from 1."""
        path, line = self._at(index)
        return f"{pathlib.Path(path).name}:{line + 1}"

    def _entry(self, index: int, fields: Mapping[str, Any]) -> Entry:
        """An entry of a line's fields."""
        path, _ = self._at(index)
        identity = fields.get("id")
        identity = self.location(index) if identity in (None, "") else str(identity)
        try:
            instruction = fields.get("instruction")
            if instruction is None:
                instruction = self._filled(fields)
            image = fields.get("image")
            if not isinstance(instruction, str) or not isinstance(image, str | None):
                raise InvalidRecordError("its instruction and its image must be text")
        except InvalidRecordError as error:
            raise InvalidEntry(identity, str(error)) from error
        folder = self.image_dir or os.path.dirname(path) or "."
        return Entry(identity, instruction, image or None, fields.get("region"), folder)

    def _filled(self, fields: Mapping[str, Any]) -> str:
        if self.instruction is None:
            raise InvalidRecordError("it has no instruction, and there is none for all lines")
        try:
            # `{region}` is filled in when the image is there.
            return self.instruction.format_map(
                {"region": "{region}"}
                | {name: value for name, value in fields.items() if name != "region"}
            )
        except KeyError as error:
            raise InvalidRecordError(
                f"it has no {error.args[0]}, which the instruction wants"
            ) from error


@dataclasses.dataclass(frozen=True)
class JsonLines(_Lines):
    """A JSON object a line: image (a path or base64), instruction, and if wanted id and region."""

    def __getitem__(self, index: int) -> Entry:
        """See `Source`."""
        try:
            fields = json.loads(self._line(index))
        except ValueError as error:
            raise InvalidRecordError(f"it is no JSON ({error})") from error
        if not isinstance(fields, dict):
            raise InvalidRecordError(f"it is no JSON object but a {type(fields).__name__}")
        return self._entry(index, fields)


@dataclasses.dataclass(frozen=True)
class Tsv(_Lines):
    """Columns separated by tabs, as in the original's files.

    Attributes:
      columns: name -> the column it is in: its place, counted from 0; or a name, of `layout` or of
        the header. Fields of an entry (id, instruction, image, region), and whatever the
        instruction wants.
      layout: a kind of file in `ofa_jax.data.sources.tsv_columns.TSV_FORMATS`, which names its
        columns: then `columns` may be left out, and the layout's names stand in the instruction.
      header: whether the first line of a file names its columns.
    """

    columns: Mapping[str, int | str] | None = None
    layout: str | None = None
    header: bool = False

    def __post_init__(self) -> None:
        if self.layout is not None and self.layout not in TSV_FORMATS:
            raise ValueError(
                f"Tsv.layout is {self.layout!r}; choose from {', '.join(TSV_FORMATS)}."
            )
        if self.columns is None and self.layout is None and not self.header:
            raise ValueError(
                "Tsv needs to know its columns: give columns = {'id': 0, 'image': 1, 'instruction':"
                " 2}, a layout, or header = True."
            )
        if self.header and self.layout is not None:
            raise ValueError("Tsv takes a layout or a header, not both.")
        if not self.header:
            self._named(())

    def __len__(self) -> int:
        return super().__len__() - len(self._files[0]) * self.header

    def _at(self, index: int) -> tuple[str, int]:
        if not self.header:
            return super()._at(index)
        files, starts = self._files
        starts = starts - np.arange(len(starts))
        number = int(np.searchsorted(starts, index, side="right")) - 1
        return files[number], index - int(starts[number]) + 1

    def _names(self, path: str) -> list[str]:
        """Of the header of a file."""
        if not self.header:
            return []
        return self._open(path).line(0).decode("utf-8", "replace").split("\t")

    def _named(self, names: Sequence[str]) -> dict[str, int]:
        """name -> place."""
        known = {name: place for place, name in enumerate(names)}
        if self.layout is not None:
            layout = TSV_FORMATS[self.layout]
            known = dict(zip(layout.columns, layout.selected_cols, strict=True))
        if self.columns is None:
            return known
        named = {}
        for name, column in self.columns.items():
            if isinstance(column, str) and column not in known:
                raise ValueError(
                    f"Tsv.columns takes {name} from {column!r}, which is no column: there are "
                    f"{', '.join(known) or 'no names, only places'}."
                )
            named[name] = known[column] if isinstance(column, str) else column
        return named

    def __getitem__(self, index: int) -> Entry:
        """See `Source`."""
        path, _ = self._at(index)
        columns = self._line(index).split(b"\t")
        named = self._named(self._names(path))
        wanted = {name for name in named if name in FIELDS} | {
            name for _, name, _, _ in string.Formatter().parse(self.instruction or "") if name
        }
        fields: dict[str, Any] = {}
        for name, place in named.items():
            if name not in wanted:
                continue
            if not -len(columns) <= place < len(columns):
                raise InvalidRecordError(
                    f"it has {len(columns)} columns, and {name} is to be in column {place}"
                )
            try:
                fields[name] = columns[place].decode("utf-8")
            except UnicodeDecodeError as error:
                raise InvalidRecordError(f"its {name} is not UTF-8") from error
        if fields.get("region"):
            fields["region"] = fields["region"].split(",")
        return self._entry(index, fields)


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """Every image in a folder and those in it, in the order of their names; one instruction.

    Attributes:
      path: the folder.
      instruction: for all.
      suffixes: of the files that are images; all that Pillow knows when None.
    """

    path: str
    instruction: str
    suffixes: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not pathlib.Path(self.path).is_dir():
            raise FileNotFoundError(f"There is no folder {self.path}: check the path.")

    @functools.cached_property
    def _names(self) -> tuple[str, ...]:
        if self.suffixes is None:
            Image.init()
            suffixes = set(Image.EXTENSION)
        else:
            suffixes = {f".{suffix.lower().lstrip('.')}" for suffix in self.suffixes}
        found = []
        for folder, _, names in os.walk(self.path):
            found += [
                os.path.relpath(os.path.join(folder, name), self.path)
                for name in names
                if pathlib.Path(name).suffix.lower() in suffixes
            ]
        return tuple(sorted(found))

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Entry:
        """See `Source`."""
        return Entry(self._names[index], self.instruction, self._names[index], folder=self.path)

    def location(self, index: int) -> str:
        """The image's path in the folder."""
        return self._names[index]
