"""Loads a checkpoint with everything that inference needs."""

import dataclasses
import pathlib
from typing import Any

import jax

from ofa_jax.checkpoints import storage
from ofa_jax.checkpoints.load import load_config, load_variables
from ofa_jax.interop import files, huggingface_processor
from ofa_jax.model import OFA, OFAConfig, layout
from ofa_jax.sharding import Partitioner
from ofa_jax.tokenizers import huggingface_files
from ofa_jax.tokenizers.processor import FOLDER, Processor
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.tokenizers.vocabulary_files import CHINESE
from ofa_jax.utils.wrong_files import shorten

OFFICIAL_IMAGE_SIZE, OFFICIAL_MAX_IMAGE_SIZE = 384, 512
"""Pixels, for official checkpoints that do not store their own."""
_LARGEST_IMAGE = 2**14


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model with its parameters, vocabulary and image sizes.

    Attributes:
      name: file or folder of the checkpoint.
      model: the layers; on one device in the plain layout of parameters, whatever the checkpoint's.
      variables: {"params", "batch_stats"}, on the mesh.
      processor: vocabulary, image tokenizer and image sizes.
      partitioner: the mesh.
    """

    name: str
    model: OFA
    variables: Any
    processor: Processor
    partitioner: Partitioner

    def with_processor(self, **fields: Any) -> "LoadedModel":
        """Returns a copy with some fields of the processor changed."""
        return dataclasses.replace(self, processor=self.processor.replace(**fields))


def load_model(
    checkpoint: str,
    partitioner: Partitioner,
    vocabulary: OFAVocabulary | str | None = None,
    dtype: str | None = None,
    weights: str | None = None,
    **processor_fields: Any,
) -> LoadedModel:
    """Loads a checkpoint.

    Args:
      checkpoint: a run directory (its newest checkpoint), a folder `checkpoints/<step>`, or an
        official checkpoint (a file or folder).
      partitioner: the mesh.
      vocabulary: for checkpoints that do not store theirs: a vocabulary, the folder of the official
        BPE or of `vocab.json` and `merges.txt`, or a file written by `OFAVocabulary.save` or the
        `tokenizers` library. Hugging Face folders may store theirs.
      dtype: dtype of the computation, "float32" or "bfloat16"; as in training when None.
      weights: "model" for the last parameters, "ema" for the averaged ones; when None, those of a
        run are the averaged ones if it has them, and those of an official checkpoint the last ones.
      **processor_fields: fields of `Processor` that differ from the run's; None keeps the run's.

    Raises:
      FileNotFoundError, ValueError: the checkpoint or a part of it is missing or does not fit.
    """
    name = checkpoint if files.is_official(checkpoint) else str(storage.find_checkpoint(checkpoint))
    config = load_config(name)
    processor = load_processor(name, vocabulary).replace(
        **{field: value for field, value in processor_fields.items() if value is not None}
    )
    size = processor.vocabulary.vocab_size
    if size != config.vocab_size:
        raise ValueError(
            f"The vocabulary has {size} ids and the model of {checkpoint} {config.vocab_size}: "
            "give the vocabulary of its training, with the same numbers of codes and bins."
        )
    tokenizer = processor.image_tokenizer
    if tokenizer is not None and tokenizer.num_codes != processor.vocabulary.num_codes:
        raise ValueError(
            f"The image tokenizer has {tokenizer.num_codes} codes and the vocabulary of "
            f"{checkpoint} {processor.vocabulary.num_codes}: give the image tokenizer of its "
            "training."
        )
    if dtype is not None:
        config = config.replace(dtype=dtype)
    variables = load_variables(name, config, partitioner, weights)
    variables, config = _in_decoding_layout(variables, config, partitioner)
    return LoadedModel(name, OFA(config), variables, processor, partitioner)


def _in_decoding_layout(
    variables: Any, config: OFAConfig, partitioner: Partitioner
) -> tuple[Any, OFAConfig]:
    """Converts to the plain layout, in which every program decodes, if that is another.

    Otherwise each call would take the stacks apart again: a copy of all parameters. On several
    devices they stay as they are, because rows or layers that divide over a mesh in one layout
    need not do so in the other.
    """
    plain = config.replace(**layout.PLAIN_FIELDS)
    if partitioner.mesh.size > 1 or layout.same_layout(config, plain):
        return variables, config
    return jax.jit(lambda tree: layout.to_plain(tree, config))(variables), plain


def load_processor(checkpoint: str, vocabulary: OFAVocabulary | str | None = None) -> Processor:
    """Loads vocabulary, image tokenizer and image sizes of a checkpoint; see `load_model`.

    Raises:
      FileNotFoundError, ValueError: the checkpoint does not store them, and no vocabulary is given.
    """
    processor = find_processor(checkpoint, vocabulary)
    if processor is not None:
        return processor
    if files.is_official(checkpoint) and files.read(checkpoint, verify=False).is_chinese:
        raise ValueError(
            f"{checkpoint} was trained on text in the vocabulary of the Chinese models ({CHINESE}, "
            "vocab.txt), which this library does not read: its weights can be converted, but it "
            "cannot be asked anything."
        )
    raise ValueError(
        f"{checkpoint} does not store its vocabulary: give its vocabulary, for official "
        "checkpoints the folder with encoder.json, vocab.bpe and dict.txt."
    )


def find_processor(
    checkpoint: str, vocabulary: OFAVocabulary | str | None = None
) -> Processor | None:
    """Returns what `load_processor` does; None if no vocabulary is stored or given."""
    if not files.is_official(checkpoint):
        stored = _processor_of_run(checkpoint)
        if vocabulary is None:
            return stored
        given = _load_vocabulary(vocabulary)
        return Processor(given) if stored is None else stored.replace(vocabulary=given)
    folder = files.find_folder(checkpoint)
    if vocabulary is not None:
        found: OFAVocabulary | None = _load_vocabulary(vocabulary)
    else:
        found = huggingface_processor.read_vocabulary(folder) if folder else None
    return None if found is None else Processor(found).replace(**_official_sizes(checkpoint))


def _official_sizes(checkpoint: str) -> dict[str, int]:
    """Returns the image sizes of an official checkpoint."""
    args = files.read(checkpoint, verify=False).args
    sizes = {
        "image_size": args.get("patch_image_size") or OFFICIAL_IMAGE_SIZE,
        "max_image_size": args.get("max_image_size") or OFFICIAL_MAX_IMAGE_SIZE,
    }
    for name, size in sizes.items():
        if type(size) is not int or not 0 < size <= _LARGEST_IMAGE:
            raise ValueError(
                f"{checkpoint} says that its {name} is {shorten(size)}, which is no size in "
                f"pixels: give {name}."
            )
    return sizes


def _processor_of_run(checkpoint: str) -> Processor | None:
    """Returns the processor in the run directory of a checkpoint; None if there is none."""
    folder = storage.find_checkpoint(checkpoint)
    for directory in (folder, *folder.parents[:2]):
        if (directory / FOLDER).is_dir():
            return Processor.load(directory)
    return None


def _load_vocabulary(source: OFAVocabulary | str) -> OFAVocabulary:
    """Loads a vocabulary; one without codes and bins gets those of the published models."""
    if isinstance(source, OFAVocabulary):
        return source
    path = pathlib.Path(source)
    if path.is_dir():
        if not (path / "encoder.json").is_file() and huggingface_files.has_vocabulary(path):
            return OFAVocabulary.from_huggingface_directory(source)
        return OFAVocabulary.from_ofa_directory(source)
    if path.name in huggingface_files.FILES and huggingface_files.has_vocabulary(path.parent):
        return OFAVocabulary.from_huggingface_directory(str(path.parent))
    if path.name in ("encoder.json", "vocab.bpe", "dict.txt", "vocab.txt") and path.is_file():
        # One of the files of such a folder.
        return OFAVocabulary.from_ofa_directory(str(path.parent))
    try:
        return OFAVocabulary.load(source)
    except ValueError:
        return OFAVocabulary.from_tokenizer_json(source)
