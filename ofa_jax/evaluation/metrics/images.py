"""How near generated images are to true ones."""

import math
from collections.abc import Sequence

import numpy as np

from ofa_jax.evaluation.metrics import inputs

_WHITE = 255


def psnr(references: Sequence[np.ndarray], answers: Sequence[np.ndarray]) -> dict[str, float]:
    """ "psnr": the mean peak signal-to-noise ratio in decibels.

    An image that is right in every value would have an infinite one; it counts as if a single
    value were off by one.

    Args:
      references: uint8 images, e.g. [H, W, 3].
      answers: uint8, each of its reference's shape.
    """
    from skimage.metrics import mean_squared_error

    inputs.check_pairs("psnr", references, answers)
    ratios = []
    for number, (reference, answer) in enumerate(zip(references, answers, strict=True)):
        reference, answer = np.asarray(reference), np.asarray(answer)
        if reference.dtype != np.uint8 or answer.dtype != np.uint8:
            raise ValueError(
                f"psnr: example {number} has {reference.dtype} and {answer.dtype} images; give "
                "uint8."
            )
        if reference.shape != answer.shape:
            raise ValueError(
                f"psnr: the image of example {number} is {answer.shape}, the true one "
                f"{reference.shape}: make them equal in size."
            )
        error = max(mean_squared_error(reference, answer), 1 / reference.size)
        ratios.append(10 * math.log10(_WHITE**2 / error))
    return {"psnr": math.fsum(ratios) / len(ratios)}
