"""The data of a run: every stream's batches of a split, and the baselines that follow from them."""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from ofa_jax.data import seqio_bridge
from ofa_jax.data.features import Stream
from ofa_jax.data.loader import Loader, task_names
from ofa_jax.data.sampling import WeightedTask
from ofa_jax.sharding import Partitioner
from ofa_jax.training import validation
from ofa_jax.utils import files


@dataclasses.dataclass(frozen=True)
class RunData:
    """A split, as the streams take it.

    Attributes:
      loader: of all streams.
      tasks: stream -> its tasks with their rates; without streams of tasks in seqio's own order,
        which have no fixed examples.
    """

    loader: Loader
    tasks: Mapping[str, Sequence[WeightedTask]]

    @classmethod
    def open(
        cls,
        streams: Sequence[Stream],
        split: str,
        seed: int,
        partitioner: Partitioner | None,
        num_threads: int,
        num_workers: int,
        settings: Any = None,
        training: bool = False,
    ) -> "RunData":
        """Opens a split of every stream: this host's share of the mesh, or all without a mesh.

        Args:
          streams: of the run.
          split: of the data.
          seed: of order and augmentation.
          partitioner: the mesh; None for all rows on this host.
          num_threads, num_workers: that make batches.
          settings: of the run, which its tasks need; None for their defaults.
          training: whether examples are augmented and drawn as in training.
        """
        shards, own = 1, (0,)
        if partitioner is not None:
            shards, own = partitioner.num_data_shards, partitioner.data_shards
        tasks = {}
        for stream in streams:
            rated = seqio_bridge.weighted_tasks(
                stream.mixture_or_task_name, split, settings, training
            )
            if rated is not None:
                tasks[stream.name] = rated
        names = task_names(streams, tasks)
        sequential = {
            stream.name: functools.partial(
                seqio_bridge.sequential_batches,
                stream,
                names.index(stream.mixture_or_task_name),
                split,
                seed,
                shards,
                own,
                settings=settings,
            )
            for stream in streams
            if stream.name not in tasks
        }
        loader = Loader(
            streams,
            tasks,
            seed,
            shards,
            own,
            num_threads,
            num_workers=num_workers,
            sequential=sequential,
        )
        return cls(loader, tasks)

    def whole(self) -> Loader:
        """A loader of all rows on this host: what is counted must not depend on the mesh."""
        return Loader(self.loader.streams, self.tasks, 0, sequential=self.loader.sequential)


def baselines(
    directory: epath.Path,
    vocab_size: int,
    training: RunData,
    held_out: RunData,
    num_training: int,
    num_validation: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The scores of both baselines; counted once per run directory."""
    path = directory / "baselines.json"
    task_names = training.loader.task_names
    lengths = [dict(stream.task_feature_lengths) for stream in training.loader.streams]
    key = {"tasks": list(task_names), "lengths": lengths}
    key["examples"] = [num_training, num_validation]
    if path.exists() and (known := json.loads(path.read_text()))["key"] == key:
        return tuple(np.array(known[name]) for name in ("unigram", "majority", "tokens"))
    counted = validation.Baselines(len(task_names), vocab_size)
    for _, batch in training.whole().validation_batches(training.tasks, num_training):
        counted.add(batch)
    scores = counted.score(
        batch for _, batch in held_out.whole().validation_batches(held_out.tasks, num_validation)
    )
    names = ("unigram", "majority", "tokens")
    entry = {"key": key} | {n: list(x) for n, x in zip(names, scores, strict=True)}
    if jax.process_index() == 0:
        files.write_json(path, entry)
    return scores
