"""Reads the text of an HLO program: products, collectives and memory traffic, loops counted.

    program = Program(compiled.as_text())
    program.flops()            # of matrix products and convolutions, by one device
    program.collectives()      # each with its bytes and its groups of devices
    program.hbm_bytes()        # read and written, by one device

XLA's own `cost_analysis` counts the body of a loop once, whatever its trip count; here every
computation is counted as often as it runs. Formats: what XLA prints for CPU, GPU and TPU programs
(https://openxla.org/xla/operation_semantics names the operations).
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator

import numpy as np

_BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4,
    "s64": 8, "u64": 8, "f16": 2, "bf16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16,
}
COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute",
    "ragged-all-to-all", "collective-broadcast",
)
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,]*)\](?:\{([^{}]*)\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .* )?\{$")
_NAME = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
# They move nothing: names for memory that is there.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "iota", "partition-id", "replica-id", "opt-barrier",
}


@dataclasses.dataclass(frozen=True)
class Array:
    """A shape as it is printed.

    Attributes:
      dtype: "bf16", "f32" ...
      shape: its dimensions.
      on_chip: it lies in a memory of its own (VMEM), and costs no traffic to HBM.
    """

    dtype: str
    shape: tuple[int, ...]
    on_chip: bool = False

    @property
    def bytes(self) -> float:
        """Without padding to tiles."""
        return _BYTES.get(self.dtype, 1 if self.dtype.startswith("f8") else 0) * math.prod(
            self.shape)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line.

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
        """What in the Python program it comes from, like "jit(step)/.../dot_general"."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Collective:
    """An exchange between devices.

    Attributes:
      kind: one of COLLECTIVES.
      bytes: of its result on one device (of its operand, for a reduce-scatter).
      wire_bytes: sent by one device, by ring algorithms.
      times: how often it runs in a step.
      groups: [number, size] of device positions within the program, [sender, receiver] for a
        collective-permute; None where they cannot be read.
      arrays: its results.
      source: where in the Python program it comes from.
    """

    kind: str
    bytes: float
    wire_bytes: float
    times: float
    groups: np.ndarray | None
    arrays: tuple[Array, ...]
    source: str


class Program:
    """A parsed program."""

    def __init__(self, text: str):
        """Parses what `compiled.as_text()` or `lowered.as_text(dialect="hlo")` gives.

        Raises:
          ValueError: it has no entry computation.
        """
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            if header := _HEADER.match(line):
                current = self.computations.setdefault(header[2], {})
                if header[1]:
                    self.entry = header[2]
            elif name := _NAME.match(line):
                current[name[1]] = _instruction(name[1], line[name.end():])
        if not self.entry:
            raise ValueError("This is no text of an HLO program: it has no ENTRY computation.")

    @functools.cached_property
    def times(self) -> dict[str, float]:
        """Computation -> how often it runs when the program runs once."""
        times: dict[str, float] = collections.defaultdict(float)
        times[self.entry] = 1
        # Callees are printed before their callers.
        for name in reversed(self.computations):
            if not times[name]:
                continue
            for instruction in self.computations[name].values():
                called = dict((kind, callee) for kind, callee in _CALLED.findall(
                    instruction.attributes))
                trips = 1.0
                if instruction.opcode == "while":
                    trips = self._trips(instruction, called["condition"])
                for callee in called.values():
                    times[callee] += times[name] * trips
                for branches in _BRANCHES.findall(instruction.attributes):
                    for callee in branches.split(","):
                        # One of several runs: the costs of each are counted, at most too many.
                        times[callee.strip().lstrip("%")] += times[name]
        return dict(times)

    def _trips(self, loop: Instruction, condition: str) -> float:
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return float(known[1])
        # `i < n` with i from 0 on, as jax.lax.scan makes it.
        limits = [int(i.text) for i in self.computations[condition].values()
                  if i.opcode == "constant" and i.text.isdigit()]
        return float(max(limits, default=1))

    def _instructions(self) -> Iterator[tuple[str, float, Instruction]]:
        for name, instructions in self.computations.items():
            if times := self.times.get(name):
                for instruction in instructions.values():
                    yield name, times, instruction

    # ------------------------------------------------------------------------------- products

    def flops(self) -> float:
        """Two per multiply-add of every dot and convolution."""
        return sum(flops for flops, _ in self.products())

    def products(self) -> Iterator[tuple[float, Instruction]]:
        """(floating point operations with repetitions, dot or convolution)."""
        for name, times, instruction in self._instructions():
            if instruction.opcode in ("dot", "convolution"):
                sides = [self._array(name, operand) for operand in instruction.operands[:2]]
                count = _dot_flops if instruction.opcode == "dot" else _convolution_flops
                yield times * count(instruction, *sides), instruction

    def _array(self, computation: str, name: str) -> Array:
        return self.computations[computation][name].outputs[0]

    # ---------------------------------------------------------------------------- collectives

    def collectives(self) -> list[Collective]:
        """All exchanges, those of the same channel (an asynchronous one's parts) once."""
        found: dict[str, Collective] = {}
        for name, times, instruction in self._instructions():
            kind = instruction.opcode.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            operands = [self.computations[name][operand] for operand in instruction.operands]
            inputs = [array for operand in operands for array in operand.outputs]
            outputs = instruction.outputs
            if instruction.opcode.endswith("-start") and len(outputs) > len(inputs):
                outputs = outputs[len(inputs):2 * len(inputs)]  # (operands, results, contexts)
            groups = _groups(instruction.attributes)
            size = groups.shape[1] if groups is not None else 2
            moved = inputs if kind in ("reduce-scatter", "all-to-all") else outputs
            amount = sum(array.bytes for array in moved)
            share = {"all-reduce": 2 * (size - 1) / size, "collective-permute": 1.0}.get(
                kind, (size - 1) / size)
            channel = re.search(r"channel_id=(\d+)", instruction.attributes)
            key = channel[1] if channel else f"{name}/{instruction.name}"
            collective = Collective(
                kind, amount, amount * share, times, groups, tuple(outputs), instruction.source)
            if key not in found or found[key].times < times:
                found[key] = collective
        return [c for c in found.values() if c.wire_bytes]

    # --------------------------------------------------------------------------------- memory

    def hbm_bytes(self) -> float:
        """Bytes that one device reads from and writes to HBM; what lies in VMEM is free.

        Every instruction outside of fusions reads its operands and writes its results once; a
        slice reads, and an update writes, only its part.
        """
        fused = {
            callee
            for instructions in self.computations.values()
            for instruction in instructions.values()
            if instruction.opcode != "while"
            for kind, callee in _CALLED.findall(instruction.attributes)
            if instruction.opcode not in ("call", "conditional")
        }
        total = 0.0
        for name, times, instruction in self._instructions():
            if name in fused or instruction.opcode in _FREE or instruction.opcode.endswith("-done"):
                continue
            total += times * self._traffic(name, instruction)
        return total

    def _traffic(self, computation: str, instruction: Instruction) -> float:
        scope = self.computations[computation]
        whole = [array for o in instruction.operands for array in scope[o].outputs]
        written = sum(array.bytes for array in instruction.outputs if not array.on_chip)
        opcode = instruction.opcode
        if opcode in ("dynamic-slice", "slice", "gather"):
            return written * (1 if whole and whole[0].on_chip else 2)
        if opcode == "dynamic-update-slice":
            return 2 * whole[1].bytes
        called = dict(_CALLED.findall(instruction.attributes)).get("calls")
        if opcode != "fusion" or called not in self.computations:
            return written + sum(array.bytes for array in whole if not array.on_chip)
        body = self.computations[called]
        uses = collections.defaultdict(list)
        for inner in body.values():
            for operand in inner.operands:
                uses[operand].append(inner)
        parameters = {int(i.text): i for i in body.values() if i.opcode == "parameter"}
        read = 0.0
        for number, operand in enumerate(instruction.operands):
            array = scope[operand].outputs[0] if scope[operand].outputs else None
            if array is None or array.on_chip or number not in parameters:
                continue
            read += _part_read(array, parameters[number].name, uses)
        for inner in body.values():
            if inner.opcode == "dynamic-update-slice" and inner.operands[1] in body:
                base, update = inner.outputs[0], body[inner.operands[1]].outputs[0]
                if any(o.shape == base.shape and not o.on_chip for o in instruction.outputs):
                    written += update.bytes - base.bytes
        return read + max(written, 0.0)


def _part_read(array: Array, name: str, uses: dict[str, list[Instruction]]) -> float:
    """How much of an operand a fusion reads: only the slices, where it is only sliced."""
    users = uses[name]
    if users and all(
        user.opcode in ("dynamic-slice", "slice", "gather", "dynamic-update-slice")
        and user.operands[0] == name for user in users
    ):
        sliced = [user for user in users if user.opcode != "dynamic-update-slice"]
        return min(array.bytes, sum(user.outputs[0].bytes for user in sliced))
    return array.bytes


def _instruction(name: str, rest: str) -> Instruction:
    """Parses what stands right of ` = `."""
    if rest.startswith("("):
        end = _closing(rest, 0)
        shape, rest = rest[:end], rest[end:].lstrip()
    else:
        shape, _, rest = rest.partition(" ")
    opcode, _, rest = rest.partition("(")
    end = _closing("(" + rest, 0) - 1
    inside, attributes = rest[:end - 1], rest[end:]
    operands = [] if opcode in ("parameter", "constant") else [
        part.strip().split(" ")[-1].lstrip("%") for part in _split(inside) if part.strip()]
    return Instruction(name, opcode.strip(), _arrays(shape), tuple(operands), attributes, inside)


def _arrays(text: str) -> tuple[Array, ...]:
    return tuple(
        Array(dtype, tuple(int(n) for n in dims.split(",") if n), "S(1)" in layout)
        for dtype, dims, layout in _ARRAY.findall(text)
        if dtype != "token"
    )


def _closing(text: str, start: int) -> int:
    """Behind the bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place + 1
    return len(text)


def _split(text: str) -> Iterator[str]:
    """At commas outside of brackets; comments like /*index=5*/ left out."""
    text = re.sub(r"/\*.*?\*/", "", text)
    depth, start = 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            yield text[start:place]
            start = place + 1
    yield text[start:]


def _dot_flops(dot: Instruction, left: Array, right: Array) -> float:
    del right
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.attributes)
    axes = [int(n) for n in contracted[1].split(",") if n] if contracted else []
    return 2.0 * math.prod(dot.outputs[0].shape) * math.prod(left.shape[a] for a in axes)


def _convolution_flops(conv: Instruction, left: Array, right: Array) -> float:
    """As XLA counts: only taps on values that are there, neither padding nor dilation."""
    lhs, rhs, out = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", conv.attributes).groups()
    window = dict(re.findall(r"(\w+)=([\w\-x]+)", (
        re.search(r"window=\{([^}]*)\}", conv.attributes) or ["", ""])[1]))
    spatial = [label for label in out if label.isdigit()]

    def setting(name: str, place: int, default: int) -> int:
        return int(window[name].split("x")[place]) if name in window else default

    pairs = 1
    for label in spatial:
        place = int(label)
        low = int(window["pad"].split("x")[place].split("_")[0]) if "pad" in window else 0
        pairs *= _valid_pairs(
            size=left.shape[lhs.index(label)], taps=right.shape[rhs.index(label)],
            outputs=conv.outputs[0].shape[out.index(label)], stride=setting("stride", place, 1),
            low=low, base=setting("lhs_dilate", place, 1), dilation=setting("rhs_dilate", place, 1))
    batch_groups = re.search(r"batch_group_count=(\d+)", conv.attributes)
    batch = left.shape[lhs.index("b")] // (int(batch_groups[1]) if batch_groups else 1)
    # The kernel's input features are those of one group already.
    return 2.0 * pairs * batch * right.shape[rhs.index("i")] * right.shape[rhs.index("o")]


@functools.lru_cache(maxsize=4096)
def _valid_pairs(size, taps, outputs, stride, low, base, dilation) -> int:
    """How many (output, tap) pairs of one axis see a value."""
    place = np.arange(outputs)[:, None] * stride - low + np.arange(taps)[None, :] * dilation
    return int(((place >= 0) & (place <= (size - 1) * base) & (place % base == 0)).sum())


def _groups(attributes: str) -> np.ndarray | None:
    """[number, size] of the positions of the devices that exchange among themselves.

    Three notations: {{0,1},{2,3}}; [2,4]<=[4,2]T(1,0), a transposed iota; and
    mesh['a'=4,'b'=2] {'b'}, groups along named axes of a mesh of positions.
    """
    if found := re.search(
            r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}", attributes):
        rows = [[int(n) for n in row.split(",")] for row in re.findall(r"\{([\d,]+)\}", found[1])]
        return np.array(rows) if len(set(map(len, rows))) == 1 else None
    if found := re.search(
            r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        shape, source, order = ([int(n) for n in part.split(",")] if part else None
                                for part in found.groups())
        ids = np.arange(math.prod(source)).reshape(source)
        return (ids.transpose(order) if order else ids).reshape(shape)
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\](.*?)\{([^}]*)\}", attributes):
        axes = re.findall(r"'([\w.]+)'=(\d+)", found[1])
        along = re.findall(r"'([\w.]+)'", found[3])
        ids = np.arange(math.prod(int(n) for _, n in axes)).reshape([int(n) for _, n in axes])
        names = [name for name, _ in axes]
        inner = [names.index(name) for name in along]
        outer = [k for k in range(len(names)) if k not in inner]
        return ids.transpose(outer + inner).reshape(
            -1, math.prod(ids.shape[k] for k in inner))
    return None
