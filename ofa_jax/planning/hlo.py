"""Reads the text of an HLO program: products, collectives and memory traffic, loops counted.

    program = Program(compiled.as_text())
    program.flops()            # of matrix products and convolutions, by one device
    program.collectives()      # each with its bytes and its groups of devices
    program.hbm_bytes()        # read and written, by one device

XLA's own `cost_analysis` counts the body of a loop once, whatever its trip count; here every
computation is counted as often as it runs. What a program for GPUs asks of cuBLAS and cuDNN is
counted as the products that it was.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Iterator

import numpy as np

from ofa_jax.planning import hlo_text
from ofa_jax.planning.hlo_products import count_of
from ofa_jax.planning.hlo_text import CALLED, LIBRARY, Array, Instruction
from ofa_jax.planning.hlo_traffic import COLLECTIVES, Traffic

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .* )?\{$")
_NAME = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
# What TPUs make of a sum of which each device wants a part: a fusion of the sum and the cut.
_SCATTERED = re.compile(r"all-reduce-scatter\b")
# Between slices, hosts carry what devices send: "ALL_REDUCE", "ALL_GATHER" ...
_CARRIED = re.compile(r'_xla_megascale_transfer_type="([A-Z_]+)"')
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")


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
      between_slices: of TPUs, by way of their hosts. Then `bytes` is what one device hands over.
    """

    kind: str
    bytes: float
    wire_bytes: float
    times: float
    groups: np.ndarray | None
    arrays: tuple[Array, ...]
    source: str
    beside: bool
    between_slices: bool = False


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
                current[name[1]] = hlo_text.instruction(name[1], line[name.end() :])
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
                called = dict(
                    (kind, callee) for kind, callee in CALLED.findall(instruction.attributes)
                )
                trips = 1.0
                if instruction.opcode == "while":
                    trips = self._trips(instruction, name, called["condition"])
                for callee in called.values():
                    times[callee] += times[name] * trips
                for branches in _BRANCHES.findall(instruction.attributes):
                    for callee in branches.split(","):
                        # One of several runs: the costs of each are counted, at most too many.
                        times[callee.strip().lstrip("%")] += times[name]
        return dict(times)

    def _trips(self, loop: Instruction, computation: str, condition: str) -> float:
        """Rounds of a loop of `computation`."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return float(known[1])
        if self._unknown_trips is not None:
            return float(self._unknown_trips)
        # `i < n` with i from 0 on, as jax.lax.scan makes it.
        limits = [
            int(i.text)
            for i in self.computations[condition].values()
            if i.opcode == "constant" and i.text.isdigit()
        ]
        return float(max(limits, default=1)) - self._begin(loop, computation, condition)

    def _begin(self, loop: Instruction, computation: str, condition: str) -> int:
        """What a loop counts from: 1 where the compiler has put the first round before it.

        For several slices it does so, to send between them what all rounds sum.
        """
        asked, around = self.computations[condition], self.computations[computation]
        compared = next((i for i in asked.values() if i.opcode == "compare"), None)
        counter = asked.get(compared.operands[0]) if compared else None
        carried = around[loop.operands[0]]
        place = re.search(r"\bindex=(\d+)", counter.attributes) if counter else None
        if place is None or carried.opcode != "tuple":
            return 0
        begin = around[carried.operands[int(place[1])]]
        while begin.opcode in ("copy", "bitcast"):
            begin = around[begin.operands[0]]
        return int(begin.text) if begin.opcode == "constant" and begin.text.isdigit() else 0

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
            count = count_of(instruction)
            if count is not None:
                sides = [self._array(name, operand) for operand in instruction.operands[:2]]
                yield times * count(instruction, *sides), instruction

    def uncounted(self) -> set[str]:
        """What is asked of cuBLAS and cuDNN and is no product that `flops` knows."""
        calls = (i for _, _, i in self._instructions() if i.opcode == "custom-call")
        return {
            found[1]
            for call in calls
            if count_of(call) is None and (found := LIBRARY.search(call.attributes))
        }

    def _array(self, computation: str, name: str) -> Array:
        return self.computations[computation][name].outputs[0]

    # ---------------------------------------------------------------------------- collectives

    def collectives(self) -> list[Collective]:
        """All exchanges, those of the same channel (an asynchronous one's parts) once."""
        found: dict[str, Collective] = {}
        for name, times, instruction in self._instructions():
            kind = instruction.opcode.removesuffix("-start")
            carried = _CARRIED.search(instruction.attributes)
            if instruction.opcode == "send" and carried:
                sent = self.computations[name][instruction.operands[0]].outputs
                amount = sum(array.bytes for array in sent)
                found[f"{name}/{instruction.name}"] = Collective(
                    carried[1].lower().replace("_", "-"),
                    amount,
                    amount,
                    times,
                    None,
                    tuple(sent),
                    instruction.source,
                    beside=False,
                    between_slices=True,
                )
            if kind not in COLLECTIVES:
                continue
            if kind == "all-reduce" and _SCATTERED.match(name):
                kind = "reduce-scatter"
            operands = [self.computations[name][operand] for operand in instruction.operands]
            inputs = [array for operand in operands for array in operand.outputs]
            outputs = instruction.outputs
            if instruction.opcode.endswith("-start") and len(outputs) > len(inputs):
                outputs = outputs[len(inputs) : 2 * len(inputs)]  # (operands, results, contexts)
            groups = hlo_text.groups_of(instruction.attributes)
            size = groups.shape[1] if groups is not None else 2
            moved = inputs if kind in ("reduce-scatter", "all-to-all") else outputs
            amount = sum(array.bytes for array in moved)
            share = {"all-reduce": 2 * (size - 1) / size, "collective-permute": 1.0}.get(
                kind, (size - 1) / size
            )
            channel = re.search(r"channel_id=(\d+)", instruction.attributes)
            key = channel[1] if channel else f"{name}/{instruction.name}"
            collective = Collective(
                kind,
                amount,
                amount * share,
                times,
                groups,
                tuple(outputs),
                instruction.source,
                name in self._memory.fused and self._memory.root(name).opcode == "tuple",
            )
            # One that is begun before a loop may go on beside the loop's work.
            if key not in found or times < found[key].times:
                found[key] = collective
        return [c for c in found.values() if c.wire_bytes]

    # --------------------------------------------------------------------------------- memory

    @functools.cached_property
    def _memory(self) -> Traffic:
        return Traffic(self.computations)

    def hbm_bytes(self) -> float:
        """Bytes that one device reads from and writes to HBM; what lies in VMEM is free."""
        beside = sum(2 * c.bytes * c.times for c in self.collectives() if c.beside)
        return beside + sum(moved for moved, _ in self.traffic)

    @functools.cached_property
    def traffic(self) -> list[tuple[float, str]]:
        """(bytes, what for), see `hlo_traffic.Traffic.of`."""
        return list(self._memory.of(self.times))
