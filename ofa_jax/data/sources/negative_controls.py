"""Negative controls: records on which a model that uses its images must fail.

The reference stays the same, while the image or the phrase is replaced. A model that scores as well
as on the original records ignores the image.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ofa_jax.data.sources.base import RecordSource
from ofa_jax.preprocessing.records import InvalidRecordError, Record
from ofa_jax.utils import renamed

SWAPPED = renamed.SWAPPED_IMAGE_SUFFIX
"""The suffix of tasks whose records have the image of another record."""
SWAPPED_OBJECTIVES = (
    "visual_question_answering",
    "image_text_matching",
    "visual_grounding",
    "grounded_captioning",
)
"""The objectives whose instruction differs from image to image, and have such a task."""
ABSENT_NOUN = "visual_grounding_absent_noun"


@dataclasses.dataclass(frozen=True)
class SwappedImages:
    """A RecordSource whose records have the next record's image, the last one the first's."""

    records: RecordSource

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        other = self.records[(index + 1) % len(self.records)]
        return {**self.records[index], "image": other["image"]}


@dataclasses.dataclass(frozen=True)
class AbsentNouns:
    """A RecordSource of regions whose phrase names an object that the image does not show.

    Attributes:
      regions: records with one phrase each; its box stays the reference.
      objects: records with the objects of the same images, in the same order.
      names: the names that may replace a phrase.
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
