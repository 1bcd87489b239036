"""The images of a data set as batches: the same order, sharding and skipping as in pretraining."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ofa_jax.data.features import Features, Stream
from ofa_jax.data.loader import Loader
from ofa_jax.data.sampling import StreamSampler, WeightedTask, read_example
from ofa_jax.data.sources.base import DataSet, RecordSource
from ofa_jax.preprocessing import images
from ofa_jax.preprocessing.records import Record
from ofa_jax.training.image_tokenizer.step import IMAGES, STREAM
from ofa_jax.utils import options
from ofa_jax.utils.bad_input import Finding, InvalidRecordError, collect
from ofa_jax.utils.decode_options import AS_SEEN, DecodeOptions
from ofa_jax.utils.option_checks import checked

__all__ = ["ImageBatches", "ImageLoader", "evaluation_images"]

_MAX_REDRAWS = 8


@checked
@dataclasses.dataclass(frozen=True)
class ImageBatches:
    """Images to train on.

    Attributes:
      data_set: whose images.
      batch_size: images per step over all hosts.
      image_size: side in pixels of the resized and centrally cropped image.
      crop_size: side of a random crop that is trained on; None for the whole image. Images to
        validate on are whole.
      smallest_size: side of the smallest image that is cropped: each has a random size between this
        and `image_size`, so that what it shows is seen in several sizes; None for `image_size`.
      flip: whether to mirror half of the images.
      record_kind: the kind of the data set's records.
    """

    data_set: DataSet
    batch_size: options.Count
    image_size: options.Pixels
    crop_size: options.Pixels | None = None
    smallest_size: options.Pixels | None = None
    flip: bool = True
    record_kind: options.Name = "images"

    def __post_init__(self) -> None:
        """Raises ValueError for a crop that is larger than the image."""
        if self.training_size > self.image_size:
            raise ValueError(
                f"ImageBatches.crop_size is {self.crop_size}, which is more than the image_size "
                f"{self.image_size}: make it smaller."
            )
        if self.smallest_size is not None and not (
            self.training_size <= self.smallest_size <= self.image_size
        ):
            raise ValueError(
                f"ImageBatches.smallest_size is {self.smallest_size}: give a size between the "
                f"crop_size {self.training_size} and the image_size {self.image_size}."
            )

    @property
    def training_size(self) -> int:
        """Side of the training images in pixels."""
        return self.crop_size or self.image_size

    def check(self, pixels_per_code: int) -> None:
        """Raises ValueError if images cannot be cut into codes."""
        for name, size in (("image_size", self.image_size), ("crop_size", self.training_size)):
            if size % pixels_per_code:
                raise ValueError(
                    f"ImageBatches.{name} is {size}, which is no multiple of the {pixels_per_code} "
                    "pixels that a code of VQGANConfig stands for: choose a multiple."
                )

    def records(self, split: str) -> RecordSource:
        """Opens the records of a split."""
        return self.data_set.records(self.record_kind, split)

    @property
    def preprocessor(self) -> "_Preprocessor":
        """The function that makes a training image of a record."""
        decode_options = getattr(self.data_set, "decode_options", AS_SEEN)
        return _Preprocessor(
            self.image_size, self.crop_size, self.smallest_size, self.flip, decode_options
        )


@dataclasses.dataclass(frozen=True)
class _Preprocessor:
    """Makes an image of a record; picklable."""

    image_size: int
    crop_size: int | None
    smallest_size: int | None
    flip: bool
    decode_options: DecodeOptions

    def whole(self, record: Record) -> UInt8[np.ndarray, "h w 3"]:
        """Returns the whole image."""
        return images.to_array(self._decode(record))

    def __call__(self, record: Record, rng: np.random.Generator) -> Features:
        """Returns the training image; all random numbers are drawn in any case."""
        image = self._decode(record)
        mirrored, (top, left) = rng.random() < 0.5, rng.random(2)
        if self.flip and mirrored:
            image, _ = images.horizontal_flip(image, images.NO_BOXES)
        size = self.image_size
        if self.smallest_size is not None:
            size = int(rng.integers(self.smallest_size, self.image_size + 1))
            image = image.resize((size, size), Image.Resampling.BICUBIC)
        array = images.to_array(image)
        if self.crop_size is not None:
            space = size - self.crop_size + 1
            y, x = int(top * space), int(left * space)
            array = array[y : y + self.crop_size, x : x + self.crop_size]
        return {IMAGES: np.ascontiguousarray(array)}

    def _decode(self, record: Record) -> Image.Image:
        image = images.decode(record["image"], self.decode_options)
        limit = self.decode_options.max_resized_pixels
        return images.resize_and_center_crop(image, self.image_size, limit)


@dataclasses.dataclass(frozen=True)
class _ImageSampler(StreamSampler):
    """The rows of the images; an image that cannot be used is replaced by another one."""

    def __getitem__(self, row: int) -> tuple[Features, list[Finding]]:
        (task,), rng = self.tasks, self.row_rng(row)
        findings: list[Finding] = []
        _, index = self.locate(row)
        for _ in range(_MAX_REDRAWS):
            with collect() as found:
                try:
                    _, features = read_example(task, index, rng)
                    return features, [*findings, *_located(found, task.name, index)]
                except InvalidRecordError as error:
                    found.append(Finding(error.reason, str(error)))
            findings += _located(found, task.name, index)
            index = int(rng.integers(len(task.records)))
        raise ValueError(
            f"{_MAX_REDRAWS} images in a row cannot be used, e.g. {findings[-1].detail}: check the "
            "data set."
        )


def _located(findings: Sequence[Finding], task: str, index: int) -> list[Finding]:
    """Returns findings with the place of their record."""
    where = f"{task}, record {index}"
    return [Finding(found.reason, f"{where}: {found.detail}", task) for found in findings]


class ImageLoader(Loader):
    """Makes the batches of images; see `Loader`, whose order and prefetching these have."""

    def __init__(self, source: ImageBatches, split: str, seed: int, **options: Any) -> None:
        """Opens the records of a split.

        Args:
          source: of the images.
          split: one of the data set's.
          seed: of the run.
          **options: of `Loader`.

        Raises:
          ValueError: there are no images, or the batch does not divide over the devices.
        """
        stream = Stream(STREAM, STREAM, source.batch_size, {"inputs": 1, "targets": 1})
        records = source.records(split)
        task = WeightedTask(STREAM, 1.0, records, source.preprocessor)
        super().__init__([stream], {STREAM: [task]}, seed, **options)
        self.num_records = len(records)
        self._samplers = (_ImageSampler(stream, (task,), (0,), seed),)


def evaluation_images(
    source: ImageBatches, split: str, count: int
) -> Iterator[UInt8[np.ndarray, "b h w 3"]]:
    """Yields the first whole images of a split in batches; those that cannot be used are left out.

    Args:
      source: of the images.
      split: one of the data set's.
      count: number of records; all of them if there are fewer.

    Raises:
      ValueError: not one image can be used.
    """
    records, preprocessor = source.records(split), source.preprocessor
    waiting: list[np.ndarray] = []
    found = 0
    for index in range(min(count, len(records))):
        with contextlib.suppress(InvalidRecordError), collect():
            waiting.append(preprocessor.whole(records[index]))
            found += 1
        if len(waiting) == source.batch_size:
            yield np.stack(waiting)
            waiting = []
    if waiting:
        yield np.stack(waiting)
    if not found:
        raise ValueError(
            f"Not one of the first {count} images of the split {split!r} can be used: check the "
            "data set."
        )
