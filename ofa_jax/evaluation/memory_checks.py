"""Refuses decoding that cannot fit into memory, before anything is allocated."""

from ofa_jax.data.features import Stream
from ofa_jax.data.memory_checks import batch_bytes, check_device, check_host, rows_per_device
from ofa_jax.decoding import DecodingConfig
from ofa_jax.model import OFAConfig
from ofa_jax.model.size import decoding_bytes, num_patches
from ofa_jax.sharding import Partitioner

__all__ = ["check_host", "check_task"]


def check_task(
    model: OFAConfig,
    stream: Stream,
    decoding: DecodingConfig,
    candidates_at_once: int | None,
    partitioner: Partitioner,
    override: str,
) -> None:
    """Raises ValueError if decoding a batch does not fit into the memory of a device.

    Args:
      model: its configuration.
      stream: with the shapes of the batch.
      decoding: settings of the decoder.
      candidates_at_once: how many are scored together; None for a search.
      partitioner: the mesh.
      override: the option that turns the check off.
    """
    rows = rows_per_device(stream.batch_size, partitioner)
    inputs = stream.task_feature_lengths["inputs"]
    length = decoding.max_output_length(inputs, model) + 1
    needs = decoding_bytes(
        model,
        2 * rows if decoding.is_guided else rows,
        candidates_at_once or decoding.beam_size,
        length,
        inputs + num_patches(stream.image_size),
    )
    shards = partitioner.mesh.shape["fsdp"] * partitioner.mesh.shape["tensor"]
    split = {name: size // shards for name, size in needs.items()}
    check_device(split | {"the batch": batch_bytes(stream, rows)}, partitioner, override)
