"""The training loop: restore, step, log, save, validate.

The loop is given everything that it works with (see `Run`), and knows neither data nor gin.
"""

import contextlib
import functools
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from ofa_jax.checkpoints.manager import Checkpoints
from ofa_jax.checkpoints.resume import ResumePoint
from ofa_jax.sharding import TrainState
from ofa_jax.training import run_directory, telemetry, validation
from ofa_jax.training.early_start import EarlyStart
from ofa_jax.training.metrics import TaskSums, mean_losses
from ofa_jax.training.preemption import Preemption
from ofa_jax.training.run import FLOPS_PER_STEP, TRAINED_SECONDS, HostBatch, Run, RunError
from ofa_jax.training.saving import Saver
from ofa_jax.training.step import StepMetrics, StreamBatches, jit_train_step
from ofa_jax.training.terminal import Progress, Report
from ofa_jax.training.watchdog import Watchdog
from ofa_jax.utils import collectives, timers

__all__ = ["TRAINED_SECONDS", "RunError", "Trainer", "ValidationResults", "train"]

ValidationResults = dict[str, dict[str, float]]
"""Task -> metric -> value, see `validation.summarise`."""


def train(run: Run) -> ValidationResults:
    """Trains until the last step, from the newest good checkpoint if there is one.

    SIGTERM saves and ends the run; the next call continues it.

    Returns:
      The last validation's results, see `validation.summarise`; empty without validation, and
      where SIGTERM came before.

    Raises:
      RunError: MODEL_DIR is of another run, or cannot be used; nothing was written. Or the data
        cannot be read.
      SaveError: checkpoints cannot be written, see `Checkpoints`.
      FloatingPointError: too many steps were not finite.
    """
    with (
        run.partitioner.mesh_context(),
        Progress(run.console) as progress,
        Preemption() as preemption,
        Watchdog(run.config.watchdog_timeout_secs) as watchdog,
        run_directory.open_run_directory(run, progress.log) as point,
    ):
        trainer = Trainer(run, point, progress, preemption, watchdog)
        with trainer.closing():
            results = trainer.completed_results()
            if results is None:
                results = trainer.train()
    if results:
        title = f"Validation after {trainer.step} steps"
        if run.evaluation is None:
            validation.print_table(results, title, run.console)
        else:
            validation.print_metrics(results, run.evaluation.columns, title, run.console)
    return results


class Trainer:
    """The state of a run in progress.

    Attributes:
      step: number of the last step made; 0 before the first.
    """

    def __init__(
        self,
        run: Run,
        point: ResumePoint,
        progress: Progress,
        preemption: Preemption,
        watchdog: Watchdog,
    ) -> None:
        """Opens the checkpoints; the state is restored later.

        Args:
          run: what to train.
          point: where it continues.
          progress: shows what happens.
          preemption: receives SIGTERM.
          watchdog: ends the process if it hangs.
        """
        config = run.config
        self._run, self._config, self._start = run, config, point.step
        self._progress, self._preemption, self._watchdog = progress, preemption, watchdog
        self._timer = timers.GoodputTimer()
        self._history = validation.History(run.model_dir / "validations.json", progress.log)
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
        if best is not None and self._history.was_damaged:
            for step in self._checkpoints.steps:  # any of them may be the best one
                self._checkpoints.pin(step)
        self._saver = Saver(self._checkpoints, point.metadata, progress.log)
        self._seconds_before = float(point.metadata.get(TRAINED_SECONDS, 0.0))
        self.step = self._start or 0
        self._is_over = run_directory.is_over(run, point)
        self._last_step = self.step if self._is_over else config.total_steps
        self._skipped_before = 0

        self._throttle = telemetry.DispatchThrottle(self._timer)
        self._padding = telemetry.Padding(run.pad_id)
        self._profiler = telemetry.Profiler(run.model_dir / "profile", config.profile_steps)
        self._train_step = jit_train_step(run.train_step, run.abstract_state)
        self._eval_step = jax.jit(run.eval_step, donate_argnums=2)
        self._unreported: list[StepMetrics] = []

    # ------------------------------------------------------------------------------ the whole run

    def completed_results(self) -> ValidationResults | None:
        """Returns the last validation of a run that has nothing left to do; None of any other."""
        run, config = self._run, self._config
        columns = validation.ROW if run.evaluation is None else run.evaluation.columns
        results = validation.read_results(run.results_path, self._progress.log, columns)
        if not self._is_over or results is None:
            return None
        limit = "TRAIN_STEPS" if self.step >= config.total_steps else "LoopConfig.max_minutes"
        self._progress.log(
            f"The run in {run.model_dir} is already complete (checkpoint of step {self.step} of "
            f"{config.total_steps}, {self._seconds_before / 60:.1f} minutes): nothing to do. Raise "
            f"{limit} to continue, or choose another MODEL_DIR."
        )
        return results

    def train(self) -> ValidationResults:
        """Makes all remaining steps, with their logs, checkpoints and validations.

        Returns:
          The results of the last validation; empty if the run was stopped or is not validated.
        """
        batches = self._start_early()
        with self._timer.measure("restoring"):
            state = self._restore()
        self._skipped_before = int(state.skipped_steps)
        results: ValidationResults = {}
        stopped = False
        if self.step < self._last_step:
            self._progress.log("Compiling the step ...")
        while self.step < self._last_step:
            state = self._make_step(state, batches)
            stopped = self._preemption.requested(self.step) and self.step < self._last_step
            time_is_up = False
            if self._is_log_step() or stopped:
                self._log(state)
                # Every host must call this: the clock of the first one counts for all.
                time_is_up = self.step < self._last_step and collectives.first_host_decides(
                    self._is_time_up(self._trained_seconds())
                )
            if self._is_checkpoint_step() or stopped or time_is_up:
                self._saver.request()
            if self._saver.is_requested:
                self._save(state)
            if stopped or time_is_up:
                self._log_end(stopped)
                break
            if self._is_validation_step():
                self._throttle.drain()
                results = self._validate(state, is_last=False)
        if self._saver.is_requested and not stopped:
            raise FloatingPointError(
                f"The run ended with step {self.step}, whose loss, gradient or parameters are not "
                f"finite: it is not saved. Lower the learning rate. {self._saver.describe_newest()}"
            )
        if self._run.is_validated and not stopped:
            self._progress.log("Validating ...")
            results = self._validate(state, is_last=True)
        batches.close()
        with self._timer.measure("checkpoints"):
            self._checkpoints.close()
        self._log_findings()
        self._progress.log_total(self._timer.total())
        return {} if stopped else results

    @contextlib.contextmanager
    def closing(self) -> Iterator[None]:
        """Ends profile, threads and events, and completes the checkpoint in flight, in any case."""
        try:
            yield
        finally:
            with contextlib.suppress(Exception):
                self._profiler.close()
            self._throttle.close()
            self._checkpoints.abandon()  # does nothing after an orderly end
            with contextlib.suppress(Exception):
                self._run.writer.close()

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

    def _trained_seconds(self) -> float:
        """Returns how long the run has trained, earlier starts included and validation not."""
        time = self._timer.total()
        return self._seconds_before + time.seconds - time.parts.get("validation", 0.0)

    # ------------------------------------------------------------------------------- what is done

    def _restore(self) -> TrainState:
        """Returns the state to continue from, or a new one.

        Raises:
          RunError: the checkpoint cannot be restored.
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
            state, _ = self._checkpoints.restore(step, run.abstract_state)
        except ValueError as error:
            raise RunError(str(error)) from error
        return state

    def _start_early(self) -> EarlyStart[Mapping[str, HostBatch]]:
        """Returns the batches; a thread may fetch the first one, and compile the step for it."""
        # Hosts that compile in another order than they restore might wait for each other.
        alone = jax.process_count() == 1 and self._run.batch_transform is None
        compiles = alone and self.step < self._last_step
        return EarlyStart(self._run.batches(self.step), self._compile if compiles else None)

    def _compile(self, host_batches: Mapping[str, HostBatch]) -> None:
        """Compiles the step, so that the first call of it finds the program."""
        partitioner = self._run.partitioner
        with partitioner.mesh_context():  # which is that of a thread
            batches = {name: partitioner.put_batch(batch) for name, batch in host_batches.items()}
            self._train_step.lower(self._run.abstract_state, batches).compile()

    def _next_batches(self, batches: Iterator[Mapping[str, HostBatch]]) -> Mapping[str, HostBatch]:
        """Returns the batches of the next step; raises RunError if the data cannot be used."""
        try:
            return self._throttle.next(batches)
        except StopIteration:
            raise RunError(
                f"The data ended after step {self.step} of {self._last_step}: give more of it, or "
                "lower TRAIN_STEPS."
            ) from None
        except ValueError as error:
            raise RunError(str(error)) from error

    def _make_step(
        self, state: TrainState, batches: EarlyStart[Mapping[str, HostBatch]]
    ) -> TrainState:
        """Dispatches the next step; it may still be running on the devices afterwards."""
        compiles = self.step == (self._start or 0)
        if compiles:
            with self._timer.measure("compilation"):
                batches.wait()
        host_batches = self._next_batches(batches)
        self._padding.add(host_batches)
        device_batches: StreamBatches = {
            name: self._run.partitioner.put_batch(batch) for name, batch in host_batches.items()
        }
        self.step += 1
        self._profiler.before(self.step)
        # The first calls return when they are compiled.
        measure = functools.partial(self._timer.measure, "compilation")
        if self._run.batch_transform is not None:
            with measure() if compiles else contextlib.nullcontext():
                device_batches = self._run.batch_transform(self.step - 1, state, device_batches)
        with measure() if compiles else contextlib.nullcontext():
            state, metrics = self._train_step(state, device_batches)
        self._throttle.after_dispatch(metrics)
        self._saver.after_step(self.step, metrics)
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
        # Those before this start do not count: it may have the rate that rescues the run.
        skipped = report.skipped_steps - self._skipped_before
        if skipped > self._config.max_skipped_steps:
            raise FloatingPointError(
                f"{skipped} steps had a loss or gradient that is not finite (allowed are "
                f"{self._config.max_skipped_steps}): lower the learning rate, or look at the data "
                f"of step {self.step}. {self._saver.describe_newest()}"
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
            skipped_records=collectives.sum_over_hosts(run.skipped_records()),
            skipped_steps=int(state.skipped_steps),
        )

    def _save(self, state: TrainState) -> None:
        """Begins to write a checkpoint of this step, unless its parameters cannot be trusted."""
        # Steps under way would otherwise be counted as time of the checkpoint.
        self._throttle.drain()
        with self._timer.measure("checkpoints"):
            saved = {
                **self._run.run_fingerprint,
                TRAINED_SECONDS: self._trained_seconds(),
                FLOPS_PER_STEP: self._run.flops_per_step,
            }
            self._saver.save(state, saved)

    def _log_end(self, stopped: bool) -> None:
        """Logs why the run ends before its last step."""
        if not stopped:
            self._progress.log(
                f"The {self._config.max_minutes:g} minutes of this run are over: it ends with step "
                f"{self.step} of {self._last_step}."
            )
        elif self._saver.is_requested:
            self._progress.log(
                f"Asked to stop (SIGTERM) while steps are being skipped: step {self.step} is not "
                f"saved. {self._saver.describe_newest()}"
            )
        else:
            self._progress.log(
                f"Asked to stop (SIGTERM): saving step {self.step}. Run the same command to resume."
            )

    def _log_findings(self) -> None:
        """Logs and writes the counts of bad input."""
        run_directory.write_findings(self._run, self._progress.log)

    def _validate(self, state: TrainState, is_last: bool) -> ValidationResults:
        """Validates the state, and writes the results and galleries to files and events."""
        run = self._run
        with self._timer.measure("validation"):
            results = self._evaluate(state)
            run.writer.write_scalars(
                self.step,
                {
                    f"validation/{metric}/{task}": value
                    for task, row in results.items()
                    for metric, value in row.items()
                },
            )
            self._history.add(self.step, results)
            validation.write_results(run.results_path, results, self._progress.log)
            self._log_findings()
            if run.galleries is not None:
                variables, log = state.eval_variables, self._progress.log
                run.galleries.write(self.step, variables, is_last, run.writer, log)
        return results

    def _evaluate(self, state: TrainState) -> ValidationResults:
        """Returns the results of the state on the validation examples."""
        run = self._run
        if run.evaluation is not None:
            found = run.evaluation(self.step, state.eval_variables, run.writer, self._progress.log)
            return {name: dict(row) for name, row in found.items()}
        put = run.partitioner.put_batch
        assert run.validation_batches is not None
        batches = (put(batch) for _, batch in run.validation_batches())
        sums = validation.evaluate(
            self._eval_step, state.eval_variables, batches, len(run.task_names)
        )
        return validation.summarise(sums, run.baselines(), run.task_names)
