"""Similarity of generated images to true ones."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from ofa_jax.evaluation.metrics import inputs

_MAX_VALUE = 255


@inputs.accepts(lambda reference: reference if np.size(reference) else None)
def psnr(
    references: Sequence[UInt8[np.ndarray, "h w 3"]],
    predictions: Sequence[UInt8[np.ndarray, "h w 3"] | None],
) -> dict[str, float]:
    """Computes "psnr", the mean peak signal-to-noise ratio in decibels.

    An image without any error would have an infinite ratio; it counts as if a single value were
    off by one.

    Args:
      references: true images.
      predictions: generated images, each of its reference's shape; a missing one (None) has a
        ratio of 0 decibels, as if it were black and the true one white.

    Raises:
      ValueError: an image is not uint8, or a pair differs in shape.
    """
    from skimage.metrics import mean_squared_error

    inputs.check_pairs("psnr", references, predictions)
    ratios = []
    for index, (reference, prediction) in enumerate(zip(references, predictions, strict=True)):
        if prediction is None:
            ratios.append(0.0)
            continue
        reference, prediction = np.asarray(reference), np.asarray(prediction)
        if reference.dtype != np.uint8 or prediction.dtype != np.uint8:
            raise ValueError(
                f"psnr: example {index} has {reference.dtype} and {prediction.dtype} images; give "
                "uint8."
            )
        if reference.shape != prediction.shape:
            raise ValueError(
                f"psnr: the image of example {index} is {prediction.shape}, the true one "
                f"{reference.shape}: make them equal in size."
            )
        error = max(mean_squared_error(reference, prediction), 1 / reference.size)
        ratios.append(10 * math.log10(_MAX_VALUE**2 / error))
    return {"psnr": math.fsum(ratios) / len(ratios)}


@inputs.accepts(lambda reference: reference if np.size(reference) else None)
def ssim(
    references: Sequence[UInt8[np.ndarray, "h w 3"]],
    predictions: Sequence[UInt8[np.ndarray, "h w 3"]],
) -> dict[str, float]:
    """Computes "ssim", the mean structural similarity (Wang et al. 2004, equation 13).

    With a Gaussian window of 1.5 pixels on each channel, as the paper and scikit-image have it.

    Args:
      references: true images of at least 11 x 11 pixels.
      predictions: images, each of its reference's shape.

    Raises:
      ValueError: a pair differs in shape, or an image is smaller than the window.
    """
    from skimage.metrics import structural_similarity

    inputs.check_pairs("ssim", references, predictions)
    values = [
        float(
            structural_similarity(
                np.asarray(reference),
                np.asarray(prediction),
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
                channel_axis=-1,
                data_range=_MAX_VALUE,
            )
        )
        for reference, prediction in zip(references, predictions, strict=True)
    ]
    return {"ssim": math.fsum(values) / len(values)}
