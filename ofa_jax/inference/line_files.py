"""Requests in the lines of files: JSON lines, and what TSV files share with them."""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ofa_jax.data.sources.tsv_file import OpenTsv, TsvFile
from ofa_jax.inference.entries import (
    Entry,
    InvalidEntry,
    clean_id,
    clean_instruction,
    escape_name,
)
from ofa_jax.inference.fields import (
    WRONG_TYPE,
    check_template,
    fill_instruction,
    json_type,
    listed,
    note_typos,
)
from ofa_jax.preprocessing.records import InvalidRecordError
from ofa_jax.utils import options, strict_json
from ofa_jax.utils.bad_input import Treatment, declare, note
from ofa_jax.utils.option_checks import checked

_MAX_LINE_BYTES = 400 << 20

LINE_TOO_LONG = declare(
    "line is too long",
    Treatment.SKIPPED,
    "A line of JSON lines or of a TSV file has more bytes than `max_line_bytes` of the inputs (400 "
    "MiB by default: base64 of the largest image). It is not read.",
    __name__,
)
NOT_JSON = declare(
    "line is not JSON",
    Treatment.SKIPPED,
    "A line of JSON lines is not a JSON object in UTF-8: torn, nested too deeply, or of another "
    "shape.",
    __name__,
)
FIELD_TWICE = declare(
    "field given twice",
    Treatment.DROPPED,
    "A JSON object has two fields of one name: the last one is taken.",
    __name__,
)


@dataclasses.dataclass(frozen=True)
class LineFiles:
    """The lines of one or several files.

    Attributes:
      path: a file, or a pattern such as `requests-*.jsonl` (in the order of the names).
      instruction: for lines without one; names in braces are replaced by the line's fields:
        `which region does the text " {phrase} " describe?`
      image_dir: folder of relative image paths; the folder of the file when None.
      index_dir: folder of the index of the lines; beside the file when None.
      allow_outside_images: whether paths of images may lead out of that folder.
      max_line_bytes: longer lines are not read; each yields an error.
    """

    path: options.Path
    instruction: options.Name | None = None
    image_dir: options.Path | None = None
    index_dir: options.Path | None = None
    allow_outside_images: bool = False
    max_line_bytes: options.Count = _MAX_LINE_BYTES

    def __post_init__(self) -> None:
        if self.instruction is not None:
            check_template(f"{type(self).__name__}.instruction", self.instruction)

    @functools.cached_property
    def paths(self) -> tuple[str, ...]:
        """The files, in the order of their names.

        Raises:
          FileNotFoundError: there is none.
        """
        path = pathlib.Path(self.path)
        paths = [path]
        if not path.exists() and any(wildcard in self.path for wildcard in "*?["):
            anchor = path.anchor or "."
            paths = sorted(pathlib.Path(anchor).glob(str(path.relative_to(path.anchor))))
            if not paths:
                raise FileNotFoundError(f"No file matches {self.path}: check the path.")
        return tuple(map(str, paths))

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        """The number of lines before each file and in total: int64 [F + 1]."""
        return np.cumsum([0, *(len(self._open(path)) for path in self.paths)])

    def _open(self, path: str) -> OpenTsv:
        """Opens a file by line."""
        return TsvFile(path, None, self.index_dir, skip_blank=True).open()

    def __getstate__(self) -> dict[str, Any]:
        names = {field.name for field in dataclasses.fields(self)}
        return {name: value for name, value in self.__dict__.items() if name in names}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _locate(self, index: int) -> tuple[str, int]:
        """Returns the file of an entry and its line, counted from 0 without blank lines."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.paths[number], index - int(self._starts[number])

    def _line(self, index: int) -> bytes:
        """Returns the line of an entry."""
        path, line = self._locate(index)
        lines = self._open(path)
        if (size := lines.num_bytes(line)) > self.max_line_bytes:
            raise InvalidRecordError(
                f"it has {size:,} bytes, more than max_line_bytes = {self.max_line_bytes:,}",
                LINE_TOO_LONG,
            )
        return lines.line(line)

    def location(self, index: int) -> str:
        """Returns file and line, as an editor counts: from 1, with blank lines."""
        path, line = self._locate(index)
        return f"{escape_name(pathlib.Path(path).name)}:{self._open(path).line_number(line)}"

    def _entry(self, index: int, fields: Mapping[str, Any]) -> Entry:
        """Converts the fields of a line to an entry."""
        path, _ = self._locate(index)
        entry_id = self._entry_id(index, fields.get("id"))
        try:
            instruction = fields.get("instruction")
            if instruction is None:
                instruction = self._fill_instruction(fields)
            texts = {"instruction": instruction, "image": fields.get("image")}
            texts["task"] = fields.get("task")
            for name, value in texts.items():
                if not isinstance(value, str | None):
                    raise InvalidRecordError(
                        f"its {name} must be text, not {json_type(value)}", WRONG_TYPE
                    )
            note_typos(fields, self.instruction)
        except InvalidRecordError as error:
            raise InvalidEntry(entry_id, str(error), error.reason) from error
        return Entry(
            entry_id,
            clean_instruction(instruction),
            texts["image"] or None,
            fields.get("region"),
            folder=self.image_dir or os.path.dirname(path) or ".",
            task=texts["task"] or None,
            allow_outside=self.allow_outside_images,
        )

    def _entry_id(self, index: int, value: Any) -> str:
        """Returns the id of an entry; its location where it has none."""
        if value is None or value == "":
            return self.location(index)
        # Numbers are written as they are; other values, which nobody means as an id, as JSON.
        is_plain = isinstance(value, str | int | float) and not isinstance(value, bool)
        return clean_id(value if is_plain else json.dumps(value))

    def _fill_instruction(self, fields: Mapping[str, Any]) -> str:
        """Inserts the fields of a line into the instruction of all lines."""
        if self.instruction is None:
            found = listed(list(fields)) or "none"
            raise InvalidRecordError(
                f"it has no instruction, and there is none for all lines; its fields: {found}"
            )
        return fill_instruction(self.instruction, fields)


@checked
@dataclasses.dataclass(frozen=True)
class JsonLines(LineFiles):
    """Files with one JSON object per line: image, instruction, and optionally id, region and task.

    An image is a path or base64. `task` selects the decode preset, as `infer.task` does for all
    lines.
    """

    def __getitem__(self, index: int) -> Entry:
        """Returns a request, see `RequestSource`."""
        try:
            fields = json.loads(
                self._line(index).decode("utf-8"), object_pairs_hook=strict_json.object_or_mark
            )
        except UnicodeDecodeError as error:
            raise InvalidRecordError(
                f"it is not JSON in UTF-8 (byte {error.start + 1})", NOT_JSON
            ) from error
        except InvalidRecordError:
            raise
        except ValueError as error:
            raise InvalidRecordError(f"it is not JSON ({error})", NOT_JSON) from error
        except RecursionError:
            raise InvalidRecordError("it is not JSON: it is nested too deeply", NOT_JSON) from None
        if not isinstance(fields, dict):
            raise InvalidRecordError(f"it is not a JSON object but {json_type(fields)}", NOT_JSON)
        repeated = fields.repeated if isinstance(fields, strict_json.MarkedObject) else ()
        for name in repeated:
            note(FIELD_TWICE, f"The field {name[:40]!r} is given more than once: the last counts")
        return self._entry(index, fields)
