"""Refuses batches that cannot fit into memory, before anything is allocated.

The estimates are lower bounds: what they refuse could never run, what they accept may still be too
large. `ofa_jax.plan` computes the exact numbers.
"""

from collections.abc import Mapping, Sequence

import jax

from ofa_jax.data.features import Stream
from ofa_jax.sharding import Partitioner
from ofa_jax.utils.memory import check_fits_memory, device_memory, host_memory

__all__ = ["batch_bytes", "check_device", "check_host", "rows_per_device"]

_BATCHES_AHEAD = 2
_WORKER_BYTES = 64 << 20  # a Python process with the library


def batch_bytes(stream: Stream, rows: int) -> int:
    """Returns the bytes of some rows of a stream's batch."""
    lengths = stream.task_feature_lengths
    row = 4 * lengths["inputs"] + 12 * lengths["targets"]
    if stream.image_size is not None:
        row += 3 * stream.image_size**2
    return rows * row


def rows_per_device(batch_size: int, partitioner: Partitioner) -> int:
    """Returns the examples of a batch that each device has, at least one."""
    return max(batch_size // partitioner.num_data_shards, 1)


def check_host(
    streams: Sequence[Stream], partitioner: Partitioner, num_workers: int, override: str
) -> None:
    """Raises ValueError if the batches and data workers do not fit into this machine's memory.

    Args:
      streams: whose batches are made.
      partitioner: the mesh, whose shards this host has a part of.
      num_workers: processes that make batches.
      override: the option that turns the check off.
    """
    share = len(partitioner.data_shards), partitioner.num_data_shards
    needs = {
        f"batches of {stream.name!r}": _BATCHES_AHEAD
        * batch_bytes(stream, max(stream.batch_size * share[0] // share[1], 1))
        for stream in streams
    }
    needs["data workers"] = num_workers * _WORKER_BYTES
    check_fits_memory(needs, host_memory(), "this machine", override)


def check_device(needs: Mapping[str, int], partitioner: Partitioner, override: str) -> None:
    """Raises ValueError if what a device needs does not fit into its memory.

    Args:
      needs: what takes memory -> bytes on each device.
      partitioner: the mesh.
      override: the option that turns the check off.
    """
    devices = [
        device
        for device in partitioner.mesh.devices.flat
        if device.process_index == jax.process_index()
    ]
    if devices and devices[0].platform == "cpu":
        shared = {name: size * len(devices) for name, size in needs.items()}
        check_fits_memory(shared, host_memory(), "this machine", override)
        return
    check_fits_memory(needs, device_memory(devices), "each device", override)
