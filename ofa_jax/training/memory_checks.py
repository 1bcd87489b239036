"""Refuses a run that cannot fit into memory, before its data is opened."""

from collections.abc import Sequence

from ofa_jax.data.features import Stream
from ofa_jax.data.memory_checks import batch_bytes, check_device, check_host, rows_per_device
from ofa_jax.model import OFAConfig
from ofa_jax.model.size import bytes_per_number, num_parameters, num_patches
from ofa_jax.sharding import Partitioner
from ofa_jax.training.optimizer import OptimizerConfig

__all__ = ["check_memory"]

_OVERRIDE = "train.check_memory"


def check_memory(
    model: OFAConfig,
    streams: Sequence[Stream],
    optimizer: OptimizerConfig,
    partitioner: Partitioner,
    gradient_accumulation: int,
    num_workers: int,
) -> None:
    """Raises ValueError, with the numbers, if a run needs more memory than there is.

    Args:
      model: with the vocabulary size of its tasks.
      streams: of the run.
      optimizer: whose moments take memory.
      partitioner: the mesh.
      gradient_accumulation: parts that a batch is cut into.
      num_workers: processes that make batches.
    """
    check_host(streams, partitioner, num_workers, _OVERRIDE)
    shards = partitioner.mesh.shape["fsdp"] * partitioner.mesh.shape["tensor"]
    parameters = 4 * num_parameters(model) // shards
    # Frozen parameters have no moments, and how many are frozen is not known here.
    all_trained = not optimizer.frozen and optimizer.trainable_groups is None
    needs = {
        "parameters": parameters,
        "the optimizer": 2 * parameters if all_trained else 0,
        "the moving average": parameters if optimizer.ema_decay is not None else 0,
        "batches": 0,
        "activations": 0,
    }
    for stream in streams:
        rows = rows_per_device(stream.batch_size, partitioner)
        needs["batches"] += batch_bytes(stream, rows)
        part = max(rows // gradient_accumulation, 1)
        # Streams are differentiated together or one after another: the largest counts.
        needs["activations"] = max(
            needs["activations"], _activations(model, stream, part) // shards
        )
    check_device(needs, partitioner, _OVERRIDE)


def _activations(model: OFAConfig, stream: Stream, rows: int) -> int:
    """Returns the bytes that are saved whatever is recomputed: layers' inputs, and the logits."""
    source, target = (stream.task_feature_lengths[name] for name in ("inputs", "targets"))
    source += stream.num_sampled_patches or num_patches(stream.image_size)
    saved = model.encoder_layers * source + model.decoder_layers * target
    numbers = saved * model.width + target * model.padded_vocab_size
    return rows * numbers * bytes_per_number(model)
