"""Reads and writes vocabulary and image sizes of a Hugging Face folder."""

import json
import os
import pathlib
from typing import Any

from ofa_jax.tokenizers import huggingface_files
from ofa_jax.tokenizers.processor import Processor
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.tokenizers.vocabulary_files import refuse_other_vocabulary
from ofa_jax.utils.files import write_json
from ofa_jax.utils.text_files import DamagedFileError, read_json
from ofa_jax.utils.wrong_files import shorten

FILE = "preprocessor_config.json"
_BICUBIC = 3
_OURS = ("max_image_size", "detection_image_size", "infill_image_size")
_LARGEST = 2**14


def read_vocabulary(folder: str | os.PathLike[str]) -> OFAVocabulary | None:
    """Reads the vocabulary in a folder; None if there is none.

    Raises:
      ValueError: it is damaged or not that of OFA's English models.
    """
    path = pathlib.Path(folder)
    if huggingface_files.has_vocabulary(path):
        return OFAVocabulary.from_huggingface_directory(str(path))
    refuse_other_vocabulary(path)
    return None


def read_sizes(folder: pathlib.Path) -> dict[str, int]:
    """Reads the image sizes in a folder, as far as it has them.

    Returns:
      Some of the official arguments `patch_image_size` and `max_image_size`.

    Raises:
      DamagedFileError: the file has something else than sizes.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    content = read_json(path)
    if not isinstance(content, dict):
        raise DamagedFileError(f"{path} is no JSON object with the sizes of images.")
    sizes = {
        "patch_image_size": _side(path, content.get("size")),
        "max_image_size": content.get("max_image_size"),
    }
    for name, size in sizes.items():
        if size is not None and not (type(size) is int and 0 < size <= _LARGEST):
            raise DamagedFileError(
                f"{path} does not have the {name} in pixels: correct the file, or delete it."
            )
    return {name: size for name, size in sizes.items() if size is not None}


def _side(path: pathlib.Path, size: Any) -> Any:
    """Returns the side of square images, however `transformers` writes it."""
    if not isinstance(size, dict):
        return size
    sides = set(map(str, size.values()))
    if not size or len(sides) != 1:
        raise DamagedFileError(
            f"{path} resizes images to {shorten(json.dumps(size))}, but OFA's images are square: "
            "correct the file, or delete it."
        )
    return next(iter(size.values()))


def write_preprocessor(folder: pathlib.Path, sizes: Processor | None = None, **known: int) -> None:
    """Writes `preprocessor_config.json`, which the image processor of ViT also reads.

    Args:
      folder: an existing folder.
      sizes: a processor with the sizes; None if only some are known.
      **known: `image_size`, and sizes of our own, where there is no processor.
    """
    fields = {name: getattr(sizes, name) for name in ("image_size", *_OURS)} if sizes else known
    side = fields.pop("image_size")
    half = [0.5, 0.5, 0.5]
    write_json(
        folder / FILE,
        {
            "image_processor_type": "ViTImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"height": side, "width": side},
            "resample": _BICUBIC,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": half,
            "image_std": half,
            **fields,
        },
    )
