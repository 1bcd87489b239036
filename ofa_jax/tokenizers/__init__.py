"""Tokenizers of text, boxes and images.

| module | contents |
| --- | --- |
| `vocabulary` | `OFAVocabulary`: text, image codes and location bins in one id space |
| `id_layout` | `IdLayout`: the order of its ids, and the ids of boxes and image codes |
| `vocabulary_files` | reads the files of a vocabulary, and writes this library's |
| `huggingface_files` | reads and writes the tokenizer files of Hugging Face folders |
| `encodable_text` | bounds a text before it is encoded |
| `image_tokenizer` | `ImageTokenizer`, the interface of image tokenizers |
| `patch_codebook` | `PatchCodebook`: k-means over patches |
| `vqgan` | `VQGAN`, OFA's image tokenizer, in JAX |
| `processor` | `Processor`: vocabulary, image tokenizer and image sizes of a checkpoint |

OFA predicts image codes as tokens of its vocabulary (image infilling, text-to-image). An image
tokenizer is picklable, because data workers call it. `VQGAN` and `Processor` need JAX: they are
imported on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ofa_jax.tokenizers.image_tokenizer import ImageTokenizer
from ofa_jax.tokenizers.patch_codebook import PatchCodebook
from ofa_jax.tokenizers.vocabulary import OFAVocabulary

if TYPE_CHECKING:
    from ofa_jax.tokenizers.processor import Processor
    from ofa_jax.tokenizers.vqgan import VQGAN

__all__ = ["VQGAN", "ImageTokenizer", "OFAVocabulary", "PatchCodebook", "Processor"]

_LAZY = {"VQGAN": "vqgan", "Processor": "processor"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
