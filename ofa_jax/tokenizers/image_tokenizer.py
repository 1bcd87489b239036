"""The interface of image tokenizers: from images to a grid of discrete codes and back."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8

__all__ = ["ImageTokenizer"]


@runtime_checkable
class ImageTokenizer(Protocol):
    """Encodes images to codes in [0, num_codes) and decodes codes to images.

    Attributes:
      num_codes: size of the codebook.
      pixels_per_code: one code stands for pixels_per_code x pixels_per_code pixels.
    """

    @property
    def num_codes(self) -> int:
        """Number of codes."""

    @property
    def pixels_per_code(self) -> int:
        """Side length in pixels of what a code stands for."""

    def encode(self, images: UInt8[np.ndarray, "b h w 3"]) -> Int[np.ndarray, "b rows columns"]:
        """Encodes uint8 [B, H, W, 3] to int32 [B, H / pixels_per_code, W / pixels_per_code]."""

    def decode(self, codes: Int[np.ndarray, "b rows columns"]) -> UInt8[np.ndarray, "b h w 3"]:
        """Decodes int32 [B, h, w] to uint8 [B, h * pixels_per_code, w * pixels_per_code, 3]."""
