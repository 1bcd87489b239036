"""The data of a run: the batches of a split, and baselines computed from them."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from ofa_jax.data import seqio_bridge
from ofa_jax.data.features import Stream
from ofa_jax.data.loader import Loader, task_names
from ofa_jax.data.sampling import WeightedTask
from ofa_jax.sharding import Partitioner
from ofa_jax.training import validation
from ofa_jax.utils import state_files


@dataclasses.dataclass(frozen=True)
class RunData:
    """One split of the data of all streams.

    Attributes:
      loader: of all streams.
      tasks: stream name -> its tasks; without sequential streams, which are read in seqio's own
        order and have no fixed examples.
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
        """Opens a split of every stream.

        Args:
          streams: of the run.
          split: of the data.
          seed: of order and augmentation.
          partitioner: determines this host's share of the rows; None for all rows.
          num_threads: see `Loader`.
          num_workers: see `Loader`.
          settings: of the run, passed to its tasks; None for their defaults.
          training: whether examples are augmented and drawn as in training.
        """
        num_data_shards, data_shards = 1, (0,)  # type: int, tuple[int, ...]
        if partitioner is not None:
            num_data_shards, data_shards = partitioner.num_data_shards, partitioner.data_shards
        tasks = {}
        for stream in streams:
            weighted = seqio_bridge.weighted_tasks(
                stream.mixture_or_task_name, split, settings, training
            )
            if weighted is not None:
                tasks[stream.name] = weighted
        names = task_names(streams, tasks)
        sequential = {
            stream.name: functools.partial(
                seqio_bridge.sequential_batches,
                stream,
                names.index(stream.mixture_or_task_name),
                split,
                seed,
                num_data_shards,
                data_shards,
                settings=settings,
                training=training,
            )
            for stream in streams
            if stream.name not in tasks
        }
        loader = Loader(
            streams,
            tasks,
            seed,
            num_data_shards,
            data_shards,
            num_threads,
            num_workers=num_workers,
            sequential=sequential,
        )
        return cls(loader, tasks)

    def unsharded_loader(self) -> Loader:
        """Returns a loader of all rows, for counts that must not depend on the mesh."""
        return Loader(self.loader.streams, self.tasks, 0, sequential=self.loader.sequential)


def baselines(
    directory: epath.Path,
    vocab_size: int,
    training: RunData,
    held_out: RunData | None,
    num_training: int,
    num_validation: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Computes the unigram and majority baselines of the validation losses.

    The result is stored in the run directory, and computed again only if tasks, lengths or numbers
    of examples differ.

    Args:
      directory: of the run.
      vocab_size: of the model.
      training: its first examples give the baselines.
      held_out: its first examples are scored.
      num_training: number of training examples of each task.
      num_validation: number of validation examples of each task.

    Returns:
      See `validation.Baselines.score`.
    """
    path = directory / "baselines.json"
    task_names = training.loader.task_names
    lengths = [dict(stream.task_feature_lengths) for stream in training.loader.streams]
    key = {"tasks": list(task_names), "lengths": lengths}
    key["examples"] = [num_training, num_validation]
    known = state_files.read_own_json(path, _is_baselines)
    if known is not None and known["key"] == key:
        return np.array(known["unigram"]), np.array(known["majority"]), np.array(known["tokens"])
    assert held_out is not None, "a run without validation has no baselines"
    counted = validation.Baselines(len(task_names), vocab_size)
    for _, batch in training.unsharded_loader().validation_batches(training.tasks, num_training):
        counted.add(batch)
    scores = counted.score(
        batch
        for _, batch in held_out.unsharded_loader().validation_batches(
            held_out.tasks, num_validation
        )
    )
    names = ("unigram", "majority", "tokens")
    entry = {"key": key} | {n: list(x) for n, x in zip(names, scores, strict=True)}
    state_files.write_own_json(path, entry)
    return scores


def _is_baselines(value: Any) -> bool:
    """Returns whether a JSON value is what `baselines` stores."""
    if not isinstance(value, dict) or not isinstance(value.get("key"), dict):
        return False
    tasks = value["key"].get("tasks")
    return isinstance(tasks, list) and all(
        isinstance(scores := value.get(name), list)
        and len(scores) == len(tasks)
        and all(type(score) in (int, float) for score in scores)
        for name in ("unigram", "majority", "tokens")
    )
