"""Gives a run on Scenes another image tokenizer: the checkpoint that text-to-image starts from.

    ids of the run       text | codes of its codebook | bins
    ids of the start     text | codes of the other image tokenizer | bins

Text and bins keep their embeddings. Codes get new ones, because other codes mean other things.
"""

import pathlib

import numpy as np

from ofa_jax.checkpoints import storage
from ofa_jax.data.sources.scenes import Scenes
from ofa_jax.tokenizers import ImageTokenizer
from ofa_jax.tokenizers.processor import Processor

_SCALE = 0.02  # of new embeddings, as the model draws them


def write_start(
    run: pathlib.Path, tokenizer: ImageTokenizer, scenes: Scenes, folder: pathlib.Path, seed: int
) -> Processor:
    """Writes a run's newest checkpoint with another image tokenizer into a folder.

    Args:
      run: its run directory.
      tokenizer: the other one.
      scenes: the data set, which has the vocabulary's text.
      folder: a new run directory.
      seed: of the new embeddings.

    Returns:
      Its processor.

    Raises:
      FileNotFoundError, ValueError: the run cannot be read.
    """
    processor = Processor.load(run)
    old = processor.vocabulary
    new = scenes.vocabulary(old.num_bins, tokenizer.num_codes)
    processor = processor.replace(vocabulary=new, image_tokenizer=tokenizer)
    config = storage.read_model_config(run)
    variables = storage.load_numpy_variables(run, averaged=True)
    table = np.asarray(variables["params"]["token_embedding"]["embedding"])
    rng = np.random.default_rng(seed)
    codes = rng.normal(0, _SCALE, (tokenizer.num_codes, table.shape[1])).astype(table.dtype)
    variables["params"]["token_embedding"]["embedding"] = np.concatenate(
        [
            table[: old.code_ids.start],
            codes,
            table[old.bin_ids.start : old.bin_ids.stop],
        ]
    )
    processor.save(folder)
    storage.write_model_config(str(folder), config.replace(vocab_size=new.vocab_size))
    # Written last: if it is there, the rest is complete.
    storage.save_variables(str(folder), variables, 0)
    return processor
