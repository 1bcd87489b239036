"""Everything that the training loop works with."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from etils import epath
from rich.console import Console

from ofa_jax.model import OFAConfig
from ofa_jax.sharding import Partitioner, TrainState
from ofa_jax.tokenizers.processor import Processor
from ofa_jax.training.loop_config import LoopConfig
from ofa_jax.training.step import EvalStep, TrainStep

TRAINED_SECONDS = "trained_seconds"
"""Key in every checkpoint: how long the run has trained, all its starts together."""
FLOPS_PER_STEP = "flops_per_step"
"""Key in every checkpoint: the operations of a step, see `training.flops`."""

HostBatch = Mapping[str, np.ndarray]
"""The arrays of one stream's batch, as far as this host has their rows."""


class RunError(ValueError):
    """The run cannot start or continue as configured; the message says what to do."""


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

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes the images of a step, uint8 [n, h, w, 3] by tag."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes the texts of a step, in Markdown."""

    def flush(self) -> None:
        """Writes what is buffered."""

    def close(self) -> None:
        """Writes what is buffered, and ends."""


class GalleryWriter(Protocol):
    """Shows what the model predicts at a validation; see `galleries.Galleries`."""

    def write(
        self,
        step: int,
        variables: Any,
        is_last: bool,
        writer: Writer,
        log: Callable[[str], None],
    ) -> None:
        """Predicts some examples, and writes them to files and events."""


class Evaluation(Protocol):
    """Validates a run whose results are no losses per token; see `image_tokenizer.evaluation`."""

    @property
    def columns(self) -> Sequence[str]:
        """The metrics of every row of the results."""

    def __call__(
        self, step: int, variables: Any, writer: Writer, log: Callable[[str], None]
    ) -> Mapping[str, Mapping[str, float]]:
        """Returns what was evaluated -> metric -> value."""


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
      new_in_fingerprint: keys of the fingerprint that checkpoints of earlier versions lack.
      model: written to the run directory, and compared with that of an existing one; None to write
        nothing.
      processor: as `model`.
      findings: returns (task, reason) -> number of cases of bad input so far, on this host.
      galleries: writes what the model predicts at each validation; None for nothing.
      config_text: the operative configuration, for `config.gin`; None to write nothing.
      evaluation: takes the place of `validation_batches`, `eval_step` and `baselines`.
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
    new_in_fingerprint: Sequence[str] = ()
    model: OFAConfig | None = None
    processor: Processor | None = None
    findings: Callable[[], Mapping[tuple[str, str], int]] = dict
    galleries: GalleryWriter | None = None
    config_text: str | None = None
    evaluation: Evaluation | None = None

    @property
    def is_validated(self) -> bool:
        """Whether there is anything to validate on."""
        return self.validation_batches is not None or self.evaluation is not None

    @property
    def results_path(self) -> epath.Path:
        """The file with the results of the last validation."""
        return self.model_dir / "validation.json"
