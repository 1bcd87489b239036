"""Reads an image tokenizer of any kind, by what the file is."""

import os

from etils import epath

from ofa_jax.interop import vqgan_file
from ofa_jax.tokenizers import ImageTokenizer, PatchCodebook
from ofa_jax.tokenizers.vqgan import VQGAN
from ofa_jax.utils import options
from ofa_jax.utils.array_files import load_arrays
from ofa_jax.utils.option_checks import checked

FILE = "image_tokenizer.npz"
"""In the directory of a run that trains an image tokenizer, and in `interface` of other runs."""
_PROCESSOR = "interface"


@checked
def read(path: options.PathLike) -> ImageTokenizer:
    """Reads an image tokenizer.

    Args:
      path: an `.npz` of ours with a patch codebook or a VQGAN, the official file of a VQGAN
        (`last.ckpt`), or a run directory that has one of ours.

    Raises:
      FileNotFoundError, ValueError: there is none, or it is something else.
    """
    place = epath.Path(path)
    if place.is_dir():
        places = (place / FILE, place / _PROCESSOR / FILE)
        found = next((file for file in places if file.exists()), None)
        if found is None:
            raise FileNotFoundError(
                f"There is no {FILE} in {path}: give the folder of a run whose training has ended, "
                "or the path of a file."
            )
        place = found
    if place.suffix != ".npz":
        return vqgan_file.read(os.fspath(place))
    if not place.exists():
        raise FileNotFoundError(f"There is no image tokenizer at {path}.")
    if set(load_arrays(place)) == {"codebook"}:
        return PatchCodebook.load(place)
    return VQGAN.load(place)
