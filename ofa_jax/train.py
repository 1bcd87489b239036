"""Pretrains or fine-tunes OFA as gin files say.

    python -m ofa_jax.train --gin_file=gin_configs/runs/pretrain_scenes.gin --gin.TRAIN_STEPS=100

Whatever a user can get wrong is found in `prepare`, before the first compilation: it builds every
part of the run and checks the parts against each other. The loop then trains.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import gin
import jax
import numpy as np
import seqio
from absl import flags, logging
from clu import metric_writers
from etils import epath
from rich.console import Console

from ofa_jax.checkpoints import storage
from ofa_jax.checkpoints.manager import SaveError
from ofa_jax.checkpoints.warm_start import ResNetWarmStart, WarmStart
from ofa_jax.cli import common, gin_registry
from ofa_jax.data import seqio_bridge
from ofa_jax.data.features import Stream
from ofa_jax.data.task_settings import TaskSettings
from ofa_jax.decoding import Trie
from ofa_jax.evaluation import eval_spec
from ofa_jax.evaluation.rewards import CaptionReward
from ofa_jax.model import OFA, SIZES, OFAConfig, parameter_groups
from ofa_jax.sharding import Partitioner, train_state
from ofa_jax.tokenizers.processor import SIZES_OF_IMAGES, Processor
from ofa_jax.training import datasets, flops, loop, step
from ofa_jax.training.datasets import RunData
from ofa_jax.training.loop import Run
from ofa_jax.training.loop_config import LoopConfig
from ofa_jax.training.losses import LossConfig
from ofa_jax.training.optimizer import OptimizerConfig, make_optimizer
from ofa_jax.training.self_critical import SelfCritical, SelfCriticalConfig
from ofa_jax.utils import distributed, hardware
from ofa_jax.utils.suggestions import nearest


def model_config(size: str, **overrides: Any) -> OFAConfig:
    """One of the named sizes, with any field of `OFAConfig` overridden.

    Args:
      size: "tiny", "medium", "base", "large", "huge" (the published ones) or "scenes".
      **overrides: fields of `OFAConfig`, e.g. `dtype="bfloat16"`. `vocab_size` is filled in from
        the vocabulary of the run's tasks.

    Raises:
      ValueError: an unknown size or field, with the nearest right name.
    """
    if size not in SIZES:
        raise ValueError(
            f"model_config.size is {size!r}; the sizes are {', '.join(SIZES)}."
            f"{nearest(str(size), SIZES)}"
        )
    fields = {field.name for field in dataclasses.fields(OFAConfig)}
    for name in overrides:
        if name not in fields:
            raise ValueError(f"model_config has no parameter {name}.{nearest(name, fields)}")
    return getattr(OFAConfig, size)(**overrides)


def prepare(
    model_dir: str,
    model: OFAConfig,
    streams: Sequence[Stream],
    optimizer: OptimizerConfig,
    loop: LoopConfig,
    loss: LossConfig | None = None,
    partitioner: Partitioner | None = None,
    settings: TaskSettings | None = None,
    mixture_or_task_module: str | Sequence[str] | None = None,
    initial_checkpoint_path: str | None = None,
    initial_resnet_path: str | None = None,
    seed: int = 0,
    gradient_accumulation: int = 1,
    restrict_to_candidates: bool = False,
    self_critical: SelfCriticalConfig | None = None,
    train_split: str = "train",
    validation_split: str | None = "validation",
    validation_examples: int = 500,
    baseline_examples: int = 2000,
    num_threads: int = 2,
    num_workers: int = 0,
    peak_flops: float | None = None,
) -> Run:
    """Builds every part of a run and checks that they fit; compiles nothing.

    gin knows it as `train`.

    Args:
      model_dir: where everything of the run goes; a run that is there is continued.
      model: sizes and options.
      streams: one batch of each goes into every step.
      optimizer: and its schedule.
      loop: when to log, save and validate.
      loss: its options; plain cross-entropy when None.
      partitioner: the mesh; all devices along `data` when None.
      settings: what the tasks of this project run over; None for other tasks.
      mixture_or_task_module: module(s) to import, which register tasks and mixtures.
      initial_checkpoint_path: where a new run takes parameters and batch statistics from.
      initial_resnet_path: where it takes its ResNet from (after the checkpoint, if both are given):
        one that has learned what images show, as torchvision saves it.
      seed: of parameters, order, augmentation and dropout.
      gradient_accumulation: parts into which a step's batch is cut to save memory; see
        `step.make_train_step`.
      restrict_to_candidates: learn to choose among the answers that the tasks' `EvalSpec`s allow,
        instead of among all texts: only what continues one of them has probability.
      self_critical: learn from the CIDEr-D of the model's own captions instead of from those of the
        data, see `training.self_critical`; None for what the data says.
      train_split, validation_split: names of the data's splits; None for no validation.
      validation_examples: of each task, the first ones of the split.
      baseline_examples: of each task, the first ones of the training split; the baselines beside
        the validation losses know their targets.
      num_threads: that make batches.
      num_workers: processes that make batches, 0 for none.
      peak_flops: operations per second of one device, which MFU is a share of; the published figure
        of the device's kind when None. For a CPU, the rate that `tools.benchmark_step` measures.

    Raises:
      ValueError, FileNotFoundError, ImportError: with a sentence that says what to do.
    """
    common.import_task_modules(mixture_or_task_module, settings)
    if not streams:
        raise ValueError("train.streams is empty: give at least one Stream.")
    if peak_flops is None:
        peak_flops = hardware.peak_flops(jax.devices()[0].device_kind)
    elif peak_flops <= 0:
        raise ValueError(
            f"train.peak_flops is {peak_flops}; give the operations per second of one device, e.g. "
            "1.3e11, or None."
        )
    if settings is not None:
        check_codes(model, settings.code_image_size, streams)
    partitioner = partitioner or Partitioner()
    model = _with_vocabulary(model, streams, settings)
    if "resnet" in optimizer.frozen or "encoder" in optimizer.frozen:
        # Statistics that move under frozen kernels would train what is said to be frozen.
        model = model.replace(freeze_batch_norm=True)
    loss = loss or LossConfig(pad_id=model.pad_id)
    network = OFA(model)
    _check_batches(streams, partitioner, gradient_accumulation)

    training_data = RunData.open(
        streams, train_split, seed, partitioner, num_threads, num_workers, settings, training=True
    )
    loader = training_data.loader
    # The first batch shows what is wrong with records, sizes and lengths, in sentences.
    first = next(loader.batches(0))
    for stream in streams:
        check_fits(network, stream, first[stream.name])
    held_out = None
    if validation_split is not None:
        held_out = RunData.open(
            streams, validation_split, seed, partitioner, num_threads, num_workers, settings
        )
    batch_transform = None
    if self_critical is not None:
        self_critical.check(loss)
        if restrict_to_candidates:
            raise ValueError(
                "train.self_critical and train.restrict_to_candidates do not go together: captions "
                "are not chosen among given answers; leave one of them out."
            )
        batch_transform = _self_critical(
            self_critical, network, partitioner, training_data, seed, settings
        )
    tx = make_optimizer(optimizer)
    abstract = train_state.abstract_state(network, tx, partitioner, optimizer.ema_decay is not None)
    new_state = lambda: train_state.create_state(network, tx, abstract, seed)  # noqa: E731
    if initial_checkpoint_path is not None:
        initial = WarmStart.open(initial_checkpoint_path, model)
        create = new_state
        new_state = lambda: initial.take(create(), abstract, model)  # noqa: E731
    if initial_resnet_path is not None:
        resnet = ResNetWarmStart.open(initial_resnet_path, model)
        without = new_state
        new_state = lambda: resnet.take(without(), abstract)  # noqa: E731

    directory = epath.Path(model_dir)
    directory.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        storage.write_model(directory, model)
        _keep_interface(directory, streams, settings)
    groups = {stream.name: stream.loss_group for stream in streams}
    allowed = {}
    if restrict_to_candidates:
        allowed = {
            stream.name: _answers(stream, model, settings).allowed_along for stream in streams
        }
    num_tasks = len(loader.task_names)
    validation_batches = None
    # Tasks in seqio's own order have no fixed examples to be validated on.
    if held_out is not None and held_out.tasks:
        validation_batches = lambda: held_out.loader.validation_batches(  # noqa: E731
            held_out.tasks, validation_examples
        )
    return Run(
        model_dir=directory,
        identity={"seed": seed, "streams": [dataclasses.asdict(stream) for stream in streams]}
        | {
            "rates": {s.name: seqio_bridge.rates(s.mixture_or_task_name, settings) for s in streams}
        },
        config=loop,
        partitioner=partitioner,
        train_step=step.make_train_step(
            network,
            tx,
            optimizer,
            loss,
            groups,
            num_tasks,
            seed,
            gradient_accumulation,
            allowed,
            partitioner.make_gather_params(abstract.params, model.dtype),
        ),
        eval_step=step.make_eval_step(network, num_tasks, model.pad_id),
        abstract_state=abstract,
        new_state=new_state,
        batches=loader.batches,
        validation_batches=validation_batches,
        baselines=lambda: datasets.baselines(
            directory,
            model.vocab_size,
            training_data,
            held_out,
            baseline_examples,
            validation_examples,
        ),
        examples_per_step=sum(stream.batch_size for stream in streams),
        flops_per_step=_flops_per_step(streams, first, model, loss, optimizer, abstract.params),
        peak_flops=peak_flops,
        task_names=loader.task_names,
        skipped_records=loader.skipped_records.total,
        pad_id=model.pad_id,
        writer=metric_writers.create_default_writer(
            str(directory), just_logging=jax.process_index() > 0, asynchronous=False
        ),
        console=Console(quiet=jax.process_index() > 0),
        batch_transform=batch_transform,
    )


def _self_critical(
    config: SelfCriticalConfig,
    network: OFA,
    partitioner: Partitioner,
    data: RunData,
    seed: int,
    settings: TaskSettings | None,
) -> SelfCritical:
    """The reward is CIDEr-D, against the captions that the training records have."""
    streams = data.loader.streams
    if len(streams) > 1 or streams[0].name not in data.tasks:
        raise ValueError(
            "train.self_critical needs a single stream, of tasks made of records "
            f"(RecordDataSource and numpy preprocessors); the run has {len(streams)}: "
            f"{', '.join(stream.mixture_or_task_name for stream in streams)}."
        )
    (stream,) = streams
    vocabulary = seqio_bridge.vocabulary_of(stream.mixture_or_task_name, settings).wrapped
    records = {task.name: task.records for task in data.tasks[stream.name]}
    reward = CaptionReward.of_records(records, vocabulary.decode)
    return SelfCritical(
        network,
        config,
        partitioner,
        stream.name,
        lambda step, samples: reward(data.loader.origins(step)[stream.name], samples),
        seed,
    )


def _answers(stream: Stream, model: OFAConfig, settings: TaskSettings | None) -> Trie:
    """The answers that the stream's task allows."""
    task = eval_spec.find(stream.mixture_or_task_name, settings)
    if task.candidates is None:
        raise ValueError(
            "train.restrict_to_candidates is set, but any text may answer "
            f"{stream.mixture_or_task_name}: leave it out, or give the task's EvalSpec candidates."
        )
    encode = seqio_bridge.vocabulary_of(stream.mixture_or_task_name, settings).encode
    return Trie.from_sequences([encode(answer) for answer in task.candidates()], model.vocab_size)


def _with_vocabulary(
    model: OFAConfig, streams: Sequence[Stream], settings: TaskSettings | None
) -> OFAConfig:
    """The model with the vocabulary size of its tasks, which must all agree."""
    sizes = {}
    for stream in streams:
        vocabulary = seqio_bridge.vocabulary_of(stream.mixture_or_task_name, settings)
        sizes[stream.name] = vocabulary.vocab_size
    if len(set(sizes.values())) > 1:
        raise ValueError(
            "The streams have vocabularies of different sizes "
            f"({', '.join(f'{name}: {size}' for name, size in sizes.items())}): one model has one "
            "vocabulary."
        )
    return model.replace(vocab_size=next(iter(sizes.values())))


def _keep_interface(
    directory: epath.Path,
    streams: Sequence[Stream],
    settings: TaskSettings | None,
) -> None:
    """The run directory alone is enough to ask the model; not where the vocabulary is no OFA's."""
    name = streams[0].mixture_or_task_name
    vocabulary = getattr(seqio_bridge.vocabulary_of(name, settings), "wrapped", None)
    if vocabulary is None:
        return
    kept = Processor(vocabulary)
    if settings is not None:
        config = settings.evaluation_config
        kept = kept.replace(
            image_tokenizer=getattr(config, "image_tokenizer", None),
            **{name: getattr(config, name) for name in SIZES_OF_IMAGES if hasattr(config, name)},
        )
    seen = [stream.image_size for stream in streams if stream.image_size is not None]
    if seen:
        kept = kept.replace(image_size=max(seen))
    kept.save(directory)


def _check_batches(
    streams: Sequence[Stream], partitioner: Partitioner, gradient_accumulation: int
) -> None:
    """Every part of every batch divides over the devices; the loader checks whole batches."""
    parts = gradient_accumulation * partitioner.num_data_shards
    for stream in streams:
        if gradient_accumulation > 1 and stream.batch_size % parts:
            raise ValueError(
                f"Stream {stream.name!r} has a batch_size of {stream.batch_size}, which does not "
                f"divide into train.gradient_accumulation = {gradient_accumulation} parts over "
                f"{partitioner.num_data_shards} devices: make it a multiple of {parts}."
            )


def check_codes(model: OFAConfig, size: int, streams: Sequence[Stream]) -> None:
    """The decoder's positions of image codes are those of the grid that the data has."""
    if any(stream.code_targets for stream in streams) and size != model.code_image_size:
        raise ValueError(
            f"model_config.code_image_size is {model.code_image_size}, but what is turned into "
            f"codes is {size} pixels a side: make them equal."
        )


def check_fits(network: OFA, stream: Stream, batch: Mapping[str, np.ndarray]) -> None:
    """Whether the model takes the stream's batches; says where the misfit is."""
    try:
        one = {name: array[:1] for name, array in batch.items()}
        jax.eval_shape(lambda: network.init(jax.random.key(0), one))
    except ValueError as error:
        raise ValueError(f"Stream {stream.name!r} does not fit the model: {error}") from error


def _flops_per_step(
    streams: Sequence[Stream],
    first: Mapping[str, Mapping[str, np.ndarray]],
    model: OFAConfig,
    loss: LossConfig,
    optimizer: OptimizerConfig,
    params: Any,
) -> int:
    """Of the whole batch; `first` holds this host's rows of it."""
    shapes = {
        stream.name: {
            name: jax.ShapeDtypeStruct((stream.batch_size, *array.shape[1:]), array.dtype)
            for name, array in first[stream.name].items()
        }
        for stream in streams
    }
    learns = parameter_groups.trainable_mask(params, optimizer.frozen, optimizer.trainable_groups)
    factors = flops.training_factors(params, learns)
    return flops.training_flops(shapes, model, loss.passes, factors)


def main(arguments: Sequence[str]) -> None:
    """Runs the command line `arguments` (without the program)."""
    flags.FLAGS(["train"])  # grain reads its options from absl
    logging.set_verbosity(logging.WARNING)
    with common.user_errors():
        gin_registry.register({"train": prepare, "model_config": model_config})
        common.parse_arguments("python -m ofa_jax.train", __doc__ or "", arguments)
        seqio.set_global_cache_dirs([])
        run = gin.get_configurable("train")()
        if jax.process_index() == 0:
            (run.model_dir / "config.gin").write_text(gin.operative_config_str())
        _describe(run)
    try:
        loop.train(run)
    except (loop.RunError, FloatingPointError) as error:
        common.fail(error)
    except SaveError as error:
        common.fail(error, common.FAILURE)


def _describe(run: Run) -> None:
    parameters = sum(x.size for x in jax.tree.leaves(run.abstract_state.params))
    mesh = " x ".join(f"{name} {size}" for name, size in run.partitioner.mesh.shape.items())
    streams = ", ".join(
        f"{stream['name']} {stream['batch_size']}" for stream in run.identity["streams"]
    )
    run.console.print(
        f"{parameters:,} parameters on {jax.device_count()} {jax.default_backend()} device(s), "
        f"mesh {mesh}; examples per step: {streams}.",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    with distributed.crashes_end_at_once():
        main(sys.argv[1:])
