"""Parses the text of an HLO program line by line: shapes, instructions, device groups.

Formats: what XLA prints for CPU, GPU and TPU programs (https://openxla.org/xla/operation_semantics
names the operations).
"""

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

CALLED = re.compile(r"\b(calls|to_apply|body|condition)=%?([\w.\-]+)")
"""Matches a computation that an instruction calls, and its role."""
LIBRARY = re.compile(r'custom_call_target="(__cu[^"]*)"')
"""Matches the name of a cuBLAS or cuDNN call in a program for GPUs."""
KERNEL = re.compile(r'custom_call_target="(tpu_custom_call)"')
"""Matches the name of a call of a Pallas kernel in a program for TPUs."""
_BYTES = {
    "pred": 1,
    "s4": 0.5,
    "u4": 0.5,
    "s8": 1,
    "u8": 1,
    "s16": 2,
    "u16": 2,
    "s32": 4,
    "u32": 4,
    "s64": 8,
    "u64": 8,
    "f16": 2,
    "bf16": 2,
    "f32": 4,
    "f64": 8,
    "c64": 8,
    "c128": 16,
}
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,]*)\](?:\{([^{}]*)\})?")
_ROUND, _MARKS = re.compile(r"[()]"), re.compile(r"[()\[\]{},]")


@dataclasses.dataclass(frozen=True)
class Array:
    """An array's type and shape.

    Attributes:
      dtype: "bf16", "f32" ...
      shape: its dimensions.
      on_chip: whether it is in on-chip memory (VMEM of a TPU), which causes no HBM traffic.
    """

    dtype: str
    shape: tuple[int, ...]
    on_chip: bool = False

    @property
    def bytes(self) -> float:
        """Size without padding to tiles."""
        return _BYTES.get(self.dtype, 1 if self.dtype.startswith("f8") else 0) * math.prod(
            self.shape
        )


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction.

    Attributes:
      name, opcode: as printed.
      outputs: its arrays, several for a tuple.
      operands: names of other instructions of its computation.
      attributes: the rest of the line.
      text: between its brackets.
    """

    name: str
    opcode: str
    outputs: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    text: str

    @property
    def source(self) -> str:
        """Its origin in the Python program, such as "jit(step)/.../dot_general"."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


def instruction(name: str, rest: str) -> Instruction:
    """Parses the right side of ` = `."""
    if rest.startswith("("):
        end = _closing(rest, 0)
        shape, rest = rest[:end], rest[end:].lstrip()
    else:
        shape, _, rest = rest.partition(" ")
    opcode, _, rest = rest.partition("(")
    end = _closing("(" + rest, 0) - 1
    inside, attributes = rest[: end - 1], rest[end:]
    operands = (
        []
        if opcode in ("parameter", "constant")
        else [part.strip().split(" ")[-1].lstrip("%") for part in _split(inside) if part.strip()]
    )
    return Instruction(name, opcode.strip(), _arrays(shape), tuple(operands), attributes, inside)


def _arrays(text: str) -> tuple[Array, ...]:
    """Parses the arrays of a shape, several for a tuple."""
    return tuple(
        Array(dtype, tuple(int(n) for n in dims.split(",") if n), "S(1)" in layout)
        for dtype, dims, layout in _ARRAY.findall(text)
        if dtype != "token"
    )


def _closing(text: str, start: int) -> int:
    """Returns the position behind the bracket that closes the one at `start`."""
    depth = 0
    for bracket in _ROUND.finditer(text, start):
        depth += 1 if bracket[0] == "(" else -1
        if depth == 0:
            return bracket.end()
    return len(text)


def _split(text: str) -> Iterator[str]:
    """Splits at commas outside of brackets, without comments such as /*index=5*/."""
    if "/*" in text:
        text = re.sub(r"/\*.*?\*/", "", text)
    depth, start = 0, 0
    for mark in _MARKS.finditer(text):
        if mark[0] == ",":
            if depth == 0:
                yield text[start : mark.start()]
                start = mark.end()
        else:
            depth += 1 if mark[0] in "([{" else -1
    yield text[start:]


def groups_of(attributes: str) -> Int[np.ndarray, "groups size"] | None:
    """Returns the positions of the devices that communicate with each other; None if unreadable.

    Three notations: {{0,1},{2,3}}; [2,4]<=[4,2]T(1,0), a transposed iota; and
    mesh['a'=4,'b'=2] {'b'}, groups along named axes of a mesh of positions.
    """
    if found := re.search(
        r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}", attributes
    ):
        rows = [[int(n) for n in row.split(",")] for row in re.findall(r"\{([\d,]+)\}", found[1])]
        return np.array(rows) if len(set(map(len, rows))) == 1 else None
    if found := re.search(
        r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
    ):
        shape, source, order = (
            [int(n) for n in part.split(",")] if part else [] for part in found.groups()
        )
        ids = np.arange(math.prod(source)).reshape(source)
        return (ids.transpose(order) if order else ids).reshape(shape)
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\](.*?)\{([^}]*)\}", attributes):
        axes = re.findall(r"'([\w.]+)'=(\d+)", found[1])
        along = re.findall(r"'([\w.]+)'", found[3])
        ids = np.arange(math.prod(int(n) for _, n in axes)).reshape([int(n) for _, n in axes])
        names = [name for name, _ in axes]
        inner = [names.index(name) for name in along]
        outer = [k for k in range(len(names)) if k not in inner]
        return ids.transpose(outer + inner).reshape(-1, math.prod(ids.shape[k] for k in inner))
    return None
