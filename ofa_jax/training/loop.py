"""The loop: restore, step, report, save, validate.

It is given everything that it works with (see `Run`), and knows neither data nor gin.
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from rich.console import Console

from ofa_jax.checkpoints.manager import Checkpoints
from ofa_jax.sharding import Partitioner, TrainState
from ofa_jax.training import telemetry, validation
from ofa_jax.training.loop_config import LoopConfig
from ofa_jax.training.metrics import TaskSums, mean_losses
from ofa_jax.training.preemption import Preemption
from ofa_jax.training.step import StepMetrics, jit_train_step
from ofa_jax.training.terminal import Progress, Report
from ofa_jax.training.watchdog import Watchdog
from ofa_jax.utils import files, timers

HostBatch = Mapping[str, np.ndarray]

TRAINED_SECONDS = "trained_seconds"
"""How long a run has trained, all its starts together; it stands in every checkpoint."""


class RunError(ValueError):
    """The run cannot go on as it was called; the message says what to do."""


class BatchTransform(Protocol):
    """Changes what a step learns from, given the state; `self_critical.SelfCritical` does."""

    def __call__(
        self, step: int, state: TrainState, batches: Mapping[str, Mapping[str, jax.Array]]
    ) -> Mapping[str, Mapping[str, jax.Array]]:
        """The batches to learn from; 0 is the first step."""

    def scalars(self) -> Mapping[str, float]:
        """What to report of the steps since the last call."""


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
      flops_per_step: the model's, over all hosts and streams; see `flops`.
      peak_flops: of one device, per second; None where it is not known.
      task_names: of the ids in `task_ids`.
      skipped_records: how many so far, on this host.
      pad_id: of tokens.
      writer: of events.
      console: to print to.
      batch_transform: changes every step's batches; None for nothing to change.
    """

    model_dir: epath.Path
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
    flops_per_step: float
    peak_flops: float | None
    task_names: Sequence[str]
    skipped_records: Callable[[], int]
    pad_id: int
    writer: Writer
    console: Console
    batch_transform: BatchTransform | None = None


def train(run: Run) -> dict[str, dict[str, float]]:
    """Trains until the last step, from the newest good checkpoint if there is one.

    SIGTERM saves and ends it; called again, it goes on.

    Returns:
      The last validation's results, see `validation.summarise`; empty without validation, and
      where SIGTERM came before.

    Raises:
      RunError: the checkpoint is of another run, or every one is damaged.
      SaveError: checkpoints cannot be written, see `Checkpoints`.
      FloatingPointError: too many steps were not finite.
    """
    config, clock = run.config, timers.GoodputTimer()
    history = validation.History(run.model_dir / "validations.json")
    best = None
    if config.best_metric is not None:
        validation.check_metric(config.best_metric, "LoopConfig.best_metric", run.task_names)
        best = functools.partial(history.best, config.best_metric)
    with (
        run.partitioner.mesh_context(),
        Progress(run.console) as progress,
        Preemption() as preemption,
        Watchdog(config.watchdog_timeout_secs) as watchdog,
    ):
        with clock.measure("restoring"):
            checkpoints = Checkpoints(
                run.model_dir,
                config.checkpoints_to_keep,
                config.checkpoint_keep_period,
                best,
                progress.say,
            )
            start = _newest_good_step(checkpoints)
            trained = _trained_seconds(run, start, checkpoints)
        last = config.total_steps
        if start is not None and (start >= last or _is_time_up(config, trained)):
            last = start
        if last == start and _results_path(run).exists():
            progress.say(
                f"The run in {run.model_dir} is already complete (checkpoint of step {start} of "
                f"{config.total_steps}, {trained / 60:.1f} minutes): nothing to do. Raise "
                f"{'TRAIN_STEPS' if start >= config.total_steps else 'LoopConfig.max_minutes'} to "
                "go on, or choose another MODEL_DIR."
            )
            results = json.loads(_results_path(run).read_text())
            checkpoints.close()
        else:
            with clock.measure("restoring"):
                state = _first_state(run, start, checkpoints, progress)
            results, last = _steps(
                run,
                state,
                start or 0,
                last,
                trained,
                checkpoints,
                history,
                preemption,
                watchdog,
                clock,
                progress,
            )
            progress.say_total(clock.total())
    if results:
        validation.print_table(results, f"Validation after {last} steps", run.console)
    return results


def _newest_good_step(checkpoints: Checkpoints) -> int | None:
    try:
        return checkpoints.newest_good_step()
    except ValueError as error:
        raise RunError(str(error)) from error


def _trained_seconds(run: Run, step: int | None, checkpoints: Checkpoints) -> float:
    """How long the run had trained when it saved a step."""
    return 0.0 if step is None else float(checkpoints.run_of(step).get(TRAINED_SECONDS, 0.0))


def _is_time_up(config: LoopConfig, trained: float) -> bool:
    """Whether the run has trained for as long as it may."""
    return config.max_minutes is not None and trained >= 60 * config.max_minutes


def _first_state(
    run: Run, step: int | None, checkpoints: Checkpoints, progress: Progress
) -> TrainState:
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
    run: Run,
    state: TrainState,
    start: int,
    total: int,
    trained_before: float,
    checkpoints: Checkpoints,
    history: validation.History,
    preemption: Preemption,
    watchdog: Watchdog,
    clock: timers.GoodputTimer,
    progress: Progress,
) -> tuple[dict[str, dict[str, float]], int]:
    """Makes the steps from `start` to `total`; the results, and the last step that was made."""
    config, step = run.config, max(start, total)
    train_step = jit_train_step(run.train_step, run.abstract_state)
    eval_step = jax.jit(run.eval_step, donate_argnums=2)
    batches = run.batches(start)
    pace, padding = telemetry.DispatchThrottle(clock), telemetry.Padding(run.pad_id)
    profiler = telemetry.Profiler(run.model_dir / "profile", config.profile_steps)
    waiting: list[StepMetrics] = []
    results: dict[str, dict[str, float]] = {}
    stopped = False

    def trained() -> float:
        time = clock.total()
        return trained_before + time.seconds - time.parts.get("validation", 0.0)

    if start < total:
        progress.say("Compiling the step ...")
    for step in range(start + 1, total + 1):
        batch = pace.next(batches)
        padding.add(batch)
        batch = {name: run.partitioner.put_batch(part) for name, part in batch.items()}
        profiler.before(step)
        if run.batch_transform is not None:
            compiles = step == start + 1
            with clock.measure("compilation") if compiles else contextlib.nullcontext():
                batch = run.batch_transform(step - 1, state, batch)
        if step == start + 1:
            with clock.measure("compilation"):  # the call returns when it is compiled
                state, metrics = train_step(state, batch)
        else:
            state, metrics = train_step(state, batch)
        pace.after_dispatch(metrics)
        profiler.after(step, metrics)
        waiting.append(metrics)
        stopped = preemption.requested(step) and step < total
        time_is_up = False
        # The first step is reported at once, so that people see that it goes.
        if step % config.log_period == 0 or step in (start + 1, total) or stopped:
            _report(run, step, waiting, state, clock, pace, padding, progress)
            waiting = []
            watchdog.well()
            time_is_up = step < total and _on_all_hosts(_is_time_up(config, trained()))
        if step % config.checkpoint_period == 0 or step == total or stopped or time_is_up:
            pace.settle()  # or the steps under way would be counted as time of the checkpoint
            with clock.measure("checkpoints"):
                checkpoints.save(step, state, {**run.identity, TRAINED_SECONDS: trained()})
        if stopped:
            progress.say(f"Asked to stop (SIGTERM): saving step {step}. Call again to go on.")
            break
        if time_is_up:
            progress.say(
                f"The {config.max_minutes:g} minutes of this run are over: it ends with step "
                f"{step} of {total}."
            )
            break
        if config.validation_period and step % config.validation_period == 0 and step < total:
            pace.settle()
            with clock.measure("validation"):
                results = _validate(run, step, state, eval_step, history)
    if run.validation_batches is not None and not stopped:
        progress.say("Validating ...")
        with clock.measure("validation"):
            results = _validate(run, step, state, eval_step, history)
    profiler.close()
    pace.close()
    run.writer.flush()
    with clock.measure("checkpoints"):
        checkpoints.close()
    return {} if stopped else results, step


def _report(
    run: Run,
    step: int,
    waiting: Sequence[StepMetrics],
    state: TrainState,
    clock: timers.GoodputTimer,
    pace: telemetry.DispatchThrottle,
    padding: telemetry.Padding,
    progress: Progress,
) -> None:
    pace.settle()
    metrics = jax.device_get(list(waiting))
    skipped_steps = int(state.skipped_steps)
    tasks = sum((m.tasks for m in metrics), TaskSums(*np.zeros((4, len(run.task_names)))))
    lap = clock.next_interval()
    report = Report(
        step=step,
        total_steps=run.config.total_steps,
        throughput=telemetry.Throughput.over(
            lap,
            steps=len(metrics),
            examples=len(metrics) * run.examples_per_step,
            target_tokens=float(tasks.tokens.sum()),
            flops=len(metrics) * run.flops_per_step,
            peak_flops=run.peak_flops,
        ),
        data_wait=lap.share(timers.WAITING_FOR_DATA),
        total=clock.total(),
        loss=float(np.mean([m.loss for m in metrics])),
        task_losses=mean_losses(tasks, run.task_names),
        learning_rate=float(metrics[-1].learning_rate),
        gradient_norm=float(metrics[-1].gradient_norm),
        parameter_norm=float(metrics[-1].parameter_norm),
        padding=padding.shares(),
        skipped_records=_over_hosts(run.skipped_records()),
        skipped_steps=skipped_steps,
    )
    progress.show(report)
    run.writer.write_scalars(step, report.scalars)
    if run.batch_transform is not None and (more := run.batch_transform.scalars()):
        run.writer.write_scalars(step, {f"train/{name}": value for name, value in more.items()})
        progress.say("  ".join(f"{name} {value:.3f}" for name, value in more.items()))
    if skipped_steps > run.config.max_skipped_steps:
        raise FloatingPointError(
            f"{skipped_steps} steps had a loss or gradient that is not finite (allowed are "
            f"{run.config.max_skipped_steps}): lower the learning rate, or look at the data of "
            f"step {step}. The last good checkpoint is in {run.model_dir}/checkpoints."
        )


def _on_all_hosts(own: bool) -> bool:
    """What the first host says, whose clock counts for all; all hosts must ask."""
    if jax.process_count() == 1:
        return own
    return bool(multihost_utils.broadcast_one_to_all(np.int32(own)))


def _over_hosts(count: int) -> int:
    """The sum of a number that each host has; all hosts must ask."""
    if jax.process_count() == 1:
        return count
    return int(multihost_utils.process_allgather(np.int32(count)).sum())


def _validate(
    run: Run,
    step: int,
    state: TrainState,
    eval_step: Callable[..., TaskSums],
    history: validation.History,
) -> dict[str, dict[str, float]]:
    put = run.partitioner.put_batch
    batches = (put(batch) for _, batch in run.validation_batches())
    sums = validation.evaluate(eval_step, state.eval_variables, batches, len(run.task_names))
    results = validation.summarise(sums, run.baselines(), run.task_names)
    run.writer.write_scalars(
        step,
        {f"validation/{k}/{name}": v for name, row in results.items() for k, v in row.items()},
    )
    history.add(step, results)
    if jax.process_index() == 0:
        files.write_json(_results_path(run), results)
    return results


def _results_path(run: Run) -> epath.Path:
    return run.model_dir / "validation.json"
