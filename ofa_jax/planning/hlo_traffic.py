"""Counts what an HLO program reads from and writes to HBM, instruction by instruction."""

import collections
import functools
import re
from collections.abc import Iterator, Mapping, Sequence

from ofa_jax.planning.hlo_text import CALLED, LIBRARY, Array, Instruction

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
    "collective-broadcast",
)
"""Opcodes of collective operations."""
# Memory that nothing has written to, and parts that are adjacent already.
_NOTHING = re.compile(r'custom_call_target="(?:AllocateBuffer|ConcatBitcast)"')
# What the libraries of GPUs return beside their results.
_WORKSPACE = ("u8", "s8")
# The largest number of instructions that pass a prefetched array on before one computes with it.
_MOST_PASSED = 8
# They move nothing: names for existing memory.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "iota",
    "partition-id",
    "replica-id",
    "opt-barrier",
}


class Traffic:
    """Reads the computations of a program.

    Every instruction outside of fusions reads its operands and writes its results once; a slice
    reads, and an update writes, only its part. What lies in VMEM is free.
    """

    def __init__(self, computations: Mapping[str, Mapping[str, Instruction]]):
        """Takes the computations of a program, by name."""
        self.computations = computations

    def of(self, times: Mapping[str, float]) -> Iterator[tuple[float, str]]:
        """Yields (bytes read and written with repetitions, source) of every instruction.

        A prefetch has no source of its own and takes that of its first reader.

        Args:
          times: computation -> how often it runs.
        """
        for name, instructions in self.computations.items():
            if name in self.fused or not times.get(name):
                continue
            for instruction in instructions.values():
                opcode = instruction.opcode
                if opcode not in _FREE and not opcode.endswith("-done"):
                    moved = self._traffic(name, instruction)
                    yield times[name] * moved, self._purpose(name, instruction)

    def root(self, computation: str) -> Instruction:
        """Returns the root instruction of a computation, which is printed last."""
        return list(self.computations[computation].values())[-1]

    def _purpose(self, computation: str, instruction: Instruction) -> str:
        """Returns the source of an instruction, or of the first reader that has one."""
        for _ in range(_MOST_PASSED):
            if instruction.source:
                break
            reader = self._first_readers[computation].get(instruction.name)
            if reader is None:  # the end of an asynchronous computation: look at who waits for it
                computation, reader = self._started_by.get(computation, (computation, None))
            if reader is None:
                break
            instruction = reader
        return instruction.source

    @functools.cached_property
    def _started_by(self) -> dict[str, tuple[str, Instruction]]:
        """Asynchronous computation -> (computation, instruction) that starts it."""
        return {
            callee: (name, instruction)
            for name, instructions in self.computations.items()
            for instruction in instructions.values()
            if instruction.opcode == "async-start"
            for _, callee in CALLED.findall(instruction.attributes)
        }

    @functools.cached_property
    def _first_readers(self) -> dict[str, dict[str, Instruction]]:
        """Computation -> name of an instruction -> the first instruction that reads it."""
        return {
            name: {
                operand: reader
                for reader in reversed(list(instructions.values()))
                for operand in reader.operands
            }
            for name, instructions in self.computations.items()
        }

    @functools.cached_property
    def fused(self) -> set[str]:
        """Computations that belong to one instruction, such as the body of a fusion."""
        return {
            callee
            for instructions in self.computations.values()
            for instruction in instructions.values()
            if instruction.opcode not in ("while", "call", "conditional", "async-start")
            for _, callee in CALLED.findall(instruction.attributes)
        }

    def _traffic(self, computation: str, instruction: Instruction) -> float:
        """Returns the bytes that an instruction reads and writes once."""
        scope, opcode = self.computations[computation], instruction.opcode
        whole = [array for o in instruction.operands for array in scope[o].outputs]
        outputs = instruction.outputs
        if opcode.endswith("-start"):
            if opcode == "async-start":
                return 0.0  # what it starts is counted in its own computation
            if opcode == "copy-start":
                outputs = outputs[:1]  # (result, operand, context)
            elif len(outputs) > len(whole):
                outputs = outputs[len(whole) : 2 * len(whole)]  # (operands, results, contexts)
        if opcode in ("send", "recv"):
            outputs = outputs[:1] if opcode == "recv" else ()  # the others are names for waiting
        if opcode == "custom-call":
            if _NOTHING.search(instruction.attributes):
                return 0.0
            if LIBRARY.search(instruction.attributes):
                outputs = tuple(array for array in outputs if not _is_workspace(array))
        written = sum(array.bytes for array in outputs if not array.on_chip)
        if opcode in ("dynamic-slice", "slice", "gather"):
            read = 0.0 if whole and whole[0].on_chip else sum(array.bytes for array in outputs)
            return written + read
        if opcode == "dynamic-update-slice":
            touched = sum(a.bytes for a in (outputs[0], whole[1]) if not a.on_chip)
            return touched - (0.0 if outputs[0].on_chip else outputs[0].bytes - whole[1].bytes)
        called: str = dict(CALLED.findall(instruction.attributes)).get("calls", "")
        if opcode != "fusion" or called not in self.computations:
            return written + sum(array.bytes for array in whole if not array.on_chip)
        read = sum(
            self._part_read(called, number, array)
            for number, array in enumerate(whole)
            if not array.on_chip
        )
        body = self.computations[called]
        result = self.root(called)
        if result.opcode == "tuple" and len(result.operands) == len(outputs):
            # A collective that overlaps with other work passes its arrays from fusion to fusion.
            made = [body[operand].opcode.removesuffix("-start") for operand in result.operands]
            outputs = tuple(
                array
                for array, opcode in zip(outputs, made, strict=True)
                if opcode != "parameter" and opcode not in COLLECTIVES
            )
            written = sum(array.bytes for array in outputs if not array.on_chip)
        # What is updated in place is written only where it changes.
        unchanged = self._unchanged(called, [o for o in outputs if not o.on_chip])
        return read + max(written - unchanged, 0.0)

    def _part_read(self, computation: str, number: int, array: Array) -> float:
        """Returns the bytes of an operand that a fusion reads: the slices, if it is only sliced."""
        parameter, users = self._uses[computation].get(number, ("", ()))
        passes_on = self.root(computation).opcode == "tuple"
        read = 0.0
        for user in users:
            if passes_on and user.opcode.removesuffix("-start") in ("tuple", *COLLECTIVES):
                continue
            if user.opcode in ("dynamic-slice", "slice", "gather"):
                read += user.outputs[0].bytes
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == parameter:
                pass  # updated in place
            elif user.opcode == "fusion":
                called = dict(CALLED.findall(user.attributes))["calls"]
                read += sum(
                    self._part_read(called, place, array)
                    for place, operand in enumerate(user.operands)
                    if operand == parameter
                )
            else:
                return array.bytes
        return min(read, array.bytes)

    def _unchanged(self, computation: str, outputs: Sequence[Array]) -> float:
        """Returns the bytes of a fusion's results that an update in place leaves as they are."""
        total = 0.0
        for inner in self.computations[computation].values():
            if inner.opcode == "fusion":
                total += self._unchanged(
                    dict(CALLED.findall(inner.attributes))["calls"],
                    [o for o in outputs if o.shape in {x.shape for x in inner.outputs}],
                )
            elif inner.opcode == "dynamic-update-slice":
                base = inner.outputs[0]
                update = self.computations[computation][inner.operands[1]].outputs[0]
                if any(o.shape == base.shape for o in outputs):
                    total += base.bytes - update.bytes
        return total

    @functools.cached_property
    def _uses(self) -> dict[str, dict[int, tuple[str, list[Instruction]]]]:
        """Computation -> number of a parameter -> (its name, the instructions that read it)."""
        found = {}
        for name, instructions in self.computations.items():
            users = collections.defaultdict(list)
            for instruction in instructions.values():
                for operand in dict.fromkeys(instruction.operands):
                    users[operand].append(instruction)
            found[name] = {
                int(i.text): (i.name, users[i.name])
                for i in instructions.values()
                if i.opcode == "parameter"
            }
        return found


def _is_workspace(array: Array) -> bool:
    """Tells whether a library call's result is its workspace: a vector of bytes."""
    return array.dtype in _WORKSPACE and len(array.shape) == 1
