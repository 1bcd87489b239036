"""The eight pretraining objectives and their mixtures, over a data set that is chosen in gin.

    ofa_pretrain_pairs    captioning, questions, matching, grounding, grounded captioning
    ofa_pretrain_images   image infilling, detection
    ofa_pretrain_text     text infilling
    ofa_pretrain          all eight

Tasks have the names of the objectives. They are registered when this module is imported and read
their settings when a dataset is built: `configure` (or gin, through `python -m ofa_jax.train`) says
which data set, vocabulary and sizes; without it they are those of Scenes.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import seqio

from ofa_jax.data import seqio_bridge
from ofa_jax.data.seqio_vocabulary import CurrentVocabulary
from ofa_jax.data.sources.base import DataSet, RecordSource
from ofa_jax.data.sources.scenes import Scenes
from ofa_jax.data.sources.single_target import SingleTarget
from ofa_jax.preprocessing import objectives
from ofa_jax.preprocessing.objective_config import ObjectiveConfig
from ofa_jax.tokenizers import ImageTokenizer
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.utils.suggestions import refuse_unknown
from tasks import pretraining_eval

SPLITS = ("train", "validation", "test", "test_shifted")

# A pair gives two examples in the original: the second one asks whether image and text match, or
# is the grounded twin of a grounding example. So matching is as frequent as captions and questions
# together, and the twins are equally frequent.
PAIR_RATES: Mapping[str, float] = {
    "image_captioning": 1.0,
    "visual_question_answering": 1.0,
    "image_text_matching": 2.0,
    "visual_grounding": 1.0,
    "grounded_captioning": 1.0,
}
IMAGE_RATES: Mapping[str, float] = {"image_infilling": 1.0, "object_detection": 1.0}
TEXT_RATES: Mapping[str, float] = {"text_infilling": 1.0}


@dataclasses.dataclass(frozen=True)
class PretrainingSettings:
    """What the pretraining tasks run over.

    Attributes:
      data_set: yields the record fields of `ofa_jax.preprocessing.records`.
      vocabulary: makes ids.
      image_tokenizer: for image infilling without codes in the records; may be None.
      options: fields of `ObjectiveConfig` that differ from the published ones.
      rates: objective -> rate, where they differ from the defaults; 0 leaves an objective out.
    """

    data_set: DataSet
    vocabulary: OFAVocabulary
    image_tokenizer: ImageTokenizer | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, names, known in (
            ("rates", self.rates, objectives.OBJECTIVES),
            ("options", self.options, {f.name for f in dataclasses.fields(ObjectiveConfig)}),
        ):
            refuse_unknown(f"PretrainingSettings.{what}", names, known)

    def configure(self) -> None:
        """Makes these the settings that the tasks here run over."""
        configure(self)

    @property
    def code_image_size(self) -> int:
        """Pixels a side of what answers of image codes show."""
        return self.objective_config.code_image_size

    @functools.cached_property
    def objective_config(self) -> ObjectiveConfig:
        """The configuration for training."""
        return ObjectiveConfig(
            self.vocabulary,
            negatives=self.data_set.negatives(),
            image_tokenizer=self.image_tokenizer,
            **self.options,
        )

    @property
    def evaluation_config(self) -> ObjectiveConfig:
        """The same without augmentation."""
        return dataclasses.replace(self.objective_config, training=False)


def scenes_settings(
    data_set: Scenes | None = None,
    num_bins: int = 64,
    image_size: int = 128,
    code_image_size: int = 64,
    text_window: int = 32,
    randaugment: bool = False,
    distant_negatives: float = 0.0,
    matching_answers: float = 0.5,
    question_weights: Mapping[str, float] | None = None,
    rates: Mapping[str, float] | None = None,
) -> PretrainingSettings:
    """Settings for Scenes with the vocabulary and codebook that were built with it.

    Images are as small as a CPU can learn from, and are not cropped: everything that is said of
    a scene stays true.

    Args:
      data_set: the built scenes.
      num_bins: location bins over `image_size` pixels.
      image_size: of all images, in pixels a side.
      code_image_size: of the middle to infill.
      text_window: tokens of a text.
      randaugment: whether to augment captions, questions and matching.
      distant_negatives: share of matching's wrong captions, in training, that say something else
        entirely; the others differ from the truth by a word.
      matching_answers, question_weights: see `ObjectiveConfig`; `ofa_jax.scenes.questions` lists
        the answer types.
      rates: see `PretrainingSettings`.
    """
    data_set = data_set or Scenes()
    options = dict(
        image_size=image_size,
        resize_range=(image_size, image_size),
        resize_max_size=image_size,
        max_image_size=image_size,
        infill_image_size=image_size,
        code_image_size=code_image_size,
        detection_image_size=image_size,
        text_length=text_window,
        text_window=text_window,
        randaugment=randaugment,
        distant_negatives=distant_negatives,
        matching_answers=matching_answers,
        question_weights=question_weights or {},
    )
    return PretrainingSettings(
        data_set,
        data_set.vocabulary(num_bins=num_bins),
        data_set.image_tokenizer(),
        options,
        rates or {},
    )


_configured: PretrainingSettings | None = None


def configure(settings: PretrainingSettings | None) -> None:
    """Sets what the tasks run over; None goes back to the default."""
    global _configured
    _configured = settings
    _default_settings.cache_clear()


def current_settings() -> PretrainingSettings:
    """What `configure` set, or the scenes in the default place."""
    return _configured or _default_settings()


@functools.lru_cache(maxsize=1)
def _default_settings() -> PretrainingSettings:
    return scenes_settings()


def current_vocabulary() -> OFAVocabulary:
    """The vocabulary of the current settings."""
    return current_settings().vocabulary


OUTPUT_FEATURES = seqio_bridge.output_features(CurrentVocabulary(current_vocabulary))
"""Of every task here; give a task of your own the same ones to mix it with these."""


def open_records(kind: str, split: str) -> RecordSource:
    """The current data set's records of a kind (see `records.RECORD_FIELDS`).

    Outside of training each asks one thing only, so that the answer to it can be judged.
    """
    records = current_settings().data_set.records(kind, split)
    return records if split == "train" else SingleTarget(records, kind)


@dataclasses.dataclass(frozen=True)
class _Apply:
    """An objective with its configuration: what data workers carry."""

    objective: objectives.Objective
    training: ObjectiveConfig
    validation: ObjectiveConfig

    def __call__(self, record, rng):
        config = self.training if record.get("split") == "train" else self.validation
        return self.objective(record, rng, config)


def with_config(
    objective: objectives.Objective,
) -> Callable[[], Callable[..., Mapping[str, Any]]]:
    """`(record, rng, config) -> example` to a factory of `(record, rng) -> example`.

    The configuration is the current one: augmenting on the train split, and not on any other.
    """

    def factory() -> _Apply:
        settings = current_settings()
        return _Apply(objective, settings.objective_config, settings.evaluation_config)

    functools.update_wrapper(factory, objective, updated=())
    return factory


def source(kind: str) -> seqio_bridge.RecordDataSource:
    """A seqio source over the current data set's records of a kind."""
    return seqio_bridge.RecordDataSource(functools.partial(open_records, kind), kind, SPLITS)


for _name, _objective in objectives.OBJECTIVES.items():
    seqio.TaskRegistry.add(
        _name,
        source=source(objectives.RECORD_KIND[_name]),
        preprocessors=[seqio_bridge.numpy_preprocessor(with_config(_objective), factory=True)],
        output_features=OUTPUT_FEATURES,
    )
pretraining_eval.register(current_settings)


def _rate(default: float) -> Callable[[seqio.Task], float]:
    """A rate that the settings may override."""
    return lambda task: current_settings().rates.get(task.name, default)


def _mixture(name: str, default_rates: Mapping[str, float]) -> None:
    seqio.MixtureRegistry.add(name, [(task, _rate(rate)) for task, rate in default_rates.items()])


_mixture("ofa_pretrain_pairs", PAIR_RATES)
_mixture("ofa_pretrain_images", IMAGE_RATES)
_mixture("ofa_pretrain_text", TEXT_RATES)
# Section 4 of the spec: 8 pairs (16 examples) to 2 texts, 1 image to infill and 1 with objects.
_PER_PAIR_EXAMPLE = 16 / sum(PAIR_RATES.values())
_mixture(
    "ofa_pretrain",
    {name: rate * _PER_PAIR_EXAMPLE for name, rate in PAIR_RATES.items()}
    | {"image_infilling": 1.0, "object_detection": 1.0, "text_infilling": 2.0},
)
