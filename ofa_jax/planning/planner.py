"""Compiles a program of a run for a topology, and reports what it needs and costs."""

import dataclasses
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from ofa_jax.planning import compiling, cost, programs
from ofa_jax.planning.hlo import Program
from ofa_jax.planning.programs import PlannedRun, TracedProgram
from ofa_jax.utils import progress
from ofa_jax.utils.hardware import Chip

STEPS = 3
"""Steps of `plan` that it counts in the stage that is shown: tracing, compiling, reading."""

Compiler = Callable[[jax.stages.Lowered], compiling.Compiled]


def plan(
    run: PlannedRun,
    chip: Chip,
    topology: str,
    slices: int,
    compiler: Compiler,
    program: str = "train",
) -> dict[str, Any]:
    """Compiles a program and reports its cost; see `report.text` for the entries of the result.

    Args:
      run: on the mesh of the topology's devices.
      chip: of the topology.
      topology: as on the command line.
      slices: as on the command line.
      compiler: of what was lowered.
      program: one of `programs.PROGRAMS`.

    Raises:
      ValueError: a batch that does not divide.
    """
    started = time.perf_counter()
    with progress.substage("tracing"):
        traced = programs.PROGRAMS[program](run)
    progress.advance()
    result = _description(run, chip, topology, slices, program, traced)
    result["trace_seconds"] = time.perf_counter() - started
    started = time.perf_counter()
    compiled, error = None, ""
    try:
        with run.partitioner.mesh_context(), progress.substage("compiling"):
            compiled = compiler(traced.lowered)
    except jax.errors.JaxRuntimeError as exception:
        error = str(exception)
        if "RESOURCE_EXHAUSTED" not in error and "out of memory" not in error:
            raise
    result["compile_seconds"] = time.perf_counter() - started
    progress.advance()
    with progress.substage("reading the program"):
        if compiled is None:
            result |= _out_of_memory(error, traced, chip)
        else:
            result |= _costs(compiled, traced, run, chip)
    progress.advance()
    result["advice"] = [] if result["fits"] else _advice(result, run)
    return result


def _description(
    run: PlannedRun,
    chip: Chip,
    topology: str,
    slices: int,
    program: str,
    traced: TracedProgram,
) -> dict[str, Any]:
    """Returns the entries that say what is planned."""
    mesh = run.partitioner.mesh
    model = run.model.on_platform(run.partitioner.platform)
    result: dict[str, Any] = {
        "program": program,
        "topology": topology,
        "slices": slices,
        "chips": mesh.size // chip.devices,
        "devices": mesh.size,
        "mesh": dict(mesh.shape),
        "model": {
            "parameters": traced.num_parameters,
            "vocab_size": model.vocab_size,
            "dtype": model.dtype,
            "remat": model.remat,
            "scan_layers": model.scan_layers,
            "attention_implementation": model.attention_implementation,
        },
        "batch": {stream.name: stream.batch_size for stream in run.streams},
        "gradient_accumulation": run.gradient_accumulation,
    }
    if traced.stand_ins:
        result["stand_ins"] = list(traced.stand_ins)
    return result


def _costs(
    compiled: compiling.Compiled, traced: TracedProgram, run: PlannedRun, chip: Chip
) -> dict[str, Any]:
    """Returns memory, arithmetic, collectives, roofline and traffic of a compiled program."""
    mesh = run.partitioner.mesh
    program = Program(compiled.text, traced.trip_count, on_chip_memory=chip.platform == "tpu")
    memory = cost.memory(compiled.buffer_bytes, traced.held, traced.batches)
    memory["capacity"] = chip.hbm_bytes / chip.devices
    per_device = program.flops()
    flops: dict[str, Any] = {
        "model": traced.model_flops,
        "per_device": per_device,
        "ratio": per_device * mesh.size / traced.model_flops,
    }
    if uncounted := program.uncounted_calls():
        flops["uncounted"] = sorted(uncounted)
    collectives = cost.collective_costs(program, mesh, chip)
    roofline = cost.roofline(
        per_device,
        program.hbm_bytes(),
        collectives,
        chip,
        mesh.size,
        traced.model_flops,
        traced.examples,
    )
    return {
        "memory": memory,
        "fits": memory["peak"] <= memory["capacity"],
        "flops": flops,
        "collectives": [dataclasses.asdict(collective) for collective in collectives],
        "roofline": dataclasses.asdict(roofline),
        "traffic": cost.traffic(program),
    }


def _out_of_memory(message: str, traced: TracedProgram, chip: Chip) -> dict[str, Any]:
    """Returns the entries of a program that the compiler refuses for its memory."""
    held = {name: cost.bytes_per_device(tree) for name, tree in traced.held.items()}
    held["batch"] = cost.bytes_per_device(traced.batches)
    capacity = chip.hbm_bytes / chip.devices
    return {
        "fits": False,
        "memory": held | {"peak": needed_bytes(message, sum(held.values())), "capacity": capacity},
        "compiler": shortened(message),
    }


def needed_bytes(message: str, held: float) -> float | None:
    """Returns the bytes that a program needs by the compiler's message; None if it has none.

    Args:
      message: "Used 20.51G of 15.75G hbm", or "HLO temporaries (20.50G) exceeds available HBM".
      held: bytes of the arguments, which temporaries come on top of.
    """
    found = re.search(r"[Uu]sed ([\d.]+)([KMGT]) of", message)
    temporaries = re.search(r"temporaries \(([\d.]+)([KMGT])\) exceeds", message)
    found = found or temporaries
    if found is None:
        return None
    return float(found[1]) * 1024 ** " KMGT".index(found[2]) + (held if temporaries else 0)


def shortened(message: str) -> str:
    """Returns the beginning of a message on one line."""
    return " ".join(message.split())[:400]


def _advice(result: Mapping[str, Any], run: PlannedRun) -> list[str]:
    """Returns what would make the program fit, the cheapest first."""
    advice, memory = [], result["memory"]
    capacity, model = memory["capacity"], run.model
    held = sum(memory.get(name, 0) for name in ("parameters", "optimizer", "average"))
    if held > 0.3 * capacity and run.partitioner.fsdp == 1:
        advice.append(
            f"parameters and moments take {held / 2**30:.1f} GiB on each device: split them with "
            "--gin_file=gin_configs/partitioning/fsdp.gin"
        )
    if model.dtype == "float32":
        advice.append("--gin.model_config.dtype=\"'bfloat16'\" halves the activations")
    if model.remat != "full":
        better = "weight_dots" if model.remat in ("none", "dots") else "full"
        advice.append(
            f"--gin.model_config.remat=\"'{better}'\" keeps fewer activations, and "
            "computes them a second time"
        )
    activations = (memory["peak"] or 2 * capacity) - held
    parts = _parts_that_fit(activations / max(capacity - held, 0.1 * capacity), run)
    if parts is not None and held < capacity:
        advice.append(
            f"--gin.train.gradient_accumulation={parts} computes {parts} parts of the batch one "
            "after another (about; batch norm then sees each part by itself)"
        )
    advice.append("more chips, or a smaller batch_size of the streams")
    return advice


def _parts_that_fit(factor: float, run: PlannedRun) -> int | None:
    """Returns into how many parts to cut the batch; None if no number divides it.

    Args:
      factor: by how much the activations must shrink.
      run: with its present number of parts.
    """
    shards = run.partitioner.num_data_shards
    for parts in range(2, 65):
        divides = all(stream.batch_size % (parts * shards) == 0 for stream in run.streams)
        if parts >= factor and divides:
            return parts * run.gradient_accumulation
    return None
