"""Reads the files of a text BPE: GPT-2's, and those of the library tokenizers."""

import pathlib

import tokenizers
from etils import epath
from tokenizers import decoders, models, pre_tokenizers

from ofa_jax.utils import files, text_files

CHINESE = "BERT_CN_dict"
"""The reference implementation's folder with the vocabulary of its Chinese checkpoints."""
_NEEDED = "give the folder with encoder.json, vocab.bpe and dict.txt of the English checkpoints"


def check_exists(path: pathlib.Path) -> pathlib.Path:
    """Returns the path; raises FileNotFoundError if there is no such file."""
    if not path.is_file():
        raise missing_file(path)
    return path


def refuse_other_vocabulary(directory: pathlib.Path) -> None:
    """Raises ValueError for a folder with the files of another vocabulary."""
    if (directory / "vocab.txt").is_file():
        raise ValueError(
            f"{directory} holds BERT's vocabulary (vocab.txt), which the Chinese checkpoints of "
            f"OFA use and this library does not read: {_NEEDED}."
        )
    if _has_word_pieces(directory / "dict.txt"):
        raise ValueError(
            f"{directory / 'dict.txt'} lists BERT's pieces of words ({CHINESE}), which the Chinese "
            f"checkpoints of OFA use and this library does not read: {_NEEDED}."
        )
    if (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        raise other_order(directory)


def other_order(directory: pathlib.Path) -> ValueError:
    """Returns the error about a folder of Hugging Face's with the vocabulary of another model."""
    return ValueError(
        f"{directory} holds vocab.json and merges.txt, in which Hugging Face's tokenizers keep "
        f"another order of ids: {_NEEDED}."
    )


def _has_word_pieces(path: pathlib.Path) -> bool:
    """Returns whether a dictionary has BERT's pieces of words (`##...`) in place of numbers."""
    return path.is_file() and b"\n##" in files.read_bytes(path)


def missing_file(path: epath.PathLike) -> FileNotFoundError:
    """Returns the error about a file of a vocabulary that does not exist."""
    path = epath.Path(path)
    return FileNotFoundError(
        f"There is no {path.name} in {path.parent.resolve()}: give the folder or file of the "
        "vocabulary."
    )


def parse_tokenizer(path: epath.PathLike, text: str) -> tokenizers.Tokenizer:
    """Parses a `tokenizers` JSON. Raises DamagedFileError, which names the file, if it is none."""
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # noqa: BLE001  the library raises plain Exception
        raise text_files.DamagedFileError(
            f"{path} is damaged, or not a JSON file of the library tokenizers: {error}."
        ) from None


def read_gpt2_files(encoder_json: pathlib.Path, vocab_bpe: pathlib.Path) -> tokenizers.Tokenizer:
    """Reads GPT-2's byte-level BPE.

    Args:
      encoder_json: from pieces to their ids.
      vocab_bpe: the pairs of pieces that are merged, in order.

    Raises:
      FileNotFoundError: one of them is missing.
      DamagedFileError: one of them is something else.
    """
    vocabulary = text_files.read_json(check_exists(encoder_json))
    if (
        not isinstance(vocabulary, dict)
        or not all(type(number) is int for number in vocabulary.values())
        or set(vocabulary.values()) != set(range(len(vocabulary)))
    ):
        raise text_files.DamagedFileError(
            f"{encoder_json} is not GPT-2's encoder.json: a JSON object from pieces to the numbers "
            "from 0 on."
        )
    return make_tokenizer(vocabulary, vocab_bpe, encoder_json.name)


def make_tokenizer(
    pieces: dict[str, int], merges_file: pathlib.Path, pieces_file: str
) -> tokenizers.Tokenizer:
    """Returns a byte-level BPE as GPT-2 has it.

    Args:
      pieces: piece -> id.
      merges_file: the pairs of pieces that are merged, in order.
      pieces_file: name of the file of the pieces, for the error.

    Raises:
      FileNotFoundError: the file of merges is missing.
      DamagedFileError: it is something else.
    """
    merges = []
    for number, line in enumerate(text_files.read_lines(check_exists(merges_file)), 1):
        if line.startswith("#version") or not line:
            continue
        pair = line.split(" ")
        if len(pair) != 2 or not {*pair, "".join(pair)} <= pieces.keys():
            raise text_files.DamagedFileError(
                f"{merges_file}, line {number} is not a pair of pieces of {pieces_file}: the "
                "file is damaged, or of another vocabulary."
            )
        merges.append((pair[0], pair[1]))
    tokenizer = tokenizers.Tokenizer(models.BPE(pieces, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
