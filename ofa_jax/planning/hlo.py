"""Reads the text of an HLO program: products, collectives and memory traffic, loops counted.

    program = Program(compiled.as_text())
    program.flops()            # of matrix products and convolutions, by one device
    program.collectives()      # each with its bytes and its groups of devices
    program.hbm_bytes()        # read and written, by one device

XLA's own `cost_analysis` counts the body of a loop once, whatever its trip count; here every
computation is counted as often as it runs. Calls of cuBLAS and cuDNN in a program for GPUs are
counted as the products that they were, and Pallas kernels by their own cost estimate. All calls
read their operands and write their results once; a kernel that reads an operand several times
moves more than that.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Iterator

import numpy as np

from ofa_jax.planning import hlo_text
from ofa_jax.planning.hlo_products import count_of
from ofa_jax.planning.hlo_text import CALLED, KERNEL, LIBRARY, Array, Instruction
from ofa_jax.planning.hlo_traffic import COLLECTIVES, Traffic

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .* )?\{$")
_NAME = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
# A reduce-scatter on TPUs: one fusion that sums and keeps the part of each device.
_SCATTERED = re.compile(r"all-reduce-scatter\b")
# Between slices, hosts carry what devices send: "ALL_REDUCE", "ALL_GATHER" ...
_CARRIED = re.compile(r'_xla_megascale_transfer_type="([A-Z_]+)"')
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective operation.

    Attributes:
      kind: one of COLLECTIVES.
      bytes: of its result on one device (of its operand, for a reduce-scatter).
      wire_bytes: bytes that one device sends, by ring algorithms.
      times: how often it runs in a step.
      groups: [number, size] of device positions within the program, [sender, receiver] for a
        collective-permute; None where they cannot be read.
      arrays: its results.
      source: where in the Python program it comes from.
      overlaps: runs beside other work, while fusions pass its arrays on.
      between_slices: sent between TPU slices by their hosts; `bytes` is then what one device sends.
    """

    kind: str
    bytes: float
    wire_bytes: float
    times: float
    groups: np.ndarray | None
    arrays: tuple[Array, ...]
    source: str
    overlaps: bool
    between_slices: bool = False


class Program:
    """A parsed HLO program."""

    def __init__(self, text: str, trip_count: int | None = None, on_chip_memory: bool = True):
        """Parses what `compiled.as_text()` or `lowered.as_text(dialect="hlo")` gives.

        Args:
          text: of the program.
          trip_count: of loops whose trip count the compiler does not know, as that of decoding,
            which may stop early; read from their condition when None.
          on_chip_memory: whether memory space 1 is one (VMEM); a GPU has its buffers for
            collectives in a space of that number, in HBM.

        Raises:
          ValueError: it has no entry computation.
        """
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry, self._unknown_trip_count = "", trip_count
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
            raise ValueError("This is not the text of an HLO program: it has no ENTRY computation.")

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
                trip_count = 1.0
                if instruction.opcode == "while":
                    trip_count = self._trip_count(instruction, name, called["condition"])
                for callee in called.values():
                    times[callee] += times[name] * trip_count
                for branches in _BRANCHES.findall(instruction.attributes):
                    for callee in branches.split(","):
                        # One of several runs: the costs of each are counted, at most too many.
                        times[callee.strip().lstrip("%")] += times[name]
        return dict(times)

    def _trip_count(self, loop: Instruction, computation: str, condition: str) -> float:
        """Returns the trip count of a loop in `computation`."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return float(known[1])
        if self._unknown_trip_count is not None:
            return float(self._unknown_trip_count)
        # `i < n` with i from 0 on, as jax.lax.scan makes it.
        limits = [
            int(i.text)
            for i in self.computations[condition].values()
            if i.opcode == "constant" and i.text.isdigit()
        ]
        return float(max(limits, default=1)) - self._begin(loop, computation, condition)

    def _begin(self, loop: Instruction, computation: str, condition: str) -> int:
        """Returns the first value of a loop counter: 1 where the first iteration is peeled off.

        The compiler does so for several slices, to send the sums of all iterations between them.
        """
        tested, around = self.computations[condition], self.computations[computation]
        compared = next((i for i in tested.values() if i.opcode == "compare"), None)
        counter = tested.get(compared.operands[0]) if compared else None
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
        """Returns two operations per multiply-add of every dot and convolution."""
        return sum(flops for flops, _ in self.products())

    def products(self) -> Iterator[tuple[float, Instruction]]:
        """Yields (operations with repetitions, the dot, convolution or library call)."""
        for name, times, instruction in self._instructions():
            count = count_of(instruction)
            if count is not None:
                sides = [self._array(name, operand) for operand in instruction.operands[:2]]
                yield times * count(instruction, *sides), instruction

    def uncounted_calls(self) -> set[str]:
        """Returns the names of the calls that `flops` leaves out.

        These are calls of cuBLAS and cuDNN that are not products, and Pallas kernels without a cost
        estimate.
        """
        calls = (i for _, _, i in self._instructions() if i.opcode == "custom-call")
        return {
            found[1]
            for call in calls
            if count_of(call) is None
            and (found := LIBRARY.search(call.attributes) or KERNEL.search(call.attributes))
        }

    def _array(self, computation: str, name: str) -> Array:
        return self.computations[computation][name].outputs[0]

    # ---------------------------------------------------------------------------- collectives

    def collectives(self) -> list[Collective]:
        """Returns all collectives; the parts of an asynchronous one (of one channel) count once."""
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
                    overlaps=False,
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
            # A collective that starts before a loop may overlap with the loop.
            if key not in found or times < found[key].times:
                found[key] = collective
        return [c for c in found.values() if c.wire_bytes]

    # --------------------------------------------------------------------------------- memory

    @functools.cached_property
    def _memory(self) -> Traffic:
        return Traffic(self.computations)

    def hbm_bytes(self) -> float:
        """Returns the bytes that one device reads from and writes to HBM; VMEM is free."""
        overlapping = sum(2 * c.bytes * c.times for c in self.collectives() if c.overlaps)
        return overlapping + sum(moved for moved, _ in self.traffic)

    @functools.cached_property
    def traffic(self) -> list[tuple[float, str]]:
        """Pairs (bytes, source) of all instructions, see `hlo_traffic.Traffic.of`."""
        return list(self._memory.of(self.times))
