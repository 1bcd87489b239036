"""Lists of texts that a user gives in a file: candidate answers, names of classes.

    JSON    ["yes", "no"]                    a list of texts
            {"yes": 0, "no": 1}              an object from the texts to their numbers
            {"0": "yes", "1": "no"}          an object from numbers, from 0 on, to the texts
    text    one per line

A file of any other shape is refused: read as if it had one of these, it would give other candidates
than its author meant.
"""

import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from ofa_jax.utils import strict_json, text_files
from ofa_jax.utils.excerpts import truncate

SHAPES = (
    'a JSON list of answers (["yes", "no"]), a JSON object whose keys are answers ({"yes": 0, '
    '"no": 1}), or text with one per line'
)


def read_choices(path: pathlib.Path) -> list[str]:
    """Reads different texts from a file; see the module for its shapes.

    Texts are stripped, and empty ones are left out. Of equal texts the first one counts.

    Raises:
      FileNotFoundError: there is none.
      ValueError: the file is a pickle, has another shape, or lists nothing.
    """
    found = list(dict.fromkeys(text for text in _read_texts(path) if text))
    if not found:
        raise ValueError(f"{path} has no answers.")
    return found


def read_class_names(path: pathlib.Path) -> list[str]:
    """Reads the name of each class in order: like `read_choices`, but every entry counts.

    Two classes may have one name, such as the two cranes of ImageNet.

    Raises:
      FileNotFoundError: there is none.
      ValueError: as `read_choices`; also an empty name between others.
    """
    names = _read_texts(path)
    while names and not names[-1]:
        names.pop()
    if not names:
        raise ValueError(f"{path} has no names of classes.")
    if "" in names:
        raise ValueError(
            f"{path}: the name of class {names.index('')} (counted from 0) is empty, so that the "
            "numbers of the classes after it are unclear: give every class a name."
        )
    return names


def _read_texts(path: pathlib.Path) -> list[str]:
    """Reads the stripped texts of a file, empty and repeated ones included."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of answers {path}: check the path.")
    with path.open("rb") as file:
        first = file.read(1)
    if path.suffix.lower() in (".pkl", ".pickle") or first == b"\x80":
        raise ValueError(
            f"{path} is a pickle, which is not read because it could execute code: write its keys "
            "to a JSON list, or to a text file with one per line."
        )
    text = text_files.read_text(path)
    try:
        if path.suffix.lower() == ".json" or _is_json(text):
            found = _texts_of_json(parse_json(text))
        else:
            found = _texts_of_lines([line.removesuffix("\r") for line in text.split("\n")])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be {SHAPES} ({error}).") from error
    return [text_files.replace_surrogates(text).strip() for text in found]


def _is_json(text: str) -> bool:
    """Returns whether a whole text is a JSON list or object, whatever the file is called."""
    if text.lstrip()[:1] not in ("[", "{"):
        return False
    try:
        parse_json(text)
    except strict_json.RepeatedKeyError:
        return True
    except (ValueError, RecursionError):
        return False
    return True


def parse_json(text: str) -> Any:
    """Parses JSON. Raises ValueError also if a key is there twice, or a number is not finite."""
    return strict_json.parse(text)


def _texts_of_json(value: Any) -> list[str]:
    """Returns the texts of a list or object. Raises ValueError for another shape."""
    if isinstance(value, list):
        for number, entry in enumerate(value, 1):
            if not isinstance(entry, str):
                raise ValueError(f"entry {number} of the list is {describe_json(entry)}")
        return value
    if not isinstance(value, dict):
        raise ValueError(f"it is {describe_json(value)}")
    for key, entry in value.items():
        if not isinstance(entry, str | int | float) or isinstance(entry, bool):
            raise ValueError(f"the value of {quote(key)} is {describe_json(entry)}")
    entries = list(value.values())
    numbers = [str(number) for number in range(len(value))]
    if entries and all(isinstance(entry, str) for entry in entries):
        if set(value) != set(numbers):
            raise ValueError(
                f"the value of {quote(next(iter(value)))} is {describe_json(entries[0])}, and "
                "the keys are not the numbers from 0 on"
            )
        return [value[number] for number in numbers]
    for key, entry in value.items():
        if isinstance(entry, str) or not math.isfinite(entry):
            raise ValueError(f"the value of {quote(key)} is {describe_json(entry)}")
    # Where the numbers are those of the texts, and not their frequencies, they are the order.
    if sorted(entries) == list(range(len(entries))):
        return sorted(value, key=value.__getitem__)
    return list(value)


def _texts_of_lines(lines: Sequence[str]) -> list[str]:
    """Returns the texts of a file with one per line. Raises ValueError for another shape."""
    filled = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    for number, line in filled:
        if "\r" in line:
            raise ValueError(
                f"line {number} has carriage returns in it, as old programs write them"
            )
        if "\t" in line:
            raise ValueError(f"line {number} has several columns: {quote(line)}")
        if _is_json(line):
            raise ValueError(f"line {number} is JSON: {quote(line)}")
    if filled and all(len(line) > 1 and line[0] == line[-1] == '"' for _, line in filled):
        raise ValueError(
            f"every line is in quotes: {quote(filled[0][1])}; the quotes would be part of the text"
        )
    return list(lines)


def describe_json(value: Any) -> str:
    """Returns what a JSON value is, for messages: `the text "yes"`, `a list`."""
    match value:
        case None:
            return "null"
        case bool():
            return f"{str(value).lower()}"
        case str():
            return f"the text {quote(value)}"
        case int() | float():
            return f"the number {quote(str(value))}"
        case list():
            return "a list"
        case _:
            return "an object"


def quote(text: str) -> str:
    """Returns a text in quotes, truncated, for messages."""
    return json.dumps(truncate(text, 40))
