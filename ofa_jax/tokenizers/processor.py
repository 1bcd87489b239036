"""What stands between a model and people: what its ids mean, and how large it sees images.

A run directory keeps it, so that the run can be asked when data and gin files are gone:

    MODEL_DIR/interface/sizes.json            image sizes
    MODEL_DIR/interface/vocabulary.json       see `OFAVocabulary.save`
    MODEL_DIR/interface/image_tokenizer.npz   where the run has codes
"""

import dataclasses
import json
from typing import Any

from absl import logging
from etils import epath

from ofa_jax.tokenizers import ImageTokenizer, PatchCodebook
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.tokenizers.vqgan import VQGAN

FOLDER = "interface"
SIZES_OF_IMAGES = ("image_size", "max_image_size", "detection_image_size", "infill_image_size")
"""Names of fields, which `ObjectiveConfig` has, too."""
_SIZES, _VOCABULARY, _TOKENIZER = "sizes.json", "vocabulary.json", "image_tokenizer.npz"
_TOKENIZERS = {"patch_codebook": PatchCodebook, "vqgan": VQGAN}


@dataclasses.dataclass(frozen=True)
class Processor:
    """Sizes are pixels a side of square images; the defaults are those of the published models.

    Attributes:
      vocabulary: of instructions and answers.
      image_tokenizer: makes images of codes; None where there is none.
      image_size: of an image that is seen whole.
      max_image_size: pixels that the last location bin stands for.
      detection_image_size: of an image whose objects are asked for.
      infill_image_size: of an image whose middle is asked for.
    """

    vocabulary: OFAVocabulary
    image_tokenizer: ImageTokenizer | None = None
    image_size: int = 384
    max_image_size: int = 512
    detection_image_size: int = 256
    infill_image_size: int = 256

    def replace(self, **overrides: Any) -> "Processor":
        """The same with some fields changed."""
        return dataclasses.replace(self, **overrides)

    def save(self, model_dir: str) -> None:
        """Writes it into a run directory. An image tokenizer of another kind is left out."""
        folder = epath.Path(model_dir) / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        self.vocabulary.save(folder / _VOCABULARY)
        kinds = {kind: name for name, kind in _TOKENIZERS.items()}
        kind = kinds.get(type(self.image_tokenizer))
        if kind is not None:
            self.image_tokenizer.save(folder / _TOKENIZER)
        elif self.image_tokenizer is not None:
            logging.warning(
                "A %s is not kept in the run directory: give it to whoever decodes images.",
                type(self.image_tokenizer).__name__,
            )
        # Last: a reader that finds it finds the rest.
        sizes = {name: getattr(self, name) for name in SIZES_OF_IMAGES}
        sizes["image_tokenizer"] = kind
        (folder / _SIZES).write_text(json.dumps(sizes, indent=2) + "\n")

    @classmethod
    def load(cls, model_dir: str) -> "Processor":
        """Reads what `save` wrote.

        Raises:
          FileNotFoundError: the run did not keep it.
        """
        folder = epath.Path(model_dir) / FOLDER
        if not (folder / _SIZES).is_file():
            raise FileNotFoundError(
                f"There is no {FOLDER}/{_SIZES} in {model_dir}, which says what the model's ids "
                "mean: give the vocabulary it was trained with (a folder with encoder.json, "
                "vocab.bpe and dict.txt, or a vocabulary.json)."
            )
        sizes = json.loads((folder / _SIZES).read_text())
        tokenizer = _TOKENIZERS.get(sizes.pop("image_tokenizer"))
        return cls(
            OFAVocabulary.load(folder / _VOCABULARY),
            None if tokenizer is None else tokenizer.load(folder / _TOKENIZER),
            **sizes,
        )
