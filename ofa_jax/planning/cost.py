"""The cost of a compiled step: memory by kind, collectives by mesh axis, and a roofline."""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ofa_jax.planning.hlo import Collective, Program
from ofa_jax.utils.hardware import Chip

# What JAX puts between the names of modules.
_NO_MODULES = {
    "while",
    "body",
    "cond",
    "closed_call",
    "checkpoint",
    "rematted_computation",
    "branch",
}


@dataclasses.dataclass(frozen=True)
class CollectiveCost:
    """The cost of all collectives of one kind along the same mesh axes.

    Attributes:
      kind: "all-reduce" ...
      axes: "data", "fsdp+tensor" ...
      count: how many run in a step.
      bytes: of their results on one device.
      wire_bytes: bytes that one device sends.
      seconds: to send them, at the published bandwidth.
      crosses_slices: whether they go over the data-centre network.
    """

    kind: str
    axes: str
    count: float
    bytes: float
    wire_bytes: float
    seconds: float
    crosses_slices: bool


def collective_costs(program: Program, mesh: Mesh, chip: Chip) -> list[CollectiveCost]:
    """Returns the costs of a program's collectives by kind and mesh axes, the longest first."""
    sums: dict[tuple[str, str, bool], np.ndarray] = collections.defaultdict(lambda: np.zeros(4))
    all_slices = len({getattr(device, "slice_index", 0) for device in mesh.devices.flat})
    for collective in program.collectives():
        if collective.between_slices:
            axes, slices, share = "data", all_slices, 1.0
            wire = collective.bytes * _sent_between(slices).get(collective.kind, 1.0)
        else:
            axes, slices, share = _placement(collective, mesh, chip)
            wire = collective.wire_bytes
            if slices > 1:
                # Within a slice first; each chip then sends its part to the other slices.
                assert collective.groups is not None
                wire /= max(collective.groups.shape[1] // slices, 1)
        bandwidth = chip.network if slices > 1 else chip.interconnect * share
        seconds = wire / (bandwidth / chip.devices)
        sums[collective.kind, axes, slices > 1] += (
            np.array([1, collective.bytes, wire, seconds]) * collective.times
        )
    found = [
        CollectiveCost(kind, axes, count, size, wire_bytes, seconds, crosses)
        for (kind, axes, crosses), values in sums.items()
        for count, size, wire_bytes, seconds in [values.tolist()]
    ]
    return sorted(found, key=lambda cost: -cost.seconds)


def _sent_between(slices: int) -> dict[str, float]:
    """Returns kind -> how often one device sends its bytes to other slices, by ring algorithms."""
    return {
        "all-reduce": 2 * (slices - 1) / slices,
        "reduce-scatter": (slices - 1) / slices,
        "all-to-all": (slices - 1) / slices,
        "all-gather": slices - 1.0,
    }


def _placement(collective: Collective, mesh: Mesh, chip: Chip) -> tuple[str, int, float]:
    """Returns (mesh axes, number of slices, share of a chip's links) of a collective."""
    if collective.groups is None:
        return "?", 1, 1.0
    sizes = tuple(mesh.shape.values())
    groups = collective.groups
    if collective.kind == "collective-permute":
        groups = groups[groups[:, 0] != groups[:, 1]][:1]
        if not len(groups):
            return "itself", 1, 1.0
    places = np.stack(np.unravel_index(groups[0], sizes))
    axes = "+".join(
        name for name, place in zip(mesh.axis_names, places, strict=True) if len(set(place)) > 1
    )
    devices = mesh.devices.reshape(-1)[groups[0]]
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if chip.torus_dimensions == 1:
        return axes, slices, 1.0
    coords = np.array([device.coords for device in devices])
    spanned = [len(set(line)) for line in coords.T]
    # A dimension that is not a ring has one end that only sends, and one that only receives.
    links = sum((1.0 if size % chip.ring == 0 else 0.5) for size in spanned if size > 1)
    return axes, slices, (links or 1.0) / chip.torus_dimensions


def traffic(program: Program, depth: int = 3) -> dict[str, float]:
    """Returns the bytes that one device reads from and writes to HBM, by part of the step.

    Args:
      program: of a step.
      depth: number of module names that make a part.

    Returns:
      Part -> bytes, the largest first.
    """
    parts: dict[str, float] = collections.defaultdict(float)
    for moved, source in program.traffic:
        parts[part_of_step(source, depth)] += moved
    return dict(sorted(parts.items(), key=lambda part: -part[1]))


def part_of_step(source: str, depth: int) -> str:
    """Returns the part of an instruction, such as "encoder/resnet/norm_stem, backward".

    Args:
      source: the instruction's origin in the Python program, as XLA names it.
      depth: number of module names that make a part.
    """
    if not source:
        return "not named"
    *path, _ = source.split("/")  # the last is the operation
    names: list[str] = []
    for name in path:
        # Methods of modules are "module.method"; only those of the whole model add information.
        name = re.sub(r"^OFA\._?", "", name)
        if re.fullmatch(r"[a-z]\w*", name) and name not in _NO_MODULES and name not in names:
            names.append(name)
    part = "/".join(names[:depth]) or "loss and optimiser"
    return f"{part}, backward" if "transpose(" in source else part


def bytes_per_device(tree: Any) -> float:
    """Returns the bytes that one device holds of arrays split over the mesh.

    Args:
      tree: of jax.ShapeDtypeStruct with shardings.
    """
    return float(
        sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
        )
    )


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Lower bounds on the time of a step, one for each resource; an estimate.

    Attributes:
      compute, memory, interconnect, network: seconds; the last two for collectives within a slice
        and between slices.
      bottleneck: name of the longest.
      step_seconds: the longest, as if all ran at the same time.
      mfu: upper bound on the model FLOPs utilisation.
      examples_per_second: upper bound.
    """

    compute: float
    memory: float
    interconnect: float
    network: float
    bottleneck: str
    step_seconds: float
    mfu: float
    examples_per_second: float


def roofline(
    flops: float,
    hbm_bytes: float,
    collectives: Sequence[CollectiveCost],
    chip: Chip,
    num_devices: int,
    model_flops: float,
    examples: int,
) -> Roofline:
    """Estimates the time of a step.

    Args:
      flops: of one device.
      hbm_bytes: read and written by one device.
      collectives: of `collective_costs`.
      chip: whose figures to use.
      num_devices: of the whole mesh.
      model_flops: of the whole step, see `ofa_jax.training.flops`.
      examples: of the whole step.
    """
    seconds = {
        "compute": flops / (chip.flops / chip.devices),
        "memory": hbm_bytes / (chip.hbm_bandwidth / chip.devices),
        "interconnect": sum(c.seconds for c in collectives if not c.crosses_slices),
        "network": sum(c.seconds for c in collectives if c.crosses_slices),
    }
    bottleneck = max(seconds, key=seconds.__getitem__)
    step = seconds[bottleneck]
    peak = num_devices * chip.flops / chip.devices
    return Roofline(
        **seconds,
        bottleneck=bottleneck,
        step_seconds=step,
        mfu=model_flops / (step * peak),
        examples_per_second=examples / step,
    )


def memory(peak: float, held: Mapping[str, Any], batches: Any) -> dict[str, float]:
    """Returns the bytes of one device by kind; "activations" is what remains of "peak".

    Args:
      peak: all arrays when memory use is highest.
      held: kind -> the arrays that stay from step to step.
      batches: the other argument of the program.
    """
    kinds = {name: bytes_per_device(tree) for name, tree in held.items()}
    kinds["batch"] = bytes_per_device(batches)
    return kinds | {"activations": peak - sum(kinds.values()), "peak": peak}
