"""Records of the official TSV files, with random access.

    TsvRecords.open("vqa_train.tsv", "vqa")[0]
    TsvRecords.open("pairs-*.tsv", "vision_language", types=("visual_grounding",))[0]

The lines are found by an index (see `tsv_index`) and parsed by their format (see `tsv_columns`).
"""

import dataclasses
import functools
import glob
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Bool, Integer

from ofa_jax.data.sources.tsv_columns import PAIR_TYPES, TSV_FORMATS
from ofa_jax.data.sources.tsv_conventions import describe_conventions
from ofa_jax.data.sources.tsv_file import InvalidLineError, OpenTsv, TsvFile
from ofa_jax.preprocessing.records import Record
from ofa_jax.utils.bad_input import collect

_CHECKED_LINES = 8

_LineNumbers = Integer[np.ndarray, " records"] | range


@dataclasses.dataclass(frozen=True)
class TsvRecords:
    """A RecordSource over TSV files of one format, one file after the other.

    Attributes:
      files: the files in order.
      format: a key of TSV_FORMATS.
      selected_cols: the indices of the format's columns in a line; the format's own if empty.
      types: only lines of these types; all lines if None.
      with_malformed: includes lines without a known type, which raise InvalidRecordError when
        read.
    """

    files: tuple[TsvFile, ...]
    format: str
    selected_cols: tuple[int, ...] = ()
    types: tuple[str, ...] | None = None
    with_malformed: bool = False

    @classmethod
    def open(
        cls,
        paths: str | Sequence[str],
        format: str,
        selected_cols: str | Sequence[int] | None = None,
        index_dir: str | None = None,
        types: tuple[str, ...] | None = None,
        with_malformed: bool = False,
    ) -> "TsvRecords":
        """Opens files, and checks their first lines against the format.

        Args:
          paths: a file, a pattern such as "part-*.tsv", or several of either.
          format: see the class.
          selected_cols: as in the official flag, "0,4,2", or numbers.
          index_dir: the folder of the indices; None for those of the files.
          types: see the class.
          with_malformed: see the class.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: a file does not have the format.
        """
        columns = parse_selected_cols(format, selected_cols)
        key = TSV_FORMATS[format].key
        key_column = None if key is None else columns[TSV_FORMATS[format].columns.index(key)]
        known_keys = () if key is None else PAIR_TYPES
        files = tuple(
            TsvFile(path, key_column, index_dir, known_keys=known_keys)
            for path in find_files(paths)
        )
        records = cls(files, format, columns, types, with_malformed)
        records.check()
        return records

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @functools.cached_property
    def _opened(self) -> tuple[tuple[OpenTsv, _LineNumbers], ...]:
        """The files and their selected lines; opened once per process."""
        return tuple(
            (opened, _select_lines(opened, self.types, self.with_malformed))
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
        """Returns the file of a record and its line, counted from 1, for messages."""
        opened, line = self._find(index)
        return f"{opened.path}, line {opened.line_number(line)}"

    def __getitem__(self, index: int) -> Record:
        opened, line = self._find(index)
        tsv_format = TSV_FORMATS[self.format]
        try:
            columns = opened.columns(line)
            indices = zip(tsv_format.columns, self._column_indices, strict=True)
            return tsv_format.parse({name: columns[index] for name, index in indices})
        except InvalidLineError as error:
            raise InvalidLineError(
                error.reason, f"{opened.path}, line {opened.line_number(line)}: {error}"
            ) from error

    @property
    def _column_indices(self) -> tuple[int, ...]:
        return self.selected_cols or TSV_FORMATS[self.format].selected_cols

    def check(self) -> None:
        """Checks that the files have the format.

        Raises:
          ValueError: too few columns, no line of a known type, or no valid line among the first.
        """
        tsv_format = TSV_FORMATS[self.format]
        for opened, _ in self._opened:
            signs = _log_conventions(opened)
            last = max(self._column_indices)
            if opened.num_columns <= last:
                names = ", ".join(tsv_format.columns)
                raise ValueError(
                    f"The lines of {opened.path} have {opened.num_columns} columns, but column "
                    f"{last} is selected (counted from 0): it is not a file of the kind "
                    f"{self.format} ({names}), or its selected_cols are others."
                    + "".join(f" {sign}" for sign in signs)
                )
            if tsv_format.key is not None:
                key_column = self._column_indices[tsv_format.columns.index(tsv_format.key)]
                _check_types(opened, key_column)
        errors = []
        for index in self._sample_indices():
            try:
                with collect():  # what is dropped is reported when the records are read
                    self[index]
                return
            except InvalidLineError as error:
                errors.append(error)
        if errors:
            first = min(len(errors), _CHECKED_LINES)
            others = len(errors) - first
            raise ValueError(
                f"None of the first {first} lines can be used as {self.format}"
                f"{f', and none of {others} others' if others else ''}, e.g. {errors[0]}: check "
                "the file and its selected_cols."
            )

    def _sample_indices(self) -> list[int]:
        """Returns the first records, and as many others: a file may begin with bad lines."""
        count = len(self)
        others = [(count - 1) * number // _CHECKED_LINES for number in range(_CHECKED_LINES + 1)]
        return list(dict.fromkeys([*range(min(_CHECKED_LINES, count)), *others])) if count else []


@functools.lru_cache(maxsize=64)
def _select_lines(
    opened: OpenTsv, types: tuple[str, ...] | None, with_malformed: bool
) -> _LineNumbers:
    """Returns the numbers of the lines in order, in 4 bytes each if that is enough."""
    if types is None:
        return range(len(opened))
    selected = _has_type(opened, types)
    if with_malformed:
        selected |= ~_has_type(opened, PAIR_TYPES)
    lines = np.flatnonzero(selected)
    return lines.astype(np.uint32) if len(opened) < 1 << 32 else lines


def _has_type(opened: OpenTsv, types: Sequence[str]) -> Bool[np.ndarray, " lines"]:
    """Returns which lines are well-formed and of one of these types."""
    codes = [code for code, key in enumerate(opened.keys) if key in types]
    return np.isin(opened.key_codes, codes) & ~opened.malformed_lines()


def count_types(opened: OpenTsv) -> dict[str, int]:
    """Returns type -> number of lines, with the malformed lines as "malformed"."""
    well_formed = opened.key_codes[~opened.malformed_lines()]
    counts = np.bincount(well_formed, minlength=256)
    found = {key: int(counts[code]) for code, key in enumerate(opened.keys) if counts[code]}
    if others := int(counts[len(opened.keys) :].sum()):
        found["others"] = others
    if malformed := len(opened) - len(well_formed):
        found["malformed"] = malformed
    return found


def _check_types(opened: OpenTsv, key_column: int) -> None:
    """Raises ValueError if no line has a known type."""
    counts = _log_types(opened)
    if not set(PAIR_TYPES) & set(counts):
        raise ValueError(
            f"{opened.path}: column {key_column} should have one of {', '.join(PAIR_TYPES)}, but "
            f"no line does ({_format_counts(counts)}): check the file and its selected_cols."
        )


@functools.lru_cache(maxsize=64)
def _log_conventions(opened: OpenTsv) -> tuple[str, ...]:
    """Returns `describe_conventions`, and logs it the first time."""
    signs = tuple(describe_conventions(opened))
    for sign in signs:
        logging.warning("%s", sign)
    return signs


@functools.lru_cache(maxsize=64)
def _log_types(opened: OpenTsv) -> Mapping[str, int]:
    """Returns `count_types`, and logs it the first time."""
    counts = count_types(opened)
    invalid = set(counts) - set(PAIR_TYPES)
    log = logging.warning if invalid else logging.info
    log(
        "%s has %s of %s lines%s.",
        opened.path,
        _format_counts(counts),
        f"{len(opened):,}",
        "; malformed lines and unknown types will be skipped" if invalid else "",
    )
    return counts


def _format_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {kind[:40]!r}" for kind, count in list(counts.items())[:8])


def parse_selected_cols(format: str, selected_cols: str | Sequence[int] | None) -> tuple[int, ...]:
    """Parses `selected_cols` as in the official flag; returns the format's own if it is None.

    Raises:
      ValueError: it is not one whole number for each column of the format.
    """
    if selected_cols is None:
        return TSV_FORMATS[format].selected_cols
    given = selected_cols.split(",") if isinstance(selected_cols, str) else selected_cols
    try:
        columns = tuple(int(column) for column in given)
    except ValueError:
        columns = ()
    names = TSV_FORMATS[format].columns
    if len(columns) != len(names) or min(columns) < 0:
        default = ",".join(map(str, TSV_FORMATS[format].selected_cols))
        raise ValueError(
            f"selected_cols {selected_cols!r} for {format} must be {len(names)} column numbers "
            f"(of {', '.join(names)}), such as {default!r}."
        )
    return columns


def find_files(paths: str | Sequence[str]) -> tuple[str, ...]:
    """Expands patterns to the files that they match, sorted within each pattern.

    Raises:
      FileNotFoundError: a pattern matches no file.
    """
    found: list[str] = []
    for path in [paths] if isinstance(paths, str) else paths:
        matches = sorted(glob.glob(path)) if glob.has_magic(path) else [path]
        if not matches:
            raise FileNotFoundError(f"No file fits the pattern {path}: check the path.")
        found += matches
    if not found:
        raise FileNotFoundError("An empty list of files was given: name at least one.")
    return tuple(found)
