"""Records with which a model that looks at its images must fail.

What is right stays as it was; the image, or what is asked for, becomes another. A model that
answers just as well does not look.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ofa_jax.data.sources.base import RecordSource
from ofa_jax.preprocessing.records import InvalidRecordError, Record

SWAPPED = "_swapped_image"
"""Ends the names of tasks that ask an objective's questions about other images."""
ABSENT_NOUN = "visual_grounding_absent_noun"


@dataclasses.dataclass(frozen=True)
class SwappedImages:
    """A RecordSource whose records have the image of the next one, the last that of the first."""

    records: RecordSource

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        other = self.records[(index + 1) % len(self.records)]
        return {**self.records[index], "image": other["image"]}


@dataclasses.dataclass(frozen=True)
class AbsentNouns:
    """A RecordSource of regions that asks for a thing that the image does not show.

    Attributes:
      regions: with one phrase each, whose box stays the reference.
      objects: of the same images in the same order: what they show.
      names: of things that may be asked for.
    """

    regions: RecordSource
    objects: RecordSource
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.regions)

    def __getitem__(self, index: int) -> Record:
        record, shown = self.regions[index], self.objects[index]
        if record["id"] != shown["id"]:
            raise InvalidRecordError(f"its objects are those of {shown['id']}")
        absent = sorted(set(self.names) - set(shown["object_labels"]))
        if not absent:
            raise InvalidRecordError("everything that has a name is in it")
        name = absent[int(np.random.default_rng(index).integers(len(absent)))]
        return {**record, "phrases": [f"the {name}"] * len(record["phrases"])}
