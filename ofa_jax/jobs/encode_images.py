"""The job `encode_images`: images to the codes that OFA learns to generate.

An image is resized and cropped to a square as in training, and its codes are the most probable
ones, so that an image always has the same codes. Layouts of the output:

    images          id, image, the codes of its centre      (image infilling)
    text_to_image   id, the codes of the whole image, caption

as lines of TSV (both), or as ArrayRecord (`images`), which OfaArrayRecords reads.
"""

import argparse
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from ofa_jax.data.sources import array_record_writer
from ofa_jax.interop import vqgan_file
from ofa_jax.jobs.inputs import ImageInput, ImageItem, TsvImages, open_images
from ofa_jax.jobs.outputs import DeadLetters, JobOutput, Manifest
from ofa_jax.preprocessing import images
from ofa_jax.tokenizers.image_tokenizer import ImageTokenizer
from ofa_jax.tokenizers.patch_codebook import PatchCodebook
from ofa_jax.tokenizers.vqgan import VQGAN
from ofa_jax.utils.array_files import load_arrays
from ofa_jax.utils.bad_input import InvalidRecordError, as_invalid_record

__all__ = ["COLUMNS", "EncodeImages", "add_arguments", "coded_line", "encode", "prepare"]

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "images": ("id", "image"),
    "text_to_image": ("id", "image", "caption"),
}
"""Layout -> the columns that are read."""

Coded = tuple[ImageItem, np.ndarray]


def coded_line(item: ImageItem, codes: np.ndarray, layout: str) -> bytes:
    """Returns a line of TSV without its end; the module's text describes it.

    Args:
      item: what was read.
      codes: int32 [h, w].
      layout: a key of `COLUMNS`.
    """
    written = " ".join(map(str, codes.reshape(-1).tolist())).encode()
    if layout == "images":
        return b"\t".join([item.id, item.base64, written])
    return b"\t".join([item.id, written, item.caption or b""])


def encode(
    tokenizer: ImageTokenizer,
    source: ImageInput,
    numbers: Iterable[int],
    *,
    layout: str,
    image_size: int,
    code_size: int,
    batch_size: int,
    skip: Callable[[int, InvalidRecordError], None],
) -> Iterator[Coded]:
    """Yields the images of some numbers with their codes, in order.

    All batches are full: images that cannot be used are left out before, and the last batch is
    filled up, so that the encoder is compiled once.

    Args:
      tokenizer: makes the codes.
      source: has the images.
      numbers: of the images.
      layout: a key of `COLUMNS`.
      image_size: to which images are brought, in pixels a side.
      code_size: side of the centre that is encoded; `image_size` for the whole image.
      batch_size: images that are encoded at once.
      skip: called with the number of an image that cannot be used, and why.
    """
    place = images.center_slice(image_size, code_size)
    waiting: list[tuple[ImageItem, np.ndarray]] = []

    def flush() -> Iterator[Coded]:
        pixels = np.stack([image for _, image in waiting])
        filled = np.resize(pixels, (batch_size, *pixels.shape[1:]))
        codes = tokenizer.encode(filled)
        yield from zip([item for item, _ in waiting], codes, strict=False)
        waiting.clear()

    for number in numbers:
        try:
            item = source.item(number)
            if layout == "text_to_image" and item.caption is None:
                raise InvalidRecordError("it has no caption")
            image = images.resize_and_center_crop(
                images.decode(item.image, images.AS_STORED), image_size
            )
            waiting.append((item, images.to_array(image)[place, place]))
        except Exception as error:  # noqa: BLE001  one odd image must not end the job
            skip(number, as_invalid_record(error, "cannot be read"))
        if len(waiting) == batch_size:
            yield from flush()
    if waiting:
        yield from flush()


@dataclasses.dataclass(frozen=True)
class EncodeImages:
    """The job; see `pipeline.Job`.

    Attributes:
      source: the images.
      tokenizer: path of the image tokenizer, see `load_tokenizer`.
      layout, image_size, code_size, batch_size: see `encode`.
      output_format: "tsv" or "array_record".
    """

    source: ImageInput
    tokenizer: str
    layout: str
    image_size: int
    code_size: int
    batch_size: int
    output_format: str = "tsv"

    def open(self) -> ImageTokenizer:
        """Loads the tokenizer."""
        return load_tokenizer(self.tokenizer)

    def write(
        self,
        opened: ImageTokenizer,
        numbers: range,
        path: pathlib.Path,
        letters: DeadLetters,
        details: dict[str, Any],
    ) -> None:
        """Writes the images of some numbers with their codes."""
        skip = _Skipper(self.source, letters)
        coded = encode(
            opened,
            self.source,
            numbers,
            layout=self.layout,
            image_size=self.image_size,
            code_size=self.code_size,
            batch_size=self.batch_size,
            skip=skip,
        )
        if self.output_format == "array_record":
            records = (
                {
                    "id": item.id.decode("utf-8", "replace"),
                    "image": item.image,
                    "codes": codes.ravel(),
                }
                for item, codes in coded
            )
            written = array_record_writer.write_shard(path, "images", records)
            details |= {"records": written.records, "num_bytes_of_records": written.num_bytes}
            return
        with path.open("wb") as file:
            for item, codes in coded:
                file.write(coded_line(item, codes, self.layout) + b"\n")
                details["records"] += 1

    def identity(self) -> dict[str, Any]:
        """Returns what the output depends on, JSON."""
        status = os.stat(self.tokenizer)
        return {
            "job": "encode_images",
            "input": self.source.identity(),
            "tokenizer": {"size": status.st_size, "name": os.path.basename(self.tokenizer)},
            "layout": self.layout,
            "image_size": self.image_size,
            "code_size": self.code_size,
            "batch_size": self.batch_size,
            "output_format": self.output_format,
        }

    def finish(self, output: JobOutput, manifests: list[Manifest], summary: dict[str, Any]) -> dict:
        """Gives the files their final names; returns file -> SHA-256."""
        if self.output_format == "tsv":
            name = f"{self.layout}-{{:05d}}-of-{{:05d}}.tsv"
            kept = output.rename(manifests, name.format)
            return {name.format(n, len(kept)): m.sha256 for n, m in enumerate(kept)}
        split = pathlib.Path(output.directory).name

        def named(number: int, count: int) -> str:
            return array_record_writer.shard_name("images", split, number, count)

        kept = output.rename(manifests, named)
        written = [
            array_record_writer.WrittenShard(m.records, m.details["num_bytes_of_records"])
            for m in kept
        ]
        folder = pathlib.Path(output.directory)
        array_record_writer.write_description(folder, "images", split, written, summary)
        return {named(n, len(kept)): m.sha256 for n, m in enumerate(kept)}


@dataclasses.dataclass(frozen=True)
class _Skipper:
    """Adds what cannot be used to the dead letters."""

    source: ImageInput
    letters: DeadLetters

    def __call__(self, number: int, error: InvalidRecordError) -> None:
        self.letters.add(self.source.location(number), number, error)


def load_tokenizer(path: str) -> ImageTokenizer:
    """Loads an official VQGAN (.ckpt), or an .npz that `VQGAN` or `PatchCodebook` saved.

    Raises:
      FileNotFoundError, ValueError: there is none, or it is something else.
    """
    if not path.endswith(".npz"):
        return vqgan_file.read(path)
    if not epath.Path(path).exists():
        raise FileNotFoundError(f"There is no file {path}: check the path.")
    return (
        PatchCodebook.load(path)
        if "codebook" in load_arrays(epath.Path(path))
        else VQGAN.load(path)
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the job's arguments."""
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        help="TSV files or quoted patterns of id, image in base64 (and caption); a folder of "
        "images; WebDataset tars; a folder of ArrayRecord; or tfds:NAME:SPLIT",
    )
    parser.add_argument(
        "--vqgan",
        required=True,
        metavar="FILE",
        help="the official checkpoint (last.ckpt), or an .npz of an image tokenizer of ours",
    )
    parser.add_argument("--layout", default="images", choices=COLUMNS)
    parser.add_argument(
        "--output_format", default="tsv", choices=("tsv", "array_record"), help="(default: tsv)"
    )
    parser.add_argument("--image_size", type=int, default=256, help="pixels (default: 256)")
    parser.add_argument(
        "--code_size",
        type=int,
        help="side of the centre that is encoded "
        "(default: half of image_size; all of it for text_to_image)",
    )
    parser.add_argument("--batch_size", type=int, default=16, help="images at once (default: 16)")
    parser.add_argument(
        "--shard_size", type=int, default=4096, help="images of one file (default: 4096)"
    )
    parser.add_argument("--index_dir", help="where indices of files go, if not beside them")
    parser.add_argument("--tfds_data_dir", help="the folder of TFDS")


def prepare(options: argparse.Namespace) -> tuple[EncodeImages, list[int], str]:
    """Checks the arguments, and opens input and tokenizer.

    Returns:
      The job, the bounds of its shards, and the folder that it writes.

    Raises:
      FileNotFoundError, ValueError: a sentence for the user.
    """
    for name in ("batch_size", "shard_size", "image_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} is {getattr(options, name)}; give at least 1.")
    if options.output_format == "array_record" and options.layout != "images":
        raise ValueError(
            "--output_format=array_record has no records of text-to-image: leave it out, or take "
            "--layout=images."
        )
    whole = options.layout == "text_to_image"
    code_size = options.code_size or options.image_size // (1 if whole else 2)
    source = open_images(
        options.input, index_dir=options.index_dir, tfds_data_dir=options.tfds_data_dir
    )
    columns = COLUMNS[options.layout]
    if isinstance(source, TsvImages) and source.num_columns < len(columns):
        raise ValueError(
            f"The lines of {', '.join(options.input)} have {source.num_columns} columns; for "
            f"{options.layout} they are {', '.join(columns)}."
        )
    side = load_tokenizer(options.vqgan).pixels_per_code
    if code_size % side or not 0 < code_size <= options.image_size:
        raise ValueError(
            f"--code_size is {code_size}: give a multiple of {side} pixels, at most "
            f"--image_size={options.image_size}."
        )
    # Of whole batches, so that only the last batch of the last shard is filled up.
    size = -(-options.shard_size // options.batch_size) * options.batch_size
    bounds = [*range(0, len(source), size), len(source)]
    directory = options.output_dir
    if options.output_format == "array_record":
        directory = os.path.join(directory, "images", options.split)
    job = EncodeImages(
        source,
        options.vqgan,
        options.layout,
        options.image_size,
        code_size,
        options.batch_size,
        options.output_format,
    )
    return job, bounds, directory
