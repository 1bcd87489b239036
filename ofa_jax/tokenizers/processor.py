"""A checkpoint's vocabulary, image tokenizer and image sizes.

A run directory holds them, so that inference needs neither the data set nor the gin files. The
folder is still called `interface`, as in run directories of earlier versions:

    MODEL_DIR/interface/sizes.json            image sizes
    MODEL_DIR/interface/vocabulary.json       see `OFAVocabulary.save`
    MODEL_DIR/interface/image_tokenizer.npz   if the run has image codes
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import flax
import numpy as np
from absl import logging
from etils import epath

from ofa_jax.tokenizers.image_tokenizer import ImageTokenizer
from ofa_jax.tokenizers.patch_codebook import PatchCodebook
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.tokenizers.vqgan import VQGAN
from ofa_jax.utils import files
from ofa_jax.utils.decode_options import AS_SEEN, DecodeOptions
from ofa_jax.utils.text_files import DamagedFileError, read_json

__all__ = ["FILES", "FOLDER", "IMAGE_SIZE_FIELDS", "Processor", "load_vocabulary"]

T = TypeVar("T")

FOLDER = "interface"
IMAGE_SIZE_FIELDS = ("image_size", "max_image_size", "detection_image_size", "infill_image_size")
"""Fields of `Processor` that `ObjectiveConfig` also has."""
_SIZES, _VOCABULARY, _TOKENIZER = "sizes.json", "vocabulary.json", "image_tokenizer.npz"
FILES = (_SIZES, _VOCABULARY, _TOKENIZER)
"""Names of the files in the folder."""
_TOKENIZERS: dict[str, type[PatchCodebook] | type[VQGAN]] = {
    "patch_codebook": PatchCodebook,
    "vqgan": VQGAN,
}


@dataclasses.dataclass(frozen=True)
class Processor:
    """Vocabulary, image tokenizer and image sizes of a model.

    Sizes are the side lengths of square images in pixels; the defaults are those of the official
    models. Run directories hold a processor in the folder `interface` (its name in earlier
    versions).

    Attributes:
      vocabulary: of instructions and targets.
      image_tokenizer: converts image codes to images; None if the model predicts no codes.
      image_size: input size for most tasks.
      max_image_size: coordinate of the last location bin, in pixels.
      detection_image_size: input size for object detection.
      infill_image_size: input size for image infilling.
      decode_options: how images are decoded, and how large they may be; not saved with the run.
    """

    vocabulary: OFAVocabulary
    image_tokenizer: ImageTokenizer | None = None
    image_size: int = 384
    max_image_size: int = 512
    detection_image_size: int = 256
    infill_image_size: int = 256
    decode_options: DecodeOptions = AS_SEEN

    def replace(self, **overrides: Any) -> "Processor":
        """Returns a copy with some fields changed."""
        return dataclasses.replace(self, **overrides)

    def save(self, model_dir: epath.PathLike) -> None:
        """Writes the processor into a run directory.

        An image tokenizer other than a `PatchCodebook` or a `VQGAN` is left out, with a warning.
        """
        folder = epath.Path(model_dir) / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        self.vocabulary.save(folder / _VOCABULARY)
        kind = None
        if isinstance(self.image_tokenizer, PatchCodebook | VQGAN):
            kind = "vqgan" if isinstance(self.image_tokenizer, VQGAN) else "patch_codebook"
            self.image_tokenizer.save(folder / _TOKENIZER)
        elif self.image_tokenizer is not None:
            logging.warning(
                "A %s is not saved in the run directory: give it to what decodes images.",
                type(self.image_tokenizer).__name__,
            )
        # Written last: if it exists, the rest is complete.
        sizes = {name: getattr(self, name) for name in IMAGE_SIZE_FIELDS}
        files.write_json(folder / _SIZES, sizes | {"image_tokenizer": kind})

    @classmethod
    def load(cls, model_dir: epath.PathLike) -> "Processor":
        """Reads the processor of a run directory.

        Raises:
          FileNotFoundError: the run directory has none.
          DamagedFileError: one of its files is damaged or missing.
        """
        folder = epath.Path(model_dir) / FOLDER
        if not (folder / _SIZES).is_file():
            raise FileNotFoundError(
                f"There is no {FOLDER}/{_SIZES} in {model_dir}, so the model's vocabulary is "
                "unknown: give the vocabulary it was trained with (a folder with encoder.json, "
                "vocab.bpe and dict.txt, or a vocabulary.json)."
            )
        sizes, kind = _read_sizes(folder / _SIZES)
        tokenizer: PatchCodebook | VQGAN | None = None
        if kind is not None:
            load: Callable[[epath.Path], PatchCodebook | VQGAN] = _TOKENIZERS[kind].load
            tokenizer = _read_part(folder / _TOKENIZER, load)
        return cls(load_vocabulary(model_dir), tokenizer, **sizes)

    def equals(self, other: "Processor") -> bool:
        """Returns whether another processor would be saved as the same files."""
        return (
            self.vocabulary == other.vocabulary
            and all(getattr(self, name) == getattr(other, name) for name in IMAGE_SIZE_FIELDS)
            and _same_tokenizer(self.image_tokenizer, other.image_tokenizer)
        )


def load_vocabulary(model_dir: epath.PathLike) -> OFAVocabulary:
    """Reads the vocabulary of a run directory.

    Raises:
      DamagedFileError: it is damaged or missing.
    """
    return _read_part(epath.Path(model_dir) / FOLDER / _VOCABULARY, OFAVocabulary.load)


def _read_part(path: epath.Path, load: Callable[[epath.Path], T]) -> T:
    """Reads a file of the folder; raises DamagedFileError if it is damaged or missing."""
    try:
        return load(path)
    except DamagedFileError:
        raise
    except (OSError, ValueError) as error:
        raise DamagedFileError(
            f"{path} cannot be read ({error}). Starting the training of its run again writes it "
            "anew."
        ) from error


def _read_sizes(path: epath.Path) -> tuple[dict[str, Any], str | None]:
    """Returns the image sizes and the kind of the image tokenizer.

    Raises:
      DamagedFileError: the file has something else.
    """
    sizes = _read_part(path, read_json)
    kind = sizes.pop("image_tokenizer", None) if isinstance(sizes, dict) else None
    if (
        not isinstance(sizes, dict)
        or not set(sizes) <= set(IMAGE_SIZE_FIELDS)
        or not all(type(size) is int and size > 0 for size in sizes.values())
        or not (kind is None or isinstance(kind, str) and kind in _TOKENIZERS)
    ):
        raise DamagedFileError(
            f"{path} does not hold the image sizes of a model. Starting the training of its run "
            "again writes it anew."
        )
    return sizes, kind


def _same_tokenizer(one: ImageTokenizer | None, other: ImageTokenizer | None) -> bool:
    """Returns whether two image tokenizers would be saved as the same file."""
    if isinstance(one, PatchCodebook) and isinstance(other, PatchCodebook):
        return np.array_equal(one.codebook, other.codebook)
    if isinstance(one, VQGAN) and isinstance(other, VQGAN):
        arrays = [flax.traverse_util.flatten_dict(dict(vqgan.params)) for vqgan in (one, other)]
        return (
            one.config == other.config
            and arrays[0].keys() == arrays[1].keys()
            and all(np.array_equal(array, arrays[1][name]) for name, array in arrays[0].items())
        )
    return not isinstance(one, PatchCodebook | VQGAN) and not isinstance(
        other, PatchCodebook | VQGAN
    )
