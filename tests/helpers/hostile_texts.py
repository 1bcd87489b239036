"""Small text files that are hostile, unusual or damaged, with the treatment of each line."""

import base64
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from hostile_images import EITHER, KEPT, SKIPPED, encode, noise

IMAGE = "plain.png"
INSTRUCTION = "what does the image describe?"
OUTSIDE = ("fifo.png", "link.png", "folder.png", "/dev/zero", "/proc/self/environ", "../secret.png")
"""Names of images that are not regular files below the folder of the requests."""


@dataclasses.dataclass(frozen=True)
class HostileText:
    """A text file and how each of its entries must be treated.

    Attributes:
      name: of the file.
      content: its bytes.
      treatments: of each entry, in order; None for a file that is refused as a whole.
      mentions: what the sentence of a refused file says.
      instructions: the instructions of kept entries, where they matter.
      locations: what the messages about each entry give as its line, where that matters.
    """

    name: str
    content: bytes
    treatments: tuple[str, ...] | None = (KEPT,)
    mentions: str = ""
    instructions: tuple[str, ...] | None = None
    locations: tuple[int, ...] | None = None


def line(**fields: Any) -> bytes:
    """Returns a request as JSON, with an instruction and an image unless others are given."""
    return json.dumps({"instruction": INSTRUCTION, "image": IMAGE} | fields).encode()


def json_lines() -> Iterator[HostileText]:
    """Yields files of requests."""
    plain = line(id="1")
    yield HostileText("plain.jsonl", plain + b"\n")
    yield HostileText("mark.jsonl", b"\xef\xbb\xbf" + plain + b"\n")
    yield HostileText("windows.jsonl", plain + b"\r\n" + plain + b"\r\n", (KEPT, KEPT))
    yield HostileText("no_end.jsonl", plain + b"\n" + plain, (KEPT, KEPT))
    blank = plain + b"\n\n \n" + plain + b"\n\n"
    yield HostileText("blank.jsonl", blank, (KEPT, KEPT), locations=(1, 4))
    inside = '{"instruction": "one\u2028two\x85three\u2029four"}\n'.encode()
    yield HostileText("separators.jsonl", inside)
    utf16 = plain.decode().encode("utf-16")
    yield HostileText("utf16.jsonl", utf16 + b"\n", None, "UTF-16")
    yield HostileText("surrogate.jsonl", line(instruction="what is \ud83d this?"), (EITHER,))
    yield HostileText("surrogate_id.jsonl", line(id="\ud83d"), (EITHER,))
    yield HostileText("surrogate_image.jsonl", line(image="\udce9.png"), (SKIPPED,))
    yield HostileText(
        "zero.jsonl", line(image="a\0b.png") + b"\n\0\n" + plain, (SKIPPED, SKIPPED, KEPT)
    )
    yield HostileText("latin1.jsonl", b'{"instruction": "caf\xe9"}\n' + plain, (EITHER, KEPT))
    deep = b'{"instruction": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    yield HostileText("deep.jsonl", deep + b"\n" + plain, (SKIPPED, KEPT))
    digits = b'{"id": ' + b"9" * 5_000 + b', "instruction": "a"}\n' + plain
    yield HostileText("digits.jsonl", digits, (EITHER, KEPT))
    shapes = [b"[]", b'"text"', b"7", b"null", b"true", b"NaN", b"{}", b"{", b"}", b'{"a" 1}']
    yield HostileText("shapes.jsonl", b"\n".join([*shapes, plain]), (SKIPPED,) * 10 + (KEPT,))
    wrong: list[Any] = [7, True, ["a"], {"a": 1}]
    for field in ("instruction", "image"):
        content = b"\n".join(line(**{field: value}) for value in wrong)
        yield HostileText(f"wrong_{field}.jsonl", content, (SKIPPED,) * len(wrong))
    yield HostileText("long.jsonl", line(instruction="a dog " * 20_000))
    yield from _regions()
    yield from _images()


def _regions() -> Iterator[HostileText]:
    good = [[0, 0, 10, 10], ["0", "0", "10", "10"]]
    wrong = [
        "1234", "0,0,10", {}, 7, True, [0, 0, 10], [0, 0, 10, 10, 10], [10, 0, 0, 10],
        [0, 0, 1e400, 10], [0, 0, float("nan"), 10], [0, 0, 10**400, 10], [[0], 0, 10, 10],
        [0, 0, 99_999, 10], [None, 0, 10, 10], ["a", "b", "c", "d"],
    ]  # fmt: skip
    content = b"\n".join(line(region=region) for region in [*good, *wrong])
    treatments = (KEPT,) * len(good) + (SKIPPED,) * len(wrong)
    yield HostileText("regions.jsonl", content, treatments)
    yield HostileText("region_alone.jsonl", line(image=None, region=[0, 0, 9, 9]), (SKIPPED,))


def _images() -> Iterator[HostileText]:
    content = b"\n".join(line(image=name) for name in (*OUTSIDE, "missing.png", "a" * 5_000, "."))
    yield HostileText("outside.jsonl", content, (SKIPPED,) * (len(OUTSIDE) + 3))
    encoded = base64.b64encode(encode(noise(), "PNG")).decode()
    data = f"data:image/png;base64,{encoded}"
    good = [encoded, data, f" {encoded[:40]}\n{encoded[40:]} ", encoded.replace("+", "-")]
    wrong = ["data:image/png,abc", encoded[:41], "data:;base64,", "====", "aGVsbG8="]
    content = b"\n".join(line(image=text) for text in [*good, *wrong])
    treatments = (KEPT,) * len(good) + (SKIPPED,) * len(wrong)
    yield HostileText("encoded.jsonl", content, treatments)


def request_tables() -> Iterator[HostileText]:
    """Yields TSV files of requests with a header."""
    header, row = b"image\tinstruction\n", f"{IMAGE}\t{INSTRUCTION}".encode()
    yield HostileText("plain.tsv", header + row, instructions=(INSTRUCTION,))
    yield HostileText("mark.tsv", b"\xef\xbb\xbf" + header + row, instructions=(INSTRUCTION,))
    windows = (header + row + b"\n").replace(b"\n", b"\r\n")
    yield HostileText("windows.tsv", windows, instructions=(INSTRUCTION,))
    inside = f"{IMAGE}\tone\u2028two\x85three".encode()
    yield HostileText("separators.tsv", header + inside)
    utf16 = (header + row).decode().encode("utf-16")
    yield HostileText("utf16.tsv", utf16, None, "UTF-16")
    short = header + IMAGE.encode() + b"\n" + row
    yield HostileText("short.tsv", short, (SKIPPED, KEPT))
    yield HostileText("latin1.tsv", header + row + b"\xe9\n" + row, (EITHER, KEPT))
    yield HostileText("silent.tsv", b"image\tprompt\n" + row, None, "prompt")
    swapped = b"instruction\timage\n" + "\t".join((INSTRUCTION, IMAGE)).encode()
    yield HostileText("swapped.tsv", swapped, instructions=(INSTRUCTION,))


def gin_files() -> Iterator[HostileText]:
    """Yields gin files; those with treatments are valid, the others are refused in a sentence."""
    plain = "STEPS = 10\nLoopConfig.log_period = %STEPS\n"
    yield HostileText("plain.gin", plain.encode())
    yield HostileText("mark.gin", b"\xef\xbb\xbf" + plain.encode())
    yield HostileText("windows.gin", plain.replace("\n", "\r\n").encode())
    yield HostileText("utf16.gin", plain.encode("utf-16"), None, "UTF-16")
    yield HostileText("zero.gin", plain.encode() + b"A = '\0'\n\0", None)
    yield HostileText("binary.gin", bytes(range(256)), None)
    yield HostileText("itself.gin", b"include 'itself.gin'\n" + plain.encode(), None, "itself.gin")
    yield HostileText("ring_a.gin", b"include 'ring_b.gin'\n", None, "ring_")
    yield HostileText("ring_b.gin", b"include 'ring_a.gin'\n", None, "ring_")
    yield HostileText("lost.gin", b"include 'nowhere.gin'\n", None, "nowhere.gin")
    yield HostileText("folder.gin", b"include '.'\n", None)
    ring = b"A = %B\nB = %A\nLoopConfig.log_period = %A\n"
    yield HostileText("macros.gin", ring, None)
    yield HostileText("own_macro.gin", b"A = %A\nLoopConfig.log_period = %A\n", None)
    yield HostileText("open_list.gin", b"LoopConfig.log_period = [1, 2\n", None)
    yield HostileText("open_call.gin", b"LoopConfig.log_period = @LoopConfig(\n", None)
    yield HostileText("open_text.gin", b"LoopConfig.log_period = 'a\n", None)
    nested = b"LoopConfig.log_period = " + b"[" * 5_000 + b"]" * 5_000 + b"\n"
    yield HostileText("deep.gin", nested, None)
    yield HostileText("call.gin", b"LoopConfig.log_period = __import__('os').getpid()\n", None)
    yield HostileText("unknown.gin", b"Loop_Config.log_period = 1\n", None, "Loop_Config")
    yield HostileText("parameter.gin", b"LoopConfig.log_periods = 1\n", None, "log_period")
    yield HostileText("module.gin", b"import no_such_module_at_all\n" + plain.encode(), None)
    yield HostileText("statement.gin", b"def f(): pass\n", None)
    yield HostileText("scope.gin", b"a/b/c/LoopConfig.log_period == 1\n", None)


CHOICES = {
    "mark.txt": ("\ufeffyes\nno\n".encode(), ["yes", "no"]),
    "windows.txt": (b"yes\r\nno\r\n", ["yes", "no"]),
    "separators.txt": ("rock\u2028roll\nno\n".encode(), ["rock\u2028roll", "no"]),
    "tabs.txt": (b"a\x0bb\nc\x0cd\ne\x1cf\n", ["a\x0bb", "c\x0cd", "e\x1cf"]),
    "utf16.txt": ("yes\nno\n".encode("utf-16"), None),
    "list.json": (b'["yes", "no"]', ["yes", "no"]),
    "numbers.json": (b'{"yes": 0, "no": 1}', ["yes", "no"]),
    "text.json": (b'"yes"', None),
    "nested.json": (b'{"answers": ["yes", "no"]}', None),
    "torn.json": (b'["yes", "n', None),
    "empty.json": (b"[]", None),
    "empty.txt": (b"", None),
    "blank.txt": (b"\n \n", None),
    "mixed.json": (b'["yes", 7]', None),
    "deep.json": (b"[" * 100_000, None),
}
"""Name of a file of candidates -> its content, and its candidates; None if it is refused."""
