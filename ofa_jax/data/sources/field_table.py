"""Makes records of the rows of any source, by a table of which field is which.

    FieldTable({"image": "file_name", "captions": "caption", "phrase_boxes": "objects.bbox"})

A name with dots leads into a row: `objects.bbox` is the entry `bbox` of the mapping `objects`, or
the list of the entries `bbox` of a list of mappings. A field of a record that the table does not
name has the same name in the row. A text in place of a list of texts becomes a list of one, and a
single box a list of one; other values of a wrong type make the record invalid, or their entry is
dropped by the preprocessor, which counts both.
"""

import dataclasses
import decimal
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float, Float32

from ofa_jax.data.sources.image_paths import ImageFolder
from ofa_jax.preprocessing.image_files import read_size
from ofa_jax.preprocessing.record_fields import MISSING, NOT_UTF8, WRONG_TYPE, kind_of
from ofa_jax.preprocessing.records import RECORD_FIELDS, InvalidRecordError, Record
from ofa_jax.utils.bad_input import Treatment, declare, note
from ofa_jax.utils.decode_options import DecodeOptions
from ofa_jax.utils.options import Name, NotEmpty, OneOf
from ofa_jax.utils.suggestions import refuse_unknown
from ofa_jax.utils.wrong_files import shorten

BOX_FORMATS = ("xyxy", "xywh", "yxyx", "cxcywh")
"""Corners; a corner, width and height; corners with y first; centre, width and height."""

Fields = Mapping[Name, Name]
"""Field of the record -> field of the source."""
BoxFormat = Annotated[str, OneOf(BOX_FORMATS)]
ClassNames = Annotated[Sequence[Name], NotEmpty()] | None
Row = Mapping[str, Any]

ODD_ID = declare(
    "id is not a text",
    Treatment.REPLACED,
    "The id of a record is neither a text nor a number; the number of the record, counted from 0, "
    "stands for it.",
    __name__,
)

NEEDED_FIELDS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "captions": (("image", "captions"),),
    "pairs": (("image", "captions"), ("image", "questions", "answers")),
    "questions": (("image", "questions", "answers"),),
    "regions": (("image", "phrases", "phrase_boxes"),),
    "objects": (("image", "object_labels", "object_boxes"),),
    "images": (("image",),),
    "text": (("text",),),
}
"""Kind of record -> the sets of fields of which it needs one."""

_TEXTS = ("captions", "negative_captions", "questions", "answers", "answer_types", "phrases",
          "true_phrases", "object_labels")  # fmt: skip
_BOXES = ("phrase_boxes", "true_phrase_boxes", "object_boxes")
_LABELS = ("object_labels", "phrases", "label")
_MATCHES = ("yes", "no")
_KNOWN = tuple(dict.fromkeys(name for fields in RECORD_FIELDS.values() for name in fields))


@dataclasses.dataclass(frozen=True)
class FieldTable:
    """Which field of a row is which field of a record, and how boxes and classes are written.

    Attributes:
      fields: field of the record -> field of the row, where they differ.
      box_format: of every box.
      relative_boxes: whether boxes are shares of the image's width and height, not pixels.
      class_names: the names of classes that rows give by their numbers, counted from 0.
      decode_options: how images are decoded, for the sizes that relative boxes are shares of.
      named: the fields of the record that the user names in `fields`.
    """

    fields: Fields
    box_format: str = "xyxy"
    relative_boxes: bool = False
    class_names: tuple[str, ...] = ()
    decode_options: DecodeOptions = DecodeOptions()
    named: tuple[str, ...] = ()

    def check(self, owner: str) -> None:
        """Raises ValueError if the table names a field that records do not have."""
        refuse_unknown(f"{owner}.fields", self.fields, _KNOWN)

    def source_of(self, field: str) -> str:
        """Returns what a field of the record is called in rows."""
        return self.fields.get(field, field)

    def needed(self, kind: str) -> tuple[tuple[str, ...], ...]:
        """Returns the sets of top-level fields of a row, of which a kind of record needs one."""
        return tuple(
            tuple(self.source_of(field) for field in fields) for fields in NEEDED_FIELDS[kind]
        )

    def record(self, row: Row, kind: str, images: ImageFolder, number: int) -> Record:
        """Returns the record of a kind that a row holds.

        Args:
          row: of a source.
          kind: a key of RECORD_FIELDS.
          images: reads images that are paths.
          number: of the row, for records without an id.

        Raises:
          InvalidRecordError: a field has a type that cannot be used.
        """
        record: dict[str, Any] = {}
        for field in RECORD_FIELDS[kind]:
            value = look_up(row, self.source_of(field))
            if value is None or (field == "label" and self._is_other_label(value)):
                continue
            if field == "image":
                record[field] = images.read(value)
            else:
                record[field] = self._value(field, value)
        record["id"] = record.get("id") or str(number)
        if "image" in RECORD_FIELDS[kind] and "image" not in record:
            raise InvalidRecordError(
                f"it has no {self.source_of('image')}, of which its image is made", MISSING
            )
        for field in _BOXES:
            if field in record and len(record[field]):
                record[field] = self._to_pixels(record[field], record["image"])
        return record

    def labels(self, value: Any) -> list[Any]:
        """Returns the classes of a row, by their names where they are known."""
        plain = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        named = self._named(plain)
        return named if isinstance(named, list) else [named]

    def corners(self, boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
        """Returns boxes as x0, y0, x1, y1, in the units of the row."""
        return _TO_CORNERS[self.box_format](boxes)

    def texts(self, row: Row, field: str) -> list[str]:
        """Returns the texts of a list of a row, without others; empty where there are none."""
        try:
            values = self._value(field, look_up(row, self.source_of(field)))
        except InvalidRecordError:
            return []
        return [value for value in values if isinstance(value, str) and value.strip()]

    def _value(self, field: str, value: Any) -> Any:
        """Returns a value of a row as the record has it. Raises InvalidRecordError."""
        if isinstance(value, np.ndarray | np.generic):
            value = value.tolist()
        if field in _LABELS:
            value = self._named(value)
        if field == "id":
            return _id(value)
        if field in _BOXES:
            return read_boxes(field, value)
        if field in _TEXTS:
            return [value] if isinstance(value, str | bytes) else _as_list(field, value)
        if field == "answer_confidences":
            return [value] if isinstance(value, int | float) else _as_list(field, value)
        if field == "codes":
            return _codes(value)
        if field == "label" and isinstance(value, bool):
            value = _MATCHES[not value]
        if not isinstance(value, str | bytes):
            raise _wrong(field, value, "a text")
        text = _decode(field, value) if isinstance(value, bytes) else value
        if field == "label" and text not in _MATCHES:
            raise InvalidRecordError(
                f"its label is {shorten(text)!r}, not yes or no: whether its text is true",
                WRONG_TYPE,
            )
        return text

    def _is_other_label(self, value: Any) -> bool:
        """Returns whether a label is that of a class, not whether a text is true.

        `label` is the usual name of both; only where the user names the field, it must be the
        latter.
        """
        named = self._named(value)
        is_match = isinstance(named, bool) or (
            isinstance(named, str | bytes) and named in (*_MATCHES, b"yes", b"no")
        )
        return "label" not in self.named and not is_match

    def _named(self, value: Any) -> Any:
        """Replaces the numbers of classes by their names; a number without a name stays."""
        if isinstance(value, list):
            return [self._named(one) for one in value]
        if type(value) is int and 0 <= value < len(self.class_names):
            return self.class_names[value]
        return value

    def _to_pixels(
        self, boxes: Float[np.ndarray, "n 4"], image: bytes
    ) -> Float32[np.ndarray, "n 4"]:
        """Returns boxes as x0, y0, x1, y1 in pixels of the decoded image."""
        with np.errstate(over="ignore", invalid="ignore"):
            corners = self.corners(boxes).astype(np.float32)
        if not self.relative_boxes:
            return corners
        width, height = read_size(image, self.decode_options)
        return corners * np.array([width, height, width, height], np.float32)


def look_up(row: Row, name: str) -> Any:
    """Returns what a row has under a name, of which dots lead into it; None for nothing."""
    if name in row or "." not in name:
        return row.get(name)
    value: Any = row
    for part in name.split("."):
        if isinstance(value, list):
            value = [one.get(part) if isinstance(one, Mapping) else None for one in value]
        elif isinstance(value, Mapping):
            value = value.get(part)
        else:
            return None
    return value


def has_value(row: Row, name: str) -> bool:
    """Returns whether a row has something under a name.

    An empty text or list is nothing, and so is a list without any values.
    """
    value = look_up(row, name)
    if isinstance(value, list):
        return any(one is not None for one in value)
    return value is not None and not (hasattr(value, "__len__") and not len(value))


def _wrong(field: str, value: Any, wanted: str) -> InvalidRecordError:
    return InvalidRecordError(f"its {field} is a {kind_of(value)} instead of {wanted}", WRONG_TYPE)


def _as_list(field: str, value: Any) -> list:
    if not isinstance(value, list | tuple):
        raise _wrong(field, value, "a list")
    return list(value)


def _codes(value: Any) -> Any:
    """Returns image codes as int32 where they are; the preprocessor refuses anything else."""
    values = _as_list("codes", value)
    if all(type(code) is int and abs(code) < 1 << 31 for code in values):
        return np.array(values, np.int32)
    raise InvalidRecordError("its codes are not whole numbers", WRONG_TYPE)


def _id(value: Any) -> str:
    """Returns an id as a text; empty where the number of the record must stand for it."""
    if isinstance(value, bytes):
        return _decode("id", value)
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, decimal.Decimal) and value.is_finite():  # databases export such numbers
        return str(int(value) if value == value.to_integral_value() else value)
    if isinstance(value, float) and math.isfinite(value):
        is_whole = value.is_integer() and abs(value) < 1 << 53  # pandas makes floats of ids
        return str(int(value) if is_whole else value)
    note(ODD_ID, f"its id is a {kind_of(value)}: {shorten(str(value))}")
    return ""


def _decode(field: str, value: bytes) -> str:
    """Decodes a text that a source stores as bytes."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        note(NOT_UTF8, f"its {field} has bytes that are not UTF-8: {value[:40]!r}")
        return value.decode("utf-8", "replace")


def read_boxes(field: str, value: Any) -> Float[np.ndarray, "n 4"]:
    """Returns boxes as they are written; those that are not four numbers are NaN.

    Raises:
      InvalidRecordError: they are no list of boxes.
    """
    if isinstance(value, np.ndarray):
        value = value.tolist()
    values = _as_list(field, value)
    if values and all(isinstance(one, Mapping) for one in values):
        raise InvalidRecordError(
            f"its {field} are mappings (of {shorten(', '.join(map(str, values[0])))}), not lists "
            "of four numbers",
            WRONG_TYPE,
        )
    if values and not any(isinstance(one, list | tuple | None.__class__) for one in values):
        if len(values) != 4:
            raise InvalidRecordError(
                f"its {field} are {len(values)} values, not four for each box", WRONG_TYPE
            )
        values = [values]
    boxes = np.full((len(values), 4), np.nan)
    for own, given in zip(boxes, values, strict=True):
        if isinstance(given, list | tuple) and len(given) == 4:
            if all(map(_is_number, given)):
                try:
                    own[:] = [float(number) for number in given]
                except OverflowError:  # a whole number of hundreds of digits
                    own[:] = np.nan
    return boxes


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | decimal.Decimal) and not isinstance(value, bool)


def _corners_of_corner_and_size(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _corners_of_centre_and_size(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
    half = boxes[:, 2:] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)


_TO_CORNERS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "xyxy": lambda boxes: boxes,
    "xywh": _corners_of_corner_and_size,
    "yxyx": lambda boxes: boxes[:, [1, 0, 3, 2]],
    "cxcywh": _corners_of_centre_and_size,
}
