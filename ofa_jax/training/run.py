"""Everything that the training loop works with."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from etils import epath
from rich.console import Console

from ofa_jax.sharding import Partitioner, TrainState
from ofa_jax.training.loop_config import LoopConfig
from ofa_jax.training.step import EvalStep, TrainStep

HostBatch = Mapping[str, np.ndarray]
"""The arrays of one stream's batch, as far as this host has their rows."""


class BatchTransform(Protocol):
    """Replaces what a step trains on, given the state; see `self_critical.SelfCritical`."""

    def __call__(
        self, step: int, state: TrainState, batches: Mapping[str, Mapping[str, jax.Array]]
    ) -> Mapping[str, Mapping[str, jax.Array]]:
        """Returns the batches to train on; `step` counts from 0."""

    def scalars(self) -> Mapping[str, float]:
        """Returns what to log of the steps since the last call."""


class Writer(Protocol):
    """Writes TensorBoard events, as the writers of `clu.metric_writers` do."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the values of a step."""

    def flush(self) -> None:
        """Writes what is buffered."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything the loop works with.

    Attributes:
      model_dir: where checkpoints, events and validation.json go.
      run_fingerprint: what must not change when the run is continued; saved with every checkpoint.
      config: when to log, save and validate.
      partitioner: the mesh.
      train_step, eval_step: not yet jitted.
      abstract_state: shapes and shardings of the state.
      new_state: makes the state of step 0.
      batches: first step -> this host's {stream: batch} of each step from there on.
      validation_batches: this host's (stream, batch) pairs, always the same; None for no
        validation.
      baselines: the two baselines' scores on all of the validation examples, see
        `validation.Baselines.score`.
      examples_per_step: over all hosts and streams.
      flops_per_step: the model's, over all hosts and streams; see `flops`.
      peak_flops: of one device, per second; None where it is not known.
      task_names: of the ids in `task_ids`.
      skipped_records: returns the number of invalid records so far, on this host.
      pad_id: of tokens.
      writer: of events.
      console: to print to.
      batch_transform: replaces the batches of every step; None to train on them as they are.
    """

    model_dir: epath.Path
    run_fingerprint: Mapping[str, Any]
    config: LoopConfig
    partitioner: Partitioner
    train_step: TrainStep
    eval_step: EvalStep
    abstract_state: TrainState
    new_state: Callable[[], TrainState]
    batches: Callable[[int], Iterator[Mapping[str, HostBatch]]]
    validation_batches: Callable[[], Iterable[tuple[str, HostBatch]]] | None
    baselines: Callable[[], tuple[np.ndarray, np.ndarray, np.ndarray]]
    examples_per_step: int
    flops_per_step: float
    peak_flops: float | None
    task_names: Sequence[str]
    skipped_records: Callable[[], int]
    pad_id: int
    writer: Writer
    console: Console
    batch_transform: BatchTransform | None = None

    @property
    def results_path(self) -> epath.Path:
        """The file with the results of the last validation."""
        return self.model_dir / "validation.json"
