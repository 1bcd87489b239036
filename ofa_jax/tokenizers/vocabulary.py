"""The unified vocabulary: text, image codes and location bins in one id space (paper, section 3.1).

    <s> <pad> </s> <unk> | text BPE | <mask> | <code_0> ... <code_8191> | <bin_0> ... <bin_999>
     0    1     2    3      4 ...

Checkpoints depend on this order. The numbers of text ids, codes and bins are options; the official
models have 50,260 text ids (GPT-2's 50,257 in the order of a fairseq dictionary, and three unused
ones), 8,192 image codes and 1,000 location bins, 59,457 in all.
"""

import functools
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import tokenizers
from etils import epath
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike
from tokenizers import models

from ofa_jax.tokenizers import huggingface_files
from ofa_jax.tokenizers.encodable_text import make_encodable
from ofa_jax.tokenizers.vocabulary_files import (
    check_exists,
    missing_file,
    parse_tokenizer,
    read_gpt2_files,
    refuse_other_vocabulary,
)
from ofa_jax.utils import files, options, text_files
from ofa_jax.utils.option_checks import checked

__all__ = ["SPECIAL_SYMBOLS", "OFAVocabulary"]

SPECIAL_SYMBOLS = ("<s>", "<pad>", "</s>", "<unk>")
_NUM_SPECIALS = len(SPECIAL_SYMBOLS)
_NOT_TEXT = -1
_FORMAT = "ofa_jax vocabulary 1"
# A byte-level BPE writes the space byte as this character.
_SPACE = "Ġ"

NumBins = Annotated[int, options.AtLeast(2), options.AtMost(options.LARGEST)]
"""A number of location bins."""


class OFAVocabulary:
    """Text BPE, mask, image codes and location bins in one id space.

    `from_ofa_directory`, `from_gpt2_files` and `from_tokenizer_json` create one. It is immutable,
    compared and hashed by content, and picklable for data workers.

    Attributes:
      bos_id, pad_id, eos_id, unk_id: 0, 1, 2, 3.
      num_text: text ids, from 4 on.
      num_codes, num_bins: image codes and location bins.
    """

    bos_id, pad_id, eos_id, unk_id = range(_NUM_SPECIALS)

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        text_symbols: Sequence[int | str],
        num_codes: int = 8192,
        num_bins: int = 1000,
    ):
        """Wraps a byte-level BPE.

        Args:
          tokenizer: the BPE, which has its own ids.
          text_symbols: for each text id of this vocabulary, in order, the BPE's id, or the name of
            an unused id.
          num_codes: image codes, at least 0.
          num_bins: location bins, at least 2.

        Raises:
          ValueError: the numbers are too small, or the BPE lacks an id of `text_symbols`.
        """
        if num_codes < 0 or num_bins < 2:
            raise ValueError(
                f"num_codes is {num_codes} and num_bins is {num_bins}; give num_codes >= 0 and "
                "num_bins >= 2."
            )
        self.num_text = len(text_symbols)
        self.num_codes = num_codes
        self.num_bins = num_bins
        self._tokenizer = tokenizer
        self._symbols = tuple(text_symbols)
        size = tokenizer.get_vocab_size()
        # Lookup tables: the BPE's id -> id of this vocabulary, and back.
        self._from_tokenizer = np.full(size, self.unk_id, np.int32)
        self._to_tokenizer = np.full(self.num_text, _NOT_TEXT, np.int32)
        for index, symbol in enumerate(self._symbols):
            if isinstance(symbol, int):
                if not 0 <= symbol < size:
                    raise ValueError(
                        f"The dictionary names BPE id {symbol}, but the BPE has only {size}: the "
                        "files belong to different vocabularies."
                    )
                self._from_tokenizer[symbol] = _NUM_SPECIALS + index
                self._to_tokenizer[index] = symbol

    @classmethod
    @checked
    def from_gpt2_files(
        cls,
        encoder_json: options.Path,
        vocab_bpe: options.Path,
        num_codes: options.Natural = 8192,
        num_bins: NumBins = 1000,
    ) -> "OFAVocabulary":
        """Reads GPT-2's `encoder.json` and `vocab.bpe`; text ids are in GPT-2's order.

        Official checkpoints order the same pieces by a dictionary: use `from_ofa_directory` for
        those. Here `<mask>` directly follows the 50,257 pieces.

        Raises:
          FileNotFoundError: a file is missing.
        """
        tokenizer = read_gpt2_files(pathlib.Path(encoder_json), pathlib.Path(vocab_bpe))
        return cls(tokenizer, range(tokenizer.get_vocab_size()), num_codes, num_bins)

    @classmethod
    @checked
    def from_ofa_directory(
        cls, bpe_dir: options.Path, num_codes: options.Natural = 8192, num_bins: NumBins = 1000
    ) -> "OFAVocabulary":
        """Reads the official `encoder.json`, `vocab.bpe` and `dict.txt` from a folder.

        A line of `dict.txt` has a GPT-2 id (in decimal) and a count; the line number gives the id
        in this vocabulary. A folder with `vocab.json` and `merges.txt` in their place is read by
        `from_huggingface_directory`.

        Raises:
          FileNotFoundError: a file is missing.
          ValueError: the folder holds a vocabulary of another kind.
        """
        directory = pathlib.Path(bpe_dir)
        if not (directory / "encoder.json").is_file():
            if huggingface_files.has_vocabulary(directory):
                return cls.from_huggingface_directory(bpe_dir, num_codes, num_bins)
            refuse_other_vocabulary(directory)
        tokenizer = read_gpt2_files(directory / "encoder.json", directory / "vocab.bpe")
        lines = text_files.read_lines(check_exists(directory / "dict.txt"))
        names = [line.rsplit(" ", 1)[0] for line in lines]
        symbols: list[int | str] = [
            int(name) if name.isascii() and name.isdecimal() else name for name in names
        ]
        return cls(tokenizer, symbols, num_codes, num_bins)

    @classmethod
    @checked
    def from_huggingface_directory(
        cls,
        directory: options.Path,
        num_codes: options.Natural | None = None,
        num_bins: NumBins | None = None,
    ) -> "OFAVocabulary":
        """Reads `vocab.json` and `merges.txt` of OFA from a Hugging Face folder.

        Args:
          directory: of the files, and of `added_tokens.json` if there is one.
          num_codes: image codes; when None, those that the files list, or 8192 where they list
            none, as the published folders do.
          num_bins: location bins; likewise, or 1000.

        Raises:
          FileNotFoundError: a file is missing.
          ValueError: the files are damaged, of another model, or list other numbers of codes or
            bins.
        """
        found = huggingface_files.read(pathlib.Path(directory), num_codes, num_bins)
        return cls(found.tokenizer, found.text_symbols, found.num_codes, found.num_bins)

    def save_for_huggingface(self, directory: epath.PathLike) -> None:
        """Writes the files of Hugging Face's tokenizer of OFA, which is that of BART.

        Raises:
          ValueError: this BPE does more than merge pairs of pieces, which they cannot express.
        """
        symbols = [
            symbol if isinstance(symbol, str) else self._tokenizer.id_to_token(symbol) or ""
            for symbol in self._symbols
        ]
        huggingface_files.write(
            pathlib.Path(directory),
            self._tokenizer,
            [*SPECIAL_SYMBOLS, *symbols, "<mask>"],
            [self._symbol(index) for index in (*self.code_ids, *self.bin_ids)],
        )

    @classmethod
    @checked
    def from_tokenizer_json(
        cls, path: options.Path, num_codes: options.Natural = 8192, num_bins: NumBins = 1000
    ) -> "OFAVocabulary":
        """Reads a byte-level BPE that the `tokenizers` library saved; text ids are in its order.

        Its special tokens (such as <s>) are left out: this vocabulary has its own.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: the file is not a byte-level BPE.
        """
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
        symbols = [i for i in range(tokenizer.get_vocab_size()) if i not in added]
        return cls(tokenizer, symbols, num_codes, num_bins)

    def save(self, path: epath.PathLike) -> None:
        """Writes the whole vocabulary to one JSON file."""
        content = {
            "format": _FORMAT,
            "num_codes": self.num_codes,
            "num_bins": self.num_bins,
            "text_symbols": self._symbols,
            "tokenizer": json.loads(self._tokenizer.to_str()),
        }
        files.write_text(path, json.dumps(content, ensure_ascii=False))

    @classmethod
    def load(cls, path: epath.PathLike) -> "OFAVocabulary":
        """Reads a vocabulary that `save` wrote.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: the file has another format.
        """
        path = epath.Path(path)
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
        try:
            return cls(tokenizer, symbols, num_codes, num_bins)
        except ValueError as error:
            raise text_files.DamagedFileError(f"{path} is damaged: {error}") from None

    # ------------------------------------------------------------------------------ id ranges

    @property
    def mask_id(self) -> int:
        """Id of `<mask>`, which follows the text ids."""
        return _NUM_SPECIALS + self.num_text

    @property
    def code_ids(self) -> range:
        """Ids of the image codes."""
        return range(self.mask_id + 1, self.mask_id + 1 + self.num_codes)

    @property
    def bin_ids(self) -> range:
        """Ids of the location bins."""
        return range(self.code_ids.stop, self.code_ids.stop + self.num_bins)

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self.bin_ids.stop

    # ------------------------------------------------------------------------------------ text

    def encode(
        self,
        text: str,
        *,
        max_length: int | None = None,
        add_bos: bool = False,
        add_eos: bool = False,
    ) -> Int[np.ndarray, " n"]:
        """Encodes text. Nothing is stripped: a leading space matters.

        Lone surrogates, which are not text, become U+FFFD. What is longer than any use of it is cut
        off before it is encoded. `bad_input.note` reports both.

        Args:
          text: any string.
          max_length: maximum number of ids, before bos and eos are added.
          add_bos: whether to prepend `<s>`.
          add_eos: whether to append `</s>`.

        Returns:
          int32 [n].
        """
        text = make_encodable(text, max_length)
        encoded = self._tokenizer.encode(text, add_special_tokens=False).ids
        ids = self._from_tokenizer[np.asarray(encoded[:max_length], np.int64)]
        return self._add_bos_and_eos(ids, add_bos, add_eos)

    def encode_symbols(
        self,
        symbols: str,
        *,
        max_length: int | None = None,
        add_bos: bool = False,
        add_eos: bool = False,
    ) -> Int[np.ndarray, " n"]:
        """Encodes symbols separated by white space, such as `<bin_12> <bin_300>`.

        Anything else becomes `<unk>`: use `encode` for text.

        Returns:
          int32 [n].
        """
        ids = [self._symbol_ids.get(symbol, self.unk_id) for symbol in symbols.split()]
        return self._add_bos_and_eos(np.asarray(ids[:max_length], np.int32), add_bos, add_eos)

    def _add_bos_and_eos(self, ids: np.ndarray, add_bos: bool, add_eos: bool) -> np.ndarray:
        before, after = [self.bos_id] * add_bos, [self.eos_id] * add_eos
        return np.concatenate([before, ids, after]).astype(np.int32)

    def decode(self, ids: ArrayLike) -> str:
        """Decodes ids to text with symbols such as `<bin_12>`, `<code_7>`, `<mask>` and `<unk>`.

        `<s>`, `<pad>` and `</s>` are left out. Nothing is inserted between the pieces, so encoded
        text is restored exactly.

        Raises:
          ValueError: an id outside the vocabulary.
        """
        parts: list[str] = []
        run: list[int] = []
        for index in np.asarray(ids, np.int64).reshape(-1):
            symbol = self._symbol(int(index))
            if isinstance(symbol, int):
                run.append(symbol)
                continue
            parts += [self._decode_run(run), symbol]
            run = []
        return "".join([*parts, self._decode_run(run)])

    def _decode_run(self, run: list[int]) -> str:
        """Decodes consecutive text pieces, by the BPE's ids."""
        return self._tokenizer.decode(run, skip_special_tokens=False) if run else ""

    def _symbol(self, index: int) -> int | str:
        """Returns the BPE's id of a text piece, or the text that `decode` gives for another id."""
        if not 0 <= index < self.vocab_size:
            raise ValueError(f"Id {index} is outside this vocabulary of {self.vocab_size} ids.")
        if index in (self.bos_id, self.pad_id, self.eos_id):
            return ""
        if index == self.unk_id:
            return SPECIAL_SYMBOLS[index]
        if index < self.mask_id:
            return self._symbols[index - _NUM_SPECIALS]
        if index == self.mask_id:
            return "<mask>"
        if index in self.code_ids:
            return f"<code_{index - self.code_ids.start}>"
        return f"<bin_{index - self.bin_ids.start}>"

    @functools.cached_property
    def _symbol_ids(self) -> dict[str, int]:
        """Symbol -> id, for all ids."""
        names = [
            *SPECIAL_SYMBOLS,
            *map(str, self._symbols),
            "<mask>",
            *(f"<code_{i}>" for i in range(self.num_codes)),
            *(f"<bin_{i}>" for i in range(self.num_bins)),
        ]
        return {name: index for index, name in enumerate(names)}

    @functools.cached_property
    def whole_word_starts(self) -> Bool[np.ndarray, "vocab_size"]:
        """Mask of the ids that begin a word, for whole-word masking (text infilling).

        True for pieces that begin with a space, the four special symbols and unused text ids; False
        for `<mask>`, codes and bins.
        """
        starts = np.zeros(self.vocab_size, bool)
        starts[:_NUM_SPECIALS] = True
        for index, symbol in enumerate(self._symbols):
            # An unused id begins a word.
            piece = self._tokenizer.id_to_token(symbol) if isinstance(symbol, int) else _SPACE
            starts[_NUM_SPECIALS + index] = (piece or "").startswith(_SPACE)
        return starts

    # ------------------------------------------------------------------------- boxes and codes

    def encode_box(self, box: ArrayLike, max_image_size: float) -> Int[np.ndarray, "4"]:
        """Encodes a box as four location bins, `round(x / max_image_size * (num_bins - 1))`.

        The scale is the fixed `max_image_size`, not the image's width. As in the official code, the
        arithmetic is in float32 and halves are rounded to even.

        Args:
          box: x0, y0, x1, y1 in pixels of the transformed image.
          max_image_size: coordinate of the last bin in pixels (512 in pretraining).

        Returns:
          int32 [4], ids.

        Raises:
          ValueError: the box has not four finite numbers, or exceeds the range of the bins.
        """
        coordinates = np.asarray(box, np.float32)
        if coordinates.shape != (4,) or not np.isfinite(coordinates).all():
            raise ValueError(f"A box is four finite numbers x0 y0 x1 y1, not {box!r}.")
        bins = np.round(coordinates / np.float32(max_image_size) * np.float32(self.num_bins - 1))
        if bins.min() < 0 or bins.max() >= self.num_bins:
            raise ValueError(
                f"Box {coordinates.tolist()} reaches outside 0..{max_image_size} pixels: clip it "
                "to the image, or raise max_image_size."
            )
        return bins.astype(np.int32) + self.bin_ids.start

    def decode_box(self, ids: ArrayLike, max_image_size: float) -> Float[np.ndarray, "4"]:
        """Decodes four location bins to a box in pixels.

        Returns:
          float32 [4], x0 y0 x1 y1.

        Raises:
          ValueError: `ids` are not four location bins.
        """
        bins = np.asarray(ids, np.int64) - self.bin_ids.start
        if bins.shape != (4,) or bins.min() < 0 or bins.max() >= self.num_bins:
            raise ValueError(
                f"A box is four ids in {self.bin_ids}, not {np.asarray(ids).tolist()}."
            )
        return (bins / (self.num_bins - 1) * max_image_size).astype(np.float32)

    def encode_codes(self, codes: ArrayLike) -> Int[np.ndarray, " n"]:
        """Encodes image codes in [0, num_codes), of any shape, row by row.

        Raises:
          ValueError: a code is out of range.
        """
        codes = np.asarray(codes, np.int64).reshape(-1)
        if codes.size and (codes.min() < 0 or codes.max() >= self.num_codes):
            raise ValueError(
                f"Image codes from {codes.min()} to {codes.max()}, but the vocabulary has "
                f"{self.num_codes}: it was made for another image tokenizer."
            )
        return (codes + self.code_ids.start).astype(np.int32)

    def decode_codes(self, ids: ArrayLike) -> Int[np.ndarray, " n"]:
        """Decodes ids to image codes.

        Raises:
          ValueError: an id is not that of an image code.
        """
        codes = np.asarray(ids, np.int64).reshape(-1) - self.code_ids.start
        if codes.size and (codes.min() < 0 or codes.max() >= self.num_codes):
            raise ValueError(f"Not all of these ids are image codes ({self.code_ids}).")
        return codes.astype(np.int32)

    # ---------------------------------------------------------------------------------- others

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that determines the ids."""
        content = [self._tokenizer.to_str(), self._symbols, self.num_codes, self.num_bins]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OFAVocabulary) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return (
            f"OFAVocabulary({self.num_text} text ids, {self.num_codes} codes, {self.num_bins} "
            f"bins, {self.vocab_size} in all)"
        )
