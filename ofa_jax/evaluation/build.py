"""Builds an evaluation from its configuration.

select checkpoints ─▶ load the tasks of all streams ─▶ check the model against the tasks
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Annotated

import jax
from etils import epath
from rich.console import Console

from ofa_jax.checkpoints.load import load_config
from ofa_jax.checkpoints.watch import Checkpoint, CheckpointSelector, Selection
from ofa_jax.data import seqio_bridge
from ofa_jax.data.features import AT_LEAST_ONE_STREAM, Stream, empty_features, stack
from ofa_jax.data.model_checks import check_codes, check_fits
from ofa_jax.data.task_settings import TaskSettings
from ofa_jax.evaluation import memory_checks
from ofa_jax.evaluation.evaluator import EvalTask, Evaluator
from ofa_jax.evaluation.event_writer import EventWriter
from ofa_jax.evaluation.fingerprints import of_weights
from ofa_jax.evaluation.image_ranking import ImageRanker, ImageRanking
from ofa_jax.evaluation.load_tasks import OverrideDecoding, TaskLoader
from ofa_jax.model import OFA, OFAConfig
from ofa_jax.sharding import Partitioner
from ofa_jax.tokenizers.image_tokenizer import ImageTokenizer
from ofa_jax.tokenizers.processor import Processor
from ofa_jax.utils import options
from ofa_jax.utils.modules import import_task_modules
from ofa_jax.utils.option_checks import checked
from ofa_jax.utils.suggestions import nearest

_CHECK_MEMORY = "evaluate.check_memory"
"""The option that turns the estimates of memory off."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Everything that `run_evaluation` needs.

    Attributes:
      selector: selects the checkpoints.
      model_dir: the run directory, to which the names of checkpoints are relative.
      directory: folder of the results.
      tasks: the tasks to evaluate.
      make_evaluator: creates an evaluator of a model; checks that the model fits the tasks.
      evaluator: evaluator of the model if it is known already.
      partitioner: the mesh.
      dtype: dtype of the computation; None for the model's own.
      weights: which parameters of a checkpoint, see `load_variables`.
      writer: of TensorBoard's events in `directory`.
      console: prints progress and results.
      operative_config: what is written to `config.gin` in `directory`, if anything.
      gallery_examples: number of examples in the gallery of each task; 0 for none.
      image_tokenizer: shows image codes in galleries as images.
      at_end: is called when the results are printed, before sentences on what was not scored.
    """

    selector: CheckpointSelector
    model_dir: epath.Path
    directory: epath.Path
    tasks: Sequence[EvalTask]
    make_evaluator: Callable[[OFAConfig], Evaluator]
    evaluator: Evaluator | None
    partitioner: Partitioner
    dtype: str | None
    weights: str | None
    writer: EventWriter
    console: Console
    operative_config: str = ""
    gallery_examples: int = 0
    image_tokenizer: ImageTokenizer | None = None
    at_end: Callable[[], None] = lambda: None

    def model_config(self, checkpoint: Checkpoint) -> OFAConfig:
        """Returns the configuration of a checkpoint's model, with the dtype of the evaluation."""
        config = load_config(checkpoint.path)
        return config if self.dtype is None else config.replace(dtype=self.dtype)

    def checkpoint_name(self, checkpoint: Checkpoint) -> str:
        """Returns the name of a checkpoint in the settings, relative to a run that may be moved."""
        path, root = epath.Path(checkpoint.path), epath.Path(self.model_dir).resolve()
        name = str(path.relative_to(root) if path.is_relative_to(root) else path)
        return name if self.weights is None else f"{name} ({self.weights})"

    def log(self, message: str) -> None:
        """Prints a message without colours and line breaks."""
        _print_line(self.console, message)


@checked
def build_evaluation(
    model_dir: options.Path,
    streams: Annotated[Sequence[Stream], options.NotEmpty(), AT_LEAST_ONE_STREAM],
    checkpoint_path: options.Path | None = None,
    checkpoints: Selection = "newest",
    split: options.Name = "validation",
    tasks: options.Name | Annotated[Sequence[options.Name], options.NotEmpty()] | None = None,
    num_examples: options.Count | None = None,
    batch_size: options.Count | None = None,
    settings: TaskSettings | None = None,
    mixture_or_task_module: options.Modules | None = None,
    partitioner: Partitioner | None = None,
    dtype: options.Dtype | None = None,
    weights: options.Name | None = None,
    directory: options.Path | None = None,
    last_step: options.Natural | None = None,
    timeout_seconds: options.Timeout = 3600,
    poll_seconds: options.Timeout = 10,
    seed: options.Seed = 0,
    candidates_at_once: options.Count = 32,
    batches_per_part: options.Count = 16,
    num_threads: options.Threads = 2,
    num_workers: options.Workers = 0,
    gallery_examples: options.Natural = 12,
    override_decoding: OverrideDecoding = lambda task, config: config,
    check_memory: bool = True,
    image_ranker: ImageRanker | None = None,
) -> Evaluation:
    """Builds every part of an evaluation and checks that the parts fit.

    Compiles nothing and writes nothing.

    gin knows it as `evaluate`.

    Args:
      model_dir: the run directory; results go below it.
      streams: tasks with their shapes; the tasks of a mixture are evaluated one by one.
      checkpoint_path: a run directory, a folder `checkpoints/<step>`, or an official checkpoint
        (`.pt`); `model_dir` when None.
      checkpoints: "newest", "all", "watch" (as training writes them), or a list of steps.
      split: the split of the data.
      tasks: names of the tasks to evaluate; None for all tasks of the streams.
      num_examples: how many examples of each task, from the first; None for all.
      batch_size: over all hosts; None for that of each stream.
      settings: settings of the project's tasks; None for other tasks.
      mixture_or_task_module: module(s) to import, which register tasks and their EvalSpecs.
      partitioner: the mesh; all devices along `data` when None.
      dtype: dtype of the computation; None for that of the run.
      weights: "model" for the last parameters of a checkpoint, "ema" for the averaged ones; when
        None, those of a run are the averaged ones if it has them, and those of an official
        checkpoint the last ones.
      directory: folder of the results; `<model_dir>/evaluations/<split>` when None.
      last_step: watching ends after the checkpoint of this step.
      timeout_seconds: watching ends when no new checkpoint appears for this time.
      poll_seconds: time between two looks for new checkpoints.
      seed: seed of the preprocessors' draws and of sampling.
      candidates_at_once: candidates that are scored together, see `make_scorer`.
      batches_per_part: batches per written part of the predictions.
      num_threads: threads that prepare batches.
      num_workers: processes that prepare batches, instead of threads; 0 for none.
      check_memory: whether to refuse the work if a lower bound on its memory exceeds what there is.
      gallery_examples: number of examples in the gallery of each task, half of them the worst and
        half the best; 0 for no gallery.
      override_decoding: changes a task's decoding settings.
      image_ranker: chooses among the images that are sampled for a caption, and scores the chosen
        ones (the metric `image_score`), such as CLIP; None takes the most probable ones.

    Raises:
      ValueError, FileNotFoundError, ImportError: an argument cannot be used; the message says what
        to do.
    """
    import_task_modules(mixture_or_task_module, settings)
    selector = CheckpointSelector(
        checkpoint_path or model_dir, checkpoints, last_step, timeout_seconds, poll_seconds
    )
    existing = selector.list_existing()
    partitioner = partitioner or Partitioner()
    streams = [_with_batch_size(stream, batch_size) for stream in streams]
    if check_memory:
        memory_checks.check_host(streams, partitioner, num_workers, _CHECK_MEMORY)
    console = Console(quiet=jax.process_index() > 0)
    log = functools.partial(_print_line, console)
    loader = TaskLoader(
        split,
        partitioner,
        num_examples,
        batch_size,
        override_decoding,
        seed,
        num_threads,
        num_workers,
        settings,
    )
    only = [tasks] if isinstance(tasks, str) else tasks
    _check_task_names(only, streams, settings)
    loaded = [
        (_with_options(task, dtype, image_ranker, settings), stream)
        for task, stream in _load_tasks(loader, streams, only, log)
    ]
    root = _results_folder(model_dir, directory, split)

    def make_evaluator(config: OFAConfig) -> Evaluator:
        if settings is not None:
            check_codes(config, settings.code_image_size, streams)
        evaluator = Evaluator(
            OFA(config), partitioner, root, seed, candidates_at_once, batches_per_part, log
        )
        for task, stream in loaded:
            _check_model(config, task, stream)
            if check_memory:
                _check_memory(config, task, stream, candidates_at_once, partitioner)
            evaluator.decoder(task)
        return evaluator

    evaluation = Evaluation(
        selector=selector,
        model_dir=epath.Path(model_dir),
        directory=root,
        tasks=[task for task, _ in loaded],
        make_evaluator=make_evaluator,
        evaluator=None,
        partitioner=partitioner,
        dtype=dtype,
        weights=weights,
        writer=EventWriter(root, "the evaluation", log),
        console=console,
        gallery_examples=gallery_examples,
        image_tokenizer=getattr(settings, "image_tokenizer", None),
    )
    return _with_evaluator(evaluation, existing)


def _with_options(
    task: EvalTask, dtype: str | None, ranker: ImageRanker | None, settings: TaskSettings | None
) -> EvalTask:
    """Returns a task with the dtype of the evaluation, its images ranked if it generates some.

    Raises:
      ValueError: there is a ranker, but no image tokenizer.
    """
    task = task.replace_settings(dtype=dtype)
    if ranker is None or task.spec.unconditional is None:
        return task
    tokenizer = getattr(settings, "image_tokenizer", None)
    if tokenizer is None:
        raise ValueError(
            "evaluate.image_ranker ranks images, but nothing decodes their codes: set "
            "DownstreamSettings.image_tokenizer, e.g. to @vqgan() with vqgan.path."
        )
    return task.rank_images(ImageRanking(Processor(task.vocabulary, tokenizer), ranker))


def _with_batch_size(stream: Stream, batch_size: int | None) -> Stream:
    """Returns a stream with another batch size, if one is given."""
    return stream if batch_size is None else dataclasses.replace(stream, batch_size=batch_size)


def _print_line(console: Console, message: str) -> None:
    """Prints a message without colours and line breaks."""
    # Without markup: "[/a]" in a path or in an exception's text would be taken for some.
    console.print(message, highlight=False, soft_wrap=True, markup=False)


def _results_folder(model_dir: str, directory: str | None, split: str) -> epath.Path:
    """Returns the folder of the results.

    Raises:
      ValueError: it is no folder of its own, so results would replace files of a run.
    """
    if directory is None and (split in ("", ".", "..") or "/" in split or "\0" in split):
        raise ValueError(
            f"evaluate.split is {split!r}, which cannot name a folder: set evaluate.directory."
        )
    root = epath.Path(directory) if directory else epath.Path(model_dir) / "evaluations" / split
    if not root.is_absolute():
        root = root.resolve()
    if root.exists() and not root.is_dir():
        raise ValueError(f"evaluate.directory is {root}, which is a file: give a folder.")
    for name in ("checkpoints", "model.json", "state"):
        if (root / name).exists():
            raise ValueError(
                f"evaluate.directory is {root}, which holds a run ({name}): its config.gin would "
                "be replaced. Give another folder, or leave it out."
            )
    return root


def _check_task_names(
    only: Sequence[str] | None, streams: Sequence[Stream], settings: TaskSettings | None
) -> None:
    """Raises ValueError if `evaluate.tasks` names a task that no stream has."""
    if only is None:
        return
    known = [
        task
        for stream in streams
        for task in seqio_bridge.rates(stream.mixture_or_task_name, settings)
    ]
    for name in only:
        if name not in known:
            raise ValueError(
                f"evaluate.tasks names {name}, which none of the streams has.{nearest(name, known)}"
            )


def _load_tasks(
    loader: TaskLoader,
    streams: Sequence[Stream],
    only: Sequence[str] | None,
    log: Callable[[str], None],
) -> list[tuple[EvalTask, Stream]]:
    """Loads the tasks of all streams, each with its stream."""
    loaded: dict[str, tuple[EvalTask, Stream]] = {}
    for stream in streams:
        for task in loader.load(stream, only, log):
            if task.name in loaded:
                raise ValueError(
                    f"Streams {loaded[task.name][1].name!r} and {stream.name!r} both have the task "
                    f"{task.name}: leave it out of one."
                )
            loaded[task.name] = task, stream
    return list(loaded.values())


def _check_memory(
    config: OFAConfig,
    task: EvalTask,
    stream: Stream,
    candidates_at_once: int,
    partitioner: Partitioner,
) -> None:
    """Raises ValueError if decoding a batch of a task needs more memory than there is."""
    at_once = candidates_at_once if task.spec.score_all else None
    memory_checks.check_task(
        config, stream, task.spec.decoding, at_once, partitioner, _CHECK_MEMORY
    )


def _check_model(config: OFAConfig, task: EvalTask, stream: Stream) -> None:
    """Raises ValueError if a model cannot be evaluated on a task."""
    if config.vocab_size != task.vocabulary.vocab_size:
        raise ValueError(
            f"The checkpoint's model has a vocabulary of {config.vocab_size} ids, that of "
            f"{task.name} has {task.vocabulary.vocab_size}: evaluate with the vocabulary that it "
            "was trained with."
        )
    row = empty_features(dataclasses.replace(stream, num_sampled_patches=None), 0)
    check_fits(OFA(config), stream, stack([row]))
    try:
        task.spec.decoding.max_output_length(stream.task_feature_lengths["inputs"], config)
    except ValueError as error:
        raise ValueError(f"Task {task.name} does not fit the model: {error}") from error


def _with_evaluator(evaluation: Evaluation, existing: Sequence[Checkpoint]) -> Evaluation:
    """Creates the evaluator of the existing checkpoints, and checks their earlier predictions.

    Without a checkpoint (training has not written one yet) the evaluator is created later.
    """
    if not existing:
        return evaluation
    try:
        evaluator = evaluation.make_evaluator(evaluation.model_config(existing[-1]))
    except FileNotFoundError:
        if not evaluation.selector.watching:
            raise
        return evaluation  # training has just deleted the checkpoint
    for checkpoint in existing:
        name, weights = evaluation.checkpoint_name(checkpoint), of_weights(checkpoint.path)
        for task in evaluation.tasks:
            evaluator.check_settings(task, checkpoint.step, name, weights)
    return dataclasses.replace(evaluation, evaluator=evaluator)
