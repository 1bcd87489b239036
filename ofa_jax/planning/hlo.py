"""Reads the text of an HLO program: products, collectives and memory traffic, loops counted.

    program = Program(compiled.as_text())
    program.flops()            # of matrix products and convolutions, by one device
    program.collectives()      # each with its bytes and its groups of devices
    program.hbm_bytes()        # read and written, by one device

XLA's own `cost_analysis` counts the body of a loop once, whatever its trip count; here every
computation is counted as often as it runs. What a program for GPUs asks of cuBLAS and cuDNN is
counted as the products that it was. Formats: what XLA prints for CPU, GPU and TPU programs
(https://openxla.org/xla/operation_semantics names the operations).
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator

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
_ROUND, _MARKS = re.compile(r"[()]"), re.compile(r"[()\[\]{},]")
# What TPUs make of a sum of which each device wants a part: a fusion of the sum and the cut.
_SCATTERED = re.compile(r"all-reduce-scatter\b")
_LIBRARY = re.compile(r'custom_call_target="(__cu[^"]*)"')
# Room that nobody has written to, and parts that lie side by side already.
_NOTHING = re.compile(r'custom_call_target="(?:AllocateBuffer|ConcatBitcast)"')
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
# Through how many a fetched array goes at most, before somebody computes with it.
_MOST_HANDS = 8
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
      on_chip: it lies in a memory of its own (a TPU's VMEM), and costs no traffic to HBM.
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
      beside: it goes on beside other work, and fusions hand its arrays on.
    """

    kind: str
    bytes: float
    wire_bytes: float
    times: float
    groups: np.ndarray | None
    arrays: tuple[Array, ...]
    source: str
    beside: bool


class Program:
    """A parsed program."""

    def __init__(self, text: str, trips: int | None = None, on_chip_memory: bool = True):
        """Parses what `compiled.as_text()` or `lowered.as_text(dialect="hlo")` gives.

        Args:
          text: of the program.
          trips: how often a loop runs whose number of rounds the compiler does not know, as that of
            decoding, which stops early; read from its condition when None.
          on_chip_memory: whether memory space 1 is one (VMEM); a GPU has its buffers for exchanges
            in a space of that number, in HBM.

        Raises:
          ValueError: it has no entry computation.
        """
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry, self._unknown_trips = "", trips
        if not on_chip_memory:
            text = text.replace("S(1)", "")
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
        if self._unknown_trips is not None:
            return float(self._unknown_trips)
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
        """(floating point operations with repetitions, dot or convolution or call of a library)."""
        for name, times, instruction in self._instructions():
            count = _count_of(instruction)
            if count is not None:
                sides = [self._array(name, operand) for operand in instruction.operands[:2]]
                yield times * count(instruction, *sides), instruction

    def uncounted(self) -> set[str]:
        """What is asked of cuBLAS and cuDNN and is no product that `flops` knows."""
        calls = (i for _, _, i in self._instructions() if i.opcode == "custom-call")
        return {found[1] for call in calls if _count_of(call) is None
                and (found := _LIBRARY.search(call.attributes))}

    def _root(self, computation: str) -> Instruction:
        """What a computation returns; it is printed last."""
        return next(reversed(self.computations[computation].values()))

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
            if kind == "all-reduce" and _SCATTERED.match(name):
                kind = "reduce-scatter"
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
                kind, amount, amount * share, times, groups, tuple(outputs), instruction.source,
                name in self._fused and self._root(name).opcode == "tuple")
            # One that is begun before a loop may go on beside the loop's work.
            if key not in found or times < found[key].times:
                found[key] = collective
        return [c for c in found.values() if c.wire_bytes]

    # --------------------------------------------------------------------------------- memory

    def hbm_bytes(self) -> float:
        """Bytes that one device reads from and writes to HBM; what lies in VMEM is free.

        Every instruction outside of fusions reads its operands and writes its results once; a
        slice reads, and an update writes, only its part.
        """
        beside = sum(2 * c.bytes * c.times for c in self.collectives() if c.beside)
        return beside + sum(moved for moved, _ in self.traffic())

    def traffic(self) -> Iterator[tuple[float, str]]:
        """(bytes read and written with repetitions, what for), see `hbm_bytes`.

        What for is the `source` of an instruction; of what the compiler fetches ahead, which has
        none, that of its first reader.
        """
        for name, times, instruction in self._instructions():
            opcode = instruction.opcode
            if name not in self._fused and opcode not in _FREE and not opcode.endswith("-done"):
                yield times * self._traffic(name, instruction), self._purpose(name, instruction)

    def _purpose(self, computation: str, instruction: Instruction) -> str:
        for _ in range(_MOST_HANDS):
            if instruction.source:
                break
            reader = self._first_readers[computation].get(instruction.name)
            if reader is None:  # the end of what was started: who waits for it?
                computation, reader = self._started_by.get(computation, (computation, None))
            if reader is None:
                break
            instruction = reader
        return instruction.source

    @functools.cached_property
    def _started_by(self) -> dict[str, tuple[str, Instruction]]:
        """Computation that goes on beside others -> where it is started."""
        return {
            callee: (name, instruction)
            for name, instructions in self.computations.items()
            for instruction in instructions.values() if instruction.opcode == "async-start"
            for _, callee in _CALLED.findall(instruction.attributes)}

    @functools.cached_property
    def _first_readers(self) -> dict[str, dict[str, Instruction]]:
        """Computation -> name of an instruction -> the first one that reads it."""
        return {
            name: {operand: reader for reader in reversed(instructions.values())
                   for operand in reader.operands}
            for name, instructions in self.computations.items()}

    @functools.cached_property
    def _fused(self) -> set[str]:
        """Computations that belong to one instruction, as the inside of a fusion does."""
        return {
            callee
            for instructions in self.computations.values()
            for instruction in instructions.values()
            if instruction.opcode not in ("while", "call", "conditional", "async-start")
            for _, callee in _CALLED.findall(instruction.attributes)
        }

    def _traffic(self, computation: str, instruction: Instruction) -> float:
        scope, opcode = self.computations[computation], instruction.opcode
        whole = [array for o in instruction.operands for array in scope[o].outputs]
        outputs = instruction.outputs
        if opcode.endswith("-start"):
            if opcode == "async-start":
                return 0.0  # what it starts is counted in its own computation
            if opcode == "copy-start":
                outputs = outputs[:1]  # (result, operand, context)
            elif len(outputs) > len(whole):
                outputs = outputs[len(whole):2 * len(whole)]  # (operands, results, contexts)
        if opcode == "custom-call":
            if _NOTHING.search(instruction.attributes):
                return 0.0
            if _LIBRARY.search(instruction.attributes):
                outputs = outputs[:1]  # (result, workspace)
        written = sum(array.bytes for array in outputs if not array.on_chip)
        if opcode in ("dynamic-slice", "slice", "gather"):
            read = 0.0 if whole and whole[0].on_chip else sum(array.bytes for array in outputs)
            return written + read
        if opcode == "dynamic-update-slice":
            return sum(array.bytes for array in (outputs[0], whole[1]) if not array.on_chip
                       ) - (0.0 if outputs[0].on_chip else outputs[0].bytes - whole[1].bytes)
        called = dict(_CALLED.findall(instruction.attributes)).get("calls")
        if opcode != "fusion" or called not in self.computations:
            return written + sum(array.bytes for array in whole if not array.on_chip)
        read = sum(
            self._part_read(called, number, array)
            for number, array in enumerate(whole) if not array.on_chip)
        body = self.computations[called]
        result = self._root(called)
        if result.opcode == "tuple" and len(result.operands) == len(outputs):
            # An exchange that goes on beside other work hands its arrays from fusion to fusion.
            made = [body[operand].opcode.removesuffix("-start") for operand in result.operands]
            outputs = [array for array, opcode in zip(outputs, made, strict=True)
                       if opcode != "parameter" and opcode not in COLLECTIVES]
            written = sum(array.bytes for array in outputs if not array.on_chip)
        # What is updated in place is written only where it changes.
        unchanged = self._unchanged(called, [o for o in outputs if not o.on_chip])
        return read + max(written - unchanged, 0.0)

    def _part_read(self, computation: str, number: int, array: Array) -> float:
        """How much of an operand a fusion reads: only the slices, where it is only sliced."""
        parameter, users = self._uses[computation].get(number, ("", ()))
        hands_on = self._root(computation).opcode == "tuple"
        read = 0.0
        for user in users:
            if hands_on and user.opcode.removesuffix("-start") in ("tuple", *COLLECTIVES):
                continue
            if user.opcode in ("dynamic-slice", "slice", "gather"):
                read += user.outputs[0].bytes
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == parameter:
                pass  # updated in place
            elif user.opcode == "fusion":
                called = dict(_CALLED.findall(user.attributes))["calls"]
                read += sum(self._part_read(called, place, array)
                            for place, operand in enumerate(user.operands) if operand == parameter)
            else:
                return array.bytes
        return min(read, array.bytes)

    def _unchanged(self, computation: str, outputs: list[Array]) -> float:
        """Bytes of a fusion's results that lie there already, around what is updated in place."""
        total = 0.0
        for inner in self.computations[computation].values():
            if inner.opcode == "fusion":
                total += self._unchanged(
                    dict(_CALLED.findall(inner.attributes))["calls"],
                    [o for o in outputs if o.shape in {x.shape for x in inner.outputs}])
            elif inner.opcode == "dynamic-update-slice":
                base = inner.outputs[0]
                update = self.computations[computation][inner.operands[1]].outputs[0]
                if any(o.shape == base.shape for o in outputs):
                    total += base.bytes - update.bytes
        return total

    @functools.cached_property
    def _uses(self) -> dict[str, dict[int, tuple[str, list[Instruction]]]]:
        """Computation -> number of a parameter -> its name and who reads it."""
        found = {}
        for name, instructions in self.computations.items():
            users = collections.defaultdict(list)
            for instruction in instructions.values():
                for operand in dict.fromkeys(instruction.operands):
                    users[operand].append(instruction)
            found[name] = {
                int(i.text): (i.name, users[i.name])
                for i in instructions.values() if i.opcode == "parameter"}
        return found


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
    for bracket in _ROUND.finditer(text, start):
        depth += 1 if bracket[0] == "(" else -1
        if depth == 0:
            return bracket.end()
    return len(text)


def _split(text: str) -> Iterator[str]:
    """At commas outside of brackets; comments like /*index=5*/ left out."""
    if "/*" in text:
        text = re.sub(r"/\*.*?\*/", "", text)
    depth, start = 0, 0
    for mark in _MARKS.finditer(text):
        if mark[0] == ",":
            if depth == 0:
                yield text[start:mark.start()]
                start = mark.end()
        else:
            depth += 1 if mark[0] in "([{" else -1
    yield text[start:]


def _count_of(instruction: Instruction) -> Callable[[Instruction, Array, Array], float] | None:
    """How to count the operations of an instruction and its operands; None where it has none."""
    name = instruction.opcode
    if name == "custom-call" and (found := _LIBRARY.search(instruction.attributes)):
        name = next((kind for kind in _COUNTS if kind.startswith("__")
                     and found[1].startswith(kind)), "")
    return _COUNTS.get(name)


def _dot_flops(dot: Instruction, left: Array, right: Array) -> float:
    del right
    # In words of HLO, and in those of a call of cuBLAS.
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.attributes) or re.search(
        r'"lhs_contracting_dimensions":\[([\d,"]*)\]', dot.attributes)
    axes = [int(n) for n in re.findall(r"\d+", contracted[1])] if contracted else []
    return 2.0 * math.prod(dot.outputs[0].shape) * math.prod(left.shape[a] for a in axes)


def _convolution_flops(conv: Instruction, left: Array, right: Array) -> float:
    return _valid_flops(conv, left, right, conv.outputs[0])


def _input_gradient_flops(conv: Instruction, left: Array, right: Array) -> float:
    """cuDNN says of which convolution it is the gradient: its output and kernel to its input."""
    return _valid_flops(conv, conv.outputs[0], right, left)


def _kernel_gradient_flops(conv: Instruction, left: Array, right: Array) -> float:
    """Likewise, its input and output to its kernel."""
    return _valid_flops(conv, left, conv.outputs[0], right)


def _valid_flops(conv: Instruction, left: Array, right: Array, result: Array) -> float:
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
            outputs=result.shape[out.index(label)], stride=setting("stride", place, 1),
            low=low, base=setting("lhs_dilate", place, 1), dilation=setting("rhs_dilate", place, 1))
    batch_groups = re.search(r"batch_group_count=(\d+)", conv.attributes)
    batch = left.shape[lhs.index("b")] // (int(batch_groups[1]) if batch_groups else 1)
    # The kernel's input features are those of one group already.
    return 2.0 * pairs * batch * right.shape[rhs.index("i")] * right.shape[rhs.index("o")]


_COUNTS = {
    "dot": _dot_flops,
    "convolution": _convolution_flops,
    "__cublas$gemm": _dot_flops,
    "__cublas$lt$matmul": _dot_flops,
    "__cudnn$convForward": _convolution_flops,
    "__cudnn$convBiasActivationForward": _convolution_flops,
    "__cudnn$convBackwardInput": _input_gradient_flops,
    "__cudnn$convBackwardFilter": _kernel_gradient_flops,
}


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
