"""Checks that the parts of a run fit together, each with a sentence that says what to do."""

from collections.abc import Sequence

import jax

from ofa_jax.data.features import Stream
from ofa_jax.model import OFAConfig
from ofa_jax.sharding import Partitioner
from ofa_jax.training.losses import LossConfig
from ofa_jax.training.self_critical import SelfCriticalConfig
from ofa_jax.utils import hardware


def check_target_options(
    self_critical: SelfCriticalConfig | None, restrict_to_candidates: bool
) -> None:
    """Raises ValueError for two options that both choose what is trained on."""
    if self_critical is not None and restrict_to_candidates:
        raise ValueError(
            "train.self_critical and train.restrict_to_candidates do not go together: captions "
            "are not chosen among given candidates; leave one of them out."
        )


def check_accumulation(
    streams: Sequence[Stream], partitioner: Partitioner, gradient_accumulation: int
) -> None:
    """Raises ValueError if a part of a batch does not divide over the devices.

    Whole batches are checked by the loader.
    """
    parts = gradient_accumulation * partitioner.num_data_shards
    for stream in streams:
        if gradient_accumulation > 1 and stream.batch_size % parts:
            raise ValueError(
                f"Stream {stream.name!r} has a batch_size of {stream.batch_size}, which does not "
                f"divide into train.gradient_accumulation = {gradient_accumulation} parts over "
                f"{partitioner.num_data_shards} devices: make it a multiple of {parts}."
            )


def check_ids(loss: LossConfig | None, model: OFAConfig) -> None:
    """Raises ValueError for ids of the loss that the vocabulary does not have."""
    if loss is None:
        return
    if loss.pad_id >= model.vocab_size:
        raise ValueError(
            f"LossConfig.pad_id is {loss.pad_id}, but the vocabulary has {model.vocab_size} ids."
        )
    if loss.constraint_range is not None and loss.constraint_range[1] > model.vocab_size:
        raise ValueError(
            f"LossConfig.constraint_range {tuple(loss.constraint_range)} exceeds the vocabulary of "
            f"{model.vocab_size} ids."
        )


def checked_peak_flops(peak_flops: float | None) -> float | None:
    """Returns the operations per second that MFU is a share of.

    Args:
      peak_flops: as given; None for the published figure of this device's kind.

    Returns:
      None for a kind of device that is not listed.
    """
    if peak_flops is None:
        return hardware.peak_flops(jax.devices()[0].device_kind)
    return peak_flops
