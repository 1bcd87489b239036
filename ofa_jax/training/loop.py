"""The loop: restore, step, report, save, validate.

It is given everything that it works with (see `Run`), and knows neither data nor gin.
"""

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from rich.console import Console

from ofa_jax.partitioning import Partitioner
from ofa_jax.training import validation
from ofa_jax.training.checkpoints import Checkpoints
from ofa_jax.training.metrics import TaskSums, mean_losses
from ofa_jax.training.state import TrainState
from ofa_jax.training.step import StepMetrics, jit_train_step
from ofa_jax.training.terminal import Progress, Report

HostBatch = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """When things happen.

    Attributes:
      total_steps: of the whole run.
      log_period: steps between two reports; the host waits for the device only then.
      checkpoint_period: steps between two checkpoints; the last step is always saved.
      validation_period: steps between two validations; 0 for one at the end.
      checkpoints_to_keep: the newest ones stay; None for all.
      max_skipped_steps: so many steps that are not finite stop the run.
    """

    total_steps: int
    log_period: int = 50
    checkpoint_period: int = 1000
    validation_period: int = 0
    checkpoints_to_keep: int | None = 3
    max_skipped_steps: int = 100

    def __post_init__(self) -> None:
        for name in ("total_steps", "log_period", "checkpoint_period"):
            if getattr(self, name) < 1:
                raise ValueError(f"LoopConfig.{name} is {getattr(self, name)}; give at least 1.")


class RunError(ValueError):
    """The run cannot go on as it was called; the message says what to do."""


class Writer(Protocol):
    """Of TensorBoard events; `clu.metric_writers` has them."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None: ...

    def flush(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything the loop works with.

    Attributes:
      model_dir: where checkpoints, events and validation.json go.
      identity: what must not change when the run goes on; saved with every checkpoint.
      config: when things happen.
      partitioner: the mesh.
      train_step, eval_step: not yet jitted.
      abstract_state: shapes and shardings of the state.
      new_state: makes the state of step 0.
      batches: first step -> this host's {stream: batch} of each step from there on.
      validation_batches: this host's (stream, batch) pairs, always the same; None for no
        validation.
      baselines: the two baselines' scores on all of the validation examples.
      examples_per_step: over all hosts and streams.
      task_names: of the ids in `task_ids`.
      skipped_records: how many so far.
      writer: of events.
      console: to print to.
    """

    model_dir: pathlib.Path
    identity: Mapping[str, Any]
    config: LoopConfig
    partitioner: Partitioner
    train_step: Callable[..., tuple[TrainState, StepMetrics]]
    eval_step: Callable[..., TaskSums]
    abstract_state: TrainState
    new_state: Callable[[], TrainState]
    batches: Callable[[int], Iterator[Mapping[str, HostBatch]]]
    validation_batches: Callable[[], Iterable[tuple[str, HostBatch]]] | None
    baselines: Callable[[], tuple[np.ndarray, np.ndarray, np.ndarray]]
    examples_per_step: int
    task_names: Sequence[str]
    skipped_records: Callable[[], int]
    writer: Writer
    console: Console


def train(run: Run) -> dict[str, dict[str, float]]:
    """Trains until the last step, from the newest checkpoint if there is one.

    Returns:
      The last validation's results, see `validation.summarise`; empty without validation.

    Raises:
      RunError: the checkpoint is of another run.
      FloatingPointError: too many steps were not finite.
    """
    total = run.config.total_steps
    checkpoints = Checkpoints(run.model_dir, run.config.checkpoints_to_keep)
    start = checkpoints.latest_step
    with run.partitioner.active(), Progress(run.console) as progress:
        if start is not None and start >= total and _results_path(run).exists():
            progress.say(
                f"The run in {run.model_dir} is already complete (checkpoint of step {start} of "
                f"{total}): nothing to do. Raise TRAIN_STEPS to go on, or choose another MODEL_DIR."
            )
            results = json.loads(_results_path(run).read_text())
        else:
            state = _first_state(run, checkpoints, progress)
            results = _steps(run, state, start or 0, checkpoints, progress)
    checkpoints.close()
    if results:
        title = f"Validation after {max(start or 0, total)} steps"
        validation.print_table(results, title, run.console)
    return results


def _first_state(run: Run, checkpoints: Checkpoints, progress: Progress) -> TrainState:
    step = checkpoints.latest_step
    if step is None:
        progress.say(f"Starting a new run in {run.model_dir}.")
        return run.new_state()
    progress.say(
        f"Resuming from step {step} of {run.config.total_steps} "
        f"({checkpoints.directory / str(step)})."
    )
    try:
        state, identity = checkpoints.restore(step, run.abstract_state)
    except ValueError as error:
        raise RunError(str(error)) from error
    # Through JSON: what was saved has lists where ours has tuples.
    for name, value in json.loads(json.dumps(dict(run.identity))).items():
        if identity.get(name) != value:
            raise RunError(
                f"The run in {run.model_dir} was begun with {name} = {identity.get(name)}, and is "
                f"{value} now: its examples would not be those it has not seen yet. Go on with "
                "its own config.gin, or choose another MODEL_DIR."
            )
    return state


def _steps(
    run: Run, state: TrainState, start: int, checkpoints: Checkpoints, progress: Progress
) -> dict[str, dict[str, float]]:
    config, total = run.config, run.config.total_steps
    train_step = jit_train_step(run.train_step, run.abstract_state)
    eval_step = jax.jit(run.eval_step, donate_argnums=2)
    batches = run.batches(start)
    clock = _Clock()
    waiting: list[StepMetrics] = []
    results: dict[str, dict[str, float]] = {}
    if start < total:
        progress.say("Compiling the step ...")
    for step in range(start + 1, total + 1):
        with clock.waiting_for_data():
            batch = next(batches)
        batch = {name: run.partitioner.put_batch(part) for name, part in batch.items()}
        state, metrics = train_step(state, batch)
        waiting.append(metrics)
        # The first step is reported at once, so that compiling is not counted as training.
        if step % config.log_period == 0 or step in (start + 1, total):
            _report(run, step, waiting, state, clock, progress)
            waiting = []
        if step % config.checkpoint_period == 0 or step == total:
            checkpoints.save(step, state, run.identity)
        if config.validation_period and step % config.validation_period == 0 and step < total:
            results = _validate(run, step, state, eval_step)
            clock.restart()
    if run.validation_batches is not None:
        progress.say("Validating ...")
        results = _validate(run, max(start, total), state, eval_step)
    run.writer.flush()
    return results


def _report(
    run: Run,
    step: int,
    waiting: Sequence[StepMetrics],
    state: TrainState,
    clock: "_Clock",
    progress: Progress,
) -> None:
    metrics = jax.device_get(list(waiting))
    skipped_steps = int(state.skipped_steps)
    seconds, data_seconds = clock.restart()
    rate = len(metrics) / seconds
    tasks = sum((m.tasks for m in metrics), TaskSums(*np.zeros((4, len(run.task_names)))))
    report = Report(
        step=step,
        total_steps=run.config.total_steps,
        steps_per_second=rate,
        examples_per_second=rate * run.examples_per_step,
        data_wait=data_seconds / seconds,
        loss=float(np.mean([m.loss for m in metrics])),
        task_losses=mean_losses(tasks, run.task_names),
        learning_rate=float(metrics[-1].learning_rate),
        gradient_norm=float(metrics[-1].gradient_norm),
        skipped_records=run.skipped_records(),
        skipped_steps=skipped_steps,
    )
    progress.show(report)
    run.writer.write_scalars(step, report.scalars)
    if skipped_steps > run.config.max_skipped_steps:
        raise FloatingPointError(
            f"{skipped_steps} steps had a loss or gradient that is not finite (allowed are "
            f"{run.config.max_skipped_steps}): lower the learning rate, or look at the data of "
            f"step {step}. The last good checkpoint is in {run.model_dir}/checkpoints."
        )


def _validate(
    run: Run, step: int, state: TrainState, eval_step: Callable[..., TaskSums]
) -> dict[str, dict[str, float]]:
    put = run.partitioner.put_batch
    batches = (put(batch) for _, batch in run.validation_batches())
    sums = validation.evaluate(eval_step, state.evaluated_variables, batches, len(run.task_names))
    results = validation.summarise(sums, run.baselines(), run.task_names)
    run.writer.write_scalars(
        step,
        {f"validation/{k}/{name}": v for name, row in results.items() for k, v in row.items()},
    )
    if jax.process_index() == 0:
        validation.write(_results_path(run), results)
    return results


def _results_path(run: Run) -> pathlib.Path:
    return run.model_dir / "validation.json"


class _Clock:
    """Seconds since the last report, and how many of them were spent waiting for data."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> tuple[float, float]:
        """Starts again; returns (all seconds, those waiting for data) until now."""
        now = time.perf_counter()
        passed = now - getattr(self, "_start", now), getattr(self, "_data", 0.0)
        self._start, self._data = now, 0.0
        return passed

    def waiting_for_data(self) -> "_Clock":
        """A context whose time counts as waiting."""
        return self

    def __enter__(self) -> None:
        self._entered = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self._data += time.perf_counter() - self._entered
