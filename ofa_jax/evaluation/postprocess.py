"""Reads the tokens that a model wrote: text, a box, objects, image codes (see `judging`).

Boxes come back in pixels of the stored image, whatever part of it the model saw:

    stored                    the model's
    ┌─────────────────┐       ┌─────────┐
    │    x0,y0┌────┐  │  ◀──  │         │ height
    │         └────┘  │       └─────────┘
    └───────────x1,y1─┘          width
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ofa_jax.tokenizers.vocabulary import OFAVocabulary

Answer = Any
"""Of a kind: str, float32 [4], {"boxes": float32 [K, 4], "labels": list[str]}, int32 [n]."""

NOT_A_CODE = -1
_CORNERS = 4


@dataclasses.dataclass(frozen=True)
class View:
    """Which part of the stored image the model sees, and how large it sees it.

    Attributes:
      region: x0, y0, x1, y1 in pixels of the stored image.
      size: (width, height) of the model's image in pixels.
    """

    region: tuple[float, float, float, float]
    size: tuple[int, int]

    @classmethod
    def whole(cls, stored_size: tuple[int, int], size: tuple[int, int]) -> "View":
        """All of an image of (width, height) pixels, made to fit: what downstream tasks see."""
        return cls((0.0, 0.0, *map(float, stored_size)), size)

    def to_model(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes in pixels of the stored image, float32 [..., 4], to those of the model's."""
        x0, y0, x1, y1 = self.region
        width, height = self.size
        scale = np.array([width / (x1 - x0), height / (y1 - y0)] * 2)
        return ((np.asarray(boxes, np.float64) - np.array([x0, y0] * 2)) * scale).astype(np.float32)

    def to_stored(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes in pixels of the model's image, float32 [..., 4], to those of the stored one."""
        x0, y0, x1, y1 = self.region
        width, height = self.size
        scale = np.array([(x1 - x0) / width, (y1 - y0) / height] * 2)
        return (np.asarray(boxes, np.float64) * scale + np.array([x0, y0] * 2)).astype(np.float32)


def read(
    kind: str,
    ids: Sequence[int],
    vocabulary: OFAVocabulary,
    max_image_size: float = 512,
    view: View | None = None,
) -> Answer:
    """What the tokens of an answer say.

    A model may write anything. What is not an answer of the kind is read as one that is wrong: no
    box as one without area, an incomplete object not at all, a token that is no code as
    `NOT_A_CODE` at its place.

    Args:
      kind: one of `judging.KINDS`.
      ids: the answer, int [n]; eos and what follows it do not count.
      vocabulary: that it is written in.
      max_image_size: pixels that the last location bin stands for.
      view: of the model's image on the stored one; None for boxes in the model's pixels.
    """
    ids = until_eos(ids)
    if kind == "text":
        return vocabulary.decode(ids).strip()
    if kind == "codes":
        codes = ids - vocabulary.code_ids.start
        return np.where((codes >= 0) & (codes < vocabulary.num_codes), codes, NOT_A_CODE)
    is_bin = (ids >= vocabulary.bin_ids.start) & (ids < vocabulary.bin_ids.stop)

    def box(start: int) -> np.ndarray:
        found = vocabulary.decode_box(ids[start : start + _CORNERS], max_image_size)
        return found if view is None else view.to_stored(found)

    if kind == "box":
        there = len(ids) >= _CORNERS and is_bin[:_CORNERS].all()
        return box(0) if there else np.zeros(_CORNERS, np.float32)
    boxes, labels = [], []
    for start, end, label_end in _objects(is_bin):
        label = vocabulary.decode(ids[end:label_end]).strip()
        # Four bins alone name nothing, and other than four are no box.
        if end - start == _CORNERS and label:
            boxes.append(box(start))
            labels.append(label)
    return {"boxes": np.array(boxes, np.float32).reshape(-1, _CORNERS), "labels": labels}


def _objects(is_bin: np.ndarray) -> list[tuple[int, int, int]]:
    """(start of the bins, their end, end of the label behind them) of each run of bins."""
    edges = np.flatnonzero(np.diff(is_bin.astype(np.int8), prepend=0))
    starts, ends = edges[0::2], edges[1::2]
    if len(ends) < len(starts):
        ends = np.append(ends, len(is_bin))
    label_ends = np.append(starts, len(is_bin))[1:]
    return list(zip(starts.tolist(), ends.tolist(), label_ends.tolist(), strict=True))


def until_eos(ids: Sequence[int]) -> np.ndarray:
    """int32 [n]: the tokens before the first eos, without padding."""
    ids = np.asarray(ids, np.int32).reshape(-1)
    (ends,) = np.nonzero(ids == OFAVocabulary.eos_id)
    ids = ids[: ends[0]] if ends.size else ids
    return ids[ids != OFAVocabulary.pad_id]


# --------------------------------------------------------------------------------- as JSON


def to_json(kind: str, answer: Answer) -> Any:
    """An answer as plain values; `from_json` gives exactly the same one back."""
    if kind == "text":
        return answer
    if kind == "objects":
        return {"boxes": answer["boxes"].tolist(), "labels": list(answer["labels"])}
    return answer.tolist()


def from_json(kind: str, value: Any) -> Answer:
    """The inverse of `to_json`."""
    if kind == "text":
        return value
    if kind == "objects":
        boxes = np.array(value["boxes"], np.float32).reshape(-1, _CORNERS)
        return {"boxes": boxes, "labels": list(value["labels"])}
    return np.array(value, np.float32 if kind == "box" else np.int32)
