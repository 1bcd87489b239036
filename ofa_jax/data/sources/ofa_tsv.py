"""The official pretraining files as a DataSet: TSV with random access.

    data_set = OfaTsv(vision_language="pairs-*.tsv", negative_samples="negative_sample")
    data_set.records("regions", "train")[0]

A vision-language file has captions, questions and regions. Its index stores the type of every line,
so each kind of record has exactly its own lines, and no image is decoded to find them:

    captions   type caption                      regions   type visual_grounding
    questions  type qa                           pairs     captions and questions, for matching

Malformed lines and lines without a known type belong to `pairs`, where the loader skips, counts and
logs them.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

from ofa_jax.data.choices import describe_json, parse_json, quote
from ofa_jax.data.sources.base import rates_without
from ofa_jax.data.sources.tsv_columns import CAPTION, QUESTION, REGION
from ofa_jax.data.sources.tsv_file import TextFileLines
from ofa_jax.data.sources.tsv_records import TsvRecords, parse_selected_cols
from ofa_jax.preprocessing.negatives import NegativePool
from ofa_jax.utils import options, text_files
from ofa_jax.utils.decode_options import AS_STORED, DecodeOptions
from ofa_jax.utils.option_checks import checked

PRETRAINING_FILES = ("vision_language", "text", "images", "detection")
CAPTIONS_FILE, NAMES_FILE, ANSWERS_FILE = "all_captions.txt", "object.txt", "type2ans.json"
NEGATIVE_FILES = (CAPTIONS_FILE, NAMES_FILE, ANSWERS_FILE)

FILE_OF_KIND: Mapping[str, str] = {
    "captions": "vision_language",
    "questions": "vision_language",
    "regions": "vision_language",
    "pairs": "vision_language",
    "text": "text",
    "images": "images",
    "objects": "detection",
}
"""Kind of record -> the kind of file that has it."""

TYPES_OF_KIND: Mapping[str, tuple[str, ...]] = {
    "captions": (CAPTION,),
    "questions": (QUESTION,),
    "regions": (REGION,),
    "pairs": (CAPTION, QUESTION),
}
"""Kind of record -> the types of its lines in a vision-language file."""

_Columns = Mapping[str, options.Name | Sequence[options.Natural]]
_Paths = options.Path | Annotated[Sequence[options.Path], options.NotEmpty()]
Files = Mapping[options.Name, _Paths] | _Paths | None


@checked
@dataclasses.dataclass(frozen=True)
class OfaTsv:
    """The official pretraining files.

    Each kind of files is a path (of the split "train"), or a dict from split to a path, a pattern
    such as "part-*.tsv", or a list of either. A kind that no task reads may be left out.

    Attributes:
      vision_language: captions, questions and regions; eight columns.
      text: texts; two columns.
      images: images with the codes of their centre; three columns.
      detection: images with objects; three columns.
      negative_samples: the folder with all_captions.txt, object.txt and type2ans.json, which
        image-text matching needs.
      selected_cols: kind of file -> columns as in the official flags, if they differ from the
        default, e.g. {'detection': '0,2,1'}.
      index_dir: the folder of the indices; None for those of the files.
      data_dir: the folder that all paths are relative to.
    """

    vision_language: Files = None
    text: Files = None
    images: Files = None
    detection: Files = None
    negative_samples: options.Path | None = None
    selected_cols: _Columns = dataclasses.field(default_factory=dict)
    index_dir: options.Path | None = None
    data_dir: options.Folder = ""

    decode_options: ClassVar[DecodeOptions] = AS_STORED
    """How its images are decoded, where a run says nothing else."""

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
        """Returns split -> files."""
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
        return tuple(
            dict.fromkeys(split for kind in PRETRAINING_FILES for split in self._files(kind))
        )

    def records(self, kind: str, split: str) -> TsvRecords:
        """Returns the records of one of the kinds in `RECORD_FIELDS`.

        Raises:
          FileNotFoundError: a file is missing.
          ValueError: there is no such kind, split or record, or a file does not have the format.
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
                f"set OfaTsv.{file_kind} = {{'{split}': 'FILE.tsv'}}, {_how_to_omit(kind, split)}."
            )
        if kind == "pairs" and not self.negative_samples:
            raise ValueError(
                "Image-text matching samples false captions and answers from the official negative "
                "samples: set OfaTsv.negative_samples to their folder, or leave the task out with "
                "PretrainingSettings.rates = {'image_text_matching': 0}."
            )
        records = TsvRecords.open(
            files[split],
            file_kind,
            self.selected_cols.get(file_kind),
            self.index_dir,
            TYPES_OF_KIND.get(kind),
            with_malformed=kind == "pairs",
        )
        if not len(records):
            raise ValueError(
                f"The {file_kind} files of the split {split} have no lines of type "
                f"{' or '.join(TYPES_OF_KIND[kind])}: {_how_to_omit(kind, split)}."
            )
        return records

    def negatives(self) -> NegativePool:
        """Returns the negative samples; an empty pool without a folder of them."""
        if not self.negative_samples:
            return NegativePool()
        return read_negatives(os.path.join(self.data_dir, self.negative_samples), self.index_dir)


def _how_to_omit(kind: str, split: str) -> str:
    """Returns advice on how to train without records of a kind."""
    leave_out = f"leave the task out with {rates_without(kind)}"
    return leave_out if split == "train" else f"{leave_out}, or set train.validation_split = None"


def read_negatives(folder: str | pathlib.Path, index_dir: str | None = None) -> NegativePool:
    """Reads the official negative samples; the captions stay on disk.

    Raises:
      FileNotFoundError: one of the three files is missing.
      ValueError: one of them has another form.
    """
    names, answers = check_negative_files(folder)
    captions = TextFileLines(str(pathlib.Path(folder) / CAPTIONS_FILE), index_dir)
    len(captions)  # builds the index now
    return NegativePool(captions, names, answers)


def check_negative_files(
    folder: str | pathlib.Path,
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Reads the names of objects and the answers by type, and checks that the captions exist.

    Raises:
      FileNotFoundError, ValueError: see `read_negatives`.
    """
    folder = pathlib.Path(folder)
    for name in NEGATIVE_FILES:
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"There is no {name} in {folder}: negative samples are "
                f"{', '.join(NEGATIVE_FILES[:-1])} and {NEGATIVE_FILES[-1]}."
            )
    lines = text_files.read_lines(folder / NAMES_FILE)
    names = tuple(name for name in map(str.strip, lines) if name)
    if not names:
        raise ValueError(f"{folder / NAMES_FILE} has no names: give one per line.")
    return names, _read_answers(folder / ANSWERS_FILE)


def _read_answers(path: pathlib.Path) -> dict[str, tuple[str, ...]]:
    """Reads question type -> answers. Raises ValueError if the file has another form."""
    form = f"{path} must be JSON of the form {{question type: [answer, ...]}}"
    try:
        given = parse_json(text_files.read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{form} ({error}).") from error
    if not isinstance(given, dict):
        raise ValueError(f"{form}, but it is {describe_json(given)}.")
    found = {}
    for kind, answers in given.items():
        # A text would be taken for the list of its letters.
        if not isinstance(answers, list):
            raise ValueError(f"{form}, but {quote(kind)} has {describe_json(answers)}.")
        for answer in answers:
            if not isinstance(answer, str):
                raise ValueError(f"{form}, but {quote(kind)} lists {describe_json(answer)}.")
        found[text_files.replace_surrogates(kind)] = tuple(
            map(text_files.replace_surrogates, answers)
        )
    return found
