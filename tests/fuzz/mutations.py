"""Random changes of bytes, texts and JSON values; all randomness comes from the given generator."""

import json
import random
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any

INTEGERS = (0, 1, -1, 2, 7, 127, 128, 255, 256, 32_767, 65_535, 65_536, 2**31 - 1, 2**31, -(2**31))
INTEGERS += (2**32, 2**53, 2**62, 2**63, -(2**63), 2**64, 10**12, 10**30, 10**400)
FLOATS = (0.0, -0.0, 0.5, -1.5, 1e-320, 1e38, -1e39, 1e308)
TOKENS = (
    "\ufeff", "\r\n", "\n", "\t", "\0", " ", "\u2028", "\x85", "\x0b", "\x0c", "\x1c", "\ufffd",
    "\\ud83d", "\\u0000", "\u202e", "a\u0301", "\U0001f40d", '"', "'", "\\", "/", "../", "..", "~",
    "/dev/zero", "/proc/self/mem", "{", "}", "[", "]", "(", ")", ",", ":", "=", "%", "@", "&&",
    "|!+", "{region}", "{0.__class__}", "%s", "null", "true", "NaN", "Infinity", "-Infinity",
    "1e400", "-1", "0", "1_0", "0x10", "\u0661\u0662", "9" * 400, "[" * 3_000, "nan", "inf",
    "a" * 5_000,
    "data:image/png;base64,", "====", "import os", "include", "None", "gin.REQUIRED", "<bin_0>",
    "<code_0>", "</s>", "<mask>", "version https://git-lfs.github.com/spec/v1",
)  # fmt: skip
"""Pieces of text that readers trip over."""
BAD_UTF8 = (b"\xff", b"\xed\xa0\xbd", b"\xc0\x80", b"\xe2\x80", b"\xff\xfe", b"\xfe\xff", b"\xf8")


def integer(rng: random.Random) -> int:
    """Returns an integer that is extreme, or near one."""
    value = rng.choice(INTEGERS)
    return value + rng.choice((0, 0, 0, 1, -1))


def text(rng: random.Random) -> str:
    """Returns a text of a few hostile pieces."""
    pieces = [rng.choice((*TOKENS, "a", "dog", "is", " ")) for _ in range(rng.randint(0, 4))]
    return "".join(pieces)


# --------------------------------------------------------------------------------------- bytes


def _flip(rng: random.Random, data: bytearray) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set(rng: random.Random, data: bytearray) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _number(rng: random.Random, data: bytearray) -> None:
    size, code = rng.choice(((2, "H"), (4, "I"), (8, "Q")))
    if len(data) >= size:
        place = rng.randrange(len(data) - size + 1)
        value = rng.choice((0, 1, 2, 2**31 - 1, 2**31, 2**63, 2**64 - 1, 60_000, 10**9))
        order = rng.choice("<>")
        data[place : place + size] = struct.pack(order + code, value % 2 ** (8 * size))


def _insert(rng: random.Random, data: bytearray) -> None:
    place = rng.randint(0, len(data))
    data[place:place] = rng.randbytes(rng.choice((1, 2, 8, 64)))


def _delete(rng: random.Random, data: bytearray) -> None:
    start, length = _block(rng, data)
    del data[start : start + length]


def _duplicate(rng: random.Random, data: bytearray) -> None:
    start, length = _block(rng, data)
    data[start:start] = data[start : start + length] * rng.choice((1, 1, 1, 20))


def _move(rng: random.Random, data: bytearray) -> None:
    start, length = _block(rng, data)
    block = data[start : start + length]
    place = rng.randint(0, len(data))
    data[place : place + length] = block


def _blank(rng: random.Random, data: bytearray) -> None:
    start, length = _block(rng, data)
    data[start : start + length] = bytes([rng.choice((0, 0xFF, 0x20))]) * length


def _truncate(rng: random.Random, data: bytearray) -> None:
    keep = rng.choice((0, 1, len(data) - 1, rng.randint(0, len(data))))
    del data[max(keep, 0) :]


def _extend(rng: random.Random, data: bytearray) -> None:
    data += rng.choice((bytes(64), b"\n", rng.randbytes(16), bytes(data[:512])))


def _block(rng: random.Random, data: bytearray) -> tuple[int, int]:
    """Returns the start and the length of a random block."""
    if not data:
        return 0, 0
    start = rng.randrange(len(data))
    return start, min(rng.choice((1, 2, 4, 16, 100, 1_000)), len(data) - start)


_BYTES = (_flip, _flip, _set, _set, _number, _number, _insert, _delete, _duplicate, _move, _blank)
_ENDS = (_truncate, _extend)


def mutate_bytes(rng: random.Random, data: bytes, ends: bool = True) -> bytes:
    """Changes bytes in one to eight places.

    Args:
      rng: the source of randomness.
      data: the content of a file.
      ends: whether the file may also be cut off or continued.
    """
    changed = bytearray(data)
    operations: Sequence[Callable] = (*_BYTES, *_ENDS) if ends else _BYTES
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        rng.choice(operations)(rng, changed)
    return bytes(changed)


# --------------------------------------------------------------------------------------- texts

_PIECES = re.compile(r"\w+|\s|[^\w\s]")


def mutate_text(rng: random.Random, data: bytes, words: Sequence[str] = ()) -> bytes:
    """Changes a text in one to six places: its words, its lines, or its encoding.

    Args:
      rng: the source of randomness.
      data: the text in UTF-8.
      words: further pieces to insert, those of the format.
    """
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        data = rng.choice((_pieces, _pieces, _pieces, _lines, _encoding))(rng, data, words)
    return data


def _pieces(rng: random.Random, data: bytes, words: Sequence[str]) -> bytes:
    """Inserts, replaces, swaps or deletes words."""
    pieces = _PIECES.findall(data.decode("utf-8", "surrogateescape"))
    place = rng.randint(0, len(pieces))
    new = rng.choice((*TOKENS, *words, str(integer(rng)), repr(rng.choice(FLOATS))))
    operation = rng.randrange(4)
    if operation == 0 or not pieces:
        pieces.insert(place, new)
    elif operation == 1:
        numbers = [k for k, piece in enumerate(pieces) if piece.isdigit()]
        pieces[rng.choice(numbers or range(len(pieces)))] = new
    elif operation == 2:
        del pieces[place : place + rng.choice((1, 1, 5))]
    else:
        pieces[min(place, len(pieces) - 1)] = rng.choice(pieces)
    return "".join(pieces).encode("utf-8", "surrogateescape")


def _lines(rng: random.Random, data: bytes, words: Sequence[str]) -> bytes:
    """Doubles, deletes, empties, joins or shuffles lines."""
    del words
    lines = data.split(b"\n")
    place = rng.randrange(len(lines))
    operation = rng.randrange(6)
    if operation == 0:
        lines.insert(place, lines[place])
    elif operation == 1:
        del lines[place]
    elif operation == 2:
        lines.insert(place, rng.choice((b"", b" ", b"\r", b"\t\t")))
    elif operation == 3:
        rng.shuffle(lines)
    elif operation == 4:
        lines[place : place + 2] = [b"".join(lines[place : place + 2])]
    else:
        lines[place] = lines[place][: rng.randint(0, len(lines[place]))]
    return b"\n".join(lines)


def _encoding(rng: random.Random, data: bytes, words: Sequence[str]) -> bytes:
    """Changes the line ends or the encoding, or inserts bytes that are not UTF-8."""
    del words
    operation = rng.randrange(6)
    if operation == 0:
        return b"\xef\xbb\xbf" + data
    if operation == 1:
        return data.replace(b"\n", rng.choice((b"\r\n", b"\r", b"\n\n")))
    if operation == 2 and rng.random() < 0.3:
        return data.decode("utf-8", "replace").encode(
            rng.choice(("utf-16", "utf-16-be", "cp1252")), "replace"
        )
    if operation == 3:
        return data.rstrip(b"\n")
    place = rng.randint(0, len(data))
    return data[:place] + rng.choice(BAD_UTF8) + data[place:]


# ---------------------------------------------------------------------------------------- JSON


def json_value(rng: random.Random) -> Any:
    """Returns a value that does not belong where it is put."""
    return rng.choice(
        (
            None, True, False, "", [], {}, integer(rng), rng.choice(FLOATS), float("nan"),
            float("inf"), text(rng), "\ud83d", "a\0b", [[]], {"a": 1}, ["a", 1, None],
            [integer(rng)] * 3, "1234",
        )
    )  # fmt: skip


def mutate_json(rng: random.Random, value: Any) -> Any:
    """Replaces, renames, deletes, wraps or doubles a random part of a JSON value."""
    value = json.loads(json.dumps(value))
    places = list(_places(value))
    if not places:
        return json_value(rng)
    container, key = rng.choice(places)
    operation = rng.randrange(6)
    if operation == 0:
        del container[key]
    elif operation == 1 and isinstance(container, dict):
        container[rng.choice((text(rng), key.upper(), "id", "image"))] = container.pop(key)
    elif operation == 2:
        container[key] = [container[key]]
    elif operation == 3 and isinstance(container, list):
        container.insert(key, container[key])
    else:
        container[key] = json_value(rng)
    return value


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Returns (container, key) of everything inside a value."""
    found: list[tuple[Any, Any]] = []
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for key in keys:
        found += [(value, key), *_places(value[key])]
    return found


def mutate_json_file(rng: random.Random, data: bytes) -> bytes:
    """Changes a JSON file: its values, its text or its bytes."""
    choice = rng.random()
    if choice < 0.5:
        return json.dumps(mutate_json(rng, json.loads(data))).encode("utf-8", "surrogatepass")
    return mutate_text(rng, data) if choice < 0.8 else mutate_bytes(rng, data)
