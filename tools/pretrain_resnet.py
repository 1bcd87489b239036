"""Trains the ResNet to name the nouns in images; the official one starts from ImageNet.

    python -m tools.pretrain_resnet --data_dir=data
    python -m ofa_jax.train ... --gin.INITIAL_RESNET_PATH="'data/scenes/resnet.pt'"

The images are the training scenes, and the targets are the nouns of their objects. A
noun is in an image if some patch shows it, so its score is the highest of all patches (multiple
instance learning, Maron and Lozano-Perez 1998). The file has the ResNet alone, in torchvision's
format. The command ends with the F1 of the nouns on validation scenes; an existing file is kept.
"""

import argparse
import functools
import itertools
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import grain
import jax
import numpy as np
import optax

from ofa_jax.data.sources.scenes import Scenes
from ofa_jax.interop import resnet_file
from ofa_jax.model import SIZES, OFAConfig
from ofa_jax.model.resnet import ResNet, normalise_images
from ofa_jax.preprocessing import images
from ofa_jax.utils import platforms, progress

from . import output_folders
from .command import user_command

_WARMUP = 0.05
_CLIP_NORM = 5.0
_WEIGHT_DECAY = 0.01
_HEAD_WIDTH = 128


class NamedImages(nn.Module):
    """The ResNet, and scores of names on its patches.

    Attributes:
      config: whose ResNet.
      num_names: N.
    """

    config: OFAConfig
    num_names: int

    @nn.compact
    def __call__(self, pixels: jax.Array, train: bool) -> jax.Array:
        """Computes the logits [B, N] of the nouns that images uint8 [B, H, W, 3] show."""
        patches = ResNet(self.config, name="resnet")(normalise_images(pixels), train)
        patches = patches.reshape(len(pixels), -1, self.config.patch_channels)
        hidden = nn.LayerNorm()(nn.Dense(_HEAD_WIDTH)(patches))
        return nn.Dense(self.num_names)(hidden).max(axis=1)


def batches(
    records: Any, names: Sequence[str], batch_size: int, seed: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (images uint8 [B, H, W, 3], nouns that they show float32 [B, N]).

    Args:
      records: of objects.
      names: all of them.
      batch_size: B; without a seed, the last batch may be smaller.
      seed: of the order, which then never ends; None for all records once, as they are.
    """
    numbers = {name: number for number, name in enumerate(names)}

    def example(record: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        shown = np.zeros(len(names), np.float32)
        shown[[numbers[label] for label in record["object_labels"] if label in numbers]] = 1
        return np.asarray(images.decode(record["image"])), shown

    dataset = grain.MapDataset.source(records)
    if seed is not None:
        dataset = dataset.seed(seed).shuffle().repeat()
    dataset = dataset.map(example).batch(batch_size, drop_remainder=seed is not None)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=2)))


def make_optimizer(
    steps: int, learning_rate: float, end_learning_rate: float = 0.0
) -> optax.GradientTransformation:
    """Returns AdamW with clipped gradients, whose rate rises and then falls along a cosine."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, round(_WARMUP * steps), max(steps, 2), end_learning_rate
    )
    return optax.chain(
        optax.clip_by_global_norm(_CLIP_NORM), optax.adamw(schedule, weight_decay=_WEIGHT_DECAY)
    )


def learn(
    model: NamedImages,
    examples: Iterator[tuple[np.ndarray, np.ndarray]],
    steps: int,
    learning_rate: float,
    seed: int,
    show: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """Trains for `steps` batches, each of which it tells `show`; returns the variables."""
    optimizer = make_optimizer(steps, learning_rate)

    def loss_of(params, statistics, pixels, shown):
        logits, updates = model.apply(
            {"params": params, "batch_stats": statistics}, pixels, True, mutable=["batch_stats"]
        )
        loss = optax.sigmoid_binary_cross_entropy(logits, shown).sum(axis=1).mean()
        return loss, updates["batch_stats"]

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(variables, moments, pixels, shown):
        params = variables["params"]
        gradients, statistics = jax.grad(loss_of, has_aux=True)(
            params, variables["batch_stats"], pixels, shown
        )
        updates, moments = optimizer.update(gradients, moments, params)
        params = optax.apply_updates(params, updates)
        return {"params": params, "batch_stats": statistics}, moments

    first = next(examples)
    variables = nn.meta.unbox(model.init(jax.random.key(seed), first[0][:1], False))
    moments = optimizer.init(variables["params"])
    for number, batch in enumerate(itertools.islice(itertools.chain([first], examples), steps), 1):
        variables, moments = step(variables, moments, *batch)
        show("step", number, steps)
    return variables


def noun_f1(
    model: NamedImages, variables: Any, examples: Iterator[tuple[np.ndarray, np.ndarray]]
) -> float:
    """Computes the F1 of the nouns with a probability above one half, over all images."""
    score = jax.jit(lambda images: model.apply(variables, pixels, False))
    right = total = 0.0
    for pixels, shown in examples:
        named = np.asarray(score(pixels)) > 0
        progress.advance(len(pixels))
        right += float((named * shown).sum())
        total += float(named.sum() + shown.sum())
    return 2 * right / max(total, 1.0)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.pretrain_resnet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data_dir",
        default=os.environ.get("OFA_DATA_DIR") or "data",
        help="where the scenes are (default: %(default)s)",
    )
    parser.add_argument(
        "--output", type=pathlib.Path, help="the new file (default: DATA_DIR/scenes/resnet.pt)"
    )
    parser.add_argument("--size", default="scenes", choices=SIZES, help="of the model")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


@user_command
def main(arguments: Sequence[str]) -> int:
    """Runs the command line; returns the exit code."""
    options = _parse(arguments)
    platforms.skip_missing_tpu()
    if options.steps < 1 or options.batch_size < 1 or not 0 < options.learning_rate < math.inf:
        raise ValueError("--steps, --batch_size and --learning_rate must be positive.")
    data = Scenes(options.data_dir)
    output = options.output or data.directory / "resnet.pt"
    train, validation = (data.records("objects", split) for split in ("train", "validation"))
    if output.is_dir():
        raise ValueError(f"{output} is a folder: give --output a file.")
    if output.exists():
        print(f"{output} is there already.")
        return 0
    output_folders.create(output.parent, "--output")  # not only after the training
    names = data.negatives().object_names
    config = getattr(OFAConfig, options.size)()
    model = NamedImages(config, len(names))
    start = time.monotonic()
    with progress.stage("learning what images show", options.steps, "steps") as stage:
        variables = learn(
            model,
            batches(train, names, options.batch_size, options.seed),
            options.steps,
            options.learning_rate,
            options.seed,
            lambda part, done, count: stage.update(done, count),
        )
    with progress.stage("naming validation images", len(validation), "images"):
        f1 = noun_f1(model, variables, batches(validation, names, options.batch_size, None))
    of_encoder = {
        collection: {"encoder": {"resnet": jax.tree.map(np.asarray, tree["resnet"])}}
        for collection, tree in variables.items()
    }
    resnet_file.write(output, of_encoder, config)
    print(
        f"Wrote {output} after {time.monotonic() - start:.0f} s: nouns of validation scenes are "
        f"named with an F1 of {100 * f1:.1f} %."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
