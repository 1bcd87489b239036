"""Checked access to the boxes, the regions and the image codes of a record."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from ofa_jax.preprocessing import boxes as box_ops
from ofa_jax.preprocessing.record_fields import (
    WRONG_TYPE,
    Problem,
    drop_unusable,
    get_required,
    get_texts,
    kind_of,
    record_error,
    text_problem,
)
from ofa_jax.preprocessing.records import Record
from ofa_jax.utils.bad_input import Treatment, declare

BAD_BOX = declare(
    "box without area",
    Treatment.DROPPED,
    "A box has no area within the image, or is not four finite numbers. Its phrase or its object "
    "is dropped with it. A box that reaches beyond the image is clipped.",
    __name__,
)
WRONG_CODES = declare(
    "wrong image codes",
    Treatment.SKIPPED,
    "Image codes are not whole numbers, are outside of the vocabulary, or are not as many as the "
    "task needs.",
    __name__,
)


def get_boxes(record: Record, field: str, count: int) -> Float32[np.ndarray, "count 4"]:
    """Returns boxes; those that are not four numbers are NaN.

    Raises:
      InvalidRecordError: they are not `count`, or not boxes at all.
    """
    values = get_required(record, field)
    if not _is_list(values):
        raise record_error(record, f"its {field} are a {kind_of(values)}, not boxes", WRONG_TYPE)
    if any(map(_is_list, values)):
        boxes = np.stack([_four_numbers(value) for value in values])
    else:
        numbers = _as_numbers(values)
        if numbers.ndim != 1 or len(numbers) % 4:
            raise record_error(
                record, f"its {field} are {len(values)} values, not four for each box", WRONG_TYPE
            )
        boxes = box_ops.as_boxes(numbers)
    if len(boxes) != count:
        raise record_error(record, f"{count} names for {len(boxes)} boxes", WRONG_TYPE)
    return boxes


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes)


def as_box(value: Any) -> Float32[np.ndarray, "4"] | None:
    """Returns a box with an area; None if the value is something else."""
    box = _four_numbers(value)
    return box if np.isfinite(box).all() and (box[:2] < box[2:]).all() else None


def _four_numbers(value: Any) -> Float32[np.ndarray, "4"]:
    """Returns four numbers; NaN if the value is something else."""
    box = _as_numbers(value)
    return box if box.shape == (4,) else np.full(4, np.nan, np.float32)


def _as_numbers(value: Any) -> Float32[np.ndarray, "..."]:
    """Returns an array of numbers; one NaN if the value is something else."""
    try:
        return np.asarray(value, np.float32)
    except (TypeError, ValueError, OverflowError):
        return np.full(1, np.nan, np.float32)


def box_problem(box: Float32[np.ndarray, "4"], image_size: tuple[int, int]) -> Problem:
    """Returns why a box in pixels cannot be used in an image of (width, height)."""
    if not np.isfinite(box).all():
        return BAD_BOX, "has a box that is not four finite numbers"
    if not box_ops.nonempty(box_ops.crop(box[None], 0, 0, *image_size))[0]:
        width, height = image_size
        return (
            BAD_BOX,
            f"has a box {box.tolist()} that has no area within its image of {width} x {height} "
            "pixels",
        )
    return None


def usable_regions(
    record: Record,
    image_size: tuple[int, int],
    names: str,
    boxes: str,
    clean: Callable[[str], str] | None = None,
    only_first: bool = False,
) -> tuple[list[str], Float32[np.ndarray, "n 4"]]:
    """Returns the names and boxes of a record that can be used: with a text, and with an area.

    Args:
      record: has both fields.
      image_size: (width, height) of the image that the boxes lie in.
      names: the field with the names.
      boxes: the field with their boxes, which may reach beyond the image.
      clean: the function that will clean the names.
      only_first: whether the other entries do not matter.

    Raises:
      InvalidRecordError: there are none, or not one box for each name.
    """
    texts = get_texts(record, names)
    found = get_boxes(record, boxes, len(texts))
    if only_first:
        texts, found = texts[:1], found[:1]
    problems = [
        text_problem(text, clean) or box_problem(box, image_size)
        for text, box in zip(texts, found, strict=True)
    ]
    usable = drop_unusable(record, names, problems)
    return [str(texts[index]) for index in usable], found[usable]


def get_codes(
    record: Record, count: int, num_codes: int, field: str = "codes"
) -> Int32[np.ndarray, " count"]:
    """Returns image codes.

    Raises:
      InvalidRecordError: they are not `count` whole numbers in [0, num_codes).
    """
    try:
        codes = np.asarray(record[field])
    except (TypeError, ValueError, OverflowError):
        codes = np.zeros(0)
    if codes.dtype.kind not in "iu" or codes.ndim != 1:
        raise record_error(record, "its image codes are not a list of whole numbers", WRONG_CODES)
    if len(codes) != count:
        raise record_error(record, f"{len(codes)} image codes instead of {count}", WRONG_CODES)
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= num_codes:
        raise record_error(
            record,
            f"its image codes go from {low} to {high}; the vocabulary has {num_codes:,}",
            WRONG_CODES,
        )
    return codes.astype(np.int32)
