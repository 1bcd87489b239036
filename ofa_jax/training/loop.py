"""The training loop: restore, step, log, save, validate.

The loop is given everything that it works with (see `Run`), and knows neither data nor gin.
"""

import contextlib
import functools
import json
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from ofa_jax.checkpoints.manager import Checkpoints
from ofa_jax.sharding import TrainState
from ofa_jax.training import telemetry, validation
from ofa_jax.training.metrics import TaskSums, mean_losses
from ofa_jax.training.preemption import Preemption
from ofa_jax.training.run import HostBatch, Run
from ofa_jax.training.step import StepMetrics, StreamBatches, jit_train_step
from ofa_jax.training.terminal import Progress, Report
from ofa_jax.training.watchdog import Watchdog
from ofa_jax.utils import files, timers

TRAINED_SECONDS = "trained_seconds"
"""Key in every checkpoint: how long the run has trained, all its starts together."""

ValidationResults = dict[str, dict[str, float]]
"""Task -> metric -> value, see `validation.summarise`."""


class RunError(ValueError):
    """The run cannot continue as configured; the message says what to do."""


def train(run: Run) -> ValidationResults:
    """Trains until the last step, from the newest good checkpoint if there is one.

    SIGTERM saves and ends the run; the next call continues it.

    Returns:
      The last validation's results, see `validation.summarise`; empty without validation, and
      where SIGTERM came before.

    Raises:
      RunError: the checkpoint is of another run, or every one is damaged.
      SaveError: checkpoints cannot be written, see `Checkpoints`.
      FloatingPointError: too many steps were not finite.
    """
    with (
        run.partitioner.mesh_context(),
        Progress(run.console) as progress,
        Preemption() as preemption,
        Watchdog(run.config.watchdog_timeout_secs) as watchdog,
    ):
        trainer = Trainer(run, progress, preemption, watchdog)
        if trainer.is_complete:
            results = trainer.report_complete()
        else:
            results = trainer.train()
    if results:
        validation.print_table(results, f"Validation after {trainer.step} steps", run.console)
    return results


class Trainer:
    """The state of a run in progress.

    Attributes:
      step: number of the last step made; 0 before the first.
      is_complete: whether the checkpoint found is of the last step and already validated.
    """

    def __init__(
        self, run: Run, progress: Progress, preemption: Preemption, watchdog: Watchdog
    ) -> None:
        """Opens the checkpoints and finds the step to continue from; the state is restored later.

        Args:
          run: what to train.
          progress: shows what happens.
          preemption: receives SIGTERM.
          watchdog: ends the process if it hangs.

        Raises:
          RunError: every checkpoint is damaged.
        """
        config = run.config
        self._run, self._config = run, config
        self._progress, self._preemption, self._watchdog = progress, preemption, watchdog
        self._timer = timers.GoodputTimer()
        self._history = validation.History(run.model_dir / "validations.json")
        best = None
        if config.best_metric is not None:
            validation.check_metric(config.best_metric, "LoopConfig.best_metric", run.task_names)
            best = functools.partial(self._history.best, config.best_metric)
        with self._timer.measure("restoring"):
            self._checkpoints = Checkpoints(
                run.model_dir,
                config.checkpoints_to_keep,
                config.checkpoint_keep_period,
                best,
                progress.log,
            )
            self._start = _latest_intact_step(self._checkpoints)
            self._seconds_before = self._saved_seconds()
        self.step = self._start or 0
        self._last_step = config.total_steps
        if self._start is not None and (
            self._start >= config.total_steps or self._is_time_up(self._seconds_before)
        ):
            self._last_step = self._start
        self.is_complete = self._last_step == self._start and run.results_path.exists()

        self._throttle = telemetry.DispatchThrottle(self._timer)
        self._padding = telemetry.Padding(run.pad_id)
        self._profiler = telemetry.Profiler(run.model_dir / "profile", config.profile_steps)
        self._train_step = jit_train_step(run.train_step, run.abstract_state)
        self._eval_step = jax.jit(run.eval_step, donate_argnums=2)
        self._unreported: list[StepMetrics] = []

    # ------------------------------------------------------------------------------ the whole run

    def report_complete(self) -> ValidationResults:
        """Logs that there is nothing to do; returns the results of the last validation."""
        run, config = self._run, self._config
        limit = "TRAIN_STEPS" if self.step >= config.total_steps else "LoopConfig.max_minutes"
        self._progress.log(
            f"The run in {run.model_dir} is already complete (checkpoint of step {self.step} of "
            f"{config.total_steps}, {self._seconds_before / 60:.1f} minutes): nothing to do. Raise "
            f"{limit} to continue, or choose another MODEL_DIR."
        )
        self._close()
        return json.loads(run.results_path.read_text())

    def train(self) -> ValidationResults:
        """Makes all remaining steps, with their logs, checkpoints and validations.

        Returns:
          The results of the last validation; empty if the run was stopped or is not validated.
        """
        with self._timer.measure("restoring"):
            state = self._restore()
        results: ValidationResults = {}
        stopped = False
        batches = self._run.batches(self.step)
        if self.step < self._last_step:
            self._progress.log("Compiling the step ...")
        while self.step < self._last_step:
            state = self._make_step(state, batches)
            stopped = self._preemption.requested(self.step) and self.step < self._last_step
            time_is_up = False
            if self._is_log_step() or stopped:
                self._log(state)
                # Every host must call this, as one of them decides for all.
                time_is_up = self.step < self._last_step and _first_host_decides(
                    self._is_time_up(self._trained_seconds())
                )
            if self._is_checkpoint_step() or stopped or time_is_up:
                self._save(state)
            if stopped or time_is_up:
                self._log_end(stopped)
                break
            if self._is_validation_step():
                self._throttle.drain()
                results = self._validate(state)
        if self._run.validation_batches is not None and not stopped:
            self._progress.log("Validating ...")
            results = self._validate(state)
        self._close()
        self._progress.log_total(self._timer.total())
        return {} if stopped else results

    def _close(self) -> None:
        """Ends profile and threads, and waits for the checkpoints that are being written."""
        self._profiler.close()
        self._throttle.close()
        self._run.writer.flush()
        with self._timer.measure("checkpoints"):
            self._checkpoints.close()

    # -------------------------------------------------------------------------------- when to act

    def _is_log_step(self) -> bool:
        """Returns whether this step is logged; the first one always, to show that the run works."""
        first = self.step == (self._start or 0) + 1
        return self.step % self._config.log_period == 0 or first or self.step == self._last_step

    def _is_checkpoint_step(self) -> bool:
        return self.step % self._config.checkpoint_period == 0 or self.step == self._last_step

    def _is_validation_step(self) -> bool:
        """Returns whether to validate after this step; the loop does not after the last one."""
        period = self._config.validation_period
        return bool(period) and self.step % period == 0 and self.step < self._last_step

    def _is_time_up(self, trained_seconds: float) -> bool:
        """Returns whether the run has trained for as long as it may."""
        limit = self._config.max_minutes
        return limit is not None and trained_seconds >= 60 * limit

    def _saved_seconds(self) -> float:
        """Returns how long the run had trained when it saved the checkpoint to continue from."""
        if self._start is None:
            return 0.0
        return float(self._checkpoints.read_run_metadata(self._start).get(TRAINED_SECONDS, 0.0))

    def _trained_seconds(self) -> float:
        """Returns how long the run has trained, earlier starts included and validation not."""
        time = self._timer.total()
        return self._seconds_before + time.seconds - time.parts.get("validation", 0.0)

    # ------------------------------------------------------------------------------- what is done

    def _restore(self) -> TrainState:
        """Returns the state to continue from, or a new one.

        Raises:
          RunError: the checkpoint does not fit the model, or is of another run.
        """
        run, step = self._run, self._start
        if step is None:
            self._progress.log(f"Starting a new run in {run.model_dir}.")
            return run.new_state()
        self._progress.log(
            f"Resuming from step {step} of {self._config.total_steps} "
            f"({self._checkpoints.directory / str(step)})."
        )
        try:
            state, saved = self._checkpoints.restore(step, run.abstract_state)
        except ValueError as error:
            raise RunError(str(error)) from error
        # Through JSON: what was saved has lists where ours has tuples.
        for name, value in json.loads(json.dumps(dict(run.run_fingerprint))).items():
            if saved.get(name) != value:
                raise RunError(
                    f"The run in {run.model_dir} was started with {name} = {saved.get(name)}, but "
                    f"now it is {value}: some examples would be repeated and others skipped. "
                    "Continue with its own config.gin, or choose another MODEL_DIR."
                )
        return state

    def _make_step(
        self, state: TrainState, batches: Iterator[Mapping[str, HostBatch]]
    ) -> TrainState:
        """Dispatches the next step; it may still be running on the devices afterwards."""
        host_batches = self._throttle.next(batches)
        self._padding.add(host_batches)
        device_batches: StreamBatches = {
            name: self._run.partitioner.put_batch(batch) for name, batch in host_batches.items()
        }
        self.step += 1
        self._profiler.before(self.step)
        # The first calls return when they are compiled.
        compiles = self.step == (self._start or 0) + 1
        measure = functools.partial(self._timer.measure, "compilation")
        if self._run.batch_transform is not None:
            with measure() if compiles else contextlib.nullcontext():
                device_batches = self._run.batch_transform(self.step - 1, state, device_batches)
        with measure() if compiles else contextlib.nullcontext():
            state, metrics = self._train_step(state, device_batches)
        self._throttle.after_dispatch(metrics)
        self._profiler.after(self.step, metrics)
        self._unreported.append(metrics)
        return state

    def _log(self, state: TrainState) -> None:
        """Waits for the devices, and logs all steps since the last report.

        Raises:
          FloatingPointError: too many steps were not finite.
        """
        self._throttle.drain()
        report = self._report(state)
        self._progress.show(report)
        run = self._run
        run.writer.write_scalars(self.step, report.scalars)
        if run.batch_transform is not None and (more := run.batch_transform.scalars()):
            run.writer.write_scalars(
                self.step, {f"train/{name}": value for name, value in more.items()}
            )
            self._progress.log("  ".join(f"{name} {value:.3f}" for name, value in more.items()))
        if report.skipped_steps > self._config.max_skipped_steps:
            raise FloatingPointError(
                f"{report.skipped_steps} steps had a loss or gradient that is not finite (allowed "
                f"are {self._config.max_skipped_steps}): lower the learning rate, or look at the "
                f"data of step {self.step}. The last good checkpoint is in "
                f"{run.model_dir}/checkpoints."
            )
        self._watchdog.heartbeat()

    def _report(self, state: TrainState) -> Report:
        """Returns the report of all steps since the last one; the devices have made them."""
        run = self._run
        metrics = jax.device_get(self._unreported)
        self._unreported = []
        sums = sum((m.tasks for m in metrics), TaskSums(*np.zeros((4, len(run.task_names)))))
        interval = self._timer.next_interval()
        return Report(
            step=self.step,
            total_steps=self._config.total_steps,
            throughput=telemetry.Throughput.over(
                interval,
                steps=len(metrics),
                examples=len(metrics) * run.examples_per_step,
                target_tokens=float(sums.tokens.sum()),
                flops=len(metrics) * run.flops_per_step,
                peak_flops=run.peak_flops,
            ),
            data_wait=interval.share(timers.WAITING_FOR_DATA),
            total=self._timer.total(),
            loss=float(np.mean([m.loss for m in metrics])),
            task_losses=mean_losses(sums, run.task_names),
            learning_rate=float(metrics[-1].learning_rate),
            gradient_norm=float(metrics[-1].gradient_norm),
            parameter_norm=float(metrics[-1].parameter_norm),
            padding=self._padding.shares(),
            skipped_records=_sum_over_hosts(run.skipped_records()),
            skipped_steps=int(state.skipped_steps),
        )

    def _save(self, state: TrainState) -> None:
        """Begins to write a checkpoint of this step."""
        # Steps under way would otherwise be counted as time of the checkpoint.
        self._throttle.drain()
        with self._timer.measure("checkpoints"):
            saved = {**self._run.run_fingerprint, TRAINED_SECONDS: self._trained_seconds()}
            self._checkpoints.save(self.step, state, saved)

    def _log_end(self, stopped: bool) -> None:
        """Logs why the run ends before its last step."""
        if stopped:
            self._progress.log(
                f"Asked to stop (SIGTERM): saving step {self.step}. Run the same command to resume."
            )
        else:
            self._progress.log(
                f"The {self._config.max_minutes:g} minutes of this run are over: it ends with step "
                f"{self.step} of {self._last_step}."
            )

    def _validate(self, state: TrainState) -> ValidationResults:
        """Validates the state, and writes the results to files and events."""
        run = self._run
        with self._timer.measure("validation"):
            put = run.partitioner.put_batch
            assert run.validation_batches is not None
            batches = (put(batch) for _, batch in run.validation_batches())
            sums = validation.evaluate(
                self._eval_step, state.eval_variables, batches, len(run.task_names)
            )
            results = validation.summarise(sums, run.baselines(), run.task_names)
            run.writer.write_scalars(
                self.step,
                {
                    f"validation/{metric}/{task}": value
                    for task, row in results.items()
                    for metric, value in row.items()
                },
            )
            self._history.add(self.step, results)
            if jax.process_index() == 0:
                files.write_json(run.results_path, results)
        return results


def _latest_intact_step(checkpoints: Checkpoints) -> int | None:
    """Returns the step to continue from; raises RunError if every checkpoint is damaged."""
    try:
        return checkpoints.latest_intact_step()
    except ValueError as error:
        raise RunError(str(error)) from error


def _first_host_decides(own: bool) -> bool:
    """Returns the first host's value, as its clock counts for all; every host must call this."""
    if jax.process_count() == 1:
        return own
    return bool(multihost_utils.broadcast_one_to_all(np.int32(own)))


def _sum_over_hosts(count: int) -> int:
    """Returns the sum of a number that each host has; every host must call this."""
    if jax.process_count() == 1:
        return count
    return int(multihost_utils.process_allgather(np.int32(count)).sum())
