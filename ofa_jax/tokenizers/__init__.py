"""From images to a grid of discrete codes and back.

OFA predicts image codes as tokens of its one vocabulary (image infilling, text-to-image). Whatever
implements `ImageTokenizer` can give them: here `PatchCodebook`, k-means over patches. A tokenizer
is plain numpy and picklable, because data workers call it.
"""

from typing import Protocol, runtime_checkable

import numpy as np

from ofa_jax.tokenizers.patch_codebook import PatchCodebook

__all__ = ["ImageTokenizer", "PatchCodebook"]


@runtime_checkable
class ImageTokenizer(Protocol):
    """Encodes images to codes in [0, num_codes) and decodes codes to images.

    One code stands for pixels_per_code x pixels_per_code pixels.
    """

    num_codes: int
    pixels_per_code: int

    def encode(self, images: np.ndarray) -> np.ndarray:
        """uint8[B, H, W, 3] -> int32[B, H / pixels_per_code, W / pixels_per_code]."""

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """int32[B, h, w] -> uint8[B, h * pixels_per_code, w * pixels_per_code, 3]."""
