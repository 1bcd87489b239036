"""Encodes images to the codes that OFA learns to generate, with the official VQGAN.

    python -m tools.make_codes --vqgan=last.ckpt images.tsv image_examples.tsv
    python -m tools.make_codes --vqgan=last.ckpt --layout=text_to_image captions.tsv coded.tsv

Reads lines of id, image in base64 (and a caption), and writes lines in the official layout: id,
image, the codes of its centre (`images`, for image infilling); or id, the codes of the whole image,
caption (`text_to_image`). Images are resized and cropped to a square, as in training. The most
probable codes are taken, so that an image always has the same codes. Invalid lines are left out,
counted by reason and listed. The new file appears under its name only when it is complete. For many
images, `python -m ofa_jax.jobs encode_images` does the same on many workers or machines.
"""

import argparse
import collections
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from absl import logging

from ofa_jax.interop import vqgan_file
from ofa_jax.jobs.encode_images import COLUMNS, coded_line, encode
from ofa_jax.jobs.inputs import TsvImages
from ofa_jax.tokenizers.vqgan import VQGAN
from ofa_jax.utils import files, platforms, progress
from ofa_jax.utils.bad_input import InvalidRecordError

from . import output_folders
from .command import user_command

_NAMED = 10


def make_codes(
    vqgan: VQGAN,
    lines: TsvImages,
    output: Any,
    *,
    layout: str,
    image_size: int,
    code_size: int,
    batch_size: int,
    show: Any = lambda done: None,
) -> collections.Counter:
    """Writes the lines of a file with their codes.

    Args:
      vqgan: makes the codes.
      lines: of id, image, and what else the layout has.
      output: a file of bytes.
      layout: one of `COLUMNS`.
      image_size: to which images are brought, in pixels a side.
      code_size: side of the centre that is encoded; `image_size` for the whole image.
      batch_size: images that are encoded at once.
      show: called after each batch with the number of lines done.

    Returns:
      How many lines were left out, by reason.
    """
    skipped: collections.Counter = collections.Counter()

    def skip(number: int, error: InvalidRecordError) -> None:
        skipped[error.reason.name] += 1
        if skipped.total() <= _NAMED:
            logging.warning("%s is left out: %s", lines.location(number), error)

    def numbers() -> Iterator[int]:
        for number in range(len(lines)):
            if number % batch_size == 0:
                show(number)
            yield number

    coded = encode(
        vqgan,
        lines,
        numbers(),
        layout=layout,
        image_size=image_size,
        code_size=code_size,
        batch_size=batch_size,
        skip=skip,
    )
    for item, codes in coded:
        output.write(coded_line(item, codes, layout) + b"\n")
    show(len(lines))
    return skipped


def _checked(lines: TsvImages, path: str, layout: str) -> TsvImages:
    columns = COLUMNS[layout]
    if lines.num_columns < len(columns):
        raise ValueError(
            f"The lines of {path} have {lines.num_columns} columns; for {layout} they are "
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
    parser.add_argument("--layout", default="images", choices=COLUMNS)
    parser.add_argument("--image_size", type=int, default=256, help="pixels (default: 256)")
    parser.add_argument(
        "--code_size",
        type=int,
        help="side of the centre that is encoded "
        "(default: half of image_size; all of it for text_to_image)",
    )
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--index_dir", help="where the line index goes, if not beside the input")
    options = parser.parse_args(arguments)
    if options.part is not None:
        raise ValueError(
            "--part is no longer an option: `python -m ofa_jax.jobs encode_images --input "
            f"{options.input} --vqgan={options.vqgan} --output_dir=FOLDER` encodes on many "
            "workers or machines."
        )
    platforms.skip_missing_tpu()
    whole = options.layout == "text_to_image"
    code_size = options.code_size or options.image_size // (1 if whole else 2)
    if options.output.exists() or options.output.is_symlink():
        raise ValueError(f"{options.output} exists already: choose another name.")
    if options.batch_size < 1:
        raise ValueError(f"--batch_size is {options.batch_size}; give at least 1.")
    lines = TsvImages((options.input,), options.index_dir)
    _checked(lines, options.input, options.layout)
    vqgan = vqgan_file.read(options.vqgan)
    if code_size % vqgan.pixels_per_code or not 0 < code_size <= options.image_size:
        raise ValueError(
            f"--code_size is {code_size}: give a multiple of {vqgan.pixels_per_code} pixels, "
            f"at most --image_size={options.image_size}."
        )
    output_folders.create(options.output.parent, "OUTPUT")
    skipped = _write(vqgan, lines, code_size, options)
    print(
        f"{options.output}: {len(lines) - skipped.total():,} images with codes; "
        f"{skipped.total():,} lines skipped."
    )
    for reason, count in sorted(skipped.items()):
        print(f"    {count:>12,} skipped: {reason}")
    return 0


def _write(
    vqgan: VQGAN, lines: TsvImages, code_size: int, options: argparse.Namespace
) -> collections.Counter:
    """Writes a temporary file beside the output and renames it at the end."""
    with files.atomic_path(options.output) as unfinished:
        with (
            unfinished.open("wb") as file,
            progress.stage("encoding images", len(lines), "images") as stage,
        ):
            skipped = make_codes(
                vqgan,
                lines,
                file,
                layout=options.layout,
                image_size=options.image_size,
                code_size=code_size,
                batch_size=options.batch_size,
                show=stage.update,
            )
        if skipped.total() == len(lines):
            raise ValueError(f"Not one line of {options.input} can be used.")
    return skipped


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
