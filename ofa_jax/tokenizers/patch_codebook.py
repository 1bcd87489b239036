"""An image tokenizer made by mini-batch k-means: each 8x8 patch is its nearest codebook patch.

It has the interface and the 8 pixels per code of the VQGAN that OFA uses (paper, section 3.1), and
is fitted in seconds. The algorithm is that of Sculley, "Web-scale k-means clustering", WWW 2010.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
from etils import epath
from jaxtyping import Float, Int, UInt8

from ofa_jax.utils import files, options
from ofa_jax.utils.array_files import load_arrays
from ofa_jax.utils.option_checks import checked
from ofa_jax.utils.text_files import DamagedFileError

__all__ = ["PatchCodebook", "check_sizes", "to_patches"]


@dataclasses.dataclass(frozen=True, eq=False)
class PatchCodebook:
    """An `ImageTokenizer` whose codes are patches.

    Attributes:
      codebook: float32 [num_codes, 8 * 8 * 3], whole pixel values in [0, 255]. All rows differ, so
        encoding a decoded image gives the same codes.
      pixels_per_code: 8.
    """

    codebook: Float[np.ndarray, "num_codes 192"]
    pixels_per_code: int = dataclasses.field(default=8, init=False)

    def __post_init__(self) -> None:
        width = 3 * self.pixels_per_code**2
        if self.codebook.ndim != 2 or self.codebook.shape[1] != width:
            raise ValueError(
                f"A patch codebook has the shape [num_codes, {width}], but this array has the "
                f"shape {self.codebook.shape}: create it with PatchCodebook.fit."
            )

    @property
    def num_codes(self) -> int:
        """Number of codes."""
        return self.codebook.shape[0]

    def encode(self, images: UInt8[np.ndarray, "b h w 3"]) -> Int[np.ndarray, "b h/8 w/8"]:
        """Returns the nearest code of each patch by squared distance.

        Args:
          images: uint8 [B, H, W, 3], H and W multiples of 8.

        Returns:
          int32 [B, H / 8, W / 8].
        """
        batch, height, width, _ = images.shape
        patches = to_patches(images, self.pixels_per_code)
        # |x - c|^2 = |x|^2 - 2 x.c + |c|^2, where |x|^2 does not matter. Around 128, every
        # number here is a (half) integer below 2^23: float32 is exact, ties go to the first code.
        centred = self.codebook - 128.0
        scores = (patches.astype(np.float32) - 128.0) @ centred.T
        scores -= 0.5 * np.square(centred).sum(1)
        side = self.pixels_per_code
        return scores.argmax(1).astype(np.int32).reshape(batch, height // side, width // side)

    def decode(self, codes: Int[np.ndarray, "b h w"]) -> UInt8[np.ndarray, "b 8*h 8*w 3"]:
        """Returns the images of codes: int32 [B, h, w] -> uint8 [B, 8 h, 8 w, 3]."""
        batch, rows, columns = codes.shape
        side = self.pixels_per_code
        patches = self.codebook[codes].astype(np.uint8)
        patches = patches.reshape(batch, rows, columns, side, side, 3)
        return patches.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * side, columns * side, 3)

    @classmethod
    def fit(
        cls,
        images: Iterable[np.ndarray],
        num_codes: int = 256,
        *,
        seed: int = 0,
        max_patches: int = 120_000,
    ) -> "PatchCodebook":
        """Fits a codebook to the patches of whole images and, once more, of their middle halves.

        The targets of image infilling are codes of the middle half, so its patches count twice.

        Args:
          images: uint8 [H, W, 3] each, H and W multiples of 8.
          num_codes: size of the codebook.
          seed: of the k-means and of the choice of patches.
          max_patches: the limit; if there are more patches, this many are sampled.

        Returns:
          The codebook.

        Raises:
          ValueError: the images have fewer different patches than codes.
        """
        from sklearn.cluster import MiniBatchKMeans

        rng = np.random.default_rng(seed)
        patches = np.concatenate([p for image in images for p in _patches_of(image)])
        if len(patches) > max_patches:
            patches = patches[rng.permutation(len(patches))[:max_patches]]
        distinct = np.unique(patches, axis=0)
        if len(distinct) < num_codes:
            raise ValueError(
                f"{num_codes} codes cannot be learned from {len(distinct)} different patches: "
                "give more images, or fewer codes."
            )
        means = MiniBatchKMeans(
            num_codes,
            batch_size=4096,
            n_init=1,
            max_iter=12,
            random_state=seed,
            max_no_improvement=None,
            init_size=max(3 * num_codes, 8192),
        ).fit(patches.astype(np.float32))
        centres = np.rint(means.cluster_centers_).clip(0, 255).astype(np.uint8)
        return cls(_all_different(centres, distinct, rng).astype(np.float32))

    def save(self, path: epath.PathLike) -> None:
        """Writes the codebook to an .npz file."""
        with files.atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, codebook=self.codebook.astype(np.uint8))

    @classmethod
    @checked
    def load(cls, path: options.PathLike) -> "PatchCodebook":
        """Reads a codebook that `save` wrote.

        Raises:
          FileNotFoundError: there is no such file.
          DamagedFileError: it is damaged, or `save` did not write it.
        """
        if not epath.Path(path).exists():
            raise FileNotFoundError(
                f"There is no patch codebook at {path}: `python -m tools.build_scenes` makes one."
            )
        codebook = load_arrays(path).get("codebook")
        if codebook is None or codebook.ndim != 2 or codebook.dtype != np.uint8:
            raise DamagedFileError(f"{path} is not a patch codebook that this library saved.")
        return cls(codebook.astype(np.float32))


def check_sizes(images: UInt8[np.ndarray, "b h w 3"], side: int) -> None:
    """Raises ValueError if height or width is not a multiple of `side`, the pixels per code."""
    _, height, width, _ = images.shape
    if height % side or width % side:
        raise ValueError(
            f"Images of {height}x{width} pixels cannot be cut into codes of {side}x{side}: "
            f"resize them to multiples of {side}."
        )


def to_patches(
    images: UInt8[np.ndarray, "b h w channels"], side: int
) -> UInt8[np.ndarray, "patches side*side*channels"]:
    """Cuts images into patches of `side` x `side` pixels, row by row.

    Raises:
      ValueError: height or width is not a multiple of `side`.
    """
    batch, height, width, channels = images.shape
    check_sizes(images, side)
    grid = images.reshape(batch, height // side, side, width // side, side, channels)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(-1, side * side * channels)


def _patches_of(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the patches of an image, and those of its middle half as infilling cuts them."""
    height, width = (8 * (length // 16) for length in image.shape[:2])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    middle = image[top : top + height, left : left + width]
    return to_patches(image[None], 8), to_patches(middle[None], 8)


def _all_different(
    centres: np.ndarray, distinct: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Replaces repeated rows of `centres` by patches of `distinct` that are not among them."""
    _, first = np.unique(centres, axis=0, return_index=True)
    repeated = np.setdiff1d(np.arange(len(centres)), first)
    known = {row.tobytes() for row in centres}
    spare = (row for row in rng.permutation(distinct) if row.tobytes() not in known)
    for index in repeated:
        centres[index] = next(spare)
    return centres
