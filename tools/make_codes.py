"""Encodes images to the codes that OFA learns to generate, with the official VQGAN.

    python -m tools.make_codes --vqgan=last.ckpt images.tsv image_examples.tsv
    python -m tools.make_codes --vqgan=last.ckpt --layout=text_to_image captions.tsv coded.tsv

Reads lines of id, image in base64 (and a caption), and writes lines in the official layout: id,
image, the codes of its centre (`images`, for image infilling); or id, the codes of the whole image,
caption (`text_to_image`). Images are resized and cropped to a square, as in training. The most
probable codes are taken, so that an image always has the same codes. Invalid lines are left out,
counted by reason and listed. The new file appears under its name only when it is complete. For many
images, run several machines, each with --part=NUMBER/COUNT and its own output.
"""

import argparse
import collections
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from ofa_jax.data.sources.tsv_file import OpenTsv, TsvFile, decode_base64
from ofa_jax.interop import vqgan_file
from ofa_jax.preprocessing import images
from ofa_jax.tokenizers.vqgan import VQGAN
from ofa_jax.utils import files, platforms, progress
from ofa_jax.utils.bad_input import as_invalid_record

from . import output_folders
from .command import user_command

_COLUMNS = {"images": ("id", "image"), "text_to_image": ("id", "image", "caption")}
_NAMED = 10


def coded_line(columns: Sequence[bytes], codes: np.ndarray, layout: str) -> bytes:
    """Returns a line of the new file; the module's text describes it.

    Args:
      columns: of the line that was read.
      codes: int32 [h, w].
      layout: one of `_COLUMNS`.
    """
    written = " ".join(map(str, codes.reshape(-1).tolist())).encode()
    if layout == "images":
        return b"\t".join([columns[0], columns[1], written])
    return b"\t".join([columns[0], written, columns[2]])


def make_codes(
    vqgan: VQGAN,
    lines: OpenTsv,
    numbers: range,
    output: Any,
    *,
    layout: str,
    image_size: int,
    code_size: int,
    batch_size: int,
    show: Any = lambda done: None,
) -> collections.Counter:
    """Writes the lines of some numbers with their codes.

    Args:
      vqgan: makes the codes.
      lines: of id, image, and what else the layout has.
      numbers: of the lines.
      output: a file of bytes.
      layout: one of `_COLUMNS`.
      image_size: to which images are brought, in pixels a side.
      code_size: side of the centre that is encoded; `image_size` for the whole image.
      batch_size: images that are encoded at once.
      show: called after each batch with the number of lines done.

    Returns:
      How many lines were left out, by reason.
    """
    skipped: collections.Counter = collections.Counter()
    place = images.center_slice(image_size, code_size)
    waiting: list[tuple[Sequence[bytes], np.ndarray]] = []

    def write() -> None:
        pixels = np.stack([image for _, image in waiting])
        # The last batch is filled up: one shape, compiled once.
        filled = np.resize(pixels, (batch_size, *pixels.shape[1:]))
        for (columns, _), codes in zip(waiting, vqgan.encode(filled), strict=False):
            output.write(coded_line(columns, codes, layout) + b"\n")
        waiting.clear()

    for number in numbers:
        try:
            columns = lines.columns(number)
            image = images.resize_and_center_crop(
                images.decode(decode_base64(columns[1]), images.AS_STORED), image_size
            )
            waiting.append((columns, images.to_array(image)[place, place]))
        except Exception as raised:  # noqa: BLE001  one odd line must not end the command
            error = as_invalid_record(raised, "cannot be read")
            skipped[error.reason.name] += 1
            if skipped.total() <= _NAMED:
                logging.warning(
                    "%s, line %d is left out: %s", lines.path, lines.line_number(number), error
                )
        if len(waiting) == batch_size:
            write()
            show(number - numbers.start + 1)
    if waiting:
        write()
    show(len(numbers))
    return skipped


def _part(text: str, count: int) -> range:
    """Returns the lines of part NUMBER of COUNT, counted from 0.

    Raises:
      ValueError: the text is not such a part.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not int(found[1]) < int(found[2]):
        raise ValueError(f"--part={text}: write 0/4, 1/4, 2/4 or 3/4 for the quarters of a file.")
    number, parts = int(found[1]), int(found[2])
    return range(count * number // parts, count * (number + 1) // parts)


def _checked(lines: OpenTsv, layout: str) -> OpenTsv:
    columns = _COLUMNS[layout]
    if lines.num_columns < len(columns):
        raise ValueError(
            f"The lines of {lines.path} have {lines.num_columns} columns; for {layout} they are "
            f"{', '.join(columns)}."
        )
    return lines


@user_command
def main(arguments: Sequence[str]) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.make_codes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", help="TSV of id, image in base64 (and caption)")
    parser.add_argument("output", type=pathlib.Path, help="the new TSV")
    parser.add_argument("--vqgan", required=True, help="the official checkpoint (last.ckpt)")
    parser.add_argument("--layout", default="images", choices=_COLUMNS)
    parser.add_argument("--image_size", type=int, default=256, help="pixels (default: 256)")
    parser.add_argument(
        "--code_size",
        type=int,
        help="side of the centre that is encoded "
        "(default: half of image_size; all of it for text_to_image)",
    )
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--part", default="0/1", help="NUMBER/COUNT (default: the whole file)")
    parser.add_argument("--index_dir", help="where the line index goes, if not beside the input")
    options = parser.parse_args(arguments)
    platforms.skip_missing_tpu()
    whole = options.layout == "text_to_image"
    code_size = options.code_size or options.image_size // (1 if whole else 2)
    if options.output.exists() or options.output.is_symlink():
        raise ValueError(f"{options.output} exists already: choose another name.")
    if options.batch_size < 1:
        raise ValueError(f"--batch_size is {options.batch_size}; give at least 1.")
    lines = _checked(TsvFile(options.input, None, options.index_dir).open(), options.layout)
    numbers = _part(options.part, len(lines))
    if not numbers:
        raise ValueError(f"--part={options.part} has no line of the {len(lines)} of {lines.path}.")
    vqgan = vqgan_file.read(options.vqgan)
    if code_size % vqgan.pixels_per_code or not 0 < code_size <= options.image_size:
        raise ValueError(
            f"--code_size is {code_size}: give a multiple of {vqgan.pixels_per_code} pixels, "
            f"at most --image_size={options.image_size}."
        )
    output_folders.create(options.output.parent, "OUTPUT")
    skipped = _write(vqgan, lines, numbers, code_size, options)
    print(
        f"{options.output}: {len(numbers) - skipped.total():,} images with codes; "
        f"{skipped.total():,} lines skipped."
    )
    for reason, count in sorted(skipped.items()):
        print(f"    {count:>12,} skipped: {reason}")
    return 0


def _write(
    vqgan: VQGAN, lines: OpenTsv, numbers: range, code_size: int, options: argparse.Namespace
) -> collections.Counter:
    """Writes a temporary file beside the output and renames it at the end."""
    with files.atomic_path(options.output) as unfinished:
        with (
            unfinished.open("wb") as file,
            progress.stage("encoding images", len(numbers), "images") as stage,
        ):
            skipped = make_codes(
                vqgan,
                lines,
                numbers,
                file,
                layout=options.layout,
                image_size=options.image_size,
                code_size=code_size,
                batch_size=options.batch_size,
                show=stage.update,
            )
        if skipped.total() == len(numbers):
            raise ValueError(f"Not one line of {lines.path} can be used.")
    return skipped


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
