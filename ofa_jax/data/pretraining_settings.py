"""Settings of the eight pretraining objectives, and those for Scenes."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from ofa_jax.data.sources.base import DataSet, RecordSource, refuse_other_orientation
from ofa_jax.data.sources.scenes import Scenes
from ofa_jax.data.sources.single_target import SingleTarget
from ofa_jax.data.task_settings import SettingsSource
from ofa_jax.model.config import PIXELS_PER_CODE
from ofa_jax.preprocessing import objectives
from ofa_jax.preprocessing.objective_config import ObjectiveConfig
from ofa_jax.preprocessing.wordings import Wordings
from ofa_jax.tokenizers import ImageTokenizer
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.utils.decode_options import AS_SEEN
from ofa_jax.utils.option_checks import checked
from ofa_jax.utils.options import Count, FieldsOf, ModuleName, Name, Pixels, Share, Weights
from ofa_jax.utils.suggestions import refuse_unknown

_GIVEN = ("vocabulary", "negatives", "image_tokenizer")
"""Fields of `ObjectiveConfig` that are not options."""


@checked
@dataclasses.dataclass(frozen=True)
class PretrainingSettings:
    """What the pretraining tasks run over.

    Attributes:
      data_set: yields the record fields of `ofa_jax.preprocessing.records`.
      vocabulary: of instructions and targets.
      image_tokenizer: for image infilling without codes in the records; may be None.
      options: fields of `ObjectiveConfig` that differ from the published ones. Images are decoded
        as people see them, unless the data set has other `decode_options`: the official data has.
      rates: objective -> rate, where they differ from the defaults; 0 leaves an objective out.
      task_modules: modules that register tasks, besides those that the run names.
    """

    data_set: DataSet
    vocabulary: OFAVocabulary
    image_tokenizer: ImageTokenizer | None = None
    options: Annotated[Mapping[str, Any], FieldsOf(ObjectiveConfig, _GIVEN)] = dataclasses.field(
        default_factory=dict
    )
    rates: Weights = dataclasses.field(default_factory=dict)
    task_modules: Annotated[tuple[Name, ...], ModuleName()] = ("tasks.pretraining",)

    def __post_init__(self) -> None:
        refuse_unknown("PretrainingSettings.rates", self.rates, objectives.OBJECTIVES)
        given = self.options.get("decode_options")
        refuse_other_orientation(self.data_set, given, "PretrainingSettings.options")

    @property
    def code_image_size(self) -> int:
        """Pixels a side of the image that a target of image codes stands for."""
        return self.objective_config.code_image_size

    @functools.cached_property
    def objective_config(self) -> ObjectiveConfig:
        """The configuration of the objectives in training."""
        own: dict[str, Any] = {"decode_options": getattr(self.data_set, "decode_options", AS_SEEN)}
        return ObjectiveConfig(
            self.vocabulary,
            negatives=self.data_set.negatives(),
            image_tokenizer=self.image_tokenizer,
            **(own | dict(self.options)),
        )

    @property
    def evaluation_config(self) -> ObjectiveConfig:
        """The same without augmentation, and with the published wording of every instruction."""
        return dataclasses.replace(self.objective_config, training=False, prompts={})

    def config_for(self, training: bool) -> ObjectiveConfig:
        """Returns the configuration of the objectives, with augmentation if `training`."""
        return self.objective_config if training else self.evaluation_config

    def available_splits(self, name: str) -> Sequence[str] | None:
        """Returns the splits of the data set; None if it does not say which it has."""
        del name
        return getattr(self.data_set, "splits", None)

    def records(self, name: str, split: str, training: bool) -> RecordSource:
        """Opens the data set's records of a kind.

        Outside of training each record has a single target, so that a prediction can be compared
        with it.

        Args:
          name: a key of `records.RECORD_FIELDS`.
          split: one of the data set's.
          training: whether the records are trained on.

        Raises:
          ValueError: images need codes, and nothing makes them.
        """
        if name == "images" and self.image_tokenizer is None:
            _refuse_images_without_codes(self.data_set)
        records = self.data_set.records(name, split)
        return records if training else SingleTarget(records, name)


def _refuse_images_without_codes(data_set: DataSet) -> None:
    """Raises ValueError if a data set says that its records have no image codes."""
    if not getattr(data_set, "has_codes", True):
        raise ValueError(
            f"Image infilling needs image codes, which {type(data_set).__name__} does not have: "
            "set PretrainingSettings.image_tokenizer, e.g. to @patch_codebook(), which computes "
            "them on demand, or leave image_infilling out by PretrainingSettings.rates."
        )


@checked
def scenes_settings(
    data_set: Scenes | None = None,
    num_bins: Count = 64,
    image_size: Pixels = 128,
    code_image_size: Pixels = 64,
    text_window: Count = 32,
    randaugment: bool = False,
    distant_negatives: Share = 0.0,
    matching_answers: Share = 0.5,
    question_weights: Weights | None = None,
    prompts: Wordings | None = None,
    rates: Weights | None = None,
    image_tokenizer: ImageTokenizer | None = None,
) -> PretrainingSettings:
    """Returns settings for Scenes with the vocabulary and codebook that were built with it.

    Images are as small as a CPU can learn from, and are not cropped: every text about a scene
    stays true.

    Args:
      data_set: the built scenes, or `StreamedScenes`, which composes training scenes on demand;
        when None, `Scenes()`, which commands configure with gin.
      num_bins: location bins over `image_size` pixels.
      image_size: of all images, in pixels a side.
      code_image_size: of the middle to infill.
      text_window: tokens of a text.
      randaugment: whether to augment captions, questions and matching.
      distant_negatives: share of matching's negative captions, in training, that describe another
        scene; the others differ from the truth by a word.
      matching_answers: see `ObjectiveConfig`.
      question_weights: see `ObjectiveConfig`; `ofa_jax.scenes.questions` lists the answer types.
      prompts: see `ObjectiveConfig`; `@several_wordings()` has some of every instruction.
      rates: see `PretrainingSettings`.
      image_tokenizer: of 8 pixels per code, in place of the codebook that was built with the
        scenes; the vocabulary gets as many codes as it has.

    Raises:
      ValueError: the image tokenizer has other pixels per code.
    """
    data_set = data_set or make_scenes()
    tokenizer = image_tokenizer or data_set.image_tokenizer()
    if tokenizer.pixels_per_code != PIXELS_PER_CODE:
        raise ValueError(
            f"scenes_settings.image_tokenizer has {tokenizer.pixels_per_code} pixels per code, but "
            f"the tasks count {PIXELS_PER_CODE}: give a VQGAN with four VQGANConfig.multipliers."
        )
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
        prompts=prompts or {},
    )
    return PretrainingSettings(
        data_set,
        data_set.vocabulary(num_bins=num_bins, num_codes=tokenizer.num_codes),
        tokenizer,
        options,
        rates or {},
    )


@functools.lru_cache(maxsize=1)
def _settings_of(directory: str) -> PretrainingSettings:
    return scenes_settings(Scenes(directory))


def default_scenes() -> PretrainingSettings:
    """Returns the settings of the scenes in OFA_DATA_DIR, read once for each folder.

    A command takes the folder from `Scenes.data_dir` instead, if that is set.
    """
    return _settings_of(str(make_scenes().directory.parent))


_factory: list[Callable[[], Scenes]] = [Scenes]


def set_scenes_factory(make: Callable[[], Scenes]) -> None:
    """Sets what makes the Scenes that no settings name, such as gin's `Scenes`."""
    _factory[:] = [make]


def make_scenes() -> Scenes:
    """Returns the Scenes that no settings name."""
    return _factory[0]()


PRETRAINING = SettingsSource(PretrainingSettings, default_scenes)
"""Where the pretraining tasks find their settings."""
