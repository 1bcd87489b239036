"""What the downstream tasks share: their settings, their data, how one is registered.

Tasks are registered when their modules are imported (`tasks.captioning`, `tasks.vqa` ...) and read
the settings when a dataset is built: `configure` (or gin, through `train.settings =
@DownstreamSettings()`) says where the data are, which vocabulary and which sizes.

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
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import seqio

from ofa_jax.data import seqio_bridge
from ofa_jax.data.seqio_vocabulary import CurrentVocabulary
from ofa_jax.data.sources.base import RecordSource
from ofa_jax.data.sources.tfds import TFDS_DATA_SETS, ClassifiedImageRecord
from ofa_jax.data.sources.tsv_records import TsvRecords, parse_selected_cols
from ofa_jax.decoding import DecodingConfig
from ofa_jax.evaluation import eval_spec
from ofa_jax.evaluation.eval_spec import EvalSpec
from ofa_jax.preprocessing.downstream import DownstreamConfig, DownstreamTask
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
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
"""What may be asked for: RefCOCO has two test sets, MNLI two of everything but training."""

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
_OPTIONS = {field.name for field in dataclasses.fields(DownstreamConfig)} - {
    "vocabulary",
    "training",
}


@dataclasses.dataclass(frozen=True)
class DownstreamSettings:
    """What the downstream tasks run over. Data are named as in the table above.

    Attributes:
      vocabulary: makes ids.
      files: data -> split -> the original's TSV file, or a pattern such as "train-*.tsv", or a list
        of them.
      data_dir: the folder that all paths here start from.
      tfds: data -> name of the TFDS data set, e.g. {"cola": "glue/cola"}, stored as array_record or
        parquet; counts more than `files`.
      tfds_data_dir: TFDS's folder; its default when None.
      selected_cols: data -> columns as in the original's flags, where they differ from the usual
        ones, e.g. {"imagenet": "0,1"}.
      index_dir: where indices of TSV files are written; None for beside the files.
      vqa_answers: the file of the answers to choose from in VQA: JSON (a list, or a dict whose
        keys are answers), or text with one a line. The original's pickles are not read.
      class_names: the same of ImageNet's classes; over TFDS, in the order of its labels.
      options: fields of `DownstreamConfig` that differ from the published ones.
    """

    vocabulary: OFAVocabulary
    files: Mapping[str, Mapping[str, str | Sequence[str]]] = dataclasses.field(default_factory=dict)
    data_dir: str = ""
    tfds: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tfds_data_dir: str | None = None
    selected_cols: Mapping[str, str | Sequence[int]] = dataclasses.field(default_factory=dict)
    index_dir: str | None = None
    vqa_answers: str | None = None
    class_names: str | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, names, known in (
            ("files", self.files, DATA),
            ("tfds", self.tfds, TFDS_DATA_SETS),
            ("selected_cols", self.selected_cols, DATA),
            ("options", self.options, _OPTIONS),
        ):
            refuse_unknown(f"DownstreamSettings.{what}", names, known)
        for data, splits in self.files.items():
            if not isinstance(splits, Mapping) or set(splits) - set(SPLITS):
                raise ValueError(
                    f"DownstreamSettings.files[{data!r}] is {splits!r}; give a dict from splits "
                    f"to files; splits are {', '.join(SPLITS)}."
                )
        for data, columns in self.selected_cols.items():
            parse_selected_cols(DATA[data][0], columns)

    def configure(self) -> None:
        """Makes these the settings that the tasks run over."""
        configure(self)

    @property
    def code_image_size(self) -> int:
        """Pixels a side of what answers of image codes show."""
        return self.config.code_image_size

    @functools.cached_property
    def config(self) -> DownstreamConfig:
        """The configuration for training."""
        return DownstreamConfig(self.vocabulary, **self.options)

    @property
    def evaluation_config(self) -> DownstreamConfig:
        """The same without noise and augmentation."""
        return dataclasses.replace(self.config, training=False)

    def records(self, data: str, split: str) -> RecordSource:
        """The records of some data.

        Raises:
          FileNotFoundError, ValueError: there are none, or not as they should be.
        """
        layout, _ = DATA[data]
        if data in self.tfds:
            to_record = None
            if TFDS_DATA_SETS[data].to_record is None:
                to_record = ClassifiedImageRecord(tuple(self.choices("class_names")))
            return TFDS_DATA_SETS[data].open(split, self.tfds[data], self.tfds_data_dir, to_record)
        paths = self.files.get(data, {}).get(split)
        if paths is None:
            known = ", ".join(self.files.get(data, {})) or "none"
            without = (
                ""
                if split == "train"
                else f" For a run without it set train.{split}_split = None."
                if split == "validation"
                else ""
            )
            raise ValueError(
                f"There are no files of {data} for the split {split} (there are for: {known}): set "
                f"DownstreamSettings.files = {{'{data}': {{'{split}': 'FILE.tsv'}}}}"
                + (
                    f", or .tfds = {{'{data}': '{TFDS_DATA_SETS[data].name}'}}."
                    if data in TFDS_DATA_SETS
                    else "."
                )
                + without
            )
        paths = [paths] if isinstance(paths, str) else paths
        return TsvRecords.open(
            [os.path.join(self.data_dir, path) for path in paths],
            layout,
            self.selected_cols.get(data),
            self.index_dir,
        )

    def choices(self, name: str) -> list[str]:
        """The answers in the file that the field `name` names, in their order.

        Raises:
          FileNotFoundError, ValueError: none is named, it is missing, or something else.
        """
        path = getattr(self, name)
        if path is None:
            raise ValueError(
                f"The answers to choose from are not known: set DownstreamSettings.{name} to a "
                "file of them, JSON or text with one a line."
            )
        return read_choices(pathlib.Path(self.data_dir, path))


def read_choices(path: pathlib.Path) -> list[str]:
    """Answers out of a file: JSON (a list, or a dict by its keys), or text with one a line.

    Raises:
      FileNotFoundError: there is none.
      ValueError: a pickle, or no answers.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of answers {path}: check the path.")
    content = path.read_bytes()
    if path.suffix in (".pkl", ".pickle") or content[:1] == b"\x80":
        raise ValueError(
            f"{path} is a pickle, which is not read, for it could run anything: write its keys to "
            "a JSON list or to a text file, one a line."
        )
    try:
        text = content.decode("utf-8")
        found = json.loads(text) if path.suffix == ".json" else text.splitlines()
        answers = [answer.strip() for answer in found]
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{path} must be a JSON list of answers, a JSON dict whose keys are answers, or text "
            f"with one a line ({error})."
        ) from error
    answers = list(dict.fromkeys(answer for answer in answers if answer))
    if not answers:
        raise ValueError(f"{path} has no answers.")
    return answers


_configured: DownstreamSettings | None = None


def configure(settings: DownstreamSettings | None) -> None:
    """Sets what the tasks run over; None for nothing."""
    global _configured
    _configured = settings


def current_settings() -> DownstreamSettings:
    """What `configure` set. Raises ValueError if nothing is set."""
    if _configured is None:
        raise ValueError(
            "The downstream tasks have no data yet: set train.settings = @DownstreamSettings(), as "
            "the files in gin_configs/finetune do, or call tasks.downstream.configure(...)."
        )
    return _configured


def current_vocabulary() -> OFAVocabulary:
    """The vocabulary of the current settings."""
    return current_settings().vocabulary


OUTPUT_FEATURES = seqio_bridge.output_features(CurrentVocabulary(current_vocabulary))
"""Of every downstream task, so that they can be mixed."""


def open_records(data: str, split: str) -> RecordSource:
    """The records of some data under the current settings."""
    return current_settings().records(data, split)


@dataclasses.dataclass(frozen=True)
class _Apply:
    """A task with its configuration: what data workers carry."""

    task: DownstreamTask
    training: DownstreamConfig
    evaluation: DownstreamConfig

    def __call__(self, record, rng):
        config = self.training if record.get("split") == "train" else self.evaluation
        return self.task(record, rng, config)


def with_config(task: DownstreamTask) -> Callable[[], Callable[..., Mapping[str, Any]]]:
    """`(record, rng, config) -> example` to a factory of `(record, rng) -> example`."""

    def factory() -> _Apply:
        settings = current_settings()
        return _Apply(task, settings.config, settings.evaluation_config)

    functools.update_wrapper(factory, task, updated=())
    return factory


def add_task(name: str, data: str, task: DownstreamTask, describe: Callable[[], EvalSpec]) -> None:
    """Registers a task and how it is judged.

    Args:
      name: in the seqio registry.
      data: a key of DATA.
      task: from a record to an example.
      describe: gives the description of how it is judged; asked under the settings of then.
    """
    seqio.TaskRegistry.add(
        name,
        source=seqio_bridge.RecordDataSource(
            functools.partial(open_records, data), DATA[data][1], SPLITS
        ),
        preprocessors=[seqio_bridge.numpy_preprocessor(with_config(task), factory=True)],
        output_features=OUTPUT_FEATURES,
    )
    eval_spec.register_later(name, describe)


def answer_decoding(longest: int, **options: Any) -> DecodingConfig:
    """Decoding of answers of so many tokens, behind the decoder's prompt if there is one."""
    prompted = current_settings().config.decoder_prompt != "none"
    return DecodingConfig(
        max_length=longest, max_length_per_source_token=float(prompted), **options
    )


def label_of(record: Mapping[str, Any]) -> str:
    """The right label; empty where a test set keeps it to itself."""
    return record.get("label", "")


def spaced(answers: Sequence[str]) -> tuple[str, ...]:
    """Answers as they are encoded, a space in front."""
    return tuple(f" {answer}" for answer in answers)
