"""Trains a byte-level BPE on plain text.

    python -m tools.train_tokenizer --input=texts.txt --vocab_size=4096 --output=tokenizer.json

The result is a `tokenizers` JSON that `OFAVocabulary.from_tokenizer_json` reads. Given the same
text, it is always the same.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from ofa_jax.utils import files, progress, text_files

from . import output_folders
from .command import user_command

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
    files.write_text(path, tokenizer.to_str(pretty=True))


def _lines(paths: Iterable[str]) -> Iterator[str]:
    """Yields the lines of text files. Raises DamagedFileError if one is not UTF-8."""
    for path in paths:
        with files.open_regular(path) as file:
            # A line ends at a line feed only, so not by Python's text mode.
            for number, line in enumerate(file, 1):
                progress.advance(len(line))
                try:
                    text = text_files.decode_text(line, path)
                except text_files.DamagedFileError as error:
                    raise text_files.DamagedFileError(
                        f"{path}, line {number} is not UTF-8: save the file as UTF-8."
                    ) from error
                yield " " + text.strip().lower()


def _check_output(output: pathlib.Path, inputs: Iterable[str]) -> None:
    """Raises ValueError if the output would replace what is no tokenizer."""
    if any(output.exists() and output.samefile(path) for path in inputs):
        raise ValueError(f"--output={output} is one of the inputs: choose another name.")
    if not output.exists():
        return
    try:
        vocabulary = text_files.read_json(output)
        is_tokenizer = isinstance(vocabulary, dict) and "model" in vocabulary
    except (ValueError, OSError):
        is_tokenizer = False
    if not is_tokenizer:
        raise ValueError(
            f"--output={output} exists and is not a tokenizer's JSON: choose another name."
        )


@user_command
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.train_tokenizer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--input", nargs="+", required=True, help="text files, one text a line")
    parser.add_argument("--vocab_size", type=int, default=4096)
    parser.add_argument("--output", required=True, help="the JSON to write")
    options = parser.parse_args(arguments)
    for path in options.input:
        if not pathlib.Path(path).is_file():
            parser.error(f"--input names {path}, which is not a file.")
    output = pathlib.Path(options.output)
    _check_output(output, options.input)
    output_folders.create(output.parent, "--output")
    size = sum(os.path.getsize(path) for path in options.input)
    with progress.stage("learning the vocabulary", size, "bytes"):
        train_tokenizer(_lines(options.input), options.vocab_size, options.output)
    print(f"Wrote {options.output}.")


if __name__ == "__main__":
    sys.exit(main())
