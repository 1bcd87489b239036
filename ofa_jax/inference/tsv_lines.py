"""Requests in the lines of TSV files."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from absl import logging

from ofa_jax.data.sources.tsv_columns import TSV_FORMATS
from ofa_jax.data.sources.tsv_conventions import describe_conventions
from ofa_jax.data.sources.tsv_file import WRONG_COLUMNS, refuse_binary
from ofa_jax.inference.entries import Entry
from ofa_jax.inference.fields import FIELDS, listed, names_in_braces
from ofa_jax.inference.line_files import LineFiles
from ofa_jax.preprocessing.records import InvalidRecordError
from ofa_jax.utils import files, options
from ofa_jax.utils.bad_input import Treatment, declare
from ofa_jax.utils.option_checks import checked
from ofa_jax.utils.text_files import strip_byte_order_mark

_MAX_HEADER_BYTES = 1 << 20

NOT_UTF8 = declare(
    "field is not UTF-8", Treatment.SKIPPED, "A column of a TSV line is not UTF-8.", __name__
)


@checked
@dataclasses.dataclass(frozen=True)
class Tsv(LineFiles):
    """Files with columns separated by tabs, like the official data files.

    Attributes:
      columns: field -> column, by position (counted from 0) or by its name in `layout` or in the
        header. Fields are those of an entry (id, instruction, image, region, task) and those that
        the instruction needs.
      layout: a kind of file in `ofa_jax.data.sources.tsv_columns.TSV_FORMATS`, which names its
        columns: then `columns` is optional, and the instruction uses the layout's names.
      header: whether the first line of each file names its columns. Then there must be an `image`
        and what the instruction needs, unless `columns` says which columns are read.
    """

    columns: Annotated[Mapping[options.Name, int | options.Name], options.NotEmpty()] | None = None
    layout: Annotated[str, options.OneOf(tuple(TSV_FORMATS))] | None = None
    header: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.columns is None and self.layout is None and not self.header:
            raise ValueError(
                "Tsv needs to know its columns: give columns = {'id': 0, 'image': 1, 'instruction':"
                " 2}, a layout, or header = True."
            )
        if self.header and self.layout is not None:
            raise ValueError("Tsv takes a layout or a header, not both.")
        if not self.header:
            self._positions(())  # raises if a name is unknown

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        self.check_headers()
        starts = LineFiles._starts.func(self)  # type: ignore[attr-defined]
        for path in self.paths:
            for sentence in describe_conventions(self._open(path)):
                logging.warning("%s", sentence)
        return starts - self.header * np.arange(len(starts))

    def _locate(self, index: int) -> tuple[str, int]:
        path, line = super()._locate(index)
        return path, line + self.header

    def check_headers(self) -> None:
        """Checks that each file has the columns that are needed.

        Raises:
          ValueError: a header lacks a column; the message lists those that it has.
        """
        for path in self.paths if self.header else ():
            names = self._header(path)
            try:
                positions = self._positions(names)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
            needed = set(names_in_braces(self.instruction or "")) - {"region"}
            if self.columns is None:
                # A file without images says so with `columns`, lest questions lose theirs unseen.
                needed |= {"image"} | ({"instruction"} if self.instruction is None else set())
            elif self.instruction is None:
                needed.add("instruction")
            if missing := sorted(needed - set(positions)):
                raise ValueError(
                    f"{path} has no column {missing[0]}; its header has {listed(names)}. Give "
                    f"Tsv.columns, as in {{'{missing[0]}': {names[0]!r}, ...}}"
                    + (", or leave image out of it." if missing[0] == "image" else ".")
                )

    def _header(self, path: str) -> tuple[str, ...]:
        """Returns the names in the header of a file; none if it has no header."""
        return self._headers[path] if self.header else ()

    @functools.cached_property
    def _headers(self) -> dict[str, tuple[str, ...]]:
        return {path: _read_header(path) for path in self.paths}

    def _positions(self, header: Sequence[str]) -> dict[str, int]:
        """Returns the position of each field, given the names in the header."""
        known = {name: position for position, name in enumerate(header)}
        if len(known) < len(header):
            twice = next(name for name in header if header.count(name) > 1)
            raise ValueError(f"the header names the column {twice!r} twice: rename one.")
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
                    f"{listed(tuple(known)) or 'no names, only positions'}."
                )
            positions[name] = known[column] if isinstance(column, str) else column
        return positions

    def __getitem__(self, index: int) -> Entry:
        """Returns a request, see `RequestSource`."""
        path, _ = self._locate(index)
        columns = self._line(index).split(b"\t")
        header = self._header(path)
        if header and len(columns) > len(header):
            raise InvalidRecordError(
                f"it has {len(columns)} columns, but the header {len(header)}", WRONG_COLUMNS
            )
        positions = self._positions(header)
        needed = {name for name in positions if name in FIELDS}
        if self.layout is not None and self.columns is None:
            needed.discard("task")  # a layout's own column of that name
        needed |= names_in_braces(self.instruction or "")
        fields: dict[str, Any] = {}
        for name, position in positions.items():
            if name not in needed:
                continue
            if not -len(columns) <= position < len(columns):
                raise InvalidRecordError(
                    f"it has {len(columns)} columns, but {name} is in column {position}",
                    WRONG_COLUMNS,
                )
            try:
                fields[name] = columns[position].decode("utf-8")
            except UnicodeDecodeError as error:
                raise InvalidRecordError(f"its {name} is not UTF-8", NOT_UTF8) from error
        if fields.get("region"):
            fields["region"] = fields["region"].split(",")
        return self._entry(index, fields)


def _read_header(path: str) -> tuple[str, ...]:
    """Returns the names in the first line of a file that is not blank; needs no index."""
    refuse_binary(path)
    with files.open_regular(path) as file:
        line = strip_byte_order_mark(file.readline(_MAX_HEADER_BYTES))
        while line and not line.strip():
            line = file.readline(_MAX_HEADER_BYTES)
    return tuple(name.strip() for name in line.decode("utf-8", "replace").split("\t"))
