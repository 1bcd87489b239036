"""The unified vocabulary: text, image codes and location bins in one id space.

`id_layout` has the order of the ids, and how boxes and image codes become ids. Here is the text.
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
from jaxtyping import Bool, Int
from numpy.typing import ArrayLike

from ofa_jax.tokenizers import huggingface_files, vocabulary_files
from ofa_jax.tokenizers.encodable_text import make_encodable
from ofa_jax.tokenizers.id_layout import MASK, NUM_SPECIALS, SPECIAL_SYMBOLS, IdLayout
from ofa_jax.tokenizers.vocabulary_files import VocabularyParts
from ofa_jax.utils import options
from ofa_jax.utils.option_checks import checked
from ofa_jax.utils.text_files import DamagedFileError

__all__ = ["OFAVocabulary"]

# A byte-level BPE writes the space byte as this character.
_SPACE = "Ġ"

NumBins = Annotated[int, options.AtLeast(2), options.AtMost(options.LARGEST)]
"""A number of location bins."""


class OFAVocabulary(IdLayout):
    """Text BPE, mask, image codes and location bins in one id space.

    `from_ofa_directory`, `from_gpt2_files` and `from_tokenizer_json` create one. It is immutable,
    compared and hashed by content, and picklable for data workers.

    Attributes:
      bos_id, pad_id, eos_id, unk_id: 0, 1, 2, 3.
      num_text: text ids, from 4 on.
      num_codes, num_bins: image codes and location bins.
    """

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
        super().__init__(len(text_symbols), num_codes, num_bins)
        self._tokenizer = tokenizer
        self._symbols = tuple(text_symbols)
        size = tokenizer.get_vocab_size()
        # Lookup table: the BPE's id -> id of this vocabulary.
        self._from_tokenizer = np.full(size, self.unk_id, np.int32)
        for index, symbol in enumerate(self._symbols):
            if isinstance(symbol, int):
                if not 0 <= symbol < size:
                    raise ValueError(
                        f"The dictionary names BPE id {symbol}, but the BPE has only {size}: the "
                        "files belong to different vocabularies."
                    )
                self._from_tokenizer[symbol] = NUM_SPECIALS + index

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
        tokenizer = vocabulary_files.read_gpt2_files(
            pathlib.Path(encoder_json), pathlib.Path(vocab_bpe)
        )
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
            vocabulary_files.refuse_other_vocabulary(directory)
        return cls(*vocabulary_files.read_ofa_directory(directory), num_codes, num_bins)

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
            [*SPECIAL_SYMBOLS, *symbols, MASK],
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
        return cls(*vocabulary_files.read_tokenizer_json(path), num_codes, num_bins)

    def save(self, path: epath.PathLike) -> None:
        """Writes the whole vocabulary to one JSON file."""
        parts = VocabularyParts(self._tokenizer, self._symbols, self.num_codes, self.num_bins)
        vocabulary_files.save(path, parts)

    @classmethod
    def load(cls, path: epath.PathLike) -> "OFAVocabulary":
        """Reads a vocabulary that `save` wrote.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: the file has another format.
        """
        path = epath.Path(path)
        parts = vocabulary_files.load(path)
        try:
            return cls(parts.tokenizer, parts.text_symbols, parts.num_codes, parts.num_bins)
        except ValueError as error:
            raise DamagedFileError(f"{path} is damaged: {error}") from None

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
            return self._symbols[index - NUM_SPECIALS]
        if index == self.mask_id:
            return MASK
        if index in self.code_ids:
            return f"<code_{index - self.code_ids.start}>"
        return f"<bin_{index - self.bin_ids.start}>"

    @functools.cached_property
    def _symbol_ids(self) -> dict[str, int]:
        """Symbol -> id, for all ids."""
        names = [
            *SPECIAL_SYMBOLS,
            *map(str, self._symbols),
            MASK,
            *(f"<code_{i}>" for i in range(self.num_codes)),
            *(f"<bin_{i}>" for i in range(self.num_bins)),
        ]
        return {name: index for index, name in enumerate(names)}

    @functools.cached_property
    def whole_word_starts(self) -> Bool[np.ndarray, " vocab_size"]:
        """Mask of the ids that begin a word, for whole-word masking (text infilling).

        True for pieces that begin with a space, the four special symbols and unused text ids; False
        for `<mask>`, codes and bins.
        """
        starts = np.zeros(self.vocab_size, bool)
        starts[:NUM_SPECIALS] = True
        for index, symbol in enumerate(self._symbols):
            # An unused id begins a word.
            piece = self._tokenizer.id_to_token(symbol) if isinstance(symbol, int) else _SPACE
            starts[NUM_SPECIALS + index] = (piece or "").startswith(_SPACE)
        return starts

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
