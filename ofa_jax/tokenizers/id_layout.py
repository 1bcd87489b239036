"""The order of the ids in the unified vocabulary (paper, section 3.1).

    <s> <pad> </s> <unk> | text BPE | <mask> | <code_0> ... <code_8191> | <bin_0> ... <bin_999>
     0    1     2    3      4 ...

Checkpoints depend on this order. The numbers of text ids, codes and bins are options; the official
models have 50,260 text ids (GPT-2's 50,257 in the order of a fairseq dictionary, and three unused
ones), 8,192 image codes and 1,000 location bins, 59,457 in all.
"""

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

__all__ = ["MASK", "NUM_SPECIALS", "SPECIAL_SYMBOLS", "IdLayout"]

SPECIAL_SYMBOLS = ("<s>", "<pad>", "</s>", "<unk>")
NUM_SPECIALS = len(SPECIAL_SYMBOLS)
MASK = "<mask>"


class IdLayout:
    """The ids of special symbols, text, image codes and location bins.

    Attributes:
      bos_id, pad_id, eos_id, unk_id: 0, 1, 2, 3.
      num_text: text ids, from 4 on.
      num_codes, num_bins: image codes and location bins.
    """

    bos_id, pad_id, eos_id, unk_id = range(NUM_SPECIALS)

    def __init__(self, num_text: int, num_codes: int = 8192, num_bins: int = 1000):
        """Numbers the ids.

        Args:
          num_text: text ids.
          num_codes: image codes, at least 0.
          num_bins: location bins, at least 2.

        Raises:
          ValueError: the numbers are too small.
        """
        if num_codes < 0 or num_bins < 2:
            raise ValueError(
                f"num_codes is {num_codes} and num_bins is {num_bins}; give num_codes >= 0 and "
                "num_bins >= 2."
            )
        self.num_text = num_text
        self.num_codes = num_codes
        self.num_bins = num_bins

    @property
    def mask_id(self) -> int:
        """Id of `<mask>`, which follows the text ids."""
        return NUM_SPECIALS + self.num_text

    @property
    def code_ids(self) -> range:
        """Ids of the image codes."""
        return range(self.mask_id + 1, self.mask_id + 1 + self.num_codes)

    @property
    def bin_ids(self) -> range:
        """Ids of the location bins."""
        return range(self.code_ids.stop, self.code_ids.stop + self.num_bins)

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self.bin_ids.stop

    def encode_box(self, box: ArrayLike, max_image_size: float) -> Int[np.ndarray, "4"]:
        """Encodes a box as four location bins, `round(x / max_image_size * (num_bins - 1))`.

        The scale is the fixed `max_image_size`, not the image's width. As in the official code, the
        arithmetic is in float32 and halves are rounded to even.

        Args:
          box: x0, y0, x1, y1 in pixels of the transformed image.
          max_image_size: coordinate of the last bin in pixels (512 in pretraining).

        Returns:
          int32 [4], ids.

        Raises:
          ValueError: the box has not four finite numbers, or exceeds the range of the bins.
        """
        coordinates = np.asarray(box, np.float32)
        if coordinates.shape != (4,) or not np.isfinite(coordinates).all():
            raise ValueError(f"A box is four finite numbers x0 y0 x1 y1, not {box!r}.")
        bins = np.round(coordinates / np.float32(max_image_size) * np.float32(self.num_bins - 1))
        if bins.min() < 0 or bins.max() >= self.num_bins:
            raise ValueError(
                f"Box {coordinates.tolist()} reaches outside 0..{max_image_size} pixels: clip it "
                "to the image, or raise max_image_size."
            )
        return bins.astype(np.int32) + self.bin_ids.start

    def decode_box(self, ids: ArrayLike, max_image_size: float) -> Float[np.ndarray, "4"]:
        """Decodes four location bins to a box in pixels.

        Returns:
          float32 [4], x0 y0 x1 y1.

        Raises:
          ValueError: `ids` are not four location bins.
        """
        bins = np.asarray(ids, np.int64) - self.bin_ids.start
        if bins.shape != (4,) or bins.min() < 0 or bins.max() >= self.num_bins:
            raise ValueError(
                f"A box is four ids in {self.bin_ids}, not {np.asarray(ids).tolist()}."
            )
        return (bins / (self.num_bins - 1) * max_image_size).astype(np.float32)

    def encode_codes(self, codes: ArrayLike) -> Int[np.ndarray, " n"]:
        """Encodes image codes in [0, num_codes), of any shape, row by row.

        Raises:
          ValueError: a code is out of range.
        """
        codes = np.asarray(codes, np.int64).reshape(-1)
        if codes.size and (codes.min() < 0 or codes.max() >= self.num_codes):
            raise ValueError(
                f"Image codes from {codes.min()} to {codes.max()}, but the vocabulary has "
                f"{self.num_codes}: it was made for another image tokenizer."
            )
        return (codes + self.code_ids.start).astype(np.int32)

    def decode_codes(self, ids: ArrayLike) -> Int[np.ndarray, " n"]:
        """Decodes ids to image codes.

        Raises:
          ValueError: an id is not that of an image code.
        """
        codes = np.asarray(ids, np.int64).reshape(-1) - self.code_ids.start
        if codes.size and (codes.min() < 0 or codes.max() >= self.num_codes):
            raise ValueError(f"Not all of these ids are image codes ({self.code_ids}).")
        return codes.astype(np.int32)
