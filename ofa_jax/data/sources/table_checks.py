"""Checks of the options of a table against its rows, before anything is compiled.

The fields that the options name must be there, boxes must be in the units and the format that the
options say, and classes that are numbers must have names. A sample of rows, spread over all, is
looked at; only where none of them has a field, more are.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Integer

from ofa_jax.data.sources.base import WrongDataOptionError, rates_without
from ofa_jax.data.sources.field_table import FieldTable, Row, has_value, look_up, read_boxes
from ofa_jax.data.sources.table_rows import Rows
from ofa_jax.preprocessing.boxes import nonempty
from ofa_jax.preprocessing.records import RECORD_FIELDS, InvalidRecordError
from ofa_jax.utils.wrong_files import shorten

__all__ = [
    "check_named_fields",
    "check_values",
    "describe_missing",
    "has_records",
]

_SAMPLED_ROWS, _SEARCHED_ROWS, _SHOWN_FIELDS = 20, 10_000, 12
# Boxes that are shares of the image may reach a little beyond it; in pixels they are far larger.
_LARGEST_SHARE = 2.0
Numbers = Integer[np.ndarray, " rows"] | None
"""Of the rows that are looked at; None for all."""


def _spread(rows: Rows, numbers: Numbers, count: int) -> list[int]:
    """Returns the numbers of some rows, spread over all of them."""
    total = len(rows) if numbers is None else len(numbers)
    places = np.linspace(0, total - 1, min(total, count)).astype(int)
    return (places if numbers is None else numbers[places]).tolist()


def _sample(rows: Rows, numbers: Numbers, fields: Sequence[str] | None) -> Iterator[Row]:
    """Yields some rows, without those that are damaged, with only some of their fields."""
    for number in _spread(rows, numbers, _SAMPLED_ROWS):
        try:
            yield rows.row(number, fields)
        except InvalidRecordError:
            continue  # the loader counts it


def _tops(names: Sequence[str]) -> list[str]:
    """Returns the fields of a row that names may lead into."""
    return list(dict.fromkeys([*names, *(name.split(".")[0] for name in names)]))


def _is_found(rows: Rows, numbers: Numbers, sets: Sequence[Sequence[str]]) -> bool:
    """Returns whether a row has something under all names of one of the sets.

    A damaged row counts as one, if it is among those that are sampled: the loader counts it.
    """
    fields = _tops([name for names in sets for name in names])
    seen: set[int] = set()
    for count in (_SAMPLED_ROWS, _SEARCHED_ROWS):
        for number in _spread(rows, numbers, count):
            if number in seen:
                continue
            seen.add(number)
            try:
                row = rows.row(number, fields)
            except InvalidRecordError:
                if count == _SAMPLED_ROWS:
                    return True
                continue
            if any(all(has_value(row, name) for name in names) for names in sets):
                return True
    return False


def has_records(rows: Rows, numbers: Numbers, table: FieldTable, kind: str) -> bool:
    """Returns whether a row has what a kind of record needs, of those that may have it."""
    needed = table.needed(kind)
    image = table.source_of("image")
    # Reading images takes long, and `Rows.select` knows which rows have one.
    without = [[name for name in names if name != image] for names in needed]
    return _is_found(rows, numbers, without if all(without) else needed)


def check_named_fields(owner: str, rows: Rows, table: FieldTable, kind: str) -> None:
    """Raises WrongDataOptionError if `fields` names something that no row has.

    Args:
      owner: the class of the data set.
      rows: all of a split.
      table: with the fields that the user names.
      kind: of records, whose fields are looked for.
    """
    for field in table.named:
        source = table.source_of(field)
        if field not in RECORD_FIELDS[kind] or not len(rows):
            continue
        if _is_found(rows, rows.select([[source]]), [[source]]):
            continue
        raise WrongDataOptionError(
            f"{owner}.fields says that {field} is {source!r}, but no record of {rows.name} has it "
            f"(the fields there are {_fields_of(rows)}): correct the name, or leave it out of "
            f"{owner}.fields."
        )


def _fields_of(rows: Rows) -> str:
    """Returns the names of the fields of the first rows, with those within mappings."""
    found: dict[str, None] = {}
    for number in range(min(len(rows), _SAMPLED_ROWS)):
        try:
            row = rows.row(number)
        except InvalidRecordError:
            continue
        for name, value in row.items():
            inner = next((one for one in value if one), None) if isinstance(value, list) else value
            if isinstance(inner, Mapping):
                found.update(dict.fromkeys(f"{name}.{own}" for own in inner))
            else:
                found[str(name)] = None
    return ", ".join(list(found)[:_SHOWN_FIELDS]) or "none"


def describe_missing(owner: str, rows: Rows, table: FieldTable, kind: str) -> str:
    """Returns the sentence for a source without records of a kind."""
    if not len(rows):
        return f"{rows.name} has no records: check the path."
    wanted = " or ".join(" and ".join(names) for names in table.needed(kind))
    hint = getattr(rows, "hint", "")
    return (
        f"No record of {rows.name} has {wanted}, which records of the kind {kind} need (the "
        f"fields there are {_fields_of(rows)}): {hint}say which field is which "
        f"with {owner}.fields = {{'{table.needed(kind)[0][-1]}': 'FIELD'}}, or leave the "
        f"objective out with {rates_without(kind)}."
    )


_BOXES_OF_KIND = {"objects": "object_boxes", "regions": "phrase_boxes"}
_LABELS_OF_KIND = {"objects": "object_labels", "regions": "phrases"}


def check_values(owner: str, rows: Rows, numbers: Numbers, table: FieldTable, kind: str) -> None:
    """Raises WrongDataOptionError if boxes or classes are in another form than the options say.

    Args:
      owner: the class of the data set.
      rows: of a split.
      numbers: of the rows that have records of the kind.
      table: says how boxes and classes are written.
      kind: of records; only those with boxes are checked.
    """
    if kind not in _BOXES_OF_KIND:
        return
    box_field, label_field = _BOXES_OF_KIND[kind], _LABELS_OF_KIND[kind]
    sources = [table.source_of(box_field), table.source_of(label_field)]
    boxes: list[np.ndarray] = []
    labels: list[Any] = []
    written: list[Any] = []
    for row in _sample(rows, numbers, _tops(sources)):
        written.append(look_up(row, sources[0]))
        try:
            boxes.append(read_boxes(box_field, written[-1]))
        except InvalidRecordError:
            continue
        labels += table.labels(look_up(row, sources[1]))
    if written and all(map(_is_of_texts, written)):
        raise WrongDataOptionError(
            f"The {sources[0]} of {rows.name} are texts such as {shorten(repr(written[0]))}: write "
            "each box as four numbers, e.g. [0, 0, 10.5, 20]."
        )
    found = np.concatenate(boxes) if boxes else np.zeros((0, 4))
    found = found[np.isfinite(found).all(axis=1)]
    if len(found):
        _check_units(owner, rows.name, sources[0], found, table.relative_boxes)
        _check_corners(owner, rows.name, sources[0], table, found)
    if labels and all(isinstance(label, int | float) for label in labels):
        known = len(table.class_names)
        raise WrongDataOptionError(
            f"The {sources[1]} of {rows.name} are numbers such as {shorten(labels[0])}, of which "
            f"{'none has a name' if known else 'no names are known'}: give the names in their "
            f"order, counted from 0, as {owner}.class_names{f' (there are {known})' * bool(known)}."
        )


def _is_of_texts(value: Any) -> bool:
    """Returns whether a value is a text, or a list of texts and of such lists."""
    if isinstance(value, list):
        return bool(value) and all(map(_is_of_texts, value))
    return isinstance(value, str)


def _check_units(owner: str, name: str, field: str, boxes: np.ndarray, relative: bool) -> None:
    largest = np.abs(boxes).max(axis=1)
    if not relative and (largest <= 1).all():
        raise WrongDataOptionError(
            f"The {field} of {name} lie between 0 and 1, such as {boxes[0].tolist()}, which in "
            f"pixels is nothing: set {owner}.relative_boxes = True if they are shares of the "
            "image's width and height."
        )
    if relative and 2 * (largest > _LARGEST_SHARE).sum() > len(boxes):
        raise WrongDataOptionError(
            f"The {field} of {name} are no shares of the image's width and height, such as "
            f"{boxes[0].tolist()}: set {owner}.relative_boxes = False if they are in pixels."
        )


def _check_corners(owner: str, name: str, field: str, table: FieldTable, boxes: np.ndarray) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        is_empty = ~nonempty(table.corners(boxes))
    empty = int(is_empty.sum())
    if 10 * empty <= len(boxes):
        return
    sentence = (
        f"{empty} of {len(boxes)} sampled boxes in the {field} of {name} have no area as "
        f"{table.box_format}, such as {boxes[is_empty][0].tolist()}: set "
        f"{owner}.box_format to how they are written"
    )
    if 2 * empty > len(boxes) and len(boxes) > 1:
        raise WrongDataOptionError(f"{sentence}, or correct the boxes.")
    logging.warning("%s; boxes without area are dropped.", sentence)
