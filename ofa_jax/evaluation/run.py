"""Runs an evaluation: every selected checkpoint on every task."""

import contextlib
from collections.abc import Iterator

import jax

from ofa_jax.checkpoints import watch
from ofa_jax.checkpoints.load import load_variables
from ofa_jax.checkpoints.watch import Checkpoint
from ofa_jax.evaluation import gallery, gallery_events
from ofa_jax.evaluation import results as reporting
from ofa_jax.evaluation.build import Evaluation
from ofa_jax.evaluation.errors import EvaluationError
from ofa_jax.evaluation.evaluator import EvalTask, Evaluator
from ofa_jax.evaluation.fingerprints import of_weights
from ofa_jax.evaluation.results import EvalResults
from ofa_jax.utils import files, progress
from ofa_jax.utils.collectives import first_host_decides
from ofa_jax.utils.locks import directory_lock


def run_evaluation(evaluation: Evaluation) -> EvalResults:
    """Evaluates every selected checkpoint and prints a table of the results.

    Nothing is written before a checkpoint was accepted. What fails for one task, or one metric, is
    among the `failures` of the results; all others are evaluated.

    Returns:
      All results in the directory; on other hosts than the first, only the earlier ones.

    Raises:
      EvaluationError: the evaluation cannot continue as configured.
      LockedError: another process is evaluating into the directory.
    """
    evaluator, steps, started = evaluation.evaluator, [], None
    with contextlib.ExitStack() as stack:
        for checkpoint in watch.follow(evaluation.selector, evaluation.log):
            with _left_out_if_unreadable(evaluation, checkpoint):
                if evaluator is None:
                    evaluator = _make_evaluator(evaluation, checkpoint)
                if started is None:
                    started = stack.enter_context(_Started.begin(evaluation, evaluator))
                if started.evaluate(checkpoint):
                    steps.append(checkpoint.step)
        if started is None:
            return EvalResults(evaluation.directory, evaluation.log)
        if steps:
            started.print_table(steps)
        started.results.failures += started.failures_elsewhere()
        return started.results


def _make_evaluator(evaluation: Evaluation, checkpoint: Checkpoint) -> Evaluator:
    """Creates the evaluator; raises EvaluationError if the model does not fit."""
    try:
        return evaluation.make_evaluator(evaluation.model_config(checkpoint))
    except ValueError as error:
        raise EvaluationError(str(error)) from error


@contextlib.contextmanager
def _left_out_if_unreadable(evaluation: Evaluation, checkpoint: Checkpoint) -> Iterator[None]:
    """Leaves a checkpoint out that vanished or was damaged, if others are evaluated as well.

    Training deletes old checkpoints, also while they are being read.

    Raises:
      EvaluationError: the only selected checkpoint cannot be read, or it does not fit.
    """
    try:
        yield
    except (EvaluationError, OSError) as error:
        if not isinstance(error, _UnreadableError | FileNotFoundError):
            raise
        if evaluation.selector.which not in ("all", "watch"):
            raise EvaluationError(str(error)) from error
        problem = watch.find_problem(checkpoint) or str(error).rstrip(".")
        evaluation.log(f"The checkpoint of step {checkpoint.step} is left out: {problem}.")


class _UnreadableError(EvaluationError):
    """A checkpoint that vanished or is damaged."""


class _Started:
    """An evaluation that has been accepted and holds its directory's lock."""

    def __init__(self, evaluation: Evaluation, evaluator: Evaluator):
        """Writes the configuration and opens the results."""
        self._evaluation = evaluation
        self._evaluator = evaluator
        self._main_metrics = {task.name: task.spec.main_metric for task in evaluation.tasks}
        if jax.process_index() == 0 and evaluation.operative_config:
            files.write_text(evaluation.directory / "config.gin", evaluation.operative_config)
        self._unscored: list[str] = []
        self.results = EvalResults(evaluation.directory, evaluation.log)

    @classmethod
    @contextlib.contextmanager
    def begin(cls, evaluation: Evaluation, evaluator: Evaluator) -> Iterator["_Started"]:
        """Creates the directory and holds its lock in the block."""
        evaluation.directory.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            if jax.process_index() == 0:
                stack.enter_context(directory_lock(evaluation.directory, "evaluate.directory"))
            yield cls(evaluation, evaluator)

    def print_table(self, steps: list[int]) -> None:
        """Prints the results of some steps."""
        evaluation = self._evaluation
        title = f"Evaluation ({evaluation.directory.name})"
        reporting.print_table(self.results, steps, self._main_metrics, title, evaluation.console)
        evaluation.log(f"Results are in {evaluation.directory}.")
        evaluation.at_end()
        for sentence in self._unscored:
            evaluation.log(sentence)

    def failures_elsewhere(self) -> list[str]:
        """Returns a sentence on all hosts but the first if something failed; collective."""
        some = first_host_decides(bool(self.results.failures))
        return ["see the first host's message"] if some and jax.process_index() else []

    def evaluate(self, checkpoint: Checkpoint) -> bool:
        """Evaluates a checkpoint on the tasks without a result; returns whether it has results."""
        evaluation, evaluator = self._evaluation, self._evaluator
        step, name = checkpoint.step, evaluation.checkpoint_name(checkpoint)
        weights, todo = of_weights(checkpoint.path), []
        for task in evaluation.tasks:
            if not evaluator.is_finished(task, step, name, weights):
                todo.append(task)
            elif not self.results.has(step, task.name) and jax.process_index() == 0:
                self.results.add(step, task.name, evaluator.result(task, step)["metrics"])
        if not todo:
            evaluation.log(f"Step {step} is evaluated already.")
            return True
        variables = None
        with progress.stage(f"evaluating step {step}", len(todo), "tasks") as stage:
            if any([evaluator.needs_model(task, step) for task in todo]):
                variables = self._load(checkpoint)
            for task in todo:
                try:
                    self._evaluate_task(task, step, name, weights, variables)
                except EvaluationError as error:
                    self.results.failures.append(f"{task.name} on step {step}: {error}")
                stage.advance()
        return True

    def _load(self, checkpoint: Checkpoint) -> object:
        """Returns a checkpoint's variables; raises EvaluationError if they cannot be read."""
        evaluation = self._evaluation
        if (problem := watch.find_problem(checkpoint)) is not None:
            raise _UnreadableError(f"{checkpoint.path} cannot be evaluated: {problem}.")
        evaluation.log(f"Evaluating {checkpoint.path} ...")
        config = evaluation.model_config(checkpoint)
        try:
            with progress.substage("loading the checkpoint"):
                return load_variables(
                    checkpoint.path, config, evaluation.partitioner, evaluation.weights
                )
        except Exception as error:
            # It may have been deleted or damaged since; then any library may raise anything.
            if (problem := watch.find_problem(checkpoint)) is not None:
                raise _UnreadableError(
                    f"{checkpoint.path} cannot be evaluated: {problem}."
                ) from error
            if isinstance(error, FileNotFoundError | ValueError):
                raise EvaluationError(str(error)) from error
            raise

    def _evaluate_task(
        self, task: EvalTask, step: int, name: str, weights: str | None, variables: object
    ) -> None:
        """Evaluates a task; what was skipped, not scored or failed is logged."""
        evaluation = self._evaluation
        with progress.substage(task.name, unit="batches") as stage:
            result = self._evaluator.evaluate(task, step, name, variables, stage.update, weights)
        if result is None:
            return  # only the first host has results
        self._main_metrics[task.name] = result.main_metric
        self.results.add(step, task.name, result.metrics)
        evaluation.writer.write_scalars(
            step, reporting.tensorboard_scalars(task.name, result.metrics)
        )
        evaluation.log(reporting.summarise(task.name, result))
        for sentence in reporting.describe_findings(task.name, result):
            evaluation.log(sentence)
        folder = self._evaluator.folder(step, task)
        made = gallery.write(folder, task, evaluation.image_tokenizer, evaluation.gallery_examples)
        gallery_events.write(evaluation.writer, step, f"gallery/{task.name}", made)
        self._unscored += reporting.describe_unscored(task.name, result, folder)
        self.results.failures += reporting.describe_failures(task.name, step, result.failed)
