"""Runs an evaluation: every selected checkpoint on every task."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import Progress

from ofa_jax.checkpoints import watch
from ofa_jax.checkpoints.load import load_variables
from ofa_jax.checkpoints.watch import Checkpoint
from ofa_jax.evaluation import results as reporting
from ofa_jax.evaluation.build import Evaluation
from ofa_jax.evaluation.evaluator import EvaluationError, Evaluator
from ofa_jax.evaluation.results import EvalResults


def run_evaluation(evaluation: Evaluation) -> EvalResults:
    """Evaluates every selected checkpoint and prints a table of the results.

    Returns:
      All results in the directory; on other hosts than the first, only the earlier ones.

    Raises:
      EvaluationError: the evaluation cannot continue as configured.
    """
    results = EvalResults(evaluation.directory)
    evaluator, steps = evaluation.evaluator, []
    main_metrics: dict[str, str | None] = {
        task.name: task.spec.main_metric for task in evaluation.tasks
    }
    for checkpoint in watch.follow(evaluation.selector, evaluation.log):
        try:
            if evaluator is None:
                evaluator = evaluation.make_evaluator(evaluation.model_config(checkpoint))
        except ValueError as error:
            raise EvaluationError(str(error)) from error
        if _evaluate_checkpoint(evaluation, evaluator, checkpoint, results, main_metrics):
            steps.append(checkpoint.step)
    evaluation.writer.flush()
    if steps:
        title = f"Evaluation ({evaluation.directory.name})"
        reporting.print_table(results, steps, main_metrics, title, evaluation.console)
        evaluation.log(f"Results are in {evaluation.directory}.")
    return results


def _evaluate_checkpoint(
    evaluation: Evaluation,
    evaluator: Evaluator,
    checkpoint: Checkpoint,
    results: EvalResults,
    main_metrics: dict[str, str | None],
) -> bool:
    """Evaluates a checkpoint on the tasks without a result; returns whether it has results."""
    step, name = checkpoint.step, evaluation.checkpoint_name(checkpoint)
    todo = [
        task
        for task in evaluation.tasks
        if not (evaluator.check_settings(task, step, name) and results.has(step, task.name))
    ]
    if not todo:
        evaluation.log(f"Step {step} is evaluated already.")
        return True
    if (problem := watch.find_problem(checkpoint)) is not None:
        if evaluation.selector.which in ("all", "watch"):
            evaluation.log(f"The checkpoint of step {step} is left out: {problem}.")
            return False
        raise EvaluationError(f"{checkpoint.path} cannot be evaluated: {problem}.")
    evaluation.log(f"Evaluating {checkpoint.path} ...")
    config = evaluation.model_config(checkpoint)
    try:
        variables = load_variables(checkpoint.path, config, evaluation.partitioner)
    except (FileNotFoundError, ValueError) as error:
        raise EvaluationError(str(error)) from error
    for task in todo:
        with _progress_bar(evaluation.console, task.name) as progress:
            result = evaluator.evaluate(task, step, name, variables, progress)
        if result is None:
            continue  # only the first host has results
        main_metrics[task.name] = result.main_metric
        results.add(step, task.name, result.metrics)
        scalars = reporting.tensorboard_scalars(task.name, result.metrics)
        evaluation.writer.write_scalars(step, scalars)
        evaluation.log(reporting.summarise(task.name, result))
    evaluation.writer.flush()
    return True


@contextlib.contextmanager
def _progress_bar(console: Console, name: str) -> Iterator[Callable[[int, int], None]]:
    """Shows a progress bar on a terminal while a task is decoded; nothing elsewhere."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        row = bar.add_task(name)
        yield lambda done, total: bar.update(row, completed=done, total=total)
