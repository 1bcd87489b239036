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
import math
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ofa_jax.checkpoints import storage
from ofa_jax.data.sources.scenes import Scenes
from ofa_jax.data.sources.streamed_scenes import StreamedScenes
from ofa_jax.model import OFAConfig
from ofa_jax.utils import platforms, progress

from . import encoder_targets, output_folders
from .command import user_command
from .encoder_targets import TargetMaker
from .encoder_training import Trainer, accuracies, learn

_WHAT = {
    "patch_nouns": "patches that show an object",
    "counts": "counts",
    "text_boxes": "boxes",
    "answers": "answers",
}


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


def _open_scenes(options: argparse.Namespace) -> Scenes:
    """Returns the stored scenes, or those that are composed on demand."""
    if options.num_scenes is None and options.nouns is None:
        return Scenes(options.data_dir)
    return StreamedScenes(options.data_dir, options.num_scenes, options.nouns)


def _model_config(options: argparse.Namespace, vocab_size: int) -> OFAConfig:
    """Returns the configuration of the model whose encoder is trained."""
    return OFAConfig.scenes(
        vocab_size=vocab_size,
        encoder_layers=options.layers,
        decoder_layers=options.layers,
        width=options.width,
        ffn_width=4 * options.width,
        num_heads=options.width // 32,
    )


@user_command
def main(arguments: Sequence[str]) -> int:
    """Runs the command line; returns the exit code."""
    options = _parse(arguments)
    platforms.skip_missing_tpu()
    data = _open_scenes(options)
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
    config = _model_config(options, vocabulary.vocab_size)
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
