"""Measures generated images: FID, Inception score and CLIP score.

    python -m tools.image_metrics --predictions=OUTPUT_DIR --clip=clip-vit-base-patch16
    python -m tools.image_metrics --predictions=OUTPUT_DIR --clip=ViT-B-16.pt --references=IMAGES
    python -m tools.image_metrics --features=generated.npy --reference_features=true.npz
    python -m tools.image_metrics --probabilities=classes.npy

With CLIP, from files of your own: `clip_score`, the mean cosine of the images of `ofa-infer` and
their captions; and with a folder of true images `clip_fid`, the Frechet distance in CLIP's
embeddings. The published FID and Inception score are of features of an Inception v3 that another
program has written: `fid` of arrays [images, 2048] (.npy), or of statistics with `mu` and `sigma`
(.npz, as pytorch-fid writes them); `inception_score` of probabilities [images, classes]. Prints
JSON. No weights are part of this project.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ofa_jax.evaluation.metrics import generated_images
from ofa_jax.evaluation.metrics.generated_images import FeatureStatistics
from ofa_jax.inference.reranking import caption_of
from ofa_jax.interop import clip_file
from ofa_jax.model.clip import CLIP
from ofa_jax.preprocessing import image_files
from ofa_jax.utils import platforms, progress

from .command import user_command

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
_AT_ONCE = 256


@user_command
def main(arguments: Sequence[str]) -> int:
    """Runs the command line `arguments` (without the program)."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.image_metrics",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    path = pathlib.Path
    parser.add_argument("--predictions", type=path, help="the OUTPUT_DIR of ofa-infer")
    parser.add_argument("--clip", help="weights of CLIP: a folder of Hugging Face, or OpenAI's .pt")
    parser.add_argument("--clip_tokenizer", help="its tokenizer, if that is not beside it")
    parser.add_argument("--references", type=path, help="a folder of true images")
    parser.add_argument("--features", type=path, help="of generated images: .npy, or .npz")
    parser.add_argument("--reference_features", type=path, help="of true images: .npy, or .npz")
    parser.add_argument("--probabilities", type=path, help="of generated images: .npy")
    parser.add_argument("--splits", type=int, default=10, help="of the Inception score")
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the CLIP score")
    options = parser.parse_args(arguments)
    platforms.skip_missing_tpu()
    values = measure(options)
    print(json.dumps(values, indent=2))
    return 0


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Returns the metrics that the options ask for.

    Raises:
      ValueError, OSError: they ask for none, or a file cannot be used.
    """
    _check_pairs(options)
    values: dict[str, float] = {}
    if options.predictions is not None:
        clip = clip_file.read(options.clip, options.clip_tokenizer)
        captions, images = _read_predictions(options.predictions)
        seen = _embed(clip, images)
        texts = clip.embed_texts(captions)
        values |= generated_images.clip_score(seen, texts, options.scale)
        if options.references is not None:
            true = FeatureStatistics.of(_embed(clip, _list_images(options.references)))
            found = FeatureStatistics.of(seen)
            values["clip_fid"] = _distance(true, found)
        values["images"] = len(images)
    if options.features is not None:
        pair = [_statistics(own) for own in (options.reference_features, options.features)]
        values["fid"] = _distance(*pair)
    if options.probabilities is not None:
        probabilities = _load(options.probabilities)
        values |= generated_images.inception_score(probabilities, options.splits)
    return values


def _distance(true: FeatureStatistics, found: FeatureStatistics) -> float:
    """Returns the Frechet distance; says on stderr if there are few images for it."""
    for statistics in (true, found):
        if sentence := statistics.describe_shortage():
            print(f"Note: {sentence}", file=sys.stderr)
            break
    return generated_images.frechet_distance(true, found)


def _check_pairs(options: argparse.Namespace) -> None:
    """Raises ValueError for an option without the one that it needs."""
    for one, other in (("predictions", "clip"), ("features", "reference_features")):
        given = [getattr(options, name) is not None for name in (one, other)]
        if given[0] != given[1]:
            missing = other if given[0] else one
            raise ValueError(f"--{one} and --{other} belong together: give --{missing}, too.")
    if options.references is not None and options.predictions is None:
        raise ValueError("--references are compared with --predictions: give both.")
    if not any((options.predictions, options.features, options.probabilities)):
        raise ValueError("There is nothing to measure: give --predictions, --features or "
                         "--probabilities.")  # fmt: skip


def _read_predictions(folder: pathlib.Path) -> tuple[list[str], list[pathlib.Path]]:
    """Returns the captions and the images of a finished job.

    Raises:
      ValueError, OSError: there are none.
    """
    paths = sorted(folder.glob("answers-*.jsonl"))
    if not paths:
        raise FileNotFoundError(f"{folder} has no predictions of ofa-infer (answers-*.jsonl).")
    captions, images = [], []
    for path in paths:
        for number, text in enumerate(path.read_text().splitlines(), 1):
            try:
                line: Any = json.loads(text)
                name = line.get("image")
            except (ValueError, AttributeError):
                raise ValueError(
                    f"{path}, line {number}: no JSON object; run the job again."
                ) from None
            if isinstance(name, str):
                captions.append(caption_of(str(line.get("instruction", ""))))
                images.append(folder / name)
    if not images:
        raise ValueError(
            f"{folder} has no images: run a job of text_to_image, with an image tokenizer."
        )
    return captions, images


def _list_images(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the images below a folder, by name."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not found:
        raise FileNotFoundError(f"{folder} has no images ({', '.join(sorted(_SUFFIXES))}).")
    return found


def _embed(clip: CLIP, paths: Sequence[pathlib.Path]) -> np.ndarray:
    """Returns CLIP's embeddings of image files."""
    found = []
    with progress.stage("embedding images", len(paths), "images") as stage:
        for chunk in _chunks(paths, _AT_ONCE):
            pixels = [np.asarray(image_files.decode(path.read_bytes())) for path in chunk]
            found.append(clip.embed_images(pixels))
            stage.advance(len(chunk))
    return np.concatenate(found)


def _chunks(paths: Sequence[pathlib.Path], size: int) -> Iterator[Sequence[pathlib.Path]]:
    for start in range(0, len(paths), size):
        yield paths[start : start + size]


def _statistics(path: pathlib.Path) -> FeatureStatistics:
    """Returns the statistics of a file of features, or those that it holds."""
    content = _load(path)
    if isinstance(content, dict):
        if not {"mu", "sigma"} <= content.keys():
            raise ValueError(f"{path} has no arrays mu and sigma: give features as .npy.")
        return FeatureStatistics(content["mu"], content["sigma"])
    return FeatureStatistics.of(content)


def _load(path: pathlib.Path) -> Any:
    """Returns the array of a .npy file, or the arrays of a .npz by name; executes nothing."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        with content:
            return {name: content[name] for name in content.files}
    except Exception as error:  # noqa: BLE001  numpy raises many kinds for damaged files
        raise ValueError(f"{path} holds no numpy arrays ({error}): write it again.") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
