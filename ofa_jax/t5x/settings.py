"""Optimizer, feature converter and axis rules, as t5x wants them and gin files name them."""

from collections.abc import Sequence
from typing import Any

import seqio
from t5x import optimizers, partitioning

from ofa_jax.data.feature_converter import OFAFeatureConverter
from ofa_jax.data.features import Stream
from ofa_jax.t5x.mixtures import GroupedFeatureConverter, group_names
from ofa_jax.training.optimizer import OptimizerConfig, make_optimizer

__all__ = ["adamw", "feature_converter", "logical_axis_rules"]

_WHOLE = (
    *("positions", "relpos", "types", "norm", "conv_height", "conv_width", "conv_in"),
    *("activation_length", "activation_embed", "activation_kv", "activation_height"),
    *("activation_width", "activation_channels"),
)
"""Axes of ours that are not split over t5x's mesh (data, model)."""


def logical_axis_rules(
    parameter_partitioning_dims: int = 1, slices: bool = False
) -> Sequence[tuple[str, Any]]:
    """Returns t5x's standard rules, continued for the names of our axes.

    Args:
      parameter_partitioning_dims: 2 splits parameters over `data`, too, as our `fsdp` does.
      slices: whether t5x's mesh has its axis `replica` for several slices.
    """
    data: Any = ("replica", "data") if slices else "data"
    return partitioning.standard_logical_axis_rules(
        activation_partitioning_dims=1,
        parameter_partitioning_dims=parameter_partitioning_dims,
        additional_rules=[
            ("activation_batch", data),
            ("activation_images", data),
            ("activation_heads", "model"),
            ("activation_mlp", "model"),
            ("activation_vocab", "model"),
            ("conv_out", "data" if parameter_partitioning_dims == 2 else None),
            *((name, None) for name in _WHOLE),
        ],
    )


def adamw(**options: Any) -> optimizers.OptaxWrapper:
    """Returns our AdamW with its schedule, clipping and frozen groups for t5x.

    The learning rate is that of the schedule; t5x's own `learning_rate_fn` has no effect on it.

    Args:
      **options: fields of `OptimizerConfig`. `ema_decay` has no effect: t5x's state holds one set
        of parameters.

    Raises:
      ValueError: options that cannot be, or an average.
    """
    config = OptimizerConfig(**options)
    if config.ema_decay is not None:
        raise ValueError(
            "adamw.ema_decay is set, but t5x's state holds no averaged parameters: leave it out."
        )
    return optimizers.OptaxWrapper(make_optimizer(config))


def feature_converter(stream: Stream, pack: bool = False, **others: Any) -> seqio.FeatureConverter:
    """Returns the converter of a stream; t5x calls it with its own options.

    Args:
      stream: fixes the shapes.
      pack: `DatasetConfig.pack`.
      **others: options of seqio's converters, which ours does not have.

    Raises:
      ValueError: packing is asked for.
    """
    del others
    if pack:
        raise ValueError("OFA's examples are not packed: set DatasetConfig.pack = False.")
    if group_names(stream.mixture_or_task_name):
        return GroupedFeatureConverter(stream)
    return OFAFeatureConverter(stream)
