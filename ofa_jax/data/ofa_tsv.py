"""The original's pretraining files as a DataSet: TSV in, records out, with random access.

    data_set = OfaTsv(vision_language="pairs-*.tsv", negative_samples="negative_sample")
    data_set.records("regions", "train")[0]

A vision-language file has captions, questions and regions in one. Its index knows the type of every
line, so each kind of record has exactly its own lines, and no picture is decoded to find them:

    captions   type caption                      regions   type visual_grounding
    questions  type qa                           pairs     captions and questions, for matching

Lines without a known type, torn ones among them, belong to `pairs`: the loader meets them there,
skips, counts and names them.
"""

import dataclasses
import functools
import glob
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from ofa_jax.data.negatives import NegativePool
from ofa_jax.data.records import Record, RecordSource
from ofa_jax.data.tsv import BadLine, OpenTsv, TextLines, TsvFile
from ofa_jax.data.tsv_rows import CAPTION, LAYOUTS, PAIR_TYPES, QUESTION, REGION, Layout

PRETRAINING_FILES = ("vision_language", "text", "images", "detection")
CAPTIONS_FILE, NAMES_FILE, ANSWERS_FILE = "all_captions.txt", "object.txt", "type2ans.json"

FILE_OF_KIND: Mapping[str, str] = {
    "captions": "vision_language", "questions": "vision_language", "regions": "vision_language",
    "pairs": "vision_language", "text": "text", "images": "images", "objects": "detection",
}
"""Kind of record -> the kind of file that has it."""

TYPES_OF_KIND: Mapping[str, tuple[str, ...]] = {
    "captions": (CAPTION,), "questions": (QUESTION,), "regions": (REGION,),
    "pairs": (CAPTION, QUESTION),
}
"""Kind of record -> types of lines in a vision-language file."""

_LINES_TRIED = 8


@dataclasses.dataclass(frozen=True)
class TsvRecords:
    """A RecordSource over TSV files of one layout, one after the other.

    Attributes:
      files: in order.
      layout: a key of `tsv_rows.LAYOUTS`.
      selected_cols: the places of the layout's columns in a line; the layout's own when empty.
      types: only lines of these types; all lines when None.
      with_faulty: also the lines whose type cannot be told, which raise BadRecord when read.
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

    def place(self, index: int) -> str:
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
        except BadLine as error:
            raise BadLine(error.reason, f"{opened.path}, line {line + 1}: {error}") from error

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
            except BadLine as error:
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
    if others := int(counts[len(opened.keys):].sum()):
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
    log("%s has %s of %s lines%s.", opened.path, _listed(counts), f"{len(opened):,}",
        "; torn lines and unknown types will be skipped" if faulty else "")
    return counts


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {kind[:40]!r}" for kind, count in list(counts.items())[:8])


def parse_selected_cols(
    layout: str, selected_cols: str | Sequence[int] | None
) -> tuple[int, ...]:
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


# ------------------------------------------------------------------------------------- the data set

Files = Mapping[str, str | Sequence[str]] | str | None


@dataclasses.dataclass(frozen=True)
class OfaTsv:
    """The original's pretraining files.

    Of each kind of file one may give a path (the split "train"), or a dict from split to a path, a
    pattern such as "part-*.tsv", or a list of them. What no task asks for may be left out.

    Attributes:
      vision_language: captions, questions and regions; eight columns.
      text: two columns.
      images: with the codes of their middle; three columns.
      detection: images with objects; three columns.
      negative_samples: the folder of all_captions.txt, object.txt and type2ans.json, which
        image-text matching needs.
      selected_cols: kind of file -> columns as in the original's flags, where they differ from the
        usual ones, e.g. {'detection': '0,2,1'}.
      index_dir: where indices are written and looked for; None for beside the files.
      data_dir: the folder that all paths start from.
    """

    vision_language: Files = None
    text: Files = None
    images: Files = None
    detection: Files = None
    negative_samples: str | None = None
    selected_cols: Mapping[str, str | Sequence[int]] = dataclasses.field(default_factory=dict)
    index_dir: str | None = None
    data_dir: str = ""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.selected_cols) - set(PRETRAINING_FILES)):
            raise ValueError(
                f"OfaTsv.selected_cols names {', '.join(unknown)}; known are "
                f"{', '.join(PRETRAINING_FILES)}."
            )
        for kind in self.selected_cols:
            parse_selected_cols(kind, self.selected_cols[kind])
        if not any(self._files(kind) for kind in PRETRAINING_FILES):
            raise ValueError(
                f"OfaTsv has no files: give at least one of {', '.join(PRETRAINING_FILES)}."
            )

    def _files(self, file_kind: str) -> Mapping[str, tuple[str, ...]]:
        """Split -> files."""
        given = getattr(self, file_kind) or {}
        by_split = given if isinstance(given, Mapping) else {"train": given}
        return {
            split: tuple(
                os.path.join(self.data_dir, path)
                for path in ([paths] if isinstance(paths, str) else paths)
            )
            for split, paths in by_split.items()
        }

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of any kind of file."""
        return tuple(dict.fromkeys(
            split for kind in PRETRAINING_FILES for split in self._files(kind)))

    def records(self, kind: str, split: str) -> RecordSource:
        """The records of one of the kinds of `records.RECORD_FIELDS`.

        Raises:
          FileNotFoundError, ValueError: there are none, or not as they should be.
        """
        if kind not in FILE_OF_KIND:
            raise ValueError(
                f"There is no kind of record {kind!r}: choose one of {', '.join(FILE_OF_KIND)}."
            )
        file_kind = FILE_OF_KIND[kind]
        files = self._files(file_kind)
        if split not in files:
            has = f"only for {', '.join(files)}" if files else "for no split"
            raise ValueError(
                f"Records of the kind {kind} are in {file_kind} files, which OfaTsv has {has}: "
                f"set OfaTsv.{file_kind} = {{'{split}': 'FILE.tsv'}}, {_without(kind, split)}."
            )
        if kind == "pairs" and not self.negative_samples:
            raise ValueError(
                "Image-text matching draws wrong captions and answers from the original's negative "
                "samples: set OfaTsv.negative_samples to their folder, or leave the task out with "
                "PretrainingSettings.rates = {'image_text_matching': 0}."
            )
        records = TsvRecords.open(
            files[split], file_kind, self.selected_cols.get(file_kind), self.index_dir,
            TYPES_OF_KIND.get(kind), with_faulty=kind == "pairs",
        )
        if not len(records):
            raise ValueError(
                f"The {file_kind} files of the split {split} have no lines of type "
                f"{' or '.join(TYPES_OF_KIND[kind])}: {_without(kind, split)}."
            )
        return records

    def negatives(self) -> NegativePool:
        """Wrong captions, names and answers; none without a folder of negative samples."""
        if not self.negative_samples:
            return NegativePool()
        return read_negatives(os.path.join(self.data_dir, self.negative_samples), self.index_dir)


_OBJECTIVES_OF_KIND = {
    "captions": ("image_captioning",), "questions": ("visual_question_answering",),
    "pairs": ("image_text_matching",), "regions": ("visual_grounding", "grounded_captioning"),
    "objects": ("object_detection",), "images": ("image_infilling",), "text": ("text_infilling",),
}


def _without(kind: str, split: str) -> str:
    """How to do without records of a kind."""
    rates = ", ".join(f"'{name}': 0" for name in _OBJECTIVES_OF_KIND[kind])
    leave_out = f"leave the task out with PretrainingSettings.rates = {{{rates}}}"
    return leave_out if split == "train" else f"{leave_out}, or set train.validation_split = None"


def read_negatives(folder: str | pathlib.Path, index_dir: str | None = None) -> NegativePool:
    """The original's negative samples; its captions stay on disk.

    Raises:
      FileNotFoundError: one of the three files is missing.
      ValueError: type2ans.json is something else.
    """
    folder = pathlib.Path(folder)
    for name in (CAPTIONS_FILE, NAMES_FILE, ANSWERS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"There is no {name} in {folder}: negative samples are {CAPTIONS_FILE}, "
                f"{NAMES_FILE} and {ANSWERS_FILE}."
            )
    captions = TextLines(str(folder / CAPTIONS_FILE), index_dir)
    len(captions)  # makes the index now
    lines = (folder / NAMES_FILE).read_text(encoding="utf-8").split("\n")
    return NegativePool(
        captions=captions,
        object_names=tuple(name for name in map(str.strip, lines) if name),
        answers_by_type=_answers_by_type(folder / ANSWERS_FILE),
    )


def _answers_by_type(path: pathlib.Path) -> dict[str, tuple[str, ...]]:
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        if all(isinstance(answer, str) for answers in given.values() for answer in answers):
            return {kind: tuple(answers) for kind, answers in given.items()}
    except (ValueError, AttributeError, TypeError):
        pass
    raise ValueError(f"{path} must be JSON of the form {{question type: [answer, ...]}}.")
