"""Scenes, the embedded data set, as a DataSet: reads what `python -m tools.build_scenes` writes.

    <data_dir>/scenes/scenes.json           options, counts and versions; written last
    <data_dir>/scenes/images/1.1.0/         TFDS, parquet: images with all their texts and boxes
    <data_dir>/scenes/text/1.1.0/           TFDS, parquet: sentences
    <data_dir>/scenes/vocabulary.json       byte-level BPE (`tokenizers` format)
    <data_dir>/scenes/codebook.npz          PatchCodebook

A folder that was built under former names (see `ofa_jax.utils.renamed`) is read as well.
"""

import collections
import dataclasses
import functools
import os
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

from ofa_jax.data.sources.base import RecordSource
from ofa_jax.data.sources.tfds_parquet import TfdsParquetRecords
from ofa_jax.preprocessing.negatives import NegativePool
from ofa_jax.tokenizers import PatchCodebook
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.utils import files, options, renamed, text_files
from ofa_jax.utils.option_checks import checked

MARKER = "scenes.json"
CHECKSUMS = "crc32"
"""The key of scenes.json with the checksums of the files; builds before it have none."""
VERSION = "1.1.0"
SPLITS = ("train", "validation", "test", "test_shifted")

_REGIONS = {
    "phrases": "strings",
    "phrase_boxes": "boxes",
    "true_phrases": "strings",
    "true_phrase_boxes": "boxes",
}
_OBJECTS = {"object_labels": "strings", "object_boxes": "boxes"}
_CAPTIONS = {"captions": "strings", "negative_captions": "strings"}
_QUESTIONS = {
    "questions": "strings",
    "answers": "strings",
    "answer_types": "strings",
    "answer_confidences": "floats",
}
_IMAGE = {"id": "string", "image": "bytes"}
# Kind of record -> its fields. Matching uses captions and questions.
_FIELDS = {
    "captions": {**_IMAGE, "captions": "strings", "object_labels": "strings"},
    "pairs": {**_IMAGE, **_CAPTIONS, **_QUESTIONS, "object_labels": "strings"},
    "questions": {**_IMAGE, **_QUESTIONS},
    "regions": {**_IMAGE, **_REGIONS},
    "objects": {**_IMAGE, **_OBJECTS},
    "images": _IMAGE,
    "all": {**_IMAGE, **_OBJECTS, **_REGIONS, **_CAPTIONS, **_QUESTIONS},
    "text": {"id": "string", "text": "string"},
}


@checked
@dataclasses.dataclass(frozen=True)
class Scenes:
    """The Scenes data set in a data directory, read without TensorFlow.

    Attributes:
      data_dir: where it was built; by default the environment's OFA_DATA_DIR, else "data".
    """

    data_dir: options.Path | None = None

    @property
    def directory(self) -> pathlib.Path:
        """`<data_dir>/scenes`.

        Raises:
          FileNotFoundError: there is no complete build.
          DamagedFileError: a file is not as it was built.
        """
        parent = pathlib.Path(self.data_dir or os.environ.get("OFA_DATA_DIR") or "data")
        if not (parent / "scenes" / MARKER).is_file():
            raise FileNotFoundError(
                f"There are no scenes in {parent / 'scenes'}: build them with "
                f"`python -m tools.build_scenes --data_dir={parent}`."
            )
        check_files(parent / "scenes")
        return parent / "scenes"

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits; test_shifted has another pictogram style and texts of another region."""
        return SPLITS

    @property
    def description(self) -> dict[str, Any]:
        """The content of scenes.json: options, number of records per split, package versions."""
        return read_description(self.directory)

    @property
    def vocabulary_path(self) -> str:
        """A `tokenizers` JSON, for OFAVocabulary.from_tokenizer_json."""
        return str(self.directory / "vocabulary.json")

    @property
    def codebook_path(self) -> str:
        """An .npz, for PatchCodebook.load."""
        return str(self.directory / "codebook.npz")

    def records(self, kind: str, split: str) -> RecordSource:
        """Returns random access to the records of a split.

        Args:
          kind: "captions", "pairs", "questions", "regions", "objects", "images", "all"
            or "text".
          split: one of `splits`.

        Returns:
          A picklable source of records. Records of each kind but text have id and image (JPEG
          bytes), and
            captions   captions, object_labels list[str]
            pairs      captions, negative_captions, object_labels, and the fields of questions
            questions  questions, answers, answer_types list[str], answer_confidences list[float]
            regions    phrases list[str], phrase_boxes float32[P, 4]; true_phrases list[str],
                       true_phrase_boxes float32[Q, 4]
            objects    object_labels list[str], object_boxes float32[K, 4]
            all        the fields of all kinds
          text records have id and text. Boxes are x0 y0 x1 y1 in pixels.
        """
        check_names(kind, split)
        config = "text" if kind == "text" else "images"
        return _open(self.directory, config, split, _FIELDS[kind])

    def negatives(self) -> NegativePool:
        """Returns the captions, names and answers of the train split, for matching."""
        return _read_negatives(self.directory)

    def image_tokenizer(self) -> PatchCodebook:
        """Loads the codebook that was learned on the train split."""
        return PatchCodebook.load(self.codebook_path)

    def vocabulary(self, num_bins: int = 1000, num_codes: int | None = None) -> OFAVocabulary:
        """Loads the vocabulary that was learned on the train split.

        Args:
          num_bins: location bins.
          num_codes: image codes; one for every patch of the codebook when None.
        """
        if num_codes is None:
            num_codes = self.description["options"]["num_codes"]
        return OFAVocabulary.from_tokenizer_json(
            self.vocabulary_path, num_codes=num_codes, num_bins=num_bins
        )


def read_description(directory: pathlib.Path) -> dict[str, Any]:
    """Reads scenes.json, under today's names if the folder was built under former ones.

    Raises:
      DamagedFileError: it is not what a build writes.
    """
    description = text_files.read_json(directory / MARKER)
    for part in ("options", "counts"):
        if not isinstance(description, dict) or not isinstance(description.get(part, {}), dict):
            raise text_files.DamagedFileError(
                f"{directory / MARKER} is not what a build writes: build the scenes again with "
                "`python -m tools.build_scenes --overwrite`."
            )
        description[part] = renamed.with_new_names(description.get(part, {}), renamed.SCENES)
    return description


@functools.lru_cache(maxsize=8)
def check_files(directory: pathlib.Path) -> None:
    """Compares the files of a build with their checksums in scenes.json, once per process.

    Raises:
      DamagedFileError: a file is not as it was built.
    """
    stored = read_description(directory).get(CHECKSUMS, {})
    for name, checksum in stored.items() if isinstance(stored, dict) else ():
        path = directory / name
        if path.is_file() and checksum_of(path) != checksum:
            raise text_files.DamagedFileError(
                f"{path} is damaged: it has another checksum than when it was built. Build the "
                "scenes again with `python -m tools.build_scenes --overwrite`."
            )


def checksum_of(path: pathlib.Path) -> str:
    """Returns the CRC-32 of a file's content."""
    checksum = 0
    with files.open_regular(path) as file:
        while part := file.read(1 << 20):
            checksum = zlib.crc32(part, checksum)
    return f"{checksum:08x}"


def _open(
    directory: pathlib.Path, config: str, split: str, fields: Mapping[str, str]
) -> TfdsParquetRecords:
    """Opens the records of a TFDS config, also in a folder with the config's former name."""
    names = (config, *renamed.former_names(config, renamed.SCENES))
    folders = [directory / name / VERSION for name in names]
    found = next((folder for folder in folders if folder.is_dir()), folders[0])
    return TfdsParquetRecords.from_directory(found, split, fields)


def check_names(kind: str, split: str) -> None:
    """Raises ValueError if scenes have no such kind of record, or no such split."""
    for what, name, names in (("kind of record", kind, tuple(_FIELDS)), ("split", split, SPLITS)):
        if name not in names:
            raise ValueError(f"Scenes have no {what} {name!r}: choose one of {', '.join(names)}.")


def fields_of(kind: str) -> tuple[str, ...]:
    """Returns the fields that records of a kind have."""
    return tuple(_FIELDS[kind])


@functools.lru_cache(maxsize=4)
def _read_negatives(directory: pathlib.Path) -> NegativePool:
    """Collects all captions, names and answers of the train split."""
    records = _open(
        directory, "images", "train", {**_CAPTIONS, **_QUESTIONS, "object_labels": "strings"}
    )
    captions: dict[str, None] = {}
    answers: dict[str, dict[str, None]] = collections.defaultdict(dict)
    names: dict[str, None] = {}
    for index in range(len(records)):
        record = records[index]
        captions.update(dict.fromkeys(record["captions"]))
        names.update(dict.fromkeys(record["object_labels"]))
        for answer, kind in zip(record["answers"], record["answer_types"], strict=True):
            answers[kind][answer] = None
    return NegativePool(
        captions=tuple(sorted(captions)),
        object_names=tuple(sorted(names)),
        answers_by_type={kind: tuple(sorted(known)) for kind, known in sorted(answers.items())},
    )
