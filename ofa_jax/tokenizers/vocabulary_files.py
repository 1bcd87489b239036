"""Reads the files of a vocabulary: GPT-2's, those of the library tokenizers, and this library's."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import tokenizers
from etils import epath
from tokenizers import decoders, models, pre_tokenizers

from ofa_jax.utils import files, text_files

CHINESE = "BERT_CN_dict"
"""The reference implementation's folder with the vocabulary of its Chinese checkpoints."""
_FORMAT = "ofa_jax vocabulary 1"
_NEEDED = "give the folder with encoder.json, vocab.bpe and dict.txt of the English checkpoints"


@dataclasses.dataclass(frozen=True)
class VocabularyParts:
    """What files hold of a vocabulary, as the constructor of `OFAVocabulary` takes it."""

    tokenizer: tokenizers.Tokenizer
    text_symbols: Sequence[int | str]
    num_codes: int
    num_bins: int


TextParts = tuple[tokenizers.Tokenizer, Sequence[int | str]]
"""Its first two parts, for files without image codes and location bins."""


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


def read_ofa_directory(directory: pathlib.Path) -> TextParts:
    """Reads the official folder, see `OFAVocabulary.from_ofa_directory`."""
    tokenizer = read_gpt2_files(directory / "encoder.json", directory / "vocab.bpe")
    lines = text_files.read_lines(check_exists(directory / "dict.txt"))
    names = [line.rsplit(" ", 1)[0] for line in lines]
    return tokenizer, [int(name) if name.isascii() and name.isdecimal() else name for name in names]


def read_tokenizer_json(path: str) -> TextParts:
    """Reads a byte-level BPE, see `OFAVocabulary.from_tokenizer_json`."""
    if pathlib.Path(path).name == "vocab.txt":
        refuse_other_vocabulary(pathlib.Path(path).parent)
    tokenizer = parse_tokenizer(path, text_files.read_text(check_exists(pathlib.Path(path))))
    if not isinstance(tokenizer.model, models.BPE) or "ByteLevel" not in str(tokenizer.decoder):
        raise ValueError(
            f"{path} is not a byte-level BPE; make one with `python -m tools.train_tokenizer`."
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    added = tokenizer.get_added_tokens_decoder()
    return tokenizer, [i for i in range(tokenizer.get_vocab_size()) if i not in added]


def save(path: epath.PathLike, parts: VocabularyParts) -> None:
    """Writes a whole vocabulary to one JSON file."""
    content = {
        "format": _FORMAT,
        "num_codes": parts.num_codes,
        "num_bins": parts.num_bins,
        "text_symbols": parts.text_symbols,
        "tokenizer": json.loads(parts.tokenizer.to_str()),
    }
    files.write_text(path, json.dumps(content, ensure_ascii=False))


def load(path: epath.Path) -> VocabularyParts:
    """Reads a file that `save` wrote.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file has another format.
    """
    if not path.is_file():
        raise missing_file(path)
    content = text_files.read_json(path)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(
            f"{path} was not written by OFAVocabulary.save: a tokenizer.json is read by "
            "OFAVocabulary.from_tokenizer_json."
        )
    symbols, num_codes, num_bins = (
        content.get(name) for name in ("text_symbols", "num_codes", "num_bins")
    )
    if (
        not isinstance(symbols, list)
        or not all(type(symbol) in (int, str) for symbol in symbols)
        or type(num_codes) is not int
        or type(num_bins) is not int
    ):
        raise text_files.DamagedFileError(
            f"{path} is damaged: its numbers of codes and bins or its list of text ids are not "
            "as OFAVocabulary.save writes them."
        )
    tokenizer = parse_tokenizer(path, json.dumps(content.get("tokenizer")))
    return VocabularyParts(tokenizer, symbols, num_codes, num_bins)
