"""Reads text files as people write them: byte order marks, CRLF, lone surrogates, damaged JSON.

A line ends at a line feed, with or without a carriage return before it, and nowhere else: the
characters U+2028, U+0085, vertical tab and form feed are part of the text, whereas
`str.splitlines` would end a line there.
"""

import re
from typing import Any

from etils import epath

from ofa_jax.utils import strict_json
from ofa_jax.utils.files import read_bytes
from ofa_jax.utils.wrong_files import HEAD_BYTES, describe_placeholder, describe_pointer

__all__ = [
    "DamagedFileError",
    "decode_text",
    "read_json",
    "read_lines",
    "read_text",
    "replace_surrogates",
    "strip_byte_order_mark",
]

_GZIP = b"\x1f\x8b"  # in UTF-8 no text has its second byte there
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_OTHER_MARKS = {b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32",
                b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}  # fmt: skip
_SURROGATES = re.compile("[\ud800-\udfff]")


class DamagedFileError(ValueError):
    """A file whose content cannot be read; the sentence names the file and what is wrong."""


def strip_byte_order_mark(data: bytes) -> bytes:
    """Drops UTF-8's byte order mark, which Excel, Notepad and PowerShell write."""
    return data.removeprefix(_BYTE_ORDER_MARK)


def replace_surrogates(text: str) -> str:
    r"""Replaces every lone surrogate by U+FFFD; such a text cannot be encoded as UTF-8.

    JSON's `"\ud83d"` and file names that are not UTF-8 contain them.
    """
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


def decode_text(data: bytes, name: str) -> str:
    """Decodes UTF-8 and drops its byte order mark.

    Args:
      data: the content of a file.
      name: of the file, for the error.

    Raises:
      DamagedFileError: the text is in another encoding.
    """
    if problem := describe_pointer(data):
        raise DamagedFileError(f"{name} {problem}.")
    if data.startswith(_GZIP):
        raise DamagedFileError(f"{name} is compressed with gzip: unpack it.")
    for mark, encoding in _OTHER_MARKS.items():
        if data.startswith(mark):
            raise DamagedFileError(f"{name} is {encoding}: save it as UTF-8.")
    try:
        return strip_byte_order_mark(data).decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DamagedFileError(
            f"{name}, line {line}: byte {data[error.start]:#04x} is not UTF-8: save it as UTF-8."
        ) from None


def read_text(path: epath.PathLike) -> str:
    """Reads a UTF-8 file without its byte order mark; line ends are kept as they are.

    Raises:
      OSError: it does not exist or is not a regular file.
      DamagedFileError: the text is in another encoding.
    """
    return decode_text(read_bytes(path), str(path))


def read_lines(path: epath.PathLike) -> list[str]:
    """Reads the lines of a UTF-8 file, without their ends; see the module for what ends a line.

    Raises:
      OSError, DamagedFileError: see `read_text`.
    """
    text = read_text(path)
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


def read_json(path: epath.PathLike, only_finite: bool = True, mark_repeated: bool = False) -> Any:
    """Reads a JSON file.

    Args:
      path: of the file.
      only_finite: whether NaN and Infinity are refused, which are no numbers of JSON, but which
        Python writes.
      mark_repeated: whether an object with a key twice becomes a `strict_json.MarkedObject` instead
        of an error.

    Raises:
      OSError: it does not exist or is not a regular file.
      DamagedFileError: it is not valid JSON: torn, of another encoding, nested too deeply, with
        numbers that are not finite, or with a key twice in one object.
    """
    text = read_text(path)
    try:
        return strict_json.parse(text, only_finite, mark_repeated)
    except RecursionError:
        raise DamagedFileError(f"{path} is not valid JSON: it is nested too deeply.") from None
    except strict_json.RepeatedKeyError as error:
        raise DamagedFileError(
            f"{path} is ambiguous: {error} in one object: keep one of the two."
        ) from None
    except ValueError as error:
        if (known := describe_placeholder(text[:HEAD_BYTES].encode())) and text:
            raise DamagedFileError(f"{path} {known}.") from None
        empty = not text.strip("\x00 \t\r\n")
        problem = "it is empty" if empty else str(error)
        raise DamagedFileError(f"{path} is not valid JSON: {problem}.") from None
