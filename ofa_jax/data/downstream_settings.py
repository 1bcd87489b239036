"""Settings of the downstream tasks: the data of each task, its files, vocabulary and sizes.

data                                      kind of TSV     in TFDS
caption                                   caption         coco_captions
vqa                                       vqa
refcoco, refcoco_plus, refcocog           refcoco
snli_ve                                   snli_ve
imagenet                                  imagenet        imagenet2012
text_to_image                             text_to_image
cola, sst2, mrpc, qqp, mnli, qnli, rte    the same        glue
gigaword                                  gigaword        gigaword
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from ofa_jax.data.choices import read_choices, read_class_names
from ofa_jax.data.sources.base import RecordSource
from ofa_jax.data.sources.tfds import TFDS_DATA_SETS, ClassifiedImageRecord
from ofa_jax.data.sources.tsv_records import TsvRecords, parse_selected_cols
from ofa_jax.data.task_settings import SettingsSource
from ofa_jax.preprocessing.downstream import DownstreamConfig
from ofa_jax.tokenizers import ImageTokenizer
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.utils.decode_options import AS_SEEN
from ofa_jax.utils.option_checks import checked
from ofa_jax.utils.options import FieldsOf, Folder, Help, ModuleName, Name, Natural, Path
from ofa_jax.utils.suggestions import refuse_unknown

SPLITS = (
    "train",
    "validation",
    "validation_mismatched",
    "test",
    "test_mismatched",
    "test_a",
    "test_b",
)
"""All split names. RefCOCO has two test sets; MNLI has two validation and two test sets."""

GLUE = ("cola", "sst2", "mrpc", "qqp", "mnli", "qnli", "rte")
_REGIONS = ("refcoco", "regions")
# Data -> (kind of TSV, kind of record).
DATA: Mapping[str, tuple[str, str]] = {
    "caption": ("caption", "captions"),
    "vqa": ("vqa", "answered_questions"),
    "refcoco": _REGIONS,
    "refcoco_plus": _REGIONS,
    "refcocog": _REGIONS,
    "snli_ve": ("snli_ve", "entailment"),
    "imagenet": ("imagenet", "classes"),
    "text_to_image": ("text_to_image", "coded_captions"),
    "gigaword": ("gigaword", "articles"),
    **{name: (name, "sentences") for name in GLUE},
}
_GIVEN = ("vocabulary", "training")
"""Fields of `DownstreamConfig` that are not options."""


_FILES_HELP = Help(
    f"Give a dict from data to a dict from splits to files; splits are {', '.join(SPLITS)}."
)


@checked
@dataclasses.dataclass(frozen=True)
class DownstreamSettings:
    """What the downstream tasks run over. Data are named as in the table above.

    Attributes:
      vocabulary: makes ids.
      files: data -> split -> the official TSV file, or a pattern such as "train-*.tsv", or a list
        of them.
      data_dir: the folder that all paths here start from.
      tfds: data -> name of the TFDS data set, e.g. {"cola": "glue/cola"}, stored as array_record or
        parquet; takes precedence over `files`.
      tfds_data_dir: TFDS's folder; its default when None.
      selected_cols: data -> columns as in the official flags, where they differ from the usual
        ones, e.g. {"imagenet": "0,1"}.
      index_dir: where indices of TSV files are written; None for beside the files.
      vqa_answers: the file of the candidate answers of VQA: JSON (a list, or a dict whose
        keys are answers), or text with one per line; see `choices`. The official pickles are not
        read.
      class_names: the file of the names of ImageNet's classes, in the same formats; with TFDS, in
        the order of its labels.
      options: fields of `DownstreamConfig` that differ from the published ones. Images are decoded
        as the reference implementation does, and as people see them if all data is in TFDS.
      task_modules: modules that register tasks, besides those that the run names.
      image_tokenizer: decodes the codes that text-to-image generates. It is saved with the run, so
        that inference and the report have its images; None leaves both to codes.
    """

    vocabulary: OFAVocabulary
    files: Annotated[Mapping[str, Mapping[str, Path | Sequence[Path]]], _FILES_HELP] = (
        dataclasses.field(default_factory=dict)
    )
    data_dir: Folder = ""
    tfds: Mapping[str, Name] = dataclasses.field(default_factory=dict)
    tfds_data_dir: Path | None = None
    selected_cols: Mapping[str, Name | Sequence[Natural]] = dataclasses.field(default_factory=dict)
    index_dir: Path | None = None
    vqa_answers: Path | None = None
    class_names: Path | None = None
    options: Annotated[Mapping[str, Any], FieldsOf(DownstreamConfig, _GIVEN)] = dataclasses.field(
        default_factory=dict
    )
    task_modules: Annotated[tuple[Name, ...], ModuleName()] = ()
    image_tokenizer: ImageTokenizer | None = None

    def __post_init__(self) -> None:
        for what, names, known in (
            ("files", self.files, DATA),
            ("tfds", self.tfds, TFDS_DATA_SETS),
            ("selected_cols", self.selected_cols, DATA),
        ):
            refuse_unknown(f"DownstreamSettings.{what}", names, known)
        for data, splits in self.files.items():
            if set(splits) - set(SPLITS):
                raise ValueError(
                    f"DownstreamSettings.files[{data!r}] is {splits!r}; give a dict from splits "
                    f"to files; splits are {', '.join(SPLITS)}."
                )
        for data, columns in self.selected_cols.items():
            parse_selected_cols(DATA[data][0], columns)
        tokenizer = self.image_tokenizer
        if tokenizer is not None and tokenizer.num_codes != self.vocabulary.num_codes:
            raise ValueError(
                f"DownstreamSettings.image_tokenizer has {tokenizer.num_codes} codes and the "
                f"vocabulary {self.vocabulary.num_codes}: give the one that made the codes."
            )

    @property
    def code_image_size(self) -> int:
        """Pixels a side of the images that targets of image codes encode."""
        return self.config.code_image_size

    @functools.cached_property
    def config(self) -> DownstreamConfig:
        """The configuration for training."""
        options = dict(self.options)
        if self.tfds and not self.files:
            options.setdefault("decode_options", AS_SEEN)
        return DownstreamConfig(self.vocabulary, **options)

    @property
    def evaluation_config(self) -> DownstreamConfig:
        """The same without noise and augmentation."""
        return dataclasses.replace(self.config, training=False)

    def config_for(self, training: bool) -> DownstreamConfig:
        """Returns the preprocessing configuration, with noise and augmentation if `training`."""
        return self.config if training else self.evaluation_config

    def available_splits(self, name: str) -> Sequence[str] | None:
        """Returns the splits that a task's data has files of; None if that is not known."""
        return None if name in self.tfds or name not in self.files else tuple(self.files[name])

    def records(self, name: str, split: str, training: bool = False) -> RecordSource:
        """Opens the records of a task's data.

        Args:
          name: a key of DATA.
          split: one of SPLITS.
          training: not used: these records are the same in training and evaluation.

        Raises:
          FileNotFoundError, ValueError: there are none, or not as they should be.
        """
        del training
        layout, _ = DATA[name]
        if name in self.tfds:
            to_record = None
            if TFDS_DATA_SETS[name].to_record is None:
                names = read_class_names(self._choices_path("class_names"))
                to_record = ClassifiedImageRecord(tuple(names))
            return TFDS_DATA_SETS[name].open(split, self.tfds[name], self.tfds_data_dir, to_record)
        paths = self.files.get(name, {}).get(split)
        if paths is None:
            known = ", ".join(self.files.get(name, {})) or "none"
            without = (
                ""
                if split == "train"
                else f" For a run without it set train.{split}_split = None."
                if split == "validation"
                else ""
            )
            raise ValueError(
                f"There are no files of {name} for the split {split} (there are for: {known}): set "
                f"DownstreamSettings.files = {{'{name}': {{'{split}': 'FILE.tsv'}}}}"
                + (
                    f", or .tfds = {{'{name}': '{TFDS_DATA_SETS[name].name}'}}."
                    if name in TFDS_DATA_SETS
                    else "."
                )
                + without
            )
        paths = [paths] if isinstance(paths, str) else paths
        return TsvRecords.open(
            [os.path.join(self.data_dir, path) for path in paths],
            layout,
            self.selected_cols.get(name),
            self.index_dir,
        )

    def choices(self, name: str) -> list[str]:
        """Returns the candidates in the file that the field `name` names, in their order.

        Raises:
          FileNotFoundError, ValueError: no file is named, or it is missing or invalid.
        """
        return read_choices(self._choices_path(name))

    def _choices_path(self, name: str) -> pathlib.Path:
        """Returns the path that the field `name` names. Raises ValueError if it names none."""
        path = getattr(self, name)
        if path is None:
            raise ValueError(
                f"The candidates are not known: set DownstreamSettings.{name} to a file of them, "
                "JSON or text with one per line."
            )
        return pathlib.Path(self.data_dir, path)


def _no_settings() -> DownstreamSettings:
    raise ValueError(
        "The downstream tasks have no data yet: set train.settings = @DownstreamSettings(), as "
        "the files in gin_configs/finetune do; with plain seqio, build the dataset within "
        "`ofa_jax.data.default_settings(settings)`."
    )


DOWNSTREAM = SettingsSource(DownstreamSettings, _no_settings)
"""Where the downstream tasks find their settings."""
