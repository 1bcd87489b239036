"""Shows what images out are worth on Scenes; writes results/images.md and results/images.json.

    bash launch/local.sh full                      # or another run on all eight objectives
    python -m tools.images_on_scenes --model_dir=runs/pretrain_scenes_full

Three parts, each beside what it is compared with:

    tokenizer      a VQGAN trained on Scenes, beside the codebook that was built with them
    text_to_image  the run fine-tuned on captions and the codes of this VQGAN: images of test
                   captions, in which the run itself looks for what was asked; beside real images,
                   the captions of other images, and the nearest training images
    infilling      the middle of test images, beside the true and the hidden middle

What is finished is not made again, so a stopped command goes on where it was. Options after -- are
those of the fine-tuning (gin_configs/runs/scenes_text_to_image.gin).
"""

import argparse
import os
import pathlib
import platform
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ofa_jax.checkpoints import storage
from ofa_jax.data.sources.scenes import Scenes
from ofa_jax.interop.image_tokenizer_file import FILE as TOKENIZER_FILE
from ofa_jax.model.config import PIXELS_PER_CODE
from ofa_jax.tokenizers.processor import Processor
from ofa_jax.utils import files, text_files
from ofa_jax.utils.locks import directory_lock

from . import images_results, output_folders, report_scenes, scenes_results
from .command import user_command
from .scene_image_parts import ImageParts, Options

PARTS = ("tokenizer", "text_to_image", "infilling")
_TOKENIZER_GIN = "gin_configs/runs/image_tokenizer_scenes.gin"
_TEXT_TO_IMAGE_GIN = "gin_configs/runs/scenes_text_to_image.gin"
_SETTINGS = "settings.json"
_INPUTS = 40
"""Tokens of the longest instruction with a caption of Scenes."""
_BATCH_CODES = 4096
"""Codes of a batch: a step takes as long for images of any size."""

Call = Callable[[Sequence[str]], int]


class _TrainingError(Exception):
    """A training command ended with an exit code other than 0."""

    def __init__(self, code: int):
        super().__init__(f"the training ended with the exit code {code}.")
        self.code = code


def tokenizer_command(options: argparse.Namespace) -> list[str]:
    """Returns the command that trains the image tokenizer, without the interpreter."""
    data_dir = Scenes(options.data_dir).directory.parent
    return [
        "-m",
        "tools.train_image_tokenizer",
        f"--gin_file={_TOKENIZER_GIN}",
        f"--gin.MODEL_DIR='{options.tokenizer_dir}'",
        f"--gin.Scenes.data_dir='{data_dir}'",
        f"--gin.patch_codebook.path='{data_dir / 'scenes' / 'codebook.npz'}'",
        "--gin.train_image_tokenizer.features=@PerceptualFeatures()",
        f"--gin.PerceptualFeatures.path='{options.model_dir}'",
        f"--gin.SEED={options.seed}",
    ]


def text_to_image_command(
    options: argparse.Namespace, parts: ImageParts, processor: Processor, size: int
) -> list[str]:
    """Returns the command that fine-tunes the run for text-to-image, without the interpreter.

    Args:
      options: of the command line.
      parts: of the run on Scenes.
      processor: of the checkpoint to start from.
      size: of the images to generate, in pixels a side.
    """
    vocabulary = processor.vocabulary
    codes, start = vocabulary.code_ids, options.output_dir / "start"
    num_codes = (size // PIXELS_PER_CODE) ** 2
    return [
        "-m",
        "ofa_jax.train",
        f"--gin_file={_TEXT_TO_IMAGE_GIN}",
        f"--gin.MODEL_DIR='{options.text_to_image_dir}'",
        f"--gin.INITIAL_CHECKPOINT_PATH='{start}'",
        f"--gin.SEED={options.seed}",
        f"--gin.DownstreamSettings.data_dir='{options.output_dir / 'codes'}'",
        f"--gin.image_tokenizer.path='{start}'",
        f"--gin.CODE_IMAGE_SIZE={size}",
        f"--gin.BATCH_SIZE={max(1, _BATCH_CODES // num_codes)}",
        f"--gin.TASK_FEATURE_LENGTHS={{'inputs': {_INPUTS}, 'targets': {num_codes}}}",
        f"--gin.vocabulary_from_tokenizer_json.path='{parts.scenes.vocabulary_path}'",
        f"--gin.vocabulary_from_tokenizer_json.num_codes={vocabulary.num_codes}",
        f"--gin.vocabulary_from_tokenizer_json.num_bins={vocabulary.num_bins}",
        f"--gin.LossConfig.constraint_range=({codes.start}, {codes.stop})",
        *options.options,
    ]


def _tokenizer(options: argparse.Namespace, parts: ImageParts, call: Call) -> dict[str, Any]:
    """Trains the image tokenizer, unless that is done, and measures it; returns the results."""
    command = _train_tokenizer(options, call)
    found = parts.measure_tokenizer(options.tokenizer_dir, options.results_dir)
    return found | {"commands": [_typed(command)]}


def _train_tokenizer(options: argparse.Namespace, call: Call) -> list[str]:
    """Trains the image tokenizer, unless that is done; returns the command."""
    command = tokenizer_command(options)
    if not (options.tokenizer_dir / TOKENIZER_FILE).exists():
        _train(command, call)
    return command


def _text_to_image(options: argparse.Namespace, parts: ImageParts, call: Call) -> dict[str, Any]:
    """Fine-tunes the run, unless that is done, and measures it; returns the results."""
    tokenizer = _train_tokenizer(options, call)
    processor = parts.write_start(options.tokenizer_dir)
    assert processor.image_tokenizer is not None
    size = parts.choose_size(processor.image_tokenizer)
    command = text_to_image_command(options, parts, processor, size)
    _train(command, call)
    found = parts.measure_text_to_image(options.text_to_image_dir, options.results_dir)
    return found | {"commands": [_typed(tokenizer), _typed(command)]}


def _infilling(options: argparse.Namespace, parts: ImageParts, call: Call) -> dict[str, Any]:
    """Measures the infilling of the run; returns the results."""
    del call
    return parts.measure_infilling(options.results_dir) | {"commands": []}


_MEASURE = {"tokenizer": _tokenizer, "text_to_image": _text_to_image, "infilling": _infilling}


def _train(command: Sequence[str], call: Call) -> None:
    """Runs or continues a training; a finished one does nothing.

    Raises:
      _TrainingError: it failed.
    """
    if (code := call(command)) != 0:
        raise _TrainingError(code)


def _typed(command: Sequence[str]) -> str:
    return scenes_results.as_typed(["python", *command])


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.images_on_scenes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def folder(name: str, default: str, text: str) -> None:
        parser.add_argument(
            f"--{name}", type=pathlib.Path, default=pathlib.Path(default), help=text
        )

    folder("model_dir", "runs/pretrain_scenes_full", "the run on Scenes, with all eight objectives")
    folder("tokenizer_dir", "runs/image_tokenizer_scenes", "where the image tokenizer is trained")
    folder("text_to_image_dir", "runs/scenes_text_to_image", "where the run is fine-tuned")
    folder("output_dir", "runs/scenes_images", "codes, generated images, and what is found in them")
    folder("results_dir", "results", "where images.md, images.json and the contact sheets go")
    parser.add_argument("--data_dir", help="of the scenes (default: OFA_DATA_DIR, else data)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--num_images", type=int, default=500, help="test images of each part")
    parser.add_argument(
        "--code_image_size",
        type=int,
        help="side of generated images in pixels (default: chosen on validation images)",
    )
    parser.add_argument("--num_candidates", type=int, default=24, help="samples for each caption")
    parser.add_argument("--guidance_scale", type=float, default=3.0)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top_k", type=int, default=256)
    parser.add_argument("--top_p", type=float, default=1.0)
    parser.add_argument("--batch_size", type=int, default=16, help="requests decoded at once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "options", nargs="*", metavar="--gin.NAME=value", help="after --: of the fine-tuning"
    )
    options = parser.parse_args(arguments)
    for name in ("num_images", "num_candidates", "batch_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} is {getattr(options, name)}; give at least 1.")
    side = options.code_image_size
    if side is not None and (side < 1 or side % PIXELS_PER_CODE):
        raise ValueError(
            f"--code_image_size is {side}; give a multiple of the {PIXELS_PER_CODE} pixels of a "
            "code."
        )
    if options.num_images < 2:
        raise ValueError("--num_images is 1; give at least 2, because images are compared.")
    if not storage.list_checkpoints(str(options.model_dir)):
        raise ValueError(
            f"there is no trained run in {options.model_dir}: train it with `bash launch/local.sh "
            "full`, or give --model_dir."
        )
    return options


def _keep_settings(options: argparse.Namespace, checkpoint: str) -> None:
    """Writes what the images depend on.

    Raises:
      ValueError: the folder has images of other settings.
    """
    names = (
        "num_images",
        "code_image_size",
        "num_candidates",
        "guidance_scale",
        "temperature",
        "top_k",
        "top_p",
    )
    settings = {name: getattr(options, name) for name in (*names, "seed")}
    settings |= {"checkpoint": checkpoint, "text_to_image_dir": str(options.text_to_image_dir)}
    path = options.output_dir / _SETTINGS
    if path.exists():
        kept = text_files.read_json(path)
        other = sorted(name for name, value in settings.items() if kept.get(name) != value)
        if other:
            raise ValueError(
                f"{options.output_dir} has images of another {other[0]} ({kept.get(other[0])}, now "
                f"{settings[other[0]]}): choose another --output_dir, or move it away."
            )
    files.write_json(path, settings)


@user_command
def main(arguments: Sequence[str], call: Call = report_scenes.call_python) -> int:
    """Runs the command line; returns the exit code."""
    options = _parse(arguments)
    output_folders.create(options.results_dir, "--results_dir")
    output_folders.create(options.output_dir, "--output_dir")
    parts = ImageParts(
        Options(
            model_dir=options.model_dir,
            output_dir=options.output_dir,
            num_images=options.num_images,
            code_image_size=options.code_image_size,
            num_candidates=options.num_candidates,
            guidance_scale=options.guidance_scale,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            batch_size=options.batch_size,
            seed=options.seed,
        ),
        Scenes(options.data_dir),
    )
    with (
        directory_lock(options.output_dir, "--output_dir"),
        directory_lock(options.results_dir, "--results_dir"),
    ):
        _keep_settings(options, parts.checkpoint)
        results = images_results.load(options.results_dir / f"{images_results.NAME}.json")
        for name in options.parts:
            try:
                found = _MEASURE[name](options, parts, call)
            except _TrainingError as error:
                return error.code
            results[name] = found | _about(options, arguments, parts)
            images_results.save(options.results_dir, results)
    print(images_results.page(results))
    return 0


def _about(
    options: argparse.Namespace, arguments: Sequence[str], parts: ImageParts
) -> dict[str, Any]:
    """Returns what the page says about how a part was measured."""
    return {
        "command": _typed(["-m", "tools.images_on_scenes", *arguments]),
        "seed": options.seed,
        "commit": report_scenes.commit(),
        "device": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "checkpoint": f"{options.model_dir}/checkpoints/{pathlib.Path(parts.checkpoint).name}",
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
