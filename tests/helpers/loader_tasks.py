"""Tasks for the loader's tests; importable by its worker processes."""

import dataclasses
import sys

import numpy as np

from ofa_jax.data.features import Stream
from ofa_jax.data.sampling import WeightedTask
from ofa_jax.data.sources.memory import InMemoryRecords
from ofa_jax.preprocessing.records import InvalidRecordError

LENGTHS = {"inputs": 8, "targets": 4}
PAIRS = Stream("pairs", "pairs_mixture", 8, LENGTHS, image_size=16, num_sampled_patches=1)
TEXT = Stream("text", "text_mixture", 4, LENGTHS, loss_group="others")


def numbered(count, bad=()):
    """Records that know their number; bad ones lack it."""
    return InMemoryRecords([{} if k in bad else {"number": k} for k in range(count)])


@dataclasses.dataclass(frozen=True)
class Tell:
    """The record's number and a random draw as the answer: what was read is seen in the batch."""

    image: bool

    def __call__(self, record, rng):
        if "number" not in record:
            raise InvalidRecordError("has no number")
        draw = int(rng.integers(10, 1000))
        example = {
            "inputs": np.array([0, 5, 2], np.int32),
            "targets": np.array([record["number"] + 1000, draw, 2], np.int32),
        }
        if self.image:
            example["image"] = rng.integers(0, 256, (16, 16, 3), np.uint8)
        return example


def tensorflow_is_loaded(record, rng):
    """Answers 11 if TensorFlow is in this process, 10 if not."""
    loaded = 10 + ("tensorflow" in sys.modules)
    return {"inputs": np.array([0, 2], np.int32), "targets": np.array([loaded, 2], np.int32)}


def tasks(bad=()):
    """Stream name -> tasks: 12 and 6 images at 2 to 1, 5 texts."""
    return {
        "pairs": [
            WeightedTask("often", 2.0, numbered(12, bad), Tell(True)),
            WeightedTask("rarely", 1.0, numbered(6), Tell(True)),
        ],
        "text": [WeightedTask("texts", 1.0, numbered(5), Tell(False))],
    }
