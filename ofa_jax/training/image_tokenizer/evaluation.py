"""How well an image tokenizer reconstructs images: PSNR, SSIM, distance of features, use of codes.

Works for any `ImageTokenizer`, so that a VQGAN and a patch codebook are compared by one measure.
"""

import dataclasses
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Array, Float, UInt8
from PIL import Image

from ofa_jax.evaluation.metrics.images import psnr, ssim
from ofa_jax.tokenizers import ImageTokenizer
from ofa_jax.tokenizers.vqgan import VQGAN, VQGANConfig
from ofa_jax.training.image_tokenizer.features import FeatureDistance
from ofa_jax.training.image_tokenizer.step import network_of, to_pixels
from ofa_jax.training.run import Writer
from ofa_jax.utils import files

COLUMNS = ("loss", "psnr", "ssim", "feature_distance", "codes_used", "perplexity")
TRAINED, BASELINE = "vqgan", "baseline"
"""Rows of the results."""
FOLDER = "reconstructions"
"""Of a run directory: images of each validation, true ones above reconstructed ones."""

Distance = Callable[[Any, Any], Float[Array, " b"]]


def make_distance(features: FeatureDistance, variables: Mapping[str, Any]) -> Distance:
    """Returns the compiled distance of pairs of uint8 images [B, H, W, 3]."""
    compute = jax.jit(
        lambda variables, one, other: features(variables, to_pixels(one), to_pixels(other))
    )
    return lambda one, other: compute(variables, one, other)


def evaluate_tokenizer(
    tokenizer: ImageTokenizer,
    batches: Iterable[UInt8[np.ndarray, "b h w 3"]],
    distance: Distance | None = None,
) -> dict[str, float]:
    """Computes how well images survive being encoded and decoded.

    Args:
      tokenizer: any.
      batches: the images.
      distance: of features; None without one.

    Returns:
      "loss", the mean absolute error of pixels in [-1, 1]; "psnr" in decibels and "ssim", means
      over images; "feature_distance"; "codes_used", the share of the codes that occur; and
      "perplexity", the number of codes that would have the same entropy if evenly used.
    """
    sums = dict.fromkeys(("loss", "psnr", "ssim", "feature_distance"), 0.0)
    count, use = 0, np.zeros(tokenizer.num_codes, np.int64)
    for images in batches:
        codes = tokenizer.encode(images)
        made = tokenizer.decode(codes)
        use += np.bincount(codes.reshape(-1), minlength=len(use))
        count += len(images)
        error = np.abs(made.astype(np.float32) - images).mean() / 127.5
        pairs = list(images), list(made)
        found = {"loss": float(error)} | psnr(*pairs) | ssim(*pairs)
        if distance is not None:
            found["feature_distance"] = float(np.mean(np.asarray(distance(made, images))))
        for name, value in found.items():
            sums[name] += value * len(images)
    shares = use[use > 0] / use.sum()
    return {name: value / count for name, value in sums.items()} | {
        "codes_used": float((use > 0).mean()),
        "perplexity": float(np.exp(-(shares * np.log(shares)).sum())),
    }


def comparison_image(
    images: UInt8[np.ndarray, "n h w 3"], *others: UInt8[np.ndarray, "n h w 3"]
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Returns rows of images below each other: true ones, and what was made of each."""
    return np.concatenate([np.concatenate(list(row), axis=1) for row in (images, *others)])


@dataclasses.dataclass(frozen=True)
class TokenizerEvaluation:
    """Evaluates the VQGAN of a state on the images of a split, see `training.run.Evaluation`.

    Attributes:
      config: of the VQGAN.
      batches: makes the images.
      model_dir: of the run; images are written to `reconstructions/<step>.png` in it.
      distance: of features; None without one.
      baseline: a tokenizer to compare with; None without one.
      num_shown: images to show.
    """

    config: VQGANConfig
    batches: Callable[[], Iterable[UInt8[np.ndarray, "b h w 3"]]]
    model_dir: epath.Path
    distance: Distance | None = None
    baseline: ImageTokenizer | None = None
    num_shown: int = 8

    @property
    def columns(self) -> Sequence[str]:
        """The metrics of every row."""
        return [x for x in COLUMNS if x != "feature_distance" or self.distance is not None]

    def __call__(
        self, step: int, variables: Any, writer: Writer, log: Callable[[str], None]
    ) -> dict[str, dict[str, float]]:
        """Returns the metrics of the VQGAN and of the baseline; writes images."""
        tokenizers: dict[str, ImageTokenizer] = {TRAINED: VQGAN(self.config, network_of(variables))}
        if self.baseline is not None:
            tokenizers[BASELINE] = self.baseline
        results = {}
        for name, tokenizer in tokenizers.items():
            found = evaluate_tokenizer(tokenizer, self.batches(), self.distance)
            results[name] = {column: found[column] for column in self.columns}
        if self.num_shown and jax.process_index() == 0:
            self._show(step, list(tokenizers.values()), writer, log)
        return results

    def _show(
        self,
        step: int,
        tokenizers: Sequence[ImageTokenizer],
        writer: Writer,
        log: Callable[[str], None],
    ) -> None:
        """Writes images, and what each tokenizer makes of them, to events and to a file."""
        images = next(iter(self.batches()))[: self.num_shown]
        made = [tokenizer.decode(tokenizer.encode(images)) for tokenizer in tokenizers]
        shown = comparison_image(images, *made)
        writer.write_images(step, {"validation/reconstructions": shown[None]})
        encoded = io.BytesIO()
        Image.fromarray(shown).save(encoded, "png")
        try:
            folder = self.model_dir / FOLDER
            folder.mkdir(parents=True, exist_ok=True)
            with files.atomic_path(folder / f"{step}.png") as temporary:
                temporary.write_bytes(encoded.getvalue())
        except OSError as error:
            log(f"The reconstructions of step {step} were not written ({error}).")
