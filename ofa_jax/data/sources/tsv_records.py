"""Records of TSV files with random access: chosen lines, selected columns, a parser for the layout.

TsvRecords.open("vqa_train.tsv", "vqa")[0]
TsvRecords.open("pairs-*.tsv", "vision_language", types=("visual_grounding",))[0]
"""

import dataclasses
import functools
import glob
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from ofa_jax.data.sources.tsv_columns import LAYOUTS, PAIR_TYPES, Layout
from ofa_jax.data.sources.tsv_file import InvalidLineError, OpenTsv, TsvFile
from ofa_jax.preprocessing.records import Record

_LINES_TRIED = 8


@dataclasses.dataclass(frozen=True)
class TsvRecords:
    """A RecordSource over TSV files of one layout, one after the other.

    Attributes:
      files: in order.
      layout: a key of `tsv_rows.LAYOUTS`.
      selected_cols: the places of the layout's columns in a line; the layout's own when empty.
      types: only lines of these types; all lines when None.
      with_faulty: also the lines whose type cannot be told, which raise InvalidRecordError when
      read.
    """

    files: tuple[TsvFile, ...]
    layout: str
    selected_cols: tuple[int, ...] = ()
    types: tuple[str, ...] | None = None
    with_faulty: bool = False

    @classmethod
    def open(
        cls,
        paths: str | Sequence[str],
        layout: str,
        selected_cols: str | Sequence[int] | None = None,
        index_dir: str | None = None,
        types: tuple[str, ...] | None = None,
        with_faulty: bool = False,
    ) -> "TsvRecords":
        """Records of files that exist and are of the layout, as far as their first lines show.

        Args:
          paths: a file, a pattern such as "part-*.tsv", or several.
          layout: see the class.
          selected_cols: as the original's flag, "0,4,2", or numbers.
          index_dir: where indices go; None for beside the files.
          types, with_faulty: see the class.

        Raises:
          FileNotFoundError: no such file.
          ValueError: a file that does not fit, in a sentence that says what to change.
        """
        columns = parse_selected_cols(layout, selected_cols)
        key = LAYOUTS[layout].key
        key_column = None if key is None else columns[LAYOUTS[layout].columns.index(key)]
        files = tuple(TsvFile(path, key_column, index_dir) for path in find_files(paths))
        records = cls(files, layout, columns, types, with_faulty)
        records.check()
        return records

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @functools.cached_property
    def _opened(self) -> tuple[tuple[OpenTsv, np.ndarray], ...]:
        """The files and their chosen lines; opened once per process."""
        return tuple(
            (opened, _chosen_lines(opened, self.types, self.with_faulty))
            for opened in (file.open() for file in self.files)
        )

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(lines) for _, lines in self._opened])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _find(self, index: int) -> tuple[OpenTsv, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"There is no record {index}: there are {len(self)}.")
        number = int(np.searchsorted(self._ends, index, side="right"))
        opened, lines = self._opened[number]
        return opened, int(lines[index - self._ends[number]])

    def location(self, index: int) -> str:
        """File and line of a record, for messages."""
        opened, line = self._find(index)
        return f"{opened.path}, line {line + 1}"

    def __getitem__(self, index: int) -> Record:
        opened, line = self._find(index)
        layout = LAYOUTS[self.layout]
        try:
            columns = opened.columns(line)
            return layout.parse(
                {name: columns[c] for name, c in zip(layout.columns, self._places, strict=True)}
            )
        except InvalidLineError as error:
            raise InvalidLineError(
                error.reason, f"{opened.path}, line {line + 1}: {error}"
            ) from error

    @property
    def _places(self) -> tuple[int, ...]:
        return self.selected_cols or LAYOUTS[self.layout].selected_cols

    def check(self) -> None:
        """Whether the files are what they are said to be.

        Raises:
          ValueError: too few columns, no line of a known type, or no good line among the first.
        """
        layout = LAYOUTS[self.layout]
        for opened, _ in self._opened:
            last = max(self._places)
            if opened.num_columns <= last:
                raise ValueError(
                    f"The lines of {opened.path} have {opened.num_columns} columns, but column "
                    f"{last} is selected (counted from 0): it is no file of the kind "
                    f"{self.layout} ({', '.join(layout.columns)}), or its selected_cols are others."
                )
            if layout.key is not None:
                _check_types(opened, layout, self._places)
        errors = []
        for index in range(min(_LINES_TRIED, len(self))):
            try:
                self[index]
                return
            except InvalidLineError as error:
                errors.append(error)
        if errors:
            raise ValueError(
                f"None of the first {len(errors)} lines can be used as {self.layout}, e.g. "
                f"{errors[0]}: check the file and its selected_cols."
            )


@functools.lru_cache(maxsize=64)
def _chosen_lines(
    opened: OpenTsv, types: tuple[str, ...] | None, with_faulty: bool
) -> np.ndarray | range:
    """Numbers of the lines, in order; 4 bytes each where that is enough."""
    if types is None:
        return range(len(opened))
    wanted = _has_type(opened, types)
    if with_faulty:
        wanted |= ~_has_type(opened, PAIR_TYPES)
    lines = np.flatnonzero(wanted)
    return lines.astype(np.uint32) if len(opened) < 1 << 32 else lines


def _has_type(opened: OpenTsv, types: Sequence[str]) -> np.ndarray:
    """bool[N]: whole lines of these types."""
    codes = [code for code, key in enumerate(opened.keys) if key in types]
    return np.isin(opened.key_codes, codes) & ~opened.torn()


def count_types(opened: OpenTsv) -> dict[str, int]:
    """Type -> lines of it; torn lines as "torn", other types as they are called."""
    whole = opened.key_codes[~opened.torn()]
    counts = np.bincount(whole, minlength=256)
    found = {key: int(counts[code]) for code, key in enumerate(opened.keys) if counts[code]}
    if others := int(counts[len(opened.keys) :].sum()):
        found["others"] = others
    if torn := len(opened) - len(whole):
        found["torn"] = torn
    return found


def _check_types(opened: OpenTsv, layout: Layout, places: Sequence[int]) -> None:
    counts = _describe(opened)
    if not set(PAIR_TYPES) & set(counts):
        column = places[layout.columns.index(layout.key)]
        raise ValueError(
            f"{opened.path}: column {column} should say {', '.join(PAIR_TYPES)}, but no line does "
            f"(there are {_listed(counts)}): check the file and its selected_cols."
        )


@functools.lru_cache(maxsize=64)
def _describe(opened: OpenTsv) -> Mapping[str, int]:
    """`count_types`, logged the first time."""
    counts = count_types(opened)
    faulty = set(counts) - set(PAIR_TYPES)
    log = logging.warning if faulty else logging.info
    log(
        "%s has %s of %s lines%s.",
        opened.path,
        _listed(counts),
        f"{len(opened):,}",
        "; torn lines and unknown types will be skipped" if faulty else "",
    )
    return counts


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {kind[:40]!r}" for kind, count in list(counts.items())[:8])


def parse_selected_cols(layout: str, selected_cols: str | Sequence[int] | None) -> tuple[int, ...]:
    """The original's `selected_cols` as numbers; the layout's own where nothing is given.

    Raises:
      ValueError: other than one whole number for each column of the layout.
    """
    if selected_cols is None:
        return LAYOUTS[layout].selected_cols
    given = selected_cols.split(",") if isinstance(selected_cols, str) else selected_cols
    try:
        columns = tuple(int(column) for column in given)
    except ValueError:
        columns = ()
    names = LAYOUTS[layout].columns
    if len(columns) != len(names) or min(columns) < 0:
        default = ",".join(map(str, LAYOUTS[layout].selected_cols))
        raise ValueError(
            f"selected_cols {selected_cols!r} for {layout} must be {len(names)} column numbers "
            f"(of {', '.join(names)}), such as {default!r}."
        )
    return columns


def find_files(paths: str | Sequence[str]) -> tuple[str, ...]:
    """Files and patterns as the files that they stand for, sorted within a pattern.

    Raises:
      FileNotFoundError: a pattern that fits nothing.
    """
    found = []
    for path in [paths] if isinstance(paths, str) else paths:
        matches = sorted(glob.glob(path)) if glob.has_magic(path) else [path]
        if not matches:
            raise FileNotFoundError(f"No file fits the pattern {path}: check the path.")
        found += matches
    if not found:
        raise FileNotFoundError("An empty list of files was given: name at least one.")
    return tuple(found)
