"""Sets of images of scenes on disk: what is generated, and what a run sees in it.

    FOLDER/start/                   the run with another image tokenizer, `scene_image_start`
    FOLDER/codes/train.tsv          every caption of a split with the codes of its image
    FOLDER/sets/NAME/000012.png     an image of a set
    FOLDER/sets/NAME/requests.jsonl what is asked about the images; written last
    FOLDER/found/NAME/              the job of batch inference with the answers
    FOLDER/generated/NAME/          the job that generates images

What is complete is not made again.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ofa_jax.data.sources.base import RecordSource
from ofa_jax.inference.build import build_job
from ofa_jax.inference.image_generation import ImageGeneration
from ofa_jax.inference.sources import JsonLines
from ofa_jax.jobs.encode_images import coded_line
from ofa_jax.jobs.inputs import ImageItem
from ofa_jax.preprocessing import images as image_ops
from ofa_jax.preprocessing import prompts
from ofa_jax.tokenizers import ImageTokenizer
from ofa_jax.utils import files, progress, text_files
from ofa_jax.utils.decode_options import AS_SEEN

from .scene_image_scores import Found, read_found

Pixels = UInt8[np.ndarray, "n h w 3"]

QUESTIONS: Mapping[str, tuple[str, str]] = {
    "caption": ("image_captioning", prompts.IMAGE_CAPTIONING),
    "objects": ("object_detection", prompts.OBJECT_DETECTION),
    "background": ("visual_question_answering", " what is in the background?"),
}
"""What is asked about every image: name -> task and instruction."""

_ENCODED = 64
_SOURCE_LENGTH = 64


@dataclasses.dataclass(frozen=True)
class ImageSets:
    """The sets of images in a folder.

    Attributes:
      folder: of all sets.
      image_size: of the images, in pixels a side.
      batch_size: images that are decoded at once.
      seed: of sampling.
    """

    folder: pathlib.Path
    image_size: int
    batch_size: int = 16
    seed: int = 0

    def read(
        self, records: RecordSource, numbers: Sequence[int], size: int | None = None
    ) -> Pixels:
        """Returns the images of some records, `size` or else `image_size` pixels a side."""
        size = size or self.image_size
        return np.stack([_pixels(records[int(number)], size) for number in numbers])

    def chunks(
        self, records: RecordSource, size: int | None = None
    ) -> Iterator[tuple[int, Pixels]]:
        """Yields all images in chunks, each with the number of its first record."""
        for start in range(0, len(records), _ENCODED):
            numbers = range(start, min(start + _ENCODED, len(records)))
            yield start, self.read(records, numbers, size)

    def write_codes(
        self, records: RecordSource, tokenizer: ImageTokenizer, split: str, size: int
    ) -> pathlib.Path:
        """Writes every caption of a split with the codes of its image; returns the TSV file.

        Args:
          records: of the split, with captions.
          tokenizer: makes the codes.
          split: names the file.
          size: of the images that are encoded, in pixels a side.
        """
        path = self.folder / "codes" / f"{split}.tsv"
        if path.exists():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            files.atomic_path(path) as unfinished,
            unfinished.open("wb") as file,
            progress.stage(f"encoding {split}", len(records), "images") as stage,
        ):
            for start, pixels in self.chunks(records, size):
                for number, codes in enumerate(_encode(tokenizer, pixels), start):
                    record = records[number]
                    for caption in record["captions"]:
                        item = ImageItem(record["id"].encode(), b"", caption.encode())
                        file.write(coded_line(item, codes, "text_to_image") + b"\n")
                stage.update(start + len(pixels))
        return path

    def generate(
        self, name: str, checkpoint: str, captions: Sequence[str], generation: ImageGeneration
    ) -> Pixels:
        """Generates an image for each caption with a run of text-to-image; of `image_size`."""
        task, instruction = "text_to_image", prompts.TEXT_TO_IMAGE
        lines = [
            {"id": str(n), "task": task, "instruction": instruction.format(caption=caption).strip()}
            for n, caption in enumerate(captions)
        ]
        output = self.folder / "generated" / name
        requests = _write_lines(self.folder / "generated" / f"{name}.jsonl", lines)
        made = self._images(self._run(checkpoint, requests, output, image_generation=generation))
        return resize(made, self.image_size)

    def infill(self, name: str, checkpoint: str, images: Pixels) -> Pixels:
        """Generates the middle of each image with a run on Scenes; returns the middles."""
        requests = self._write(
            name, images, {"middle": ("image_infilling", prompts.IMAGE_INFILLING)}
        )
        return self._images(self._run(checkpoint, requests, self.folder / "generated" / name))

    def find(self, name: str, checkpoint: str, images: Pixels) -> list[Found]:
        """Returns what a run on Scenes sees in each image.

        Args:
          name: of the set; a folder of its own.
          checkpoint: of the run.
          images: of the set; those of a set that is complete are not written again.
        """
        requests = self._write(name, images, QUESTIONS)
        lines = self._run(checkpoint, requests, self.folder / "found" / name)
        return read_found((line for line, _ in lines), len(images))

    def _write(
        self, name: str, images: Pixels, questions: Mapping[str, tuple[str, str]]
    ) -> pathlib.Path:
        """Writes the images of a set and the requests about them; returns the requests' file."""
        folder = self.folder / "sets" / name
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "requests.jsonl").exists():
            for number, image in enumerate(images):
                Image.fromarray(image).save(folder / _file_name(number))
        lines = [
            {"id": f"{n}/{what}", "image": _file_name(n), "task": task, "instruction": text.strip()}
            for what, (task, text) in questions.items()
            for n in range(len(images))
        ]
        return _write_lines(folder / "requests.jsonl", lines)

    def _run(
        self, checkpoint: str, requests: pathlib.Path, output: pathlib.Path, **options: Any
    ) -> list[tuple[dict[str, Any], pathlib.Path]]:
        """Runs a job of batch inference, or continues it; returns its lines and their folder."""
        output.mkdir(parents=True, exist_ok=True)
        job = build_job(
            checkpoint,
            str(output),
            JsonLines(str(requests), index_dir=str(output)),
            batch_size=self.batch_size,
            shard_size=8 * self.batch_size,
            source_length=_SOURCE_LENGTH,
            seed=self.seed,
            **options,
        )
        job.run()
        paths = [job.shards.path(shard) for shard in range(job.shards.count)]
        return [
            (json.loads(line), output) for path in paths for line in text_files.read_lines(path)
        ]

    def _images(self, lines: Sequence[tuple[Mapping[str, Any], pathlib.Path]]) -> Pixels:
        """Reads the generated images of a job.

        Raises:
          ValueError: a line has no image.
        """
        found = []
        for line, folder in lines:
            if "image" not in line:
                why = line.get("error", "its output is no image")
                raise ValueError(f"{folder} has no image for the input {line['id']}: {why}.")
            with Image.open(folder / line["image"]) as image:
                found.append(np.asarray(image.convert("RGB")))
        return np.stack(found)


def _pixels(record: Mapping[str, Any], size: int) -> UInt8[np.ndarray, "h w 3"]:
    image = image_ops.decode(record["image"], AS_SEEN)
    return image_ops.to_array(image_ops.resize_and_center_crop(image, size))


def resize(images: Pixels, size: int) -> Pixels:
    """Returns images of another size (bicubic, as a model sees them)."""
    return np.stack([image_ops.resize_to_square(Image.fromarray(image), size) for image in images])


def reconstruct(tokenizer: ImageTokenizer, images: Pixels) -> Pixels:
    """Returns what is left of images that are encoded and decoded."""
    return _in_batches(lambda chunk: tokenizer.decode(tokenizer.encode(chunk)), images)


def _encode(tokenizer: ImageTokenizer, images: Pixels) -> np.ndarray:
    return _in_batches(tokenizer.encode, images)


def _in_batches(function: Callable[[Pixels], np.ndarray], images: Pixels) -> np.ndarray:
    """Calls a function with batches of one size, so that it is compiled once."""
    found = []
    for start in range(0, len(images), _ENCODED):
        chunk = images[start : start + _ENCODED]
        found.append(function(np.resize(chunk, (_ENCODED, *chunk.shape[1:])))[: len(chunk)])
    return np.concatenate(found)


def _file_name(number: int) -> str:
    return f"{number:06d}.png"


def _write_lines(path: pathlib.Path, lines: Sequence[Mapping[str, Any]]) -> pathlib.Path:
    """Writes JSON lines, unless they are there already; returns the path.

    Raises:
      ValueError: the file has other lines.
    """
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    if path.exists():
        if path.read_text() != text:
            raise ValueError(
                f"{path} has other requests than this command makes: choose another --output_dir."
            )
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, text)
    return path
