"""The data of a run: the batches of a split, and baselines computed from them."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from ofa_jax.data import seqio_bridge
from ofa_jax.data.features import Stream
from ofa_jax.data.loader import Loader, task_names
from ofa_jax.data.model_checks import check_fits
from ofa_jax.data.sampling import WeightedTask
from ofa_jax.model import OFA
from ofa_jax.sharding import Partitioner
from ofa_jax.training.run import HostBatch
from ofa_jax.training.validation import Baselines
from ofa_jax.utils import state_files

_SCORES = ("unigram", "majority", "tokens")
"""What is stored of the baselines."""


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

    def first_examples(self, num_examples: int) -> Iterator[HostBatch]:
        """Yields batches of the first examples of each task, all of their rows on every host."""
        # What is counted on them must not depend on the mesh.
        loader = Loader(self.loader.streams, self.tasks, 0, sequential=self.loader.sequential)
        for _, batch in loader.validation_batches(self.tasks, num_examples):
            yield batch


@dataclasses.dataclass(frozen=True)
class RunSplits:
    """The data that a run trains on, and that it is validated on.

    Attributes:
      training: what is trained on.
      first_batches: its {stream: batch} of step 0.
      validation: None for a run without validation.
    """

    training: RunData
    first_batches: Mapping[str, HostBatch]
    validation: RunData | None

    @classmethod
    def open(
        cls,
        open_split: Callable[..., RunData],
        training: str,
        validation: str | None,
        network: OFA,
    ) -> "RunSplits":
        """Opens the splits, and checks the records, sizes and lengths of the first batches.

        Args:
          open_split: opens a split by its name, see `RunData.open`.
          training: name of the split that is trained on.
          validation: name of the split for validation; None without one.
          network: whose sizes the batches must fit.

        Raises:
          ValueError: a split cannot be opened, or its batches do not fit.
        """
        data = open_split(training, training=True)
        batches = next(data.loader.batches(0))
        for stream in data.loader.streams:
            check_fits(network, stream, batches[stream.name])
        return cls(data, batches, open_split(validation) if validation is not None else None)

    def validation_batches(
        self, num_examples: int
    ) -> Callable[[], Iterable[tuple[str, HostBatch]]] | None:
        """Returns what makes the validation batches; None where there are no fixed examples."""
        # Tasks in seqio's own order have no fixed examples to be validated on.
        if self.validation is None or not self.validation.tasks:
            return None
        data = self.validation
        return lambda: data.loader.validation_batches(data.tasks, num_examples)

    def baselines(
        self, directory: epath.Path, vocab_size: int, num_training: int, num_validation: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Computes the unigram and majority baselines of the validation losses.

        The result is stored in the run directory, and computed again only if tasks, lengths or
        numbers of examples differ.

        Args:
          directory: of the run.
          vocab_size: of the model.
          num_training: number of training examples of each task, the first ones, which give the
            baselines.
          num_validation: number of validation examples of each task, the first ones, which are
            scored.

        Returns:
          See `validation.Baselines.score`.
        """
        path, loader = directory / "baselines.json", self.training.loader
        key = {
            "tasks": list(loader.task_names),
            "lengths": [dict(stream.task_feature_lengths) for stream in loader.streams],
            "examples": [num_training, num_validation],
        }
        known = state_files.read_own_json(path, _is_baselines)
        if known is not None and known["key"] == key:
            unigram, majority, tokens = (np.array(known[name]) for name in _SCORES)
            return unigram, majority, tokens
        assert self.validation is not None, "a run without validation has no baselines"
        counted = Baselines(len(loader.task_names), vocab_size)
        for batch in self.training.first_examples(num_training):
            counted.add(batch)
        scores = counted.score(self.validation.first_examples(num_validation))
        entry = {"key": key} | {n: list(x) for n, x in zip(_SCORES, scores, strict=True)}
        state_files.write_own_json(path, entry)
        return scores


def _is_baselines(value: Any) -> bool:
    """Returns whether a JSON value is what `RunSplits.baselines` stores."""
    if not isinstance(value, dict) or not isinstance(value.get("key"), dict):
        return False
    tasks = value["key"].get("tasks")
    return isinstance(tasks, list) and all(
        isinstance(scores := value.get(name), list)
        and len(scores) == len(tasks)
        and all(type(score) in (int, float) for score in scores)
        for name in _SCORES
    )
