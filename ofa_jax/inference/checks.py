"""Checks that the parts of a job fit together, each with a sentence that says what to do."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from ofa_jax.data.features import Stream
from ofa_jax.decoding import DecodingConfig
from ofa_jax.evaluation import memory_checks
from ofa_jax.inference.loading import LoadedModel
from ofa_jax.inference.sources import ImageFolder, Tsv
from ofa_jax.inference.task_inputs import TaskInputs
from ofa_jax.model import OFAConfig
from ofa_jax.sharding import Partitioner

_OVERRIDE = "infer.check_memory"


@dataclasses.dataclass(frozen=True)
class BatchMemory:
    """Refuses batches if a lower bound on their memory exceeds what there is.

    Attributes:
      batch_size: requests that are decoded at once.
      source_length: tokens of an instruction.
      image_size: side of the images in pixels; the model's when None; 0 for text alone.
      partitioner: the mesh.
      is_checked: whether anything is refused.
    """

    batch_size: int
    source_length: int
    image_size: int | None
    partitioner: Partitioner
    is_checked: bool = True

    def check_host(self) -> None:
        """Raises ValueError if this host cannot hold a batch."""
        if self.is_checked:
            shapes = self._shapes(self.image_size)
            memory_checks.check_host([shapes], self.partitioner, 0, _OVERRIDE)

    def check_decoding(self, loaded: LoadedModel, decoding: DecodingConfig) -> None:
        """Raises ValueError if a device cannot decode a batch."""
        if self.is_checked:
            size = loaded.processor.image_size if self.image_size is None else self.image_size
            config, shapes = loaded.model.config, self._shapes(size)
            memory_checks.check_task(config, shapes, decoding, None, self.partitioner, _OVERRIDE)

    def _shapes(self, image_size: int | None) -> Stream:
        """Returns the shapes of a batch, as far as they are known."""
        lengths = {"inputs": self.source_length, "targets": 1}
        return Stream("inputs", "infer", self.batch_size, lengths, image_size=image_size or None)


def check_shapes(batch_size: int, shard_size: int, partitioner: Partitioner) -> None:
    """Raises ValueError for shapes that do not fit each other or the mesh."""
    if shard_size % batch_size:
        raise ValueError(
            f"infer.shard_size is {shard_size}, which is not a multiple of infer.batch_size = "
            f"{batch_size}: a file holds whole batches."
        )
    if batch_size % partitioner.num_data_shards:
        raise ValueError(
            f"infer.batch_size {batch_size} does not divide over the "
            f"{partitioner.num_data_shards} data shards of the mesh; choose a multiple."
        )


def check_hosts(host: int, num_hosts: int, partitioner: Partitioner) -> None:
    """Raises ValueError for an unknown host, or a mesh over several hosts."""
    if not 0 <= host < num_hosts:
        raise ValueError(f"infer.host is {host} of {num_hosts}: hosts are counted from 0.")
    if any(device.process_index != jax.process_index() for device in partitioner.mesh.devices.flat):
        raise ValueError(
            "infer.partitioner has devices of other hosts, but each host works alone: leave it "
            "out, or give devices of this host."
        )


def local_directory(output_dir: str) -> pathlib.Path:
    """Returns the output directory; raises ValueError if it is in an object store."""
    if "://" in output_dir:
        raise ValueError(
            f"OUTPUT_DIR is {output_dir}: output files are written to a disk or a mount, where "
            "renaming a file is atomic."
        )
    return pathlib.Path(output_dir)


def check_inputs(inputs: Any) -> None:
    """Raises ValueError for inputs that cannot be used, before anything is written for them."""
    if isinstance(inputs, ImageFolder) and not len(inputs):
        raise ValueError(f"There is no image in {inputs.path}: check INPUTS.")
    if isinstance(inputs, Tsv):
        inputs.check_headers()


def check_candidate_options(
    inputs: Any,
    task: str | None,
    candidates: Sequence[str] | None,
    score_all: bool,
    image_size: int | None,
) -> None:
    """Raises ValueError for options that would have no effect."""
    if isinstance(inputs, TaskInputs):
        given = {"task": task, "candidates": candidates, "image_size": image_size}
        given["score_all"] = score_all or None
        for name, value in given.items():
            if value is not None:
                raise ValueError(
                    f"infer.{name} is given, but the seqio task {inputs.task} has its own: leave "
                    "it out."
                )
    elif score_all and candidates is None:
        raise ValueError(
            "infer.score_all is True, but there are no candidates to score: give infer.candidates."
        )


def check_source_length(source_length: int, model: OFAConfig) -> None:
    """Raises ValueError if the model has too few positions for instructions."""
    if source_length > model.max_source_positions:
        raise ValueError(
            f"infer.source_length is {source_length}, but the model has "
            f"{model.max_source_positions} positions: shorten it."
        )
