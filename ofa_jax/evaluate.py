"""Evaluates tasks on the checkpoints of a run, as gin files say.

    python -m ofa_jax.evaluate --gin_file=RUN.gin --gin_file=gin_configs/runs/evaluate.gin

RUN.gin are the files of the run, or the config.gin that it has left beside its checkpoints: what
`evaluate` leaves open (model_dir, streams, settings, partitioner ...) is as `train` has it. Called
again, it goes on; what is evaluated is not evaluated again. Results go to
MODEL_DIR/evaluations/SPLIT:

    metrics.json                     {step: {task: {metric: value}}}
    STEP/TASK/predictions.jsonl      a line for every example; boxes in pixels of the stored image
    STEP/TASK/result.json            the metrics, counts, and where the time went
    events.out.tfevents...           for TensorBoard
    config.gin                       the configuration as it was in effect
"""

import contextlib
import copy
import dataclasses
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gin
import jax
import seqio
from absl import flags, logging
from clu import metric_writers
from etils import epath
from rich.console import Console
from rich.progress import Progress

from ofa_jax.checkpoints import load as checkpoint_load
from ofa_jax.checkpoints import watch
from ofa_jax.checkpoints.watch import Checkpoint, CheckpointSelector
from ofa_jax.cli import common, gin_registry
from ofa_jax.data import seqio_bridge
from ofa_jax.data.features import Stream, empty_features, stack
from ofa_jax.data.task_settings import TaskSettings
from ofa_jax.decoding import DecodingConfig
from ofa_jax.evaluation import results as reporting
from ofa_jax.evaluation.evaluator import EvalTask, EvaluationError, Evaluator
from ofa_jax.evaluation.load_tasks import TaskLoader
from ofa_jax.evaluation.results import EvalResults
from ofa_jax.model import OFA, OFAConfig
from ofa_jax.model.named_config import model_config
from ofa_jax.sharding import Partitioner
from ofa_jax.training import checks
from ofa_jax.training.build import build_run
from ofa_jax.utils import distributed
from ofa_jax.utils.suggestions import nearest

Decoding = Callable[[str, DecodingConfig], DecodingConfig]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Everything that `run` works with.

    Attributes:
      choice: of the checkpoints.
      model_dir: what checkpoints are named after in the settings, where they lie in it.
      directory: where results go.
      tasks: to evaluate, with the streams that they are of.
      make_evaluator: for a model; checks that it fits the tasks.
      evaluator: where the model is known already.
      partitioner: the mesh.
      dtype: to compute in; None for the model's own.
      writer: of TensorBoard events.
      console: to print to.
    """

    choice: CheckpointSelector
    model_dir: epath.Path
    directory: epath.Path
    tasks: Sequence[EvalTask]
    make_evaluator: Callable[[OFAConfig], Evaluator]
    evaluator: Evaluator | None
    partitioner: Partitioner
    dtype: str | None
    writer: metric_writers.MetricWriter
    console: Console

    def model_of(self, checkpoint: Checkpoint) -> OFAConfig:
        """The configuration of a checkpoint's model, as it is computed here."""
        config = checkpoint_load.config_of(checkpoint.path)
        return config if self.dtype is None else config.replace(dtype=self.dtype)

    def name_of(self, checkpoint: Checkpoint) -> str:
        """How the settings call a checkpoint; a run directory may be moved."""
        path, root = epath.Path(checkpoint.path), epath.Path(self.model_dir).resolve()
        return str(path.relative_to(root) if path.is_relative_to(root) else path)


def prepare(
    model_dir: str,
    streams: Sequence[Stream],
    checkpoint_path: str | None = None,
    checkpoints: Any = "newest",
    split: str = "validation",
    tasks: Any = None,
    num_examples: int | None = None,
    batch_size: int | None = None,
    settings: TaskSettings | None = None,
    mixture_or_task_module: Any = None,
    partitioner: Partitioner | None = None,
    dtype: str | None = None,
    directory: str | None = None,
    last_step: int | None = None,
    timeout_seconds: float = 3600,
    poll_seconds: float = 10,
    seed: int = 0,
    candidates_at_once: int = 32,
    batches_per_part: int = 16,
    num_threads: int = 2,
    num_workers: int = 0,
    decoding: Decoding = lambda task, config: config,
) -> Evaluation:
    """Builds every part of an evaluation and checks that they fit; compiles nothing.

    gin knows it as `evaluate`.

    Args:
      model_dir: the run's directory; results go below it.
      streams: which tasks, with their shapes; a mixture's tasks are evaluated one by one.
      checkpoint_path: a run directory, a folder `checkpoints/<step>`, or a checkpoint of others
        (`.pt`); `model_dir` when None.
      checkpoints: "newest", "all", "watch" (as training writes them), or a list of steps.
      split: of the data.
      tasks: names of those that are wanted; None for all of the streams.
      num_examples: of each task, the first ones; None for all.
      batch_size: over all hosts; None for those of the streams.
      settings: what the tasks of this project run over; None for other tasks.
      mixture_or_task_module: module(s) to import, which register tasks and their Judgings.
      partitioner: the mesh; all devices along `data` when None.
      dtype: to compute in; None for that of the run.
      directory: where results go; `<model_dir>/evaluations/<split>` when None.
      last_step: watching ends with it.
      timeout_seconds: watching ends when no checkpoint has come for so long.
      poll_seconds: between two looks.
      seed: of what is drawn: by preprocessors, and by decoding that samples.
      candidates_at_once: answers that are scored side by side, see `make_scorer`.
      batches_per_part: after so many batches what was answered is safe.
      num_threads, num_workers: threads, or processes, that make batches.
      decoding: changes a task's decoding settings.

    Raises:
      ValueError, FileNotFoundError, ImportError: with a sentence that says what to do.
    """
    common.import_task_modules(mixture_or_task_module, settings)
    if not streams:
        raise ValueError("evaluate.streams is empty: give at least one Stream.")
    if batches_per_part < 1:
        raise ValueError(f"evaluate.batches_per_part is {batches_per_part}; it must be at least 1.")
    choice = CheckpointSelector(
        checkpoint_path or model_dir, checkpoints, last_step, timeout_seconds, poll_seconds
    )
    there = choice.there()
    partitioner = partitioner or Partitioner()
    console = Console(quiet=jax.process_index() > 0)
    say = _speaker(console)
    loader = TaskLoader(
        split,
        partitioner,
        num_examples,
        batch_size,
        decoding,
        seed,
        num_threads,
        num_workers,
        settings,
    )
    only = [tasks] if isinstance(tasks, str) else tasks
    _check_wanted(only, streams)
    opened: dict[str, tuple[EvalTask, Stream]] = {}
    for stream in streams:
        for task in loader.load(stream, only, say):
            if task.name in opened:
                raise ValueError(
                    f"Streams {opened[task.name][1].name!r} and {stream.name!r} both have the task "
                    f"{task.name}: leave it out of one."
                )
            opened[task.name] = task, stream
    root = epath.Path(directory) if directory else epath.Path(model_dir) / "evaluations" / split
    if not root.is_absolute():
        root = root.resolve()
    root.mkdir(parents=True, exist_ok=True)

    def make_evaluator(config: OFAConfig) -> Evaluator:
        if settings is not None:
            checks.check_codes(config, settings.code_image_size, streams)
        evaluator = Evaluator(
            OFA(config), partitioner, root, seed, candidates_at_once, batches_per_part
        )
        for task, stream in opened.values():
            _check(config, task, stream)
            evaluator.decoder(task)
        return evaluator

    evaluation = Evaluation(
        choice=choice,
        model_dir=epath.Path(model_dir),
        directory=root,
        tasks=[task for task, _ in opened.values()],
        make_evaluator=make_evaluator,
        evaluator=None,
        partitioner=partitioner,
        dtype=dtype,
        writer=metric_writers.create_default_writer(
            str(root), just_logging=jax.process_index() > 0, asynchronous=False
        ),
        console=console,
    )
    if not there:
        return evaluation  # training has written nothing yet
    evaluator = make_evaluator(evaluation.model_of(there[-1]))
    for checkpoint in there:
        for task in evaluation.tasks:
            evaluator.check_settings(task, checkpoint.step, evaluation.name_of(checkpoint))
    return dataclasses.replace(evaluation, evaluator=evaluator)


def _speaker(console: Console) -> Callable[[str], None]:
    """Prints sentences as they are: neither coloured nor broken."""
    return lambda message: console.print(message, highlight=False, soft_wrap=True)


def _check_wanted(only: Sequence[str] | None, streams: Sequence[Stream]) -> None:
    if only is None:
        return
    if not only:
        raise ValueError("evaluate.tasks is empty: name the tasks that are wanted, or give None.")
    known = [task for stream in streams for task in seqio_bridge.rates(stream.mixture_or_task_name)]
    for name in only:
        if name not in known:
            raise ValueError(
                f"evaluate.tasks names {name}, which none of the streams has.{nearest(name, known)}"
            )


def _check(config: OFAConfig, task: EvalTask, stream: Stream) -> None:
    """Whether a model can answer a task."""
    if config.vocab_size != task.vocabulary.vocab_size:
        raise ValueError(
            f"The checkpoint's model has a vocabulary of {config.vocab_size} ids, that of "
            f"{task.name} has {task.vocabulary.vocab_size}: evaluate with the vocabulary that it "
            "was trained with."
        )
    row = empty_features(dataclasses.replace(stream, num_sampled_patches=None), 0)
    checks.check_fits(OFA(config), stream, stack([row]))
    try:
        task.spec.decoding.max_output_length(stream.task_feature_lengths["inputs"], config)
    except ValueError as error:
        raise ValueError(f"Task {task.name} does not fit the model: {error}") from error


def run(evaluation: Evaluation) -> EvalResults:
    """Evaluates every wanted checkpoint, and prints a table of them at the end.

    Returns:
      All results of the directory; on other hosts than the first, what was there before.

    Raises:
      EvaluationError: it cannot go on as it was called.
    """
    console = evaluation.console
    say = _speaker(console)
    results = EvalResults(evaluation.directory)
    evaluator, steps = evaluation.evaluator, []
    main_metrics: dict[str, str | None] = {
        task.name: task.spec.main_metric for task in evaluation.tasks
    }
    for checkpoint in watch.follow(evaluation.choice, say):
        try:
            evaluator = evaluator or evaluation.make_evaluator(evaluation.model_of(checkpoint))
        except ValueError as error:
            raise EvaluationError(str(error)) from error
        if _evaluate(evaluation, evaluator, checkpoint, results, main_metrics, say):
            steps.append(checkpoint.step)
    evaluation.writer.flush()
    if steps:
        title = f"Evaluation ({evaluation.directory.name})"
        reporting.print_table(results, steps, main_metrics, title, console)
        say(f"Written to {evaluation.directory}.")
    return results


def _evaluate(
    evaluation: Evaluation,
    evaluator: Evaluator,
    checkpoint: Checkpoint,
    results: EvalResults,
    main_metrics: dict[str, str | None],
    say: Callable[[str], None],
) -> bool:
    """One checkpoint; whether there are results of it."""
    step, name = checkpoint.step, evaluation.name_of(checkpoint)
    waiting = [
        task
        for task in evaluation.tasks
        if not (evaluator.check_settings(task, step, name) and results.has(step, task.name))
    ]
    if not waiting:
        say(f"Step {step} is evaluated already.")
        return True
    if (problem := watch.problem(checkpoint)) is not None:
        if evaluation.choice.which in ("all", "watch"):
            say(f"The checkpoint of step {step} is left out: {problem}.")
            return False
        raise EvaluationError(f"{checkpoint.path} cannot be evaluated: {problem}.")
    say(f"Evaluating {checkpoint.path} ...")
    config = evaluation.model_of(checkpoint)
    try:
        variables = checkpoint_load.load_variables(checkpoint.path, config, evaluation.partitioner)
    except (FileNotFoundError, ValueError) as error:
        raise EvaluationError(str(error)) from error
    for task in waiting:
        with _progress(evaluation.console, task.name) as progress:
            result = evaluator.evaluate(task, step, name, variables, progress)
        if result is None:
            continue
        main_metrics[task.name] = result.main_metric
        results.add(step, task.name, result.metrics)
        evaluation.writer.write_scalars(
            step, reporting.tensorboard_scalars(task.name, result.metrics)
        )
        say(reporting.summarise(task.name, result))
    evaluation.writer.flush()
    return True


@contextlib.contextmanager
def _progress(console: Console, name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal while a task is asked; nothing elsewhere."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        shown = bar.add_task(name)
        yield lambda done, total: bar.update(shown, completed=done, total=total)


# ------------------------------------------------------------------------------- command line


def main(arguments: Sequence[str]) -> None:
    """Runs the command line `arguments` (without the program)."""
    flags.FLAGS(["evaluate"])  # grain reads its options from absl
    logging.set_verbosity(logging.WARNING)
    with common.user_errors():
        gin_registry.register(
            {
                "evaluate": prepare,
                "train": build_run,
                "model_config": model_config,
            }
        )
        common.parse_arguments(
            "python -m ofa_jax.evaluate", __doc__ or "", arguments, may_stay_open=("TRAIN_STEPS",)
        )
        seqio.set_global_cache_dirs([])
        _take_from_training()
        evaluation = gin.get_configurable("evaluate")(decoding=decoding_of)
        if jax.process_index() == 0:
            (evaluation.directory / "config.gin").write_text(gin.operative_config_str())
    try:
        run(evaluation)
    except EvaluationError as error:
        common.fail(error)


def _take_from_training() -> None:
    """What `evaluate` leaves open is as `train` has it, where both have such a parameter."""
    own, theirs = (inspect.signature(function).parameters for function in (prepare, build_run))
    sources = {name: f"train.{name}" for name in own.keys() & theirs.keys() - {"seed"}}
    sources["last_step"] = "LoopConfig.total_steps"
    for name, source in sources.items():
        if not _is_bound(f"evaluate.{name}") and _is_bound(source):
            with gin.unlock_config():
                gin.bind_parameter(f"evaluate.{name}", gin.query_parameter(source))
    if not (_is_bound("evaluate.model_dir") and _is_bound("evaluate.streams")):
        raise ValueError(
            "Nothing says what to evaluate: give the gin files of a run (or the config.gin in its "
            "directory) before gin_configs/runs/evaluate.gin, or use "
            "gin_configs/runs/evaluate_task.gin."
        )


def _is_bound(parameter: str) -> bool:
    try:
        gin.query_parameter(parameter)
    except ValueError:  # that is how gin says no
        return False
    return True


def decoding_of(task: str, config: DecodingConfig) -> DecodingConfig:
    """A task's decoding settings with what gin says: of all tasks, and of this one.

    --gin.DecodingConfig.beam_size=1 --gin.visual_grounding/DecodingConfig.max_length=4
    """
    changed: dict[str, Any] = {}
    for scope in ("", f"{task}/"):
        for field in dataclasses.fields(DecodingConfig):
            if _is_bound(parameter := f"{scope}DecodingConfig.{field.name}"):
                # Copying evaluates what it refers to.
                changed[field.name] = copy.deepcopy(gin.query_parameter(parameter))
    for name, value in changed.items():
        gin_registry.check_parameter(DecodingConfig, name, value)
    return config.replace(**changed)


if __name__ == "__main__":
    with distributed.crashes_end_at_once():
        main(sys.argv[1:])
