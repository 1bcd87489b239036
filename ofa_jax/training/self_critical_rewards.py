"""Builds self-critical training of a run: the reward of its records, and what draws the samples."""

from collections.abc import Mapping

from ofa_jax.data import seqio_bridge
from ofa_jax.data.sources.base import RecordSource
from ofa_jax.data.task_settings import TaskSettings
from ofa_jax.evaluation.rewards import CaptionReward, ImageReward, RecordReward
from ofa_jax.tokenizers.processor import Processor
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.training.datasets import RunData
from ofa_jax.training.self_critical import SelfCritical, SelfCriticalConfig
from ofa_jax.training.train_program import TrainProgram

__all__ = ["build_self_critical"]


def build_self_critical(
    config: SelfCriticalConfig | None,
    program: TrainProgram,
    data: RunData,
    seed: int,
    settings: TaskSettings | None,
) -> SelfCritical | None:
    """Builds the transform of batches whose reward is CIDEr-D, or a ranker's score of images.

    Args:
      config: how samples are drawn and rewarded; None to train on the targets of the data.
      program: of the run.
      data: what is trained on.
      seed: of the samples.
      settings: of the run, for its tasks; None for their defaults.

    Returns:
      None without a configuration.

    Raises:
      ValueError: options or data that self-critical training cannot use.
    """
    if config is None:
        return None
    config.check(program.loss)
    streams = data.loader.streams
    if len(streams) > 1 or streams[0].name not in data.tasks:
        raise ValueError(
            "train.self_critical needs a single stream, of tasks made of records "
            f"(RecordDataSource and numpy preprocessors); the run has {len(streams)}: "
            f"{', '.join(stream.mixture_or_task_name for stream in streams)}."
        )
    (stream,) = streams
    records = {task.name: task.records for task in data.tasks[stream.name]}
    vocabulary = seqio_bridge.vocabulary_of(stream.mixture_or_task_name, settings)
    reward = _make_reward(config, records, vocabulary, settings)
    return SelfCritical(
        program.network,
        config,
        program.partitioner,
        stream.name,
        lambda step, samples: reward(data.loader.record_ids(step)[stream.name], samples),
        seed,
    )


def _make_reward(
    config: SelfCriticalConfig,
    records: Mapping[str, RecordSource],
    vocabulary: OFAVocabulary,
    settings: TaskSettings | None,
) -> RecordReward:
    """Returns the reward of captions, or that of images if there is a ranker.

    Raises:
      ValueError: no record has a caption, or the settings do not fit images from captions.
    """
    if config.ranker is None:
        return CaptionReward.of_records(records, vocabulary.decode)
    if getattr(getattr(settings, "config", None), "caption_dropout", 0):
        raise ValueError(
            "SelfCriticalConfig.ranker compares each image with its caption, but "
            "DownstreamSettings.options leaves out captions: set its caption_dropout to 0."
        )
    processor = Processor(vocabulary, getattr(settings, "image_tokenizer", None))
    return ImageReward(records, processor, config.ranker, config.reward_scale)
