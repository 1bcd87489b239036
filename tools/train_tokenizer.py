"""Trains a byte-level BPE on plain text.

    python -m tools.train_tokenizer --input=texts.txt --vocab_size=4096 --output=tokenizer.json

The result is a `tokenizers` JSON that `OFAVocabulary.from_tokenizer_json` reads. Given the same
text, it is always the same.
"""

import argparse
import pathlib
from collections.abc import Iterable, Iterator

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

# The 256 bytes come first, so that every text can be written.
_NUM_BYTES = 256


def train_tokenizer(texts: Iterable[str], vocab_size: int, path: str | pathlib.Path) -> None:
    """Learns `vocab_size` pieces from texts and writes them to `path`.

    Args:
      texts: the training text, in any pieces; give it as the model will see it (lower-cased, with
        a leading space).
      vocab_size: pieces, including the 256 bytes; a small text gives fewer.
      path: where the JSON goes.

    Raises:
      ValueError: vocab_size below 256.
    """
    if vocab_size < _NUM_BYTES:
        raise ValueError(f"vocab_size is {vocab_size}; the {_NUM_BYTES} bytes alone need more.")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path))


def _lines(paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        with open(path, encoding="utf-8") as file:
            for line in file:
                yield " " + line.strip().lower()


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.train_tokenizer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--input", nargs="+", required=True, help="text files, one text a line")
    parser.add_argument("--vocab_size", type=int, default=4096)
    parser.add_argument("--output", required=True, help="the JSON to write")
    options = parser.parse_args()
    for path in options.input:
        if not pathlib.Path(path).is_file():
            parser.error(f"--input names {path}, which is not a file.")
    train_tokenizer(_lines(options.input), options.vocab_size, options.output)
    print(f"Wrote {options.output}.")


if __name__ == "__main__":
    main()
