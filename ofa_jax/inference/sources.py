"""Sources of requests: JSON lines, TSV files and folders of images, read by random access.

    source = JsonLines("requests.jsonl", instruction="what does the image describe?")
    entry = source[7]                          # Entry(id, instruction, image, region)
    image = entry.read_image()                 # its bytes

Reading an invalid entry raises InvalidRecordError; `location` names an entry even then.
"""

import binascii
import dataclasses
import functools
import json
import os
import pathlib
import string
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol

import numpy as np
from PIL import Image

from ofa_jax.data.sources.tsv_columns import TSV_FORMATS
from ofa_jax.data.sources.tsv_file import OpenTsv, TsvFile, decode_base64
from ofa_jax.inference.requests import Box
from ofa_jax.preprocessing.records import InvalidRecordError
from ofa_jax.utils import options
from ofa_jax.utils.bad_input import INVALID_RECORD, Reason
from ofa_jax.utils.option_checks import checked

FIELDS = ("id", "instruction", "image", "region")
_MAX_PATH_LENGTH = 4096


@dataclasses.dataclass(frozen=True)
class Entry:
    """A request as a source stores it.

    Attributes:
      id: id in the source; its location where it has none.
      instruction: in plain spelling, see `ofa_jax.preprocessing.instructions`.
      image: a path, base64, or None.
      region: x0, y0, x1, y1 in pixels of the image, or None.
      folder: folder of relative paths.
    """

    id: str
    instruction: str
    image: str | None = None
    region: Box | None = None
    folder: str = "."

    def read_image(self) -> bytes | None:
        """Returns the encoded image.

        Raises:
          InvalidRecordError: `image` is neither a file nor base64.
        """
        if self.image is None:
            return None
        text = self.image.strip()
        path = os.path.join(self.folder, text)
        # isfile is also False for text that is too long for a file name.
        if len(text) < _MAX_PATH_LENGTH and os.path.isfile(path):
            try:
                return pathlib.Path(path).read_bytes()
            except OSError as error:
                raise InvalidRecordError(
                    f"its image {text} cannot be read ({error.strerror})"
                ) from error
        if text.startswith("data:"):
            text = text.partition("base64,")[2]
        try:
            # The name of a missing file is not base64, which has no dots and a multiple of four
            # characters.
            return decode_base64("".join(text.split()).encode("ascii"))
        except (InvalidRecordError, UnicodeEncodeError, binascii.Error):
            shown = text if len(text) <= 80 else f"{text[:77]}..."
            raise InvalidRecordError(f"its image {shown!r} is neither a file nor base64") from None


class InvalidEntry(InvalidRecordError):
    """An invalid entry whose id is known.

    Attributes:
      id: id of the entry.
    """

    def __init__(self, identity: str, problem: str, reason: Reason = INVALID_RECORD):
        super().__init__(problem, reason)
        self.id = identity

    def __reduce__(self) -> tuple:
        return InvalidEntry, (self.id, str(self), self.reason)


class RequestSource(Protocol):
    """Requests by index; picklable."""

    def __len__(self) -> int:
        """Returns the number of requests."""
        ...

    def __getitem__(self, index: int) -> Entry:
        """Returns a request.

        Raises:
          InvalidRecordError: it is invalid; `InvalidEntry` if its id is known.
        """
        ...

    def location(self, index: int) -> str:
        """Returns where a request is in the source, which replaces a missing id."""
        ...


@dataclasses.dataclass(frozen=True)
class _LineFiles:
    """The lines of one or several files.

    Attributes:
      path: a file, or a pattern such as `requests-*.jsonl` (in the order of the names).
      instruction: for lines without one; names in braces are replaced by the line's fields:
        `which region does the text " {phrase} " describe?`
      image_dir: folder of relative image paths; the folder of the file when None.
      index_dir: folder of the index of the lines; beside the file when None.
    """

    path: options.Path
    instruction: options.Name | None = None
    image_dir: options.Path | None = None
    index_dir: options.Path | None = None

    @functools.cached_property
    def _files(self) -> tuple[tuple[str, ...], np.ndarray]:
        """The files, and the number of lines before each and in total: int64 [F + 1]."""
        path = pathlib.Path(self.path)
        paths = [path]
        if not path.exists() and any(wildcard in self.path for wildcard in "*?["):
            anchor = path.anchor or "."
            paths = sorted(pathlib.Path(anchor).glob(str(path.relative_to(path.anchor))))
            if not paths:
                raise FileNotFoundError(f"No file matches {self.path}: check the path.")
        counts = [len(self._open(str(path))) for path in paths]
        return tuple(map(str, paths)), np.cumsum([0, *counts])

    def _open(self, path: str) -> OpenTsv:
        """Opens a file by line."""
        return TsvFile(path, None, self.index_dir, skip_blank=True).open()

    def __getstate__(self) -> dict[str, Any]:
        names = {field.name for field in dataclasses.fields(self)}
        return {name: value for name, value in self.__dict__.items() if name in names}

    def __len__(self) -> int:
        return int(self._files[1][-1])

    def _locate(self, index: int) -> tuple[str, int]:
        """Returns the file of an entry and its line, counted from 0."""
        files, starts = self._files
        number = int(np.searchsorted(starts, index, side="right")) - 1
        return files[number], index - int(starts[number])

    def _line(self, index: int) -> bytes:
        """Returns the line of an entry."""
        path, line = self._locate(index)
        return self._open(path).line(line)

    def location(self, index: int) -> str:
        """Returns file and line, counted from 1."""
        path, line = self._locate(index)
        return f"{pathlib.Path(path).name}:{line + 1}"

    def _entry(self, index: int, fields: Mapping[str, Any]) -> Entry:
        """Converts the fields of a line to an entry."""
        path, _ = self._locate(index)
        identity = fields.get("id")
        identity = self.location(index) if identity in (None, "") else str(identity)
        try:
            instruction = fields.get("instruction")
            if instruction is None:
                instruction = self._fill_instruction(fields)
            image = fields.get("image")
            if not isinstance(instruction, str) or not isinstance(image, str | None):
                raise InvalidRecordError("its instruction and its image must be text")
        except InvalidRecordError as error:
            raise InvalidEntry(identity, str(error), error.reason) from error
        folder = self.image_dir or os.path.dirname(path) or "."
        return Entry(identity, instruction, image or None, fields.get("region"), folder)

    def _fill_instruction(self, fields: Mapping[str, Any]) -> str:
        """Inserts the fields of a line into the instruction of all lines."""
        if self.instruction is None:
            raise InvalidRecordError("it has no instruction, and there is none for all lines")
        try:
            # `{region}` is replaced once the image is read.
            return self.instruction.format_map(
                {"region": "{region}"}
                | {name: value for name, value in fields.items() if name != "region"}
            )
        except KeyError as error:
            raise InvalidRecordError(
                f"it has no {error.args[0]}, which the instruction needs"
            ) from error


@checked
@dataclasses.dataclass(frozen=True)
class JsonLines(_LineFiles):
    """Files with one JSON object per line: image, instruction, and optionally id and region.

    An image is a path or base64.
    """

    def __getitem__(self, index: int) -> Entry:
        """Returns a request, see `RequestSource`."""
        try:
            fields = json.loads(self._line(index))
        except ValueError as error:
            raise InvalidRecordError(f"it is not JSON ({error})") from error
        if not isinstance(fields, dict):
            raise InvalidRecordError(f"it is not a JSON object but a {type(fields).__name__}")
        return self._entry(index, fields)


@checked
@dataclasses.dataclass(frozen=True)
class Tsv(_LineFiles):
    """Files with columns separated by tabs, like the official data files.

    Attributes:
      columns: field -> column, by position (counted from 0) or by its name in `layout` or in the
        header. Fields are those of an entry (id, instruction, image, region) and those that the
        instruction needs.
      layout: a kind of file in `ofa_jax.data.sources.tsv_columns.TSV_FORMATS`, which names its
        columns: then `columns` is optional, and the instruction uses the layout's names.
      header: whether the first line of each file names its columns.
    """

    columns: Mapping[options.Name, int | options.Name] | None = None
    layout: Annotated[str, options.OneOf(tuple(TSV_FORMATS))] | None = None
    header: bool = False

    def __post_init__(self) -> None:
        if self.columns is None and self.layout is None and not self.header:
            raise ValueError(
                "Tsv needs to know its columns: give columns = {'id': 0, 'image': 1, 'instruction':"
                " 2}, a layout, or header = True."
            )
        if self.header and self.layout is not None:
            raise ValueError("Tsv takes a layout or a header, not both.")
        if not self.header:
            self._columns(())  # raises if a name is unknown

    def __len__(self) -> int:
        return super().__len__() - len(self._files[0]) * self.header

    def _locate(self, index: int) -> tuple[str, int]:
        if not self.header:
            return super()._locate(index)
        files, starts = self._files
        starts = starts - np.arange(len(starts))
        number = int(np.searchsorted(starts, index, side="right")) - 1
        return files[number], index - int(starts[number]) + 1

    def _names(self, path: str) -> list[str]:
        """Returns the names in the header of a file."""
        if not self.header:
            return []
        return self._open(path).line(0).decode("utf-8", "replace").split("\t")

    def _columns(self, header: Sequence[str]) -> dict[str, int]:
        """Returns the position of each field, given the names in the header."""
        known = {name: position for position, name in enumerate(header)}
        if self.layout is not None:
            layout = TSV_FORMATS[self.layout]
            known = dict(zip(layout.columns, layout.selected_cols, strict=True))
        if self.columns is None:
            return known
        positions = {}
        for name, column in self.columns.items():
            if isinstance(column, str) and column not in known:
                raise ValueError(
                    f"Tsv.columns takes {name} from {column!r}, which is not a column: there are "
                    f"{', '.join(known) or 'no names, only positions'}."
                )
            positions[name] = known[column] if isinstance(column, str) else column
        return positions

    def __getitem__(self, index: int) -> Entry:
        """Returns a request, see `RequestSource`."""
        path, _ = self._locate(index)
        columns = self._line(index).split(b"\t")
        positions = self._columns(self._names(path))
        needed = {name for name in positions if name in FIELDS} | {
            name for _, name, _, _ in string.Formatter().parse(self.instruction or "") if name
        }
        fields: dict[str, Any] = {}
        for name, position in positions.items():
            if name not in needed:
                continue
            if not -len(columns) <= position < len(columns):
                raise InvalidRecordError(
                    f"it has {len(columns)} columns, but {name} is in column {position}"
                )
            try:
                fields[name] = columns[position].decode("utf-8")
            except UnicodeDecodeError as error:
                raise InvalidRecordError(f"its {name} is not UTF-8") from error
        if fields.get("region"):
            fields["region"] = fields["region"].split(",")
        return self._entry(index, fields)


@checked
@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """All images below a folder in the order of their paths, with one instruction.

    Attributes:
      path: the folder.
      instruction: the instruction for all images.
      suffixes: file name suffixes of images; all that Pillow knows when None.
    """

    path: options.Path
    instruction: options.Name
    suffixes: Annotated[Sequence[options.Name], options.NotEmpty()] | None = None

    def __post_init__(self) -> None:
        if not pathlib.Path(self.path).is_dir():
            raise FileNotFoundError(f"There is no folder {self.path}: check the path.")

    @functools.cached_property
    def _names(self) -> tuple[str, ...]:
        """The paths of all images, relative to the folder."""
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
        """Returns a request, see `RequestSource`."""
        return Entry(self._names[index], self.instruction, self._names[index], folder=self.path)

    def location(self, index: int) -> str:
        """Returns the path of the image in the folder."""
        return self._names[index]
