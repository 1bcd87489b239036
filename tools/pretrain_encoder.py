"""Trains ResNet and encoder with a target at every patch and noun, before pretraining.

    python -m tools.pretrain_encoder --data_dir=data
    python -m ofa_jax.train ... --gin.INITIAL_CHECKPOINT_PATH="'data/scenes/encoder'"

Attention starts as a mean over all patches and words. From the loss of an answer alone it takes
thousands of steps until a word finds its object in the image, and until then the ResNet learns next
to nothing (docs/learning.md). The targets here are dense: every patch is to name the object that it
shows and where that is, and every noun of the instruction how often it is in the image and where
(`tools.encoder_targets`). Names and boxes are predicted in the model's own token embedding. The
published model starts from a ResNet trained on ImageNet and from BART; this is the small
counterpart. The result is a whole model, whose decoder is as initialised; the layers that made the
predictions are left out. A finished output is kept.
"""

import argparse
import dataclasses
import functools
import itertools
import math
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ofa_jax.checkpoints import storage
from ofa_jax.data.sources.scenes import Scenes
from ofa_jax.data.sources.streamed_scenes import StreamedScenes
from ofa_jax.evaluation.metrics.boxes import iou
from ofa_jax.model import OFA, OFAConfig
from ofa_jax.utils import platforms, progress

from . import encoder_targets, output_folders
from .command import user_command
from .encoder_targets import MAX_COUNT, NO_TARGET, TargetMaker
from .pretrain_resnet import make_optimizer

_END_RATE = 0.05
_BIN_SPREAD = 0.7
"""Standard deviation of a box target in location bins: near bins are nearly right, which gives
their embeddings an order."""

_WHAT = {
    "patch_nouns": "patches that show an object",
    "counts": "counts",
    "text_boxes": "boxes",
    "answers": "answers",
}

Batch = Mapping[str, Array]


class Heads(nn.Module):
    """Predicts from the encoder's output; used in this stage alone.

    Attributes:
      num_bins: location bins.
    """

    num_bins: int

    @nn.compact
    def __call__(
        self,
        patches: Float[Array, "batch patches width"],
        chosen: Float[Array, "batch K width"],
        texts: Float[Array, "batch W width"],
        name_embeddings: Float[Array, "names width"],
        bin_embeddings: Float[Array, "bins width"],
        embeddings: Float[Array, "vocab width"],
    ) -> dict[str, Array]:
        """Computes logits.

        Args:
          patches: encoder output of all patches.
          chosen: that of the patches with a box as target.
          texts: that of the last token of every text.
          name_embeddings: of the nouns.
          bin_embeddings: of the location bins.
          embeddings: of all tokens.

        Returns:
          patch_nouns [B, P, names + 1], patch_bins [B, K, 4, bins], text_bins [B, W, 4, bins],
          counts [B, W, MAX_COUNT + 1], answers [B, W, vocab].
        """
        width = patches.shape[-1]
        # Embeddings are N(0, 0.02): products with normalised states of this width are near 1.
        scale = 8.0
        names = nn.Dense(width, kernel_init=nn.initializers.orthogonal(), name="names")(patches)
        nothing = nn.Dense(1, name="nothing")(patches)
        boxes = nn.Dense(4 * width, name="boxes")
        answers = nn.Dense(width, name="answers")(texts)

        def bins(states: Array) -> Array:
            corners = boxes(states).reshape(*states.shape[:2], 4, width)
            return scale * corners @ bin_embeddings.T

        return {
            "patch_nouns": jnp.concatenate([scale * names @ name_embeddings.T, nothing], axis=-1),
            "patch_bins": bins(chosen),
            "text_bins": bins(texts),
            "counts": nn.Dense(MAX_COUNT + 1, name="counts")(texts),
            "answers": scale * answers @ embeddings.T,
        }


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The model with its heads, and the loss of a batch.

    Attributes:
      config: of the model.
      name_ids: the tokens that stand for the nouns; of a noun of several tokens the first.
      bin_ids: location bins.
    """

    config: OFAConfig
    name_ids: tuple[int, ...]
    bin_ids: range

    @property
    def model(self) -> OFA:
        """The model."""
        return OFA(self.config)

    def initialise(self, batch: Batch, seed: int) -> tuple[dict[str, Any], Any]:
        """Returns parameters {"model", "heads"} and batch statistics of step 0."""
        keys = jax.random.split(jax.random.key(seed))
        inputs = {name: batch[name][:1] for name in ("encoder_input_tokens", "encoder_images")}
        inputs["decoder_input_tokens"] = np.zeros((1, 2), np.int32)
        variables = nn.meta.unbox(jax.jit(self.model.init)(keys[0], inputs))
        width = self.config.width
        state, table = jnp.zeros((1, 1, width)), jnp.zeros((1, width))
        heads = Heads(len(self.bin_ids)).init(keys[1], state, state, state, table, table, table)
        return {"model": variables["params"], "heads": heads["params"]}, variables["batch_stats"]

    def predict(
        self, params: Mapping[str, Any], statistics: Any, batch: Batch, train: bool
    ) -> tuple[dict[str, Array], Any]:
        """Computes the logits of `Heads`, and the new batch statistics."""
        inputs = {name: batch[name] for name in ("encoder_input_tokens", "encoder_images")}
        encoded, updates = self.model.apply(
            {"params": params["model"], "batch_stats": statistics},
            inputs,
            train,
            method="encode",
            mutable=["batch_stats"] if train else [],
        )
        length = batch["encoder_input_tokens"].shape[1]
        patches, tokens = encoded.hidden[:, :-length], encoded.hidden[:, -length:]
        embeddings = params["model"]["token_embedding"]["embedding"]
        logits = Heads(len(self.bin_ids)).apply(
            {"params": params["heads"]},
            patches,
            jnp.take_along_axis(patches, batch["patch_indices"][..., None], axis=1),
            jnp.take_along_axis(tokens, batch["text_ends"][..., None], axis=1),
            embeddings[jnp.asarray(self.name_ids)],
            embeddings[self.bin_ids.start : self.bin_ids.stop],
            embeddings,
        )
        return logits, updates.get("batch_stats", statistics)

    def loss(
        self, params: Mapping[str, Any], statistics: Any, batch: Batch
    ) -> tuple[Array, tuple[Any, dict[str, Array]]]:
        """Computes the loss; also the new batch statistics, and the loss of each kind of target."""
        logits, statistics = self.predict(params, statistics, batch, train=True)
        # Most patches show no object.
        shown = jnp.where(batch["patch_nouns"] < len(self.name_ids), 1.0, 0.3)
        losses = {
            "patch_nouns": _mean(_cross_entropy(logits, batch, "patch_nouns"), shown),
            "patch_boxes": _mean(_box_loss(logits, batch, "patch_bins"), batch["patch_weights"]),
            "counts": _mean(*_known(logits, batch, "counts")),
            "text_boxes": _mean(_box_loss(logits, batch, "text_bins"), batch["text_weights"]),
            "answers": _mean(*_known(logits, batch, "answers")),
        }
        weights = {"counts": 2.0, "patch_boxes": 0.5, "text_boxes": 0.5}
        return sum(weights.get(name, 1.0) * x for name, x in losses.items()), (statistics, losses)


def _cross_entropy(logits: Mapping[str, Array], batch: Batch, name: str) -> Array:
    targets = jnp.maximum(batch[name], 0)
    return optax.softmax_cross_entropy_with_integer_labels(logits[name], targets)


def _known(logits: Mapping[str, Array], batch: Batch, name: str) -> tuple[Array, Array]:
    return _cross_entropy(logits, batch, name), (batch[name] != NO_TARGET).astype(jnp.float32)


def _box_loss(logits: Mapping[str, Array], batch: Batch, name: str) -> Array:
    """Computes the divergence from a narrow normal distribution around each edge, [B, n]."""
    bins = jnp.arange(logits[name].shape[-1])
    distance = (bins - batch[name][..., None]) / _BIN_SPREAD
    targets = jax.nn.softmax(-0.5 * distance**2)
    return optax.kl_divergence(jax.nn.log_softmax(logits[name]), targets).mean(axis=-1)


def _mean(x: Array, weights: Array) -> Array:
    return (x * weights).sum() / jnp.maximum(weights.sum(), 1.0)


def learn(
    trainer: Trainer,
    stages: Sequence[tuple[int, Iterator[dict[str, np.ndarray]]]],
    learning_rate: float,
    seed: int,
    stage: Any,
) -> tuple[Any, Any]:
    """Trains on so many batches of each iterator.

    Args:
      trainer: of the model.
      stages: number of steps, and batches.
      learning_rate: the highest.
      seed: of the initial parameters.
      stage: shows the progress.

    Returns:
      Parameters and batch statistics.
    """
    steps = sum(number for number, _ in stages)
    optimizer = make_optimizer(steps, learning_rate, _END_RATE * learning_rate)

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params: Any, statistics: Any, moments: Any, batch: Batch) -> Any:
        gradient_of = jax.grad(trainer.loss, has_aux=True)
        gradients, (statistics, losses) = gradient_of(params, statistics, batch)
        updates, moments = optimizer.update(gradients, moments, params)
        return optax.apply_updates(params, updates), statistics, moments, losses

    parts = (itertools.islice(batches, number) for number, batches in stages)
    examples = itertools.chain.from_iterable(parts)
    first = next(examples)
    params, statistics = trainer.initialise(first, seed)
    moments = optimizer.init(params)
    for number, batch in enumerate(itertools.chain([first], examples), 1):
        params, statistics, moments, _ = step(params, statistics, moments, batch)
        stage.update(number, steps)
    return params, statistics


def accuracies(
    trainer: Trainer,
    params: Any,
    statistics: Any,
    examples: Iterator[dict[str, np.ndarray]],
) -> dict[str, float]:
    """Computes shares of right predictions of patches with an object, counts, boxes and answers.

    Kinds without a target are left out. A box is right with an intersection over union of at
    least one half.
    """
    predict = jax.jit(lambda batch: trainer.predict(params, statistics, batch, train=False)[0])
    right: dict[str, float] = {}
    total: dict[str, float] = {}
    for batch in examples:
        found = {name: np.asarray(x).argmax(axis=-1) for name, x in predict(batch).items()}
        known = {
            "patch_nouns": batch["patch_nouns"] < len(trainer.name_ids),
            "counts": batch["counts"] != NO_TARGET,
            "answers": batch["answers"] != NO_TARGET,
        }
        correct = {name: found[name] == batch[name] for name in known}
        known["text_boxes"] = batch["text_weights"] > 0
        boxes = found["text_bins"][known["text_boxes"]].astype(np.float32)
        truth = batch["text_bins"][known["text_boxes"]]
        overlaps = iou(boxes, truth)
        for name, where in known.items():
            hits = correct[name][where] if name in correct else overlaps >= 0.5
            right[name] = right.get(name, 0.0) + float(hits.sum())
            total[name] = total.get(name, 0.0) + float(where.sum())
    return {name: right[name] / total[name] for name in right if total[name]}


def _write(output: pathlib.Path, config: OFAConfig, params: Any, statistics: Any) -> None:
    """Writes a run directory with a checkpoint of step 0, which appears when it is complete."""
    unfinished = output.with_name(output_folders.own_name(f".{output.name}-unfinished-"))
    try:
        unfinished.mkdir()
        variables = {"params": params["model"], "batch_stats": statistics}
        storage.save_variables(unfinished, jax.tree.map(np.asarray, variables))
        storage.write_model_config(unfinished, config)
        unfinished.rename(output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses and checks the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.pretrain_encoder",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data_dir",
        default=os.environ.get("OFA_DATA_DIR") or "data",
        help="where the scenes are (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        help="the new folder, with model.json and a checkpoint (default: DATA_DIR/scenes/encoder)",
    )
    parser.add_argument("--list_steps", type=int, default=450, help="with lists of nouns alone")
    parser.add_argument("--steps", type=int, default=0, help="after these, with all texts")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--layers", type=int, default=2, help="of encoder and of decoder")
    parser.add_argument("--width", type=int, default=128, help="of the model, a multiple of 32")
    parser.add_argument(
        "--num_scenes", type=int, help="composes this many training scenes (default: the build's)"
    )
    parser.add_argument("--nouns", type=int, help="of scenes that are composed")
    parser.add_argument("--num_bins", type=int, default=64, help="as in the run's settings")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.width < 32 or options.width % 32:
        raise ValueError(f"--width is {options.width}: give a multiple of 32.")
    counts = ("list_steps", "batch_size", "layers", "num_bins")
    if any(getattr(options, name) < 1 for name in counts) or options.steps < 0:
        raise ValueError(
            "--list_steps, --batch_size, --layers and --num_bins must be at least 1, and --steps "
            "at least 0."
        )
    if not 0 < options.learning_rate < math.inf:
        raise ValueError("--learning_rate must be positive.")
    return options


@user_command
def main(arguments: Sequence[str]) -> int:
    """Runs the command line; returns the exit code."""
    options = _parse(arguments)
    platforms.skip_missing_tpu()
    data = Scenes(options.data_dir)
    if options.num_scenes is not None or options.nouns is not None:
        data = StreamedScenes(options.data_dir, options.num_scenes, options.nouns)
    output = options.output or data.directory / "encoder"
    if storage.list_checkpoints(str(output)):
        print(f"{output} is there already.")
        return 0
    if output.exists():
        raise ValueError(f"{output} exists and has no checkpoint: give --output a new folder.")
    output_folders.create(output.parent, "--output")  # not only after the training
    vocabulary = data.vocabulary(num_bins=options.num_bins)
    names = data.negatives().object_names
    lists = TargetMaker(vocabulary, names, data.description["options"]["image_size"])
    everything = dataclasses.replace(lists, list_share=0.4)
    config = OFAConfig.scenes(
        vocab_size=vocabulary.vocab_size,
        encoder_layers=options.layers,
        decoder_layers=options.layers,
        width=options.width,
        ffn_width=4 * options.width,
        num_heads=options.width // 32,
    )
    trainer = Trainer(
        config, tuple(int(vocabulary.encode(f" {name}")[0]) for name in names), vocabulary.bin_ids
    )
    train, validation = (data.records("all", split) for split in ("train", "validation"))
    start = time.monotonic()

    def of_stage(maker: TargetMaker, number: int) -> Iterator[dict[str, np.ndarray]]:
        return encoder_targets.batches(train, maker, options.batch_size, options.seed + number)

    stages = [(options.list_steps, of_stage(lists, 0)), (options.steps, of_stage(everything, 1))]
    with progress.stage("training the encoder", options.list_steps + options.steps, "steps") as bar:
        params, statistics = learn(trainer, stages, options.learning_rate, options.seed, bar)
    with progress.stage("predicting on validation images", len(validation), "images"):
        examples = encoder_targets.batches(
            validation,
            everything if options.steps else lists,
            options.batch_size,
            options.seed,
            repeat=False,
        )
        found = accuracies(trainer, params, statistics, examples)
    _write(output, config, params, statistics)
    shares = ", ".join(
        f"{found[name]:.1%} of the {what}" for name, what in _WHAT.items() if name in found
    )
    print(
        f"Wrote {output} after {time.monotonic() - start:.0f} s. Right on validation images: "
        f"{shares}."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
