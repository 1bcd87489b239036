"""Registers everything that gin can configure, so that library code does not import gin.

The names are those of classes and functions, as in `Stream.batch_size = 32`. Modules of your own
can register more: write `import my_module` in a gin file and `@gin.configurable` in the module.
"""

from collections.abc import Callable, Sequence
from typing import Any

import gin

from ofa_jax.data.downstream_settings import DownstreamSettings
from ofa_jax.data.features import Stream
from ofa_jax.data.pretraining_settings import PretrainingSettings, scenes_settings
from ofa_jax.data.scenes_downstream import ScenesDownstreamSettings
from ofa_jax.data.sources.array_records import OfaArrayRecords
from ofa_jax.data.sources.arrow_files import ArrowData
from ofa_jax.data.sources.cached_tasks import CachedTasks
from ofa_jax.data.sources.coco_json import CocoData
from ofa_jax.data.sources.image_folders import ImageFolderData
from ofa_jax.data.sources.json_lines import JsonData
from ofa_jax.data.sources.mixed import MixedData
from ofa_jax.data.sources.ofa_tsv import OfaTsv
from ofa_jax.data.sources.scenes import Scenes
from ofa_jax.data.sources.streamed_scenes import StreamedScenes
from ofa_jax.data.sources.tfds_data import TfdsData
from ofa_jax.data.sources.webdataset import WebDatasetData
from ofa_jax.decoding import DecodingConfig
from ofa_jax.inference.image_generation import ImageGeneration, matching_ranker
from ofa_jax.interop import clip_file, image_tokenizer_file, vqgan_file
from ofa_jax.preprocessing.wordings import several_wordings
from ofa_jax.sharding import Partitioner
from ofa_jax.tokenizers.patch_codebook import PatchCodebook
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.tokenizers.vqgan import VQGANConfig
from ofa_jax.training.image_tokenizer.batches import ImageBatches
from ofa_jax.training.image_tokenizer.build import build_tokenizer_run
from ofa_jax.training.image_tokenizer.config import (
    ImageTokenizerLoss,
    PerceptualFeatures,
    QuantizerConfig,
)
from ofa_jax.training.loop_config import LoopConfig
from ofa_jax.training.losses import LossConfig
from ofa_jax.training.metric_writers import CsvWriter, WandbWriter
from ofa_jax.training.optimizer import OptimizerConfig, epochs_to_steps
from ofa_jax.training.self_critical import SelfCriticalConfig
from ofa_jax.utils.decode_options import DecodeOptions
from ofa_jax.utils.option_checks import check_option, checked_as

__all__ = ["check_parameter", "names", "register"]

_CLASSES = (
    Stream,
    Scenes,
    StreamedScenes,
    OfaTsv,
    OfaArrayRecords,
    JsonData,
    ImageFolderData,
    ArrowData,
    WebDatasetData,
    CocoData,
    TfdsData,
    MixedData,
    CachedTasks,
    Partitioner,
    LoopConfig,
    LossConfig,
    OptimizerConfig,
    CsvWriter,
    WandbWriter,
    DecodeOptions,
    PretrainingSettings,
    DownstreamSettings,
    ScenesDownstreamSettings,
    DecodingConfig,
    SelfCriticalConfig,
    ImageGeneration,
    VQGANConfig,
    ImageBatches,
    QuantizerConfig,
    ImageTokenizerLoss,
    PerceptualFeatures,
)
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "scenes_settings": scenes_settings,
    "several_wordings": several_wordings,
    "epochs_to_steps": epochs_to_steps,
    "vocabulary_from_gpt2_files": OFAVocabulary.from_gpt2_files,
    "vocabulary_from_ofa_directory": OFAVocabulary.from_ofa_directory,
    "vocabulary_from_tokenizer_json": OFAVocabulary.from_tokenizer_json,
    "patch_codebook": PatchCodebook.load,
    "vqgan": vqgan_file.read,
    "clip": clip_file.read,
    "matching_ranker": matching_ranker,
    "image_tokenizer": image_tokenizer_file.read,
    "train_image_tokenizer": build_tokenizer_run,
}
_names: list[str] = []  # in the order of registration
_IDENTITY = "evaluated"
"""A configurable that returns its argument: gin evaluates the references in it for a call."""


def register(entry_points: dict[str, Callable[..., Any]]) -> None:
    """Registers everything with gin; what is registered already stays.

    Args:
      entry_points: name -> function of the command that runs, e.g. {"train": build_run}.
    """
    for cls in _CLASSES:
        _register(cls.__name__, cls)
    for name, function in (_FUNCTIONS | entry_points).items():
        _register(name, function)


def names() -> Sequence[str]:
    """Returns the names of everything that is registered here."""
    return tuple(_names)


def bound_value(parameter: str) -> Any:
    """Returns what gin files bind to a parameter; references in it are evaluated.

    Args:
      parameter: such as "train.settings"; its configurable is not called.

    Raises:
      ValueError: it is not bound.
    """
    value = gin.query_parameter(parameter)
    with gin.unlock_config():
        _register(_IDENTITY, lambda value: value)
        gin.bind_parameter(f"{_IDENTITY}.value", value)
    return gin.get_configurable(_IDENTITY)()


def _register(name: str, function: Callable[..., Any]) -> None:
    """Registers a function or class with gin, unless the name is registered already."""
    if name not in _names:
        gin.external_configurable(_typed(name, function), name=name, module="ofa_jax")
        _names.append(name)


def _typed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a function or class so that it checks its arguments, under the name in gin.

    Classes are wrapped in a function because gin would subclass them, and data workers could not
    unpickle the instances.
    """
    return checked_as(name, function)


def check_parameter(function: Callable[..., Any], parameter: str, value: Any) -> None:
    """Raises ValueError if a parameter cannot take a value."""
    check_option(function, parameter, value)
