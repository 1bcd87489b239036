"""How the downstream tasks are registered, and what their evaluation specifications share.

Tasks are registered when their modules are imported (`tasks.captioning`, `tasks.vqa` ...). Where
the data are, which vocabulary and which sizes follow from the settings of a run (`train.settings =
@DownstreamSettings()`); `ofa_jax.data.downstream_settings` lists the data.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ofa_jax.data import registration
from ofa_jax.data.downstream_settings import DATA, DOWNSTREAM, SPLITS
from ofa_jax.data.downstream_settings import DownstreamSettings as DownstreamSettings
from ofa_jax.decoding import DecodingConfig
from ofa_jax.evaluation import eval_spec, seqio_metrics
from ofa_jax.evaluation.eval_spec import EvalSpec
from ofa_jax.preprocessing.downstream import DownstreamTask


def add_task(
    name: str,
    data: str,
    task: DownstreamTask,
    describe: Callable[[DownstreamSettings], EvalSpec],
) -> None:
    """Registers a task and how it is evaluated.

    Args:
      name: in the seqio registry.
      data: a key of DATA.
      task: from a record to an example.
      describe: from the settings of a run to the specification of the evaluation.
    """
    evaluation = seqio_metrics.of_spec(name)
    registration.add_task(name, DOWNSTREAM, data, DATA[data][1], SPLITS, task, evaluation)
    eval_spec.register_factory(name, functools.partial(_describe, describe))


def _describe(describe: Callable[[DownstreamSettings], EvalSpec], settings: Any) -> EvalSpec:
    return describe(DOWNSTREAM.of(settings))


def label_decoding(settings: DownstreamSettings, max_length: int, **options: Any) -> DecodingConfig:
    """Returns how a short target is searched, behind the decoder's prompt if there is one.

    Args:
      settings: say whether there is a prompt.
      max_length: tokens of the longest target.
      **options: fields of `DecodingConfig`.
    """
    prompted = settings.config.decoder_prompt != "none"
    return DecodingConfig(
        max_length=max_length, max_length_per_source_token=float(prompted), **options
    )


def label_of(record: Mapping[str, Any]) -> str:
    """Returns the right label; empty where a test set does not publish it."""
    return record.get("label", "")


def with_leading_space(texts: Sequence[str]) -> tuple[str, ...]:
    """Returns candidates as they are encoded, with a space in front."""
    return tuple(f" {text}" for text in texts)
