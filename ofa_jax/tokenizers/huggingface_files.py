"""Reads and writes the tokenizer files of OFA's Hugging Face folders, which are those of BART.

| file | content |
| --- | --- |
| vocab.json | the four specials, the text pieces and <mask>, with their ids in OFA |
| merges.txt | the pairs of pieces that are merged, in order |
| added_tokens.json | image codes and location bins; the published folders leave them out |
| special_tokens_map.json, tokenizer_config.json | which symbol is bos, eos and so on |
"""

import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import tokenizers

from ofa_jax.tokenizers.id_layout import MASK, NUM_SPECIALS, SPECIAL_SYMBOLS
from ofa_jax.tokenizers.vocabulary_files import (
    VocabularyParts,
    check_exists,
    make_tokenizer,
    other_order,
    refuse_other_vocabulary,
)
from ofa_jax.utils.files import write_json, write_text
from ofa_jax.utils.text_files import DamagedFileError, read_json
from ofa_jax.utils.wrong_files import shorten

PIECES, MERGES, ADDED = "vocab.json", "merges.txt", "added_tokens.json"
FILES = (PIECES, MERGES, ADDED, "special_tokens_map.json", "tokenizer_config.json")
"""Names of the files that are written."""
_UNUSED = re.compile(r"madeupword\d{4}")
"""Names with which fairseq fills a dictionary up to a multiple of eight."""
_CODE, _BIN = re.compile(r"<code_\d+>"), re.compile(r"<bin_\d+>")
_NUM_CODES, _NUM_BINS = 8192, 1000
_ROLES = {
    "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>",
    "pad_token": "<pad>", "cls_token": "<s>", "mask_token": MASK,
}  # fmt: skip


def has_vocabulary(directory: pathlib.Path) -> bool:
    """Returns whether a folder holds `vocab.json` and `merges.txt`."""
    return (directory / PIECES).is_file() and (directory / MERGES).is_file()


def read(
    directory: pathlib.Path, num_codes: int | None = None, num_bins: int | None = None
) -> VocabularyParts:
    """Reads a folder; see `OFAVocabulary.from_huggingface_directory`."""
    if not has_vocabulary(directory):
        refuse_other_vocabulary(directory)
    path = check_exists(directory / PIECES)
    symbols = _by_id(path, directory / ADDED)
    if tuple(symbols[:NUM_SPECIALS]) != SPECIAL_SYMBOLS:
        raise other_order(directory)
    if MASK not in symbols:
        raise ValueError(f"{path} has no {MASK}: it is not the vocabulary of OFA.")
    end = symbols.index(MASK)
    text, rest = symbols[NUM_SPECIALS:end], symbols[end + 1 :]
    counts = []
    for what, pattern, given, default in (
        ("codes", _CODE, num_codes, _NUM_CODES),
        ("bins", _BIN, num_bins, _NUM_BINS),
    ):
        listed = sum(bool(pattern.fullmatch(name)) for name in rest)
        if rest and given is not None and given != listed:
            raise ValueError(
                f"{directory} lists {listed} {what} and num_{what} is {given}: give "
                f"num_{what}={listed}, or leave it out."
            )
        counts.append(listed if rest else default if given is None else given)
    expected = [f"<code_{i}>" for i in range(counts[0])] + [f"<bin_{i}>" for i in range(counts[1])]
    if rest and rest != expected:
        wrong = next(
            (name for name, wanted in zip(rest, expected, strict=False) if name != wanted), rest[-1]
        )
        raise ValueError(
            f"{directory} has the token {shorten(wrong)} behind {MASK}, where OFA has <code_0> "
            "and all other codes, then <bin_0> and all other bins, in order."
        )
    pieces: dict[str, int] = {}
    for name in text:
        if not _UNUSED.fullmatch(name):
            pieces[name] = len(pieces)
    tokenizer = make_tokenizer(pieces, directory / MERGES, PIECES)
    return VocabularyParts(tokenizer, [pieces.get(name, name) for name in text], *counts)


def _by_id(path: pathlib.Path, added: pathlib.Path) -> list[str]:
    """Returns the symbols of both files in the order of their ids.

    Raises:
      DamagedFileError: they have no ids from 0 on, or an id twice.
    """
    ids: dict[str, int] = {}
    for file in (path, added) if added.is_file() else (path,):
        content = read_json(file)
        if not isinstance(content, dict) or not all(type(n) is int for n in content.values()):
            raise DamagedFileError(f"{file} is not a JSON object from pieces to their ids.")
        if wrong := [name for name, n in content.items() if ids.get(name, n) != n]:
            raise DamagedFileError(
                f"{file} has another id of {shorten(wrong[0])} than {path}: one of them is of "
                "another vocabulary."
            )
        ids |= content
    if sorted(ids.values()) != list(range(len(ids))):
        raise DamagedFileError(
            f"{path} does not number its pieces from 0 on, each once: it is damaged, or a file "
            "beside it is missing."
        )
    return sorted(ids, key=ids.__getitem__)


def write(
    directory: pathlib.Path,
    tokenizer: tokenizers.Tokenizer,
    symbols: Sequence[str],
    added: Sequence[Any],
) -> None:
    """Writes the files.

    Args:
      directory: an existing folder.
      tokenizer: the BPE.
      symbols: from id 0 to that of `<mask>`.
      added: the symbols behind it.

    Raises:
      ValueError: see `OFAVocabulary.save_for_huggingface`.
    """
    content = json.loads(tokenizer.to_str())
    plain = _plain(content["model"]["vocab"], content["model"]["merges"])
    kept = ("normalizer", "pre_tokenizer", "decoder", "model")
    if any(content.get(name) != plain.get(name) for name in kept):
        raise ValueError(
            "this vocabulary is not a plain byte-level BPE as GPT-2 has it, and vocab.json and "
            "merges.txt cannot express it."
        )
    write_text(directory / PIECES, _json({name: index for index, name in enumerate(symbols)}))
    lines = [pair if isinstance(pair, str) else " ".join(pair) for pair in plain["model"]["merges"]]
    write_text(directory / MERGES, "\n".join(["#version: 0.2", *lines, ""]))
    ids = {name: index for index, name in enumerate(added, len(symbols))}
    write_text(directory / ADDED, _json(ids))
    write_json(directory / "special_tokens_map.json", _ROLES)
    # The tokenizer of OFA is that of BART under another name, which `transformers` does not have.
    write_json(
        directory / "tokenizer_config.json",
        _ROLES
        | {
            "tokenizer_class": "BartTokenizer",
            "add_prefix_space": False,
            "model_max_length": 1024,
        },
    )


def _plain(pieces: dict[str, int], merges: list[Any]) -> dict[str, Any]:
    """Returns the JSON of a byte-level BPE that only merges pairs."""
    pairs = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in merges]
    model = tokenizers.models.BPE(pieces, pairs)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return json.loads(tokenizer.to_str())


def _json(value: dict[str, int]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
