"""Builds a run from its configuration: every part, checked against the others, nothing compiled.

open the datasets ─▶ check the first batch against the model ─▶ candidate tries
  ─▶ train program (network, state, step) ─▶ self-critical transform ─▶ initial state ─▶ Run
"""

import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import jax
from etils import epath
from rich.console import Console

from ofa_jax.checkpoints.warm_start import ResNetWarmStart, WarmStart
from ofa_jax.data import seqio_bridge
from ofa_jax.data.features import AT_LEAST_ONE_STREAM, Stream
from ofa_jax.data.model_checks import check_codes
from ofa_jax.data.task_settings import TaskSettings
from ofa_jax.decoding import Trie
from ofa_jax.evaluation import eval_spec
from ofa_jax.model import OFA, OFAConfig
from ofa_jax.sharding import Partitioner, TrainState
from ofa_jax.tokenizers.processor import IMAGE_SIZE_FIELDS, Processor
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.training import checks, memory_checks
from ofa_jax.training.datasets import RunData, RunSplits
from ofa_jax.training.galleries import GalleryConfig, make_galleries
from ofa_jax.training.loop_config import LoopConfig
from ofa_jax.training.losses import LossConfig
from ofa_jax.training.metric_writers import MetricWriters, make_writer
from ofa_jax.training.optimizer import OptimizerConfig
from ofa_jax.training.run import Run
from ofa_jax.training.self_critical import SelfCriticalConfig
from ofa_jax.training.self_critical_rewards import build_self_critical
from ofa_jax.training.train_program import (
    TrainProgram,
    abstract_batches,
    build_train_program,
    loss_groups_of,
    training_model,
)
from ofa_jax.utils import options
from ofa_jax.utils.modules import import_task_modules
from ofa_jax.utils.option_checks import checked

PeakFlops = Annotated[
    options.Positive,
    options.Help("Give the operations per second of one device, e.g. 1.3e11, or None."),
]
"""Operations per second that utilisation is a share of."""
_NUM_RECORDS = "num_records"
"""Key of the fingerprint: the numbers of records, which earlier versions did not save."""


@checked
def build_run(
    model_dir: options.Path,
    model: OFAConfig,
    streams: Annotated[Sequence[Stream], options.NotEmpty(), AT_LEAST_ONE_STREAM],
    optimizer: OptimizerConfig,
    loop: LoopConfig,
    loss: LossConfig | None = None,
    partitioner: Partitioner | None = None,
    settings: TaskSettings | None = None,
    mixture_or_task_module: options.Modules | None = None,
    initial_checkpoint_path: options.Path | None = None,
    initial_checkpoint_weights: options.Name = "model",
    initial_resnet_path: options.Path | None = None,
    seed: options.Seed = 0,
    gradient_accumulation: options.Count = 1,
    restrict_to_candidates: bool = False,
    self_critical: SelfCriticalConfig | None = None,
    train_split: options.Name = "train",
    validation_split: options.Name | None = "validation",
    validation_examples: options.Count = 500,
    baseline_examples: options.Natural = 2000,
    gallery_examples: options.Natural = 4,
    final_gallery_examples: options.Natural = 12,
    num_threads: options.Threads = 2,
    num_workers: options.Workers = 0,
    peak_flops: PeakFlops | None = None,
    check_memory: bool = True,
    metric_writers: MetricWriters = (),
) -> Run:
    """Builds every part of a run and checks that the parts fit together; compiles nothing.

    gin knows it as `train`.

    Args:
      model_dir: where everything of the run goes; an existing run is continued.
      model: sizes and options.
      streams: every step takes one batch of each.
      optimizer: and its schedule.
      loop: when to log, save and validate.
      loss: its options; plain cross-entropy when None.
      partitioner: the mesh; all devices along `data` when None.
      settings: data set, vocabulary and options of this project's tasks; None for other tasks.
      mixture_or_task_module: module(s) to import, which register tasks and mixtures.
      initial_checkpoint_path: where a new run takes parameters and batch statistics from.
      initial_checkpoint_weights: which parameters of that checkpoint: "model" for the last ones,
        "ema" for the averaged ones.
      initial_resnet_path: a file of a trained ResNet, as torchvision saves it, from which a new run
        takes its ResNet; it replaces that of the checkpoint if both are given.
      seed: of parameters, order, augmentation and dropout.
      gradient_accumulation: number of parts into which the batch of a step is cut to save memory;
        see `step.make_train_step`.
      restrict_to_candidates: masks the training softmax to the trie of the candidates that each
        task's `EvalSpec` lists.
      self_critical: trains on the CIDEr-D of the model's own captions, or on a CLIP's scores of
        its images, see `training.self_critical`; None to train on the targets of the data.
      train_split: name of the split that is trained on.
      validation_split: name of the split for validation; None for no validation.
      validation_examples: number of examples of each task, the first ones of the split.
      baseline_examples: number of training examples of each task, the first ones, from which the
        baselines beside the validation losses are computed.
      gallery_examples: number of validation examples of each task that are predicted and shown at
        each validation, see `training.galleries`; 0 for none. They are one batch, which is decoded
        greedily; a run compiles one to six programs for it.
      final_gallery_examples: the same for the last validation, in batches of that size.
      num_threads: threads that make batches.
      num_workers: processes that make batches; 0 for none.
      peak_flops: the most operations per second that one device can do, the divisor of MFU; the
        published figure of the device's kind when None. For a CPU, use the rate that
        `tools.benchmark_step` measures.
      check_memory: whether to refuse a run if a lower bound on its memory exceeds what there is.
      metric_writers: further writers of metrics beside TensorBoard, see `training.metric_writers`.

    Raises:
      ValueError, FileNotFoundError, ImportError: with a sentence that says what to do.
    """
    import_task_modules(mixture_or_task_module, settings)
    checks.check_target_options(self_critical, restrict_to_candidates)
    peak_flops = checks.checked_peak_flops(peak_flops)
    # Nothing is written here: the loop writes once it has accepted the run.
    directory = epath.Path(model_dir)
    writer = make_writer(directory, metric_writers)
    model = _model_of_tasks(model, streams, settings, optimizer)
    partitioner = partitioner or Partitioner()
    checks.check_accumulation(streams, partitioner, gradient_accumulation)
    checks.check_ids(loss, model)
    if check_memory:
        memory_checks.check_memory(
            model, streams, optimizer, partitioner, gradient_accumulation, num_workers
        )

    open_split = functools.partial(
        RunData.open,
        streams,
        seed=seed,
        partitioner=partitioner,
        num_threads=num_threads,
        num_workers=num_workers,
        settings=settings,
    )
    splits = RunSplits.open(open_split, train_split, validation_split, OFA(model))
    data = splits.training
    program = build_train_program(
        model,
        optimizer,
        loss,
        partitioner,
        loss_groups_of(streams),
        len(data.loader.task_names),
        seed,
        gradient_accumulation,
        _candidate_tries(streams, model.vocab_size, settings) if restrict_to_candidates else None,
    )
    batch_transform = build_self_critical(self_critical, program, data, seed, settings)
    new_state = _initial_state(
        program, seed, initial_checkpoint_path, initial_checkpoint_weights, initial_resnet_path
    )
    galleries = GalleryConfig(gallery_examples, final_gallery_examples)
    return Run(
        model_dir=directory,
        run_fingerprint=_run_fingerprint(seed, streams, settings, data),
        config=loop,
        partitioner=partitioner,
        train_step=program.train_step,
        eval_step=program.eval_step,
        abstract_state=program.abstract_state,
        new_state=new_state,
        batches=data.loader.batches,
        validation_batches=splits.validation_batches(validation_examples),
        baselines=functools.partial(
            splits.baselines, directory, model.vocab_size, baseline_examples, validation_examples
        ),
        examples_per_step=sum(stream.batch_size for stream in streams),
        flops_per_step=program.model_flops(abstract_batches(streams, splits.first_batches)),
        peak_flops=peak_flops,
        task_names=data.loader.task_names,
        skipped_records=data.loader.skipped_records.total,
        pad_id=model.pad_id,
        writer=writer,
        console=Console(quiet=jax.process_index() > 0),
        batch_transform=batch_transform,
        new_in_fingerprint=(_NUM_RECORDS,),
        findings=lambda: data.loader.findings,
        galleries=make_galleries(
            galleries, program, splits.validation, settings, directory, validation_split
        ),
        model=model,
        processor=make_processor(streams, settings),
    )


def _model_of_tasks(
    model: OFAConfig,
    streams: Sequence[Stream],
    settings: TaskSettings | None,
    optimizer: OptimizerConfig,
) -> OFAConfig:
    """Returns the model that is trained, with the vocabulary size of its tasks.

    Raises:
      ValueError: it does not fit the image codes of the tasks, or their vocabularies differ in
        size.
    """
    if settings is not None:
        check_codes(model, settings.code_image_size, streams)
    sizes = {
        stream.name: seqio_bridge.vocabulary_of(stream.mixture_or_task_name, settings).vocab_size
        for stream in streams
    }
    if len(set(sizes.values())) > 1:
        raise ValueError(
            "The streams have vocabularies of different sizes "
            f"({', '.join(f'{name}: {size}' for name, size in sizes.items())}): one model has one "
            "vocabulary."
        )
    return training_model(model.replace(vocab_size=next(iter(sizes.values()))), optimizer)


def _candidate_tries(
    streams: Sequence[Stream], vocab_size: int, settings: TaskSettings | None
) -> dict[str, Trie]:
    """Returns stream name -> the trie of the candidates that its task allows.

    Raises:
      ValueError: a task that has no list of candidates.
    """
    tries = {}
    for stream in streams:
        spec = eval_spec.find(stream.mixture_or_task_name, settings)
        if spec.candidates is None:
            raise ValueError(
                "train.restrict_to_candidates is set, but there are no candidates for "
                f"{stream.mixture_or_task_name}: leave it out, or give the task's EvalSpec "
                "candidates."
            )
        encode = seqio_bridge.vocabulary_of(stream.mixture_or_task_name, settings).encode
        encoded = [[int(index) for index in encode(c)] for c in spec.candidates()]
        tries[stream.name] = Trie.from_sequences(encoded, vocab_size)
    return tries


def _initial_state(
    program: TrainProgram,
    seed: int,
    initial_checkpoint_path: str | None,
    initial_checkpoint_weights: str,
    initial_resnet_path: str | None,
) -> Callable[[], TrainState]:
    """Returns the function that makes the state of step 0; checkpoints are opened here already."""
    model, abstract = program.network.config, program.abstract_state
    checkpoint = resnet = None
    if initial_checkpoint_path is not None:
        checkpoint = WarmStart.open(initial_checkpoint_path, model, initial_checkpoint_weights)
    if initial_resnet_path is not None:
        resnet = ResNetWarmStart.open(initial_resnet_path, model)

    def new_state() -> TrainState:
        state = program.new_state(seed)
        if checkpoint is not None:
            state = checkpoint.initialize(state, abstract, model)
        if resnet is not None:
            state = resnet.initialize(state, abstract)
        return state

    return new_state


def make_processor(streams: Sequence[Stream], settings: TaskSettings | None) -> Processor | None:
    """Returns what inference needs beside the model; None for a vocabulary that is not OFA's."""
    name = streams[0].mixture_or_task_name
    vocabulary = seqio_bridge.vocabulary_of(name, settings)
    if not isinstance(vocabulary, OFAVocabulary):
        return None
    processor = Processor(vocabulary)
    if settings is not None:
        config = settings.evaluation_config
        processor = processor.replace(
            # The downstream tasks read codes from files, so only their settings have a tokenizer.
            image_tokenizer=getattr(config, "image_tokenizer", None)
            or getattr(settings, "image_tokenizer", None),
            **{name: getattr(config, name) for name in IMAGE_SIZE_FIELDS if hasattr(config, name)},
        )
    image_sizes = [stream.image_size for stream in streams if stream.image_size is not None]
    if image_sizes:
        processor = processor.replace(image_size=max(image_sizes))
    return processor


def _run_fingerprint(
    seed: int, streams: Sequence[Stream], settings: TaskSettings | None, data: RunData
) -> dict[str, Any]:
    """Returns what must not change when a run is continued; its keys stand in checkpoints."""
    return {
        "seed": seed,
        "streams": [stream.fingerprint() for stream in streams],
        "rates": {
            stream.name: seqio_bridge.rates(stream.mixture_or_task_name, settings)
            for stream in streams
        },
        # The order of a task's examples depends on how many records it has.
        _NUM_RECORDS: {
            stream: {task.name: len(task.records) for task in tasks}
            for stream, tasks in data.tasks.items()
        },
    }
