"""Tasks for the loader's tests; importable by its worker processes."""

import dataclasses
import sys

import numpy as np

from ofa_jax.data.features import Stream
from ofa_jax.data.sampling import WeightedTask
from ofa_jax.data.sources.memory import InMemoryRecords
from ofa_jax.preprocessing.records import InvalidRecordError
from ofa_jax.utils.bad_input import Treatment, declare, note

LENGTHS = {"inputs": 8, "targets": 4}
PAIRS = Stream("pairs", "pairs_mixture", 8, LENGTHS, image_size=16, num_sampled_patches=1)
TEXT = Stream("text", "text_mixture", 4, LENGTHS, loss_group="others")


def numbered(count, bad=()):
    """Returns records that contain their number; invalid ones lack it."""
    return InMemoryRecords([{} if k in bad else {"number": k} for k in range(count)])


@dataclasses.dataclass(frozen=True)
class EncodeNumber:
    """Makes an example whose targets are the record's number and a random draw."""

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


DROPPED = declare("test: a dropped part", Treatment.DROPPED, "In tests alone.", __name__)


def note_a_dropped_part(record, rng):
    """Encodes the record's number after it has reported that a part was dropped."""
    note(DROPPED, f"part of {record['number']}")
    return EncodeNumber(image=False)(record, rng)


def tensorflow_is_loaded(record, rng):
    """Returns an example with target 11 if TensorFlow is loaded in this process, else 10."""
    loaded = 10 + ("tensorflow" in sys.modules)
    return {"inputs": np.array([0, 2], np.int32), "targets": np.array([loaded, 2], np.int32)}


def tasks(bad=()):
    """Returns {stream name: tasks}: 12 and 6 images at rates of 2 to 1, and 5 texts."""
    return {
        "pairs": [
            WeightedTask("often", 2.0, numbered(12, bad), EncodeNumber(True)),
            WeightedTask("rarely", 1.0, numbered(6), EncodeNumber(True)),
        ],
        "text": [WeightedTask("texts", 1.0, numbered(5), EncodeNumber(False))],
    }
