"""Builds the training of a VQGAN from its configuration, as a run of the loop; and exports it."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from rich.console import Console

from ofa_jax.checkpoints import storage
from ofa_jax.interop import image_tokenizer_file, vqgan_file
from ofa_jax.sharding import Partitioner, TrainState
from ofa_jax.tokenizers import ImageTokenizer
from ofa_jax.tokenizers.vqgan import VQGAN, VQGANConfig
from ofa_jax.training.image_tokenizer import discriminator
from ofa_jax.training.image_tokenizer.batches import ImageBatches, ImageLoader, evaluation_images
from ofa_jax.training.image_tokenizer.config import (
    ImageTokenizerLoss,
    PerceptualFeatures,
    QuantizerConfig,
)
from ofa_jax.training.image_tokenizer.evaluation import TokenizerEvaluation, make_distance
from ofa_jax.training.image_tokenizer.features import load_features
from ofa_jax.training.image_tokenizer.step import NETWORK, TERMS, TokenizerProgram
from ofa_jax.training.loop_config import LoopConfig
from ofa_jax.training.metric_writers import MetricWriters, make_writer
from ofa_jax.training.optimizer import OptimizerConfig
from ofa_jax.training.run import Run
from ofa_jax.utils import options
from ofa_jax.utils.option_checks import checked

__all__ = ["OFFICIAL_FILE", "build_tokenizer_run", "export"]

OFFICIAL_FILE = "image_tokenizer.ckpt"
"""In a run directory: the trained VQGAN in the official layout."""


@checked
def build_tokenizer_run(
    model_dir: options.Path,
    model: VQGANConfig,
    images: ImageBatches,
    optimizer: OptimizerConfig,
    loop: LoopConfig,
    quantizer: QuantizerConfig | None = None,
    loss: ImageTokenizerLoss | None = None,
    features: PerceptualFeatures | None = None,
    partitioner: Partitioner | None = None,
    initial_image_tokenizer_path: options.Path | None = None,
    baseline: ImageTokenizer | None = None,
    seed: options.Seed = 0,
    train_split: options.Name = "train",
    validation_split: options.Name | None = "validation",
    validation_examples: options.Count = 500,
    num_threads: options.Threads = 2,
    num_workers: options.Workers = 0,
    metric_writers: MetricWriters = (),
) -> Run:
    """Builds every part of the training of a VQGAN and checks that the parts fit; compiles nothing.

    gin knows it as `train_image_tokenizer`.

    Args:
      model_dir: where everything of the run goes; an existing run is continued.
      model: sizes of the VQGAN.
      images: what to train on.
      optimizer: of the VQGAN and of its discriminator. With `ema_decay`, the averaged parameters
        are validated and exported.
      loop: when to log, save and validate.
      quantizer: how latent vectors become codes; Gumbel when None.
      loss: weights of its parts.
      features: the ResNet of the perceptual loss and of the distance of features in the results;
        None for neither.
      partitioner: the mesh; all devices along `data` when None. Parameters are whole on each.
      initial_image_tokenizer_path: a VQGAN of this size that a new run starts from, in any layout
        that `image_tokenizer` reads.
      baseline: an image tokenizer that is validated beside the VQGAN.
      seed: of parameters, order, augmentation and drawn codes.
      train_split: name of the split that is trained on.
      validation_split: name of the split for validation, e.g. "test"; None for no validation.
      validation_examples: number of images, the first ones of the split.
      num_threads: threads that make batches.
      num_workers: processes that make batches; 0 for none.
      metric_writers: further writers of metrics beside TensorBoard, see `training.metric_writers`.

    Raises:
      ValueError, FileNotFoundError: with a sentence that says what to do.
    """
    loss, quantizer = loss or ImageTokenizerLoss(), quantizer or QuantizerConfig()
    partitioner = partitioner or Partitioner()
    _check_options(model, images, optimizer, loss, features)
    directory = epath.Path(model_dir)
    writer = make_writer(directory, metric_writers)
    distance, variables = (None, {}) if features is None else load_features(features)
    program = TokenizerProgram(
        model, quantizer, loss, optimizer, distance, images.training_size, seed
    )
    loader = ImageLoader(
        images,
        train_split,
        seed,
        num_data_shards=partitioner.num_data_shards,
        data_shards=partitioner.data_shards,
        num_threads=num_threads,
        num_workers=num_workers,
    )
    evaluation = None
    if validation_split is not None:
        batches = _open_validation(images, validation_split, validation_examples, baseline)
        measure = None if distance is None else make_distance(distance, variables)
        evaluation = TokenizerEvaluation(model, batches, directory, measure, baseline)
    abstract = program.abstract_state(variables, partitioner)
    return Run(
        model_dir=directory,
        run_fingerprint=_run_fingerprint(seed, model, quantizer, images, loader),
        config=loop,
        partitioner=partitioner,
        train_step=program.make_train_step(),
        eval_step=_no_eval_step,
        abstract_state=abstract,
        new_state=_initial_state(program, variables, abstract, initial_image_tokenizer_path),
        batches=loader.batches,
        validation_batches=None,
        baselines=_no_baselines,
        examples_per_step=images.batch_size,
        flops_per_step=0.0,
        peak_flops=None,
        task_names=TERMS,
        skipped_records=loader.skipped_records.total,
        pad_id=1,
        writer=writer,
        console=Console(quiet=jax.process_index() > 0),
        findings=lambda: loader.findings,
        evaluation=evaluation,
    )


def export(run: Run, model: VQGANConfig) -> tuple[epath.Path, epath.Path]:
    """Writes the VQGAN of a run's newest checkpoint into the run directory, in two layouts.

    Args:
      run: that `build_tokenizer_run` has built, and the loop has trained.
      model: sizes of the VQGAN.

    Returns:
      `image_tokenizer.npz`, which gin's `image_tokenizer` reads, as does the folder's path; and
      `image_tokenizer.ckpt`, the same parameters in the official layout.
    """
    variables = storage.load_numpy_variables(run.model_dir, averaged=True)
    vqgan = VQGAN(model, variables["params"][NETWORK])
    own = run.model_dir / image_tokenizer_file.FILE
    official = run.model_dir / OFFICIAL_FILE
    vqgan.save(own)
    vqgan_file.write(str(official), vqgan)
    return own, official


def _initial_state(
    program: TokenizerProgram, features: Any, abstract: TrainState, path: str | None
) -> Callable[[], TrainState]:
    """Returns the function that makes the state of step 0; files are read here already.

    Raises:
      ValueError: the VQGAN to start from has other sizes.
    """
    if path is None:
        return lambda: program.new_state(features, abstract)
    start = image_tokenizer_file.read(path)
    if not isinstance(start, VQGAN) or start.config != program.config:
        what = start.config if isinstance(start, VQGAN) else "a patch codebook"
        raise ValueError(
            f"initial_image_tokenizer_path {path} is {what}, but the run trains {program.config}: "
            "give the run the same VQGANConfig, or leave the path out."
        )
    return lambda: program.new_state(features, abstract, start.params)


def _run_fingerprint(
    seed: int,
    model: VQGANConfig,
    quantizer: QuantizerConfig,
    images: ImageBatches,
    loader: ImageLoader,
) -> dict[str, Any]:
    """Returns what must not change when a run is continued; its keys stand in checkpoints."""
    return {
        "seed": seed,
        "vqgan": dataclasses.asdict(model),
        "quantizer": quantizer.kind,
        "batch_size": images.batch_size,
        "num_records": loader.num_records,
    }


def _open_validation(
    images: ImageBatches, split: str, num_examples: int, baseline: ImageTokenizer | None
) -> Callable[[], Iterator[np.ndarray]]:
    """Returns the function that makes the batches; checks that the split can be used.

    Raises:
      ValueError: it cannot, or the baseline cannot encode its images.
    """
    _check_baseline(baseline, images)
    batches = functools.partial(evaluation_images, images, split, num_examples)
    next(iter(batches()))
    return batches


def _check_options(
    model: VQGANConfig,
    images: ImageBatches,
    optimizer: OptimizerConfig,
    loss: ImageTokenizerLoss,
    features: PerceptualFeatures | None,
) -> None:
    """Raises ValueError for options that do not go together."""
    images.check(model.pixels_per_code)
    if optimizer.frozen or optimizer.trainable_groups is not None:
        raise ValueError(
            "OptimizerConfig.frozen and trainable_groups name parts of OFA, which an image "
            "tokenizer does not have: leave them out."
        )
    if features is None and not loss.absolute + loss.squared:
        raise ValueError(
            "ImageTokenizerLoss has a weight for perceptual alone, but "
            "train_image_tokenizer.features is None: give a ResNet, or weights for pixels."
        )
    smallest = discriminator.smallest_image(loss.discriminator_layers)
    if loss.discriminator_start is not None and images.training_size < smallest:
        raise ValueError(
            f"The training images have {images.training_size} pixels a side, but a discriminator "
            f"with ImageTokenizerLoss.discriminator_layers = {loss.discriminator_layers} needs "
            f"{smallest}: give it fewer layers, or larger images."
        )


def _check_baseline(baseline: ImageTokenizer | None, images: ImageBatches) -> None:
    """Raises ValueError if the baseline cannot encode the images."""
    if baseline is not None and images.image_size % baseline.pixels_per_code:
        raise ValueError(
            f"ImageBatches.image_size is {images.image_size}, which is no multiple of the "
            f"{baseline.pixels_per_code} pixels per code of train_image_tokenizer.baseline: choose "
            "a multiple, or leave the baseline out."
        )


def _no_eval_step(variables: Any, batch: Any, sums: Any) -> Any:
    """Returns the sums unchanged; `Run.evaluation` takes its place."""
    del variables, batch
    return sums


def _no_baselines() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns no scores; `Run.evaluation` takes their place."""
    return (np.zeros(0),) * 3
