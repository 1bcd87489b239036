"""CLIP's byte pair encoding, from the files that come with its weights.

tokenizer.json                        of the `tokenizers` library (Hugging Face)
vocab.json and merges.txt             of Hugging Face
bpe_simple_vocab_16e6.txt.gz          of OpenAI: merges alone, from which the ids follow
"""

import dataclasses
import gzip
import json
import os
import pathlib
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import tokenizers
from jaxtyping import Int32
from tokenizers import models, normalizers, pre_tokenizers

from ofa_jax.utils import text_files
from ofa_jax.utils.text_files import DamagedFileError, replace_surrogates
from ofa_jax.utils.wrong_files import check_placeholder

START, END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"
_OPENAI_SYMBOLS = 49152
_MAX_BYTES = 64 * 2**20
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclasses.dataclass(frozen=True, eq=False)
class CLIPTokenizer:
    """Encodes texts as CLIP was trained.

    Attributes:
      tokenizer: lower-cases, splits and merges.
      start_id, end_id: ids around a text; `end_id` is the highest of all.
    """

    tokenizer: tokenizers.Tokenizer
    start_id: int
    end_id: int

    def encode(self, text: str, length: int) -> Int32[np.ndarray, " length"]:
        """Returns start, the text and end, then zeros; a longer text is cut off before the end."""
        ids = self.tokenizer.encode(replace_surrogates(text), add_special_tokens=False).ids
        row = np.zeros(length, np.int32)
        ids = [self.start_id, *ids[: length - 2], self.end_id]
        row[: len(ids)] = ids
        return row

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "CLIPTokenizer":
        """Reads one of the files, or that of a folder.

        Raises:
          FileNotFoundError: there is none.
          ValueError: it is damaged, or a placeholder such as a pointer of Git LFS.
        """
        path = pathlib.Path(path)
        if path.is_dir():
            found = [path / name for name in ("tokenizer.json", "vocab.json") if
                     (path / name).is_file()] + sorted(path.glob("bpe_simple_vocab*"))  # fmt: skip
            if not found:
                raise FileNotFoundError(
                    f"{path} has no tokenizer of CLIP: add tokenizer.json, vocab.json and "
                    "merges.txt, or OpenAI's bpe_simple_vocab_16e6.txt.gz."
                )
            path = found[0]
        check_placeholder(path)
        try:
            if path.name == "tokenizer.json":
                content = json.dumps(text_files.read_json(path))
                return cls._of(tokenizers.Tokenizer.from_str(content))
            if path.name == "vocab.json":
                merges = _read(path.with_name("merges.txt")).splitlines()
                return cls.from_merges(_pairs(merges), text_files.read_json(path))
            # Behind the first line, which is a comment; the file has more merges than CLIP uses.
            lines = _read(path).splitlines()[1 : _OPENAI_SYMBOLS - 512 - 2 + 1]
            return cls.from_merges(_pairs(lines))
        except FileNotFoundError:
            raise
        except Exception as error:  # noqa: BLE001  the library raises plain exceptions
            raise DamagedFileError(
                f"{path} is not a tokenizer of CLIP ({error}): copy or download it again."
            ) from error

    @classmethod
    def from_merges(
        cls, merges: Sequence[tuple[str, str]], vocabulary: Mapping[str, int] | None = None
    ) -> "CLIPTokenizer":
        """Returns the tokenizer of merges.

        Args:
          merges: pairs of symbols, the first ones first.
          vocabulary: symbol -> id; when None, OpenAI's order: bytes, bytes at the end of a word,
            merges, start and end.
        """
        if vocabulary is None:
            letters = _byte_symbols()
            words = [letter + _WORD_END for letter in letters]
            symbols = [*letters, *words, *("".join(pair) for pair in merges), START, END]
            vocabulary = {symbol: index for index, symbol in enumerate(symbols)}
        model = models.BPE(
            vocab=dict(vocabulary),
            merges=list(merges),
            unk_token=END,
            end_of_word_suffix=_WORD_END,
        )
        tokenizer = tokenizers.Tokenizer(model)
        blanks = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFC(), blanks, normalizers.Lowercase()]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(_WORDS), "removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        return cls._of(tokenizer)

    @classmethod
    def _of(cls, tokenizer: tokenizers.Tokenizer) -> "CLIPTokenizer":
        """Returns the tokenizer; raises ValueError if it lacks the ids of start and end."""
        start, end = (tokenizer.token_to_id(symbol) for symbol in (START, END))
        if start is None or end is None:
            raise ValueError(f"it has no {START} and {END}")
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return cls(tokenizer, start, end)


def _byte_symbols() -> list[str]:
    """Returns a letter for each byte: printable ones stand for themselves, and come first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = len([byte for byte in range(256) if byte not in printable])
    return [*map(chr, printable), *(chr(256 + index) for index in range(others))]


def _pairs(lines: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the merges of lines; those of a comment are left out."""
    pairs = []
    for line in lines:
        parts = line.split()
        if len(parts) == 2 and not line.startswith("#version"):
            pairs.append((parts[0], parts[1]))
    return pairs


def _read(path: pathlib.Path) -> str:
    """Returns the text of a file, which may be compressed."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}: copy it beside the weights of CLIP.")
    with path.open("rb") as file:
        content = file.read(_MAX_BYTES)
    if content[:2] == b"\x1f\x8b":
        try:
            with gzip.open(path) as unpacked:
                content = unpacked.read(_MAX_BYTES)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"it is cut off or garbled: {error}") from error
    return content.decode("utf-8")
