"""A checkpoint's vocabulary, image tokenizer and image sizes.

A run directory holds them, so that inference needs neither the data set nor the gin files. The
folder is still called `interface`, as in run directories of earlier versions:

    MODEL_DIR/interface/sizes.json            image sizes
    MODEL_DIR/interface/vocabulary.json       see `OFAVocabulary.save`
    MODEL_DIR/interface/image_tokenizer.npz   if the run has image codes
"""

import dataclasses
import json
from typing import Any

from absl import logging
from etils import epath

from ofa_jax.tokenizers.image_tokenizer import ImageTokenizer
from ofa_jax.tokenizers.patch_codebook import PatchCodebook
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.tokenizers.vqgan import VQGAN
from ofa_jax.utils.decode_options import AS_SEEN, DecodeOptions

__all__ = ["FOLDER", "IMAGE_SIZE_FIELDS", "Processor"]

FOLDER = "interface"
IMAGE_SIZE_FIELDS = ("image_size", "max_image_size", "detection_image_size", "infill_image_size")
"""Fields of `Processor` that `ObjectiveConfig` also has."""
_SIZES, _VOCABULARY, _TOKENIZER = "sizes.json", "vocabulary.json", "image_tokenizer.npz"
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
        sizes["image_tokenizer"] = kind
        (folder / _SIZES).write_text(json.dumps(sizes, indent=2) + "\n")

    @classmethod
    def load(cls, model_dir: epath.PathLike) -> "Processor":
        """Reads the processor of a run directory.

        Raises:
          FileNotFoundError: the run directory has none.
        """
        folder = epath.Path(model_dir) / FOLDER
        if not (folder / _SIZES).is_file():
            raise FileNotFoundError(
                f"There is no {FOLDER}/{_SIZES} in {model_dir}, so the model's vocabulary is "
                "unknown: give the vocabulary it was trained with (a folder with encoder.json, "
                "vocab.bpe and dict.txt, or a vocabulary.json)."
            )
        sizes = json.loads((folder / _SIZES).read_text())
        tokenizer = _TOKENIZERS.get(sizes.pop("image_tokenizer"))
        return cls(
            OFAVocabulary.load(folder / _VOCABULARY),
            None if tokenizer is None else tokenizer.load(folder / _TOKENIZER),
            **sizes,
        )
