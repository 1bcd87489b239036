"""Parses decoded tokens into text, a box, objects or image codes (see `eval_spec`).

Boxes are returned in pixels of the stored image, whatever part of it the model saw:

    stored image              the model's image
    ┌─────────────────┐       ┌─────────┐
    │    x0,y0┌────┐  │  ◀──  │         │ height
    │         └────┘  │       └─────────┘
    └───────────x1,y1─┘          width
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32
from numpy.typing import ArrayLike

from ofa_jax.tokenizers.vocabulary import OFAVocabulary

ParsedOutput = Any
"""By kind: str, float32 [4], {"boxes": float32 [K, 4], "labels": list[str]}, int32 [n]."""

NOT_A_CODE = -1
_CORNERS = 4


@dataclasses.dataclass(frozen=True)
class BoxTransform:
    """Maps boxes between the stored image and the model's image, which shows a part of it.

    Attributes:
      region: x0, y0, x1, y1 of the part that the model sees, in pixels of the stored image.
      size: (width, height) of the model's image in pixels.
    """

    region: tuple[float, float, float, float]
    size: tuple[int, int]

    @classmethod
    def of_whole_image(cls, stored_size: tuple[int, int], size: tuple[int, int]) -> "BoxTransform":
        """Returns the transform of an image of (width, height) pixels that is resized as a whole.

        Downstream tasks resize images in this way.
        """
        width, height = stored_size
        return cls((0.0, 0.0, float(width), float(height)), size)

    def to_model(self, boxes: ArrayLike) -> Float32[np.ndarray, "*n 4"]:
        """Converts boxes in pixels of the stored image to pixels of the model's image."""
        x0, y0, x1, y1 = self.region
        width, height = self.size
        scale = np.array([width / (x1 - x0), height / (y1 - y0)] * 2)
        return ((np.asarray(boxes, np.float64) - np.array([x0, y0] * 2)) * scale).astype(np.float32)

    def to_stored(self, boxes: ArrayLike) -> Float32[np.ndarray, "*n 4"]:
        """Converts boxes in pixels of the model's image to pixels of the stored image."""
        x0, y0, x1, y1 = self.region
        width, height = self.size
        scale = np.array([(x1 - x0) / width, (y1 - y0) / height] * 2)
        return (np.asarray(boxes, np.float64) * scale + np.array([x0, y0] * 2)).astype(np.float32)


def parse(
    kind: str,
    token_ids: ArrayLike,
    vocabulary: OFAVocabulary,
    max_image_size: float = 512,
    transform: BoxTransform | None = None,
) -> ParsedOutput:
    """Parses the tokens of a prediction.

    A model may generate any tokens. Those that are not of the kind become a wrong prediction: a
    missing box has no area, an incomplete object is left out, and a token that is not a code
    becomes `NOT_A_CODE` at its position.

    Args:
      kind: one of `eval_spec.KINDS`.
      token_ids: int [n]; eos and everything after it are ignored.
      vocabulary: the vocabulary of the tokens.
      max_image_size: pixels that the last location bin stands for.
      transform: from the model's image to the stored one; None for boxes in the model's pixels.
    """
    ids = truncate_at_eos(token_ids)
    if kind == "text":
        return vocabulary.decode(ids.tolist()).strip()
    if kind == "codes":
        codes = ids - vocabulary.code_ids.start
        return np.where((codes >= 0) & (codes < vocabulary.num_codes), codes, NOT_A_CODE)
    is_bin = (ids >= vocabulary.bin_ids.start) & (ids < vocabulary.bin_ids.stop)

    def parse_box(start: int) -> Float32[np.ndarray, "4"]:
        bins = ids[start : start + _CORNERS].tolist()
        box = vocabulary.decode_box(bins, max_image_size)
        return box if transform is None else transform.to_stored(box)

    if kind == "box":
        is_complete = len(ids) >= _CORNERS and is_bin[:_CORNERS].all()
        return parse_box(0) if is_complete else np.zeros(_CORNERS, np.float32)
    boxes, labels = [], []
    for start, end, label_end in _find_objects(is_bin):
        label = vocabulary.decode(ids[end:label_end].tolist()).strip()
        # An object is exactly four bins and a label.
        if end - start == _CORNERS and label:
            boxes.append(parse_box(start))
            labels.append(label)
    return {"boxes": np.array(boxes, np.float32).reshape(-1, _CORNERS), "labels": labels}


def _find_objects(is_bin: Bool[np.ndarray, " n"]) -> list[tuple[int, int, int]]:
    """Returns (start of the bins, their end, end of the label after them) of each run of bins."""
    edges = np.flatnonzero(np.diff(is_bin.astype(np.int8), prepend=0))
    starts, ends = edges[0::2], edges[1::2]
    if len(ends) < len(starts):
        ends = np.append(ends, len(is_bin))
    label_ends = np.append(starts, len(is_bin))[1:]
    return list(zip(starts.tolist(), ends.tolist(), label_ends.tolist(), strict=True))


def truncate_at_eos(token_ids: ArrayLike) -> Int32[np.ndarray, " n"]:
    """Returns the tokens before the first eos, without padding."""
    ids = np.asarray(token_ids, np.int32).reshape(-1)
    (ends,) = np.nonzero(ids == OFAVocabulary.eos_id)
    ids = ids[: ends[0]] if ends.size else ids
    return ids[ids != OFAVocabulary.pad_id]


# --------------------------------------------------------------------------------- as JSON


def to_json(kind: str, output: ParsedOutput) -> Any:
    """Converts a parsed output to JSON-serialisable values; `from_json` is its exact inverse."""
    if kind == "text":
        return output
    if kind == "objects":
        return {"boxes": output["boxes"].tolist(), "labels": list(output["labels"])}
    return output.tolist()


def from_json(kind: str, value: Any) -> ParsedOutput:
    """Converts the result of `to_json` back."""
    if kind == "text":
        return value
    if kind == "objects":
        boxes = np.array(value["boxes"], np.float32).reshape(-1, _CORNERS)
        return {"boxes": boxes, "labels": list(value["labels"])}
    return np.array(value, np.float32 if kind == "box" else np.int32)
