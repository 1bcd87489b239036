"""The fields of a request's line, and the instruction that they are inserted into."""

import difflib
import functools
import string
from collections.abc import Mapping, Sequence
from typing import Any

from ofa_jax.preprocessing.records import InvalidRecordError
from ofa_jax.utils.bad_input import Treatment, declare, note

FIELDS = ("id", "instruction", "image", "region", "task")
"""What a line may have; other fields are for the instruction of all lines."""

WRONG_TYPE = declare(
    "field of another type",
    Treatment.SKIPPED,
    "A field of a request is of another type than text, or a text that the instruction needs is "
    "empty.",
    __name__,
)
UNKNOWN_FIELD = declare(
    "field is not read",
    Treatment.DROPPED,
    "A request has no image (or instruction, region, task), but a field of a name that is almost "
    "the same: it is not read, and the answer's line says so.",
    __name__,
)


def fill_instruction(template: str, fields: Mapping[str, Any]) -> str:
    """Inserts the fields of a line into the instruction of all lines.

    Raises:
      InvalidRecordError: the line lacks one, or it is not text.
    """
    # `{region}` is replaced once the image is read.
    values: dict[str, Any] = {"region": "{region}"}
    for name in names_in_braces(template) - {"region"}:
        value = fields.get(name)
        if value is None:
            raise InvalidRecordError(f"it has no {name}, which the instruction needs")
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise InvalidRecordError(
                f"its {name}, which the instruction needs, must be text, not {json_type(value)}",
                WRONG_TYPE,
            )
        if not str(value).strip():
            raise InvalidRecordError(
                f"its {name}, which the instruction needs, is empty", WRONG_TYPE
            )
        values[name] = value
    try:
        return template.format_map(values)
    except (ValueError, TypeError) as error:
        raise InvalidRecordError(
            f"its fields cannot be inserted into the instruction ({error})", WRONG_TYPE
        ) from error


def note_typos(fields: Mapping[str, Any], template: str | None) -> None:
    """Reports fields that are almost those of a request and are not read."""
    absent = tuple(name for name in FIELDS if fields.get(name) is None and name != "id")
    used = {*FIELDS, *names_in_braces(template or "")}
    for name in fields:
        if name not in used and (meant := _almost(name, absent)):
            note(UNKNOWN_FIELD, f"It has no {meant}, but a field {name[:40]!r}, which is not read")


@functools.lru_cache(maxsize=64)
def names_in_braces(template: str) -> frozenset[str]:
    """Returns the names of the fields that an instruction needs."""
    return frozenset(name for _, name, _, _ in string.Formatter().parse(template) if name)


def check_template(option: str, template: str) -> None:
    """Raises ValueError if an instruction has braces that are no names of fields."""
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"{option} is {template!r}, whose braces do not fit ({error}).") from None
    for name in names:
        if not name or name.isdigit() or set(name) & set(".[]"):
            raise ValueError(
                f"{option} is {template!r}; braces hold the name of a field, as in {{phrase}}, not "
                f"{{{name}}}."
            )


@functools.lru_cache(maxsize=1024)
def _almost(name: str, known: tuple[str, ...]) -> str | None:
    """Returns which of the known names was probably meant."""
    close = difflib.get_close_matches(name.strip().casefold(), known, n=1, cutoff=0.8)
    return close[0] if close else None


def json_type(value: Any) -> str:
    """Returns what a JSON value is, for messages."""
    kinds = {dict: "an object", list: "a list", bool: "true or false", type(None): "null"}
    for kind, name in kinds.items():
        if isinstance(value, kind):
            return name
    return "text" if isinstance(value, str) else "a number"


def listed(names: Sequence[str]) -> str:
    """Returns column names as messages list them."""
    more = f" and {len(names) - 30} more" if len(names) > 30 else ""
    return ", ".join(name[:40] for name in names[:30]) + more
