"""Builds a run from its configuration: every part, checked against the others, nothing compiled.

open the datasets ─▶ check the first batch against the model ─▶ candidate tries
  ─▶ train program (network, state, step) ─▶ self-critical transform ─▶ initial state ─▶ Run
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any

import jax
from etils import epath
from rich.console import Console

from ofa_jax.checkpoints.warm_start import ResNetWarmStart, WarmStart
from ofa_jax.data import seqio_bridge
from ofa_jax.data.features import AT_LEAST_ONE_STREAM, Stream
from ofa_jax.data.model_checks import check_codes, check_fits
from ofa_jax.data.task_settings import TaskSettings
from ofa_jax.decoding import Trie
from ofa_jax.evaluation import eval_spec
from ofa_jax.evaluation.rewards import CaptionReward, ImageReward
from ofa_jax.model import OFA, OFAConfig
from ofa_jax.sharding import Partitioner, TrainState
from ofa_jax.tokenizers.processor import IMAGE_SIZE_FIELDS, Processor
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.training import checks, datasets, memory_checks
from ofa_jax.training.datasets import RunData
from ofa_jax.training.galleries import GalleryConfig, make_galleries
from ofa_jax.training.loop_config import LoopConfig
from ofa_jax.training.losses import LossConfig
from ofa_jax.training.metric_writers import MetricWriters, make_writer
from ofa_jax.training.optimizer import OptimizerConfig
from ofa_jax.training.run import HostBatch, Run
from ofa_jax.training.self_critical import SelfCritical, SelfCriticalConfig
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
      settings: what the tasks of this project run over; None for other tasks.
      mixture_or_task_module: module(s) to import, which register tasks and mixtures.
      initial_checkpoint_path: where a new run takes parameters and batch statistics from.
      initial_checkpoint_weights: which parameters of that checkpoint: "model" for the last ones,
        "ema" for the averaged ones.
      initial_resnet_path: where a new run takes its ResNet from, as torchvision saves a trained
        one; it replaces that of the checkpoint if both are given.
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
      peak_flops: operations per second of one device, which MFU is a share of; the published figure
        of the device's kind when None. For a CPU, use the rate that `tools.benchmark_step`
        measures.
      check_memory: whether to refuse a run that needs more memory than there is, by an estimate
        from below.
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
    if settings is not None:
        check_codes(model, settings.code_image_size, streams)
    partitioner = partitioner or Partitioner()
    model = training_model(_with_vocabulary_size(model, streams, settings), optimizer)
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
    data = open_split(train_split, training=True)
    first_batches = _checked_first_batches(OFA(model), streams, data)
    held_out = open_split(validation_split) if validation_split is not None else None
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
    batch_transform = _build_self_critical(self_critical, program, data, seed, settings)
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
        validation_batches=_validation_batches(held_out, validation_examples),
        baselines=lambda: datasets.baselines(
            directory, model.vocab_size, data, held_out, baseline_examples, validation_examples
        ),
        examples_per_step=sum(stream.batch_size for stream in streams),
        flops_per_step=program.model_flops(abstract_batches(streams, first_batches)),
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
            galleries, program, held_out, settings, directory, validation_split
        ),
        model=model,
        processor=make_processor(streams, settings),
    )


def _with_vocabulary_size(
    model: OFAConfig, streams: Sequence[Stream], settings: TaskSettings | None
) -> OFAConfig:
    """Returns the model with the vocabulary size of its tasks; raises ValueError if they differ."""
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
    return model.replace(vocab_size=next(iter(sizes.values())))


def _checked_first_batches(
    network: OFA, streams: Sequence[Stream], data: RunData
) -> Mapping[str, HostBatch]:
    """Returns the batches of step 0, whose records, sizes and lengths are checked by the model."""
    batches = next(data.loader.batches(0))
    for stream in streams:
        check_fits(network, stream, batches[stream.name])
    return batches


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


def _build_self_critical(
    config: SelfCriticalConfig | None,
    program: TrainProgram,
    data: RunData,
    seed: int,
    settings: TaskSettings | None,
) -> SelfCritical | None:
    """Builds the transform whose reward is CIDEr-D, or a ranker's score of images.

    Returns:
      None without a configuration: the run trains on the targets of the data.

    Raises:
      ValueError: options or data that self-critical training cannot use.
    """
    if config is None:
        return None
    config.check(program.loss)
    streams = data.loader.streams
    if len(streams) > 1 or streams[0].name not in data.tasks:
        raise ValueError(
            "train.self_critical needs a single stream, of tasks made of records "
            f"(RecordDataSource and numpy preprocessors); the run has {len(streams)}: "
            f"{', '.join(stream.mixture_or_task_name for stream in streams)}."
        )
    (stream,) = streams
    records = {task.name: task.records for task in data.tasks[stream.name]}
    vocabulary = seqio_bridge.vocabulary_of(stream.mixture_or_task_name, settings)
    reward: CaptionReward | ImageReward
    if config.ranker is None:
        reward = CaptionReward.of_records(records, vocabulary.decode)
    else:
        if getattr(getattr(settings, "config", None), "caption_dropout", 0):
            raise ValueError(
                "SelfCriticalConfig.ranker compares each image with its caption, but "
                "DownstreamSettings.options leaves out captions: set its caption_dropout to 0."
            )
        processor = Processor(vocabulary, getattr(settings, "image_tokenizer", None))
        reward = ImageReward(records, processor, config.ranker, config.reward_scale)
    return SelfCritical(
        program.network,
        config,
        program.partitioner,
        stream.name,
        lambda step, samples: reward(data.loader.record_ids(step)[stream.name], samples),
        seed,
    )


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


def _validation_batches(
    held_out: RunData | None, num_examples: int
) -> Callable[[], Iterable[tuple[str, HostBatch]]] | None:
    """Returns what makes the validation batches; None where there are no fixed examples."""
    # Tasks in seqio's own order have no fixed examples to be validated on.
    if held_out is None or not held_out.tasks:
        return None
    data = held_out
    return lambda: data.loader.validation_batches(data.tasks, num_examples)
