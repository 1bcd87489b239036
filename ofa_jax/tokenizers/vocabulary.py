"""One id space for everything that OFA reads and writes (paper, section 3.1).

    <s> <pad> </s> <unk> | text BPE | <mask> | <code_0> ... <code_8191> | <bin_0> ... <bin_999>
     0    1     2    3      4 ...

The order is the checkpoint format. Sizes of the three last parts are configuration; the official
models have 50,260 text ids (GPT-2's 50,257 in the order of a fairseq dictionary, and three unused
ones), 8,192 image codes and 1,000 location bins, 59,457 in all.
"""

import functools
import hashlib
import json
import pathlib
from collections.abc import Sequence

import numpy as np
import tokenizers
from etils import epath
from numpy.typing import ArrayLike
from tokenizers import decoders, models, pre_tokenizers

SPECIAL_SYMBOLS = ("<s>", "<pad>", "</s>", "<unk>")
_NUM_SPECIALS = len(SPECIAL_SYMBOLS)
_NOT_TEXT = -1
_FORMAT = "ofa_jax vocabulary 1"
# A byte-level BPE writes the space byte as this character.
_SPACE = "Ġ"


class OFAVocabulary:
    """Text BPE, mask, image codes and location bins in one id space.

    Made by `from_ofa_directory`, `from_gpt2_files` or `from_tokenizer_json`. Immutable; equal and
    hashed by content; picklable, so that data workers can carry it.

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
          tokenizer: encodes text to its own ids.
          text_symbols: for each text id of this vocabulary, in order, the tokenizer's id, or a name
            where there is none.
          num_codes: image codes, at least 0.
          num_bins: location bins, at least 2.

        Raises:
          ValueError: impossible numbers, or symbols that the tokenizer does not have.
        """
        if num_codes < 0 or num_bins < 2:
            raise ValueError(
                f"A vocabulary of {num_codes} codes and {num_bins} bins cannot be: give num_codes "
                ">= 0 and num_bins >= 2."
            )
        self.num_text = len(text_symbols)
        self.num_codes = num_codes
        self.num_bins = num_bins
        self._tokenizer = tokenizer
        self._symbols = tuple(text_symbols)
        size = tokenizer.get_vocab_size()
        # Both directions as tables: tokenizer id -> id here, and back.
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
    def from_gpt2_files(
        cls, encoder_json: str, vocab_bpe: str, num_codes: int = 8192, num_bins: int = 1000
    ) -> "OFAVocabulary":
        """From GPT-2's `encoder.json` and `vocab.bpe`, ids in GPT-2's own order.

        The official checkpoints order the same pieces by a dictionary: use `from_ofa_directory` for
        them. Here `<mask>` follows the 50,257 pieces directly.

        Raises:
          FileNotFoundError: a file is missing.
        """
        tokenizer = _gpt2_tokenizer(pathlib.Path(encoder_json), pathlib.Path(vocab_bpe))
        return cls(tokenizer, range(tokenizer.get_vocab_size()), num_codes, num_bins)

    @classmethod
    def from_ofa_directory(
        cls, bpe_dir: str, num_codes: int = 8192, num_bins: int = 1000
    ) -> "OFAVocabulary":
        """From an official directory: `encoder.json`, `vocab.bpe` and `dict.txt`.

        A line of `dict.txt` is a GPT-2 id (in decimal) and a count; its place gives the id here.

        Raises:
          FileNotFoundError: a file is missing.
        """
        directory = pathlib.Path(bpe_dir)
        tokenizer = _gpt2_tokenizer(directory / "encoder.json", directory / "vocab.bpe")
        lines = _existing(directory / "dict.txt").read_text(encoding="utf-8").splitlines()
        names = [line.rsplit(" ", 1)[0] for line in lines]
        symbols = [int(name) if name.isdigit() else name for name in names]
        return cls(tokenizer, symbols, num_codes, num_bins)

    @classmethod
    def from_tokenizer_json(
        cls, path: str, num_codes: int = 8192, num_bins: int = 1000
    ) -> "OFAVocabulary":
        """From a byte-level BPE that the `tokenizers` library saved, ids in its own order.

        Its special tokens (such as <s>) are left out: OFA's own come first.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: it is not a byte-level BPE.
        """
        tokenizer = tokenizers.Tokenizer.from_file(str(_existing(pathlib.Path(path))))
        if not isinstance(tokenizer.model, models.BPE) or "ByteLevel" not in str(tokenizer.decoder):
            raise ValueError(
                f"{path} is not a byte-level BPE; make one with `python -m tools.train_tokenizer`."
            )
        tokenizer.no_padding()
        tokenizer.no_truncation()
        added = tokenizer.get_added_tokens_decoder()
        symbols = [i for i in range(tokenizer.get_vocab_size()) if i not in added]
        return cls(tokenizer, symbols, num_codes, num_bins)

    def save(self, path: str) -> None:
        """Writes all of it to one JSON file, wherever it came from."""
        content = {
            "format": _FORMAT,
            "num_codes": self.num_codes,
            "num_bins": self.num_bins,
            "text_symbols": self._symbols,
            "tokenizer": json.loads(self._tokenizer.to_str()),
        }
        epath.Path(path).write_text(json.dumps(content, ensure_ascii=False))

    @classmethod
    def load(cls, path: str) -> "OFAVocabulary":
        """Reads what `save` wrote: an equal vocabulary.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: it is something else.
        """
        path = epath.Path(path)
        if not path.is_file():
            raise _missing(path)
        content = json.loads(path.read_text())
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError(
                f"{path} was not written by OFAVocabulary.save: a tokenizer.json is read by "
                "OFAVocabulary.from_tokenizer_json."
            )
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content["tokenizer"]))
        return cls(tokenizer, content["text_symbols"], content["num_codes"], content["num_bins"])

    # ------------------------------------------------------------------------------ id ranges

    @property
    def mask_id(self) -> int:
        """Id of `<mask>`, directly after the text."""
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
        """All ids."""
        return self.bin_ids.stop

    # ------------------------------------------------------------------------------------ text

    def encode(
        self,
        text: str,
        *,
        max_length: int | None = None,
        add_bos: bool = False,
        add_eos: bool = False,
    ) -> np.ndarray:
        """Text to ids. The text is taken as it is: a leading space matters.

        Args:
          text: any string.
          max_length: at most so many ids, counted before bos and eos are added.
          add_bos: put `<s>` in front.
          add_eos: put `</s>` behind.

        Returns:
          int32 [n].
        """
        encoded = self._tokenizer.encode(text, add_special_tokens=False).ids
        ids = self._from_tokenizer[np.asarray(encoded[:max_length], np.int64)]
        return self._framed(ids, add_bos, add_eos)

    def encode_symbols(
        self,
        symbols: str,
        *,
        max_length: int | None = None,
        add_bos: bool = False,
        add_eos: bool = False,
    ) -> np.ndarray:
        """Symbols separated by white space, such as `<bin_12> <bin_300>`, to ids.

        What is not a symbol becomes `<unk>`. Text is not split further: that is `encode`'s work.

        Returns:
          int32 [n].
        """
        ids = [self._symbol_ids.get(symbol, self.unk_id) for symbol in symbols.split()]
        return self._framed(np.asarray(ids[:max_length], np.int32), add_bos, add_eos)

    def _framed(self, ids: np.ndarray, add_bos: bool, add_eos: bool) -> np.ndarray:
        before, after = [self.bos_id] * add_bos, [self.eos_id] * add_eos
        return np.concatenate([before, ids, after]).astype(np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        """Ids to readable text: `<bin_12>`, `<code_7>`, `<mask>` and `<unk>` stand as such.

        `<s>`, `<pad>` and `</s>` are left out. Nothing is put between the pieces, so text that was
        encoded comes back as it was.

        Raises:
          ValueError: an id outside the vocabulary.
        """
        parts, run = [], []
        for index in np.asarray(ids, np.int64).reshape(-1):
            symbol = self._symbol(int(index))
            if isinstance(symbol, int):
                run.append(symbol)
                continue
            parts += [self._decode_run(run), symbol]
            run = []
        return "".join([*parts, self._decode_run(run)])

    def _decode_run(self, run: list[int]) -> str:
        return self._tokenizer.decode(run, skip_special_tokens=False) if run else ""

    def _symbol(self, index: int) -> int | str:
        """The tokenizer's id of a text piece; what `decode` shows for any other id."""
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
        names = [
            *SPECIAL_SYMBOLS,
            *map(str, self._symbols),
            "<mask>",
            *(f"<code_{i}>" for i in range(self.num_codes)),
            *(f"<bin_{i}>" for i in range(self.num_bins)),
        ]
        return {name: index for index, name in enumerate(names)}

    @functools.cached_property
    def whole_word_starts(self) -> np.ndarray:
        """bool [vocab_size]: which ids begin a word, for whole-word masking (text infilling).

        A piece that begins with a space; also the four specials and unused text ids. Not the mask,
        the codes and the bins.
        """
        starts = np.zeros(self.vocab_size, bool)
        starts[:_NUM_SPECIALS] = True
        for index, symbol in enumerate(self._symbols):
            starts[_NUM_SPECIALS + index] = not isinstance(symbol, int) or (
                self._tokenizer.id_to_token(symbol).startswith(_SPACE)
            )
        return starts

    # ------------------------------------------------------------------------- boxes and codes

    def encode_box(self, box: ArrayLike, max_image_size: float) -> np.ndarray:
        """A box to its four location bins, `round(coordinate / max_image_size * (num_bins - 1))`.

        The scale is the fixed `max_image_size`, not the image's width (section 2 of the spec);
        float32 and halves to even, as the original computes it.

        Args:
          box: x0, y0, x1, y1 in pixels of the transformed image.
          max_image_size: pixels that the last bin stands for (512 in pretraining).

        Returns:
          int32 [4], ids.

        Raises:
          ValueError: not four numbers, or a box that reaches outside the bins.
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

    def decode_box(self, ids: Sequence[int], max_image_size: float) -> np.ndarray:
        """Four location bins to the box in pixels that they stand for.

        Returns:
          float32 [4], x0 y0 x1 y1.

        Raises:
          ValueError: not four location bins.
        """
        bins = np.asarray(ids, np.int64) - self.bin_ids.start
        if bins.shape != (4,) or bins.min() < 0 or bins.max() >= self.num_bins:
            raise ValueError(f"A box is four ids in {self.bin_ids}, not {list(ids)}.")
        return (bins / (self.num_bins - 1) * max_image_size).astype(np.float32)

    def encode_codes(self, codes: ArrayLike) -> np.ndarray:
        """Image codes in [0, num_codes), any shape, to ids: int32 [n], row by row.

        Raises:
          ValueError: a code that this vocabulary has no id for.
        """
        codes = np.asarray(codes, np.int64).reshape(-1)
        if codes.size and (codes.min() < 0 or codes.max() >= self.num_codes):
            raise ValueError(
                f"Image codes from {codes.min()} to {codes.max()}, but the vocabulary has "
                f"{self.num_codes}: it was made for another image tokenizer."
            )
        return (codes + self.code_ids.start).astype(np.int32)

    def decode_codes(self, ids: Sequence[int]) -> np.ndarray:
        """Ids to image codes: int32 [n].

        Raises:
          ValueError: an id that is no image code.
        """
        codes = np.asarray(ids, np.int64).reshape(-1) - self.code_ids.start
        if codes.size and (codes.min() < 0 or codes.max() >= self.num_codes):
            raise ValueError(f"Not all of these ids are image codes ({self.code_ids}).")
        return codes.astype(np.int32)

    # ---------------------------------------------------------------------------------- others

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of all that determines the ids: equal vocabularies have equal ones."""
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


def _existing(path: pathlib.Path) -> pathlib.Path:
    if not path.is_file():
        raise _missing(path)
    return path


def _missing(path: pathlib.Path) -> FileNotFoundError:
    return FileNotFoundError(
        f"There is no {path.name} in {path.parent.resolve()}: name the folder or file that "
        "holds the vocabulary."
    )


def _gpt2_tokenizer(encoder_json: pathlib.Path, vocab_bpe: pathlib.Path) -> tokenizers.Tokenizer:
    vocabulary, merges = models.BPE.read_file(
        str(_existing(encoder_json)), str(_existing(vocab_bpe))
    )
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
