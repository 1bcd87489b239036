"""A checkpoint, ours or the original's, with everything that asking it needs."""

import dataclasses
import pathlib
from typing import Any

from ofa_jax.checkpoints import load as checkpoint_load
from ofa_jax.checkpoints import storage
from ofa_jax.interop import files
from ofa_jax.model import OFA
from ofa_jax.sharding import Partitioner
from ofa_jax.tokenizers.processor import FOLDER, Processor
from ofa_jax.tokenizers.vocabulary import OFAVocabulary

OFFICIAL_IMAGE_SIZE, OFFICIAL_MAX_IMAGE_SIZE = 384, 512
"""Pixels, where an official checkpoint does not say its own."""


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model that can be asked.

    Attributes:
      name: the checkpoint's file or folder.
      model: its layers.
      variables: {"params", "batch_stats"}, on the mesh.
      interface: what its ids mean.
      partitioner: the mesh.
    """

    name: str
    model: OFA
    variables: Any
    interface: Processor
    partitioner: Partitioner


def load(
    checkpoint: str,
    partitioner: Partitioner,
    vocabulary: OFAVocabulary | str | None = None,
    dtype: str | None = None,
    **others: Any,
) -> LoadedModel:
    """Reads a checkpoint; the averaged parameters, if the run kept any.

    Args:
      checkpoint: a run directory (its newest checkpoint), a folder `checkpoints/<step>`, or a file
        or folder of the original.
      partitioner: the mesh.
      vocabulary: where a checkpoint does not say it: a vocabulary, the folder of an official BPE,
        or a file that `OFAVocabulary.save` or the `tokenizers` library wrote.
      dtype: what the layers compute in, "float32" or "bfloat16"; as in training when None.
      **others: fields of `Processor` that shall differ from the run's; None leaves one as it is.

    Raises:
      FileNotFoundError, ValueError: with a sentence.
    """
    name = checkpoint if files.is_official(checkpoint) else str(storage.find(checkpoint))
    config = checkpoint_load.config_of(name)
    interface = read_interface(name, vocabulary).replace(
        **{field: value for field, value in others.items() if value is not None}
    )
    size = interface.vocabulary.vocab_size
    if size != config.vocab_size:
        raise ValueError(
            f"The vocabulary has {size} ids and the model of {checkpoint} {config.vocab_size}: it "
            "was trained with another one (look at the numbers of codes and bins, too)."
        )
    tokenizer = interface.image_tokenizer
    if tokenizer is not None and tokenizer.num_codes != interface.vocabulary.num_codes:
        raise ValueError(
            f"The image tokenizer has {tokenizer.num_codes} codes and the vocabulary of "
            f"{checkpoint} {interface.vocabulary.num_codes}: give the one that its training had."
        )
    if dtype is not None:
        config = config.replace(dtype=dtype)
    variables = checkpoint_load.load_variables(name, config, partitioner)
    return LoadedModel(name, OFA(config), variables, interface, partitioner)


def read_interface(checkpoint: str, vocabulary: OFAVocabulary | str | None = None) -> Processor:
    """What a checkpoint's ids mean, as its run kept it; see `load`.

    Raises:
      FileNotFoundError, ValueError: it did not, and no vocabulary is given.
    """
    interface = None
    if files.is_official(checkpoint):
        args = files.read(checkpoint).args
        sizes = {
            "image_size": int(args.get("patch_image_size") or OFFICIAL_IMAGE_SIZE),
            "max_image_size": int(args.get("max_image_size") or OFFICIAL_MAX_IMAGE_SIZE),
        }
    else:
        sizes, folder = {}, storage.find(checkpoint)
        for directory in (folder, *folder.parents[:2]):
            if interface is None and (directory / FOLDER).is_dir():
                interface = Processor.load(directory)
    if vocabulary is None and interface is None:
        raise ValueError(
            f"{checkpoint} does not say what its ids mean: give its vocabulary, for the original's "
            "checkpoints the folder with encoder.json, vocab.bpe and dict.txt."
        )
    if vocabulary is None:
        return interface
    vocabulary = _vocabulary(vocabulary)
    if interface is None:
        return Processor(vocabulary, **sizes)
    return interface.replace(vocabulary=vocabulary)


def _vocabulary(given: OFAVocabulary | str) -> OFAVocabulary:
    """By name; what does not say its codes and bins has those of the published models."""
    if isinstance(given, OFAVocabulary):
        return given
    if pathlib.Path(given).is_dir():
        return OFAVocabulary.from_ofa_directory(given)
    try:
        return OFAVocabulary.load(given)
    except ValueError:
        return OFAVocabulary.from_tokenizer_json(given)
