"""Settings of the downstream tasks on Scenes, which `tasks.scenes_downstream` registers.

The settings have the vocabulary, the image tokenizer and the sizes of pretraining on Scenes, so
that a pretrained checkpoint fits; scenes, nouns and words are others (`ofa_jax.scenes.
downstream_records`).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Annotated, Any

from ofa_jax.data import pretraining_settings
from ofa_jax.data.sources import downstream_scenes
from ofa_jax.data.sources.base import RecordSource
from ofa_jax.data.sources.downstream_scenes import MAX_OBJECTS, ComposedScenes
from ofa_jax.data.sources.scenes import Scenes
from ofa_jax.data.task_settings import SettingsSource
from ofa_jax.preprocessing.downstream import DownstreamConfig
from ofa_jax.tokenizers import ImageTokenizer
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.utils import options
from ofa_jax.utils.decode_options import AS_SEEN
from ofa_jax.utils.option_checks import checked

SPLITS = ("train", "validation", "test", "test_shifted")


@checked
@dataclasses.dataclass(frozen=True)
class ScenesDownstreamSettings:
    """What the downstream tasks on Scenes run over.

    Attributes:
      data_set: the built scenes of pretraining, whose vocabulary, codebook and nouns these tasks
        share; when None, `Scenes()`, which commands configure with gin.
      image_tokenizer: of text-to-image; the codebook of the scenes when None.
      num_bins: location bins, as in pretraining.
      image_size: pixels a side.
      code_image_size: pixels a side of generated images; each 8 x 8 are one code.
      new_nouns: how many nouns that no scene of pretraining shows these scenes have, besides those
        of pretraining.
      num_train: scenes (and sentences) of the training split.
      num_validation: of the validation split.
      num_test: of each test split.
      max_words: of a sentence; longer ones are cut.
      feature_checkpoint: a run, a checkpoint or a file of torchvision, whose ResNet measures
        generated images; without one they are compared code by code only.
      task_modules: modules that register tasks, besides those that the run names.
    """

    data_set: Scenes | None = None
    image_tokenizer: ImageTokenizer | None = None
    num_bins: options.Count = 64
    image_size: options.Pixels = 128
    code_image_size: options.Pixels = 64
    new_nouns: options.Natural = 20
    num_train: options.Count = 2000
    num_validation: options.Count = 200
    num_test: options.Count = 500
    max_words: options.Count = 24
    feature_checkpoint: options.Path | None = None
    task_modules: Annotated[tuple[options.Name, ...], options.ModuleName()] = (
        "tasks.scenes_downstream",
    )

    def __post_init__(self) -> None:
        if self.data_set is None:
            object.__setattr__(self, "data_set", pretraining_settings.make_scenes())

    @property
    def _built(self) -> Scenes:
        assert self.data_set is not None
        return self.data_set

    @functools.cached_property
    def tokenizer(self) -> ImageTokenizer:
        """The image tokenizer."""
        return self.image_tokenizer or self._built.image_tokenizer()

    @functools.cached_property
    def vocabulary(self) -> OFAVocabulary:
        """The vocabulary of pretraining."""
        return self._built.vocabulary(self.num_bins, self.tokenizer.num_codes)

    @functools.cached_property
    def config(self) -> DownstreamConfig:
        """The configuration for training."""
        return DownstreamConfig(
            self.vocabulary,
            image_size=self.image_size,
            grounding_image_size=self.image_size,
            max_image_size=self.image_size,
            code_image_size=self.code_image_size,
            max_sentence_words=self.max_words,
            # A crop of 8 % of the area would show no object.
            augment=False,
            decode_options=AS_SEEN,
        )

    @property
    def evaluation_config(self) -> DownstreamConfig:
        """The same for evaluation."""
        return dataclasses.replace(self.config, training=False)

    def config_for(self, training: bool) -> DownstreamConfig:
        """Returns the preprocessing configuration."""
        return self.config if training else self.evaluation_config

    def scenes(self, max_objects: int = 1) -> Any:
        """Returns the options of the composed scenes, a `DownstreamScenes`."""
        from ofa_jax.scenes.downstream_records import DownstreamScenes

        built = self._built.description["options"]
        return DownstreamScenes(
            built["nouns"], self.image_size, max_objects, built["seed"], self.new_nouns
        )

    def available_splits(self, name: str) -> Sequence[str]:
        """Returns the splits of every task."""
        del name
        return SPLITS

    def records(self, name: str, split: str, training: bool = False) -> RecordSource:
        """Opens the records of a task.

        Args:
          name: one of `downstream_scenes.KINDS`.
          split: one of SPLITS.
          training: not used: these records are the same in training and evaluation.
        """
        del training
        counts = {"train": self.num_train, "validation": self.num_validation}
        count = counts.get(split, self.num_test)
        if name not in MAX_OBJECTS:
            return downstream_scenes.open_sentences(name, split, count)
        return ComposedScenes(
            self.scenes(MAX_OBJECTS[name]),
            split,
            name,
            count,
            self.tokenizer if name == "coded_captions" else None,
            self.code_image_size,
        )


SCENES_DOWNSTREAM = SettingsSource(ScenesDownstreamSettings, ScenesDownstreamSettings)
"""Where the downstream tasks on Scenes find their settings."""
