"""What a run would need and cost on a pod, without the pod.

    python -m ofa_jax.plan --gin_file=gin_configs/models/base.gin \\
      --gin_file=gin_configs/runs/pretrain.gin --topology=v5e:16x16 \\
      [--slices=2] [--json] [--sweep] [--program=decode]

Compiles the real training step (or, with --program=decode, the program that answers a batch of
the first stream as `DecodingConfig` says) for the chips of --topology (v3 to v6e, tpu7x; a shape
like 4x4 or 4x4x8) with libtpu, or for GPUs (h100:8, those of one machine) with JAX's plugin for
CUDA, and reads memory, arithmetic, exchanges and a roofline from the program. No data set and no
vocabulary is opened: --vocab_size says how many ids there are (the published 59457). --sweep tries
meshes, remat and accumulation, and ranks what fits. Exit code 3: it does not fit; the report says
what would make it fit.
"""

import argparse
import copy
import dataclasses
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

# libtpu must neither look for hardware nor be kept to one process. Read when jax loads it.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

import gin  # noqa: E402
import jax  # noqa: E402
from absl import logging  # noqa: E402
from jax.experimental import topologies  # noqa: E402

from ofa_jax.cli import common, gin_registry  # noqa: E402
from ofa_jax.model.named_config import model_config  # noqa: E402
from ofa_jax.planning import compiling, cost, gpu, programs, report  # noqa: E402
from ofa_jax.planning.hlo import Program  # noqa: E402
from ofa_jax.planning.programs import Parts  # noqa: E402
from ofa_jax.sharding import Partitioner  # noqa: E402
from ofa_jax.training.build import build_run  # noqa: E402
from ofa_jax.utils.hardware import Chip, parse_topology  # noqa: E402

DOES_NOT_FIT = 3
Compiler = Callable[[Any], compiling.Compiled]
"""Of what `jax.jit(...).lower(...)` returned."""
# What only the data would be needed for.
_NOT_NEEDED = {
    "MODEL_DIR": "",
    "DATA_SET": None,
    "VOCABULARY": None,
    "DATA_DIR": "",
    "BPE_DIR": "",
    "MIXTURE_OR_TASK_MODULE": None,
    "MIXTURE_OR_TASK_NAME": "not opened",
}


def plan(
    parts: Parts, chip: Chip, topology: str, slices: int, compiler: Compiler, program: str = "train"
) -> dict[str, Any]:
    """Compiles a program and says what it costs; see `report.text` for the result's entries.

    Args:
      parts: of the run, on the mesh of the topology's devices.
      chip: of the topology.
      topology, slices: as on the command line.
      compiler: of what was lowered.
      program: one of `programs.PROGRAMS`.

    Raises:
      ValueError: a batch that does not divide.
    """
    model, partitioner = parts.model, parts.partitioner
    started = time.perf_counter()
    traced = programs.PROGRAMS[program](parts)
    num_devices = partitioner.mesh.size
    result: dict[str, Any] = {
        "program": program,
        "topology": topology,
        "slices": slices,
        "chips": num_devices // chip.devices,
        "devices": num_devices,
        "mesh": dict(partitioner.mesh.shape),
        "model": {
            "parameters": traced.num_parameters,
            "vocab_size": model.vocab_size,
            "dtype": model.dtype,
            "remat": model.remat,
            "scan_layers": model.scan_layers,
        },
        "batch": {stream.name: stream.batch_size for stream in parts.streams},
        "gradient_accumulation": parts.gradient_accumulation,
    }
    capacity = chip.hbm_bytes / chip.devices
    result["trace_seconds"] = time.perf_counter() - started
    started = time.perf_counter()
    try:
        with partitioner.mesh_context():
            compiled = compiler(traced.lowered)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error):
            raise
        held = {name: cost.bytes_per_device(tree) for name, tree in traced.held.items()}
        held["batch"] = cost.bytes_per_device(traced.batches)
        needed = _needed(str(error), sum(held.values()))
        result["fits"] = False
        result["memory"] = held | {"peak": needed, "capacity": capacity}
        result["compiler"] = _short(str(error))
    result["compile_seconds"] = time.perf_counter() - started
    if "fits" not in result:
        text = Program(compiled.text, traced.trips, on_chip_memory=chip.platform == "tpu")
        result["memory"] = cost.memory(compiled.buffer_bytes, traced.held, traced.batches) | {
            "capacity": capacity
        }
        result["fits"] = result["memory"]["peak"] <= capacity
        flops = text.flops()
        result["flops"] = {
            "model": traced.model_flops,
            "per_device": flops,
            "ratio": flops * num_devices / traced.model_flops,
        }
        if uncounted := text.uncounted():
            result["flops"]["uncounted"] = sorted(uncounted)
        sent = cost.exchanges(text, partitioner.mesh, chip)
        result["exchanges"] = [dataclasses.asdict(exchange) for exchange in sent]
        result["roofline"] = dataclasses.asdict(
            cost.roofline(
                flops,
                text.hbm_bytes(),
                sent,
                chip,
                num_devices,
                traced.model_flops,
                traced.examples,
            )
        )
        result["traffic"] = cost.traffic(text)
    result["advice"] = [] if result["fits"] else _advice(result, parts)
    return result


def _needed(message: str, held: float) -> float | None:
    """Bytes that the compiler says it would need; None where it does not.

    Args:
      message: "Used 20.51G of 15.75G hbm", or "HLO temporaries (20.50G) exceeds available HBM".
      held: by the arguments, which temporaries come on top of.
    """
    found = re.search(r"[Uu]sed ([\d.]+)([KMGT]) of", message)
    temporaries = re.search(r"temporaries \(([\d.]+)([KMGT])\) exceeds", message)
    found = found or temporaries
    if found is None:
        return None
    return float(found[1]) * 1024 ** " KMGT".index(found[2]) + (held if temporaries else 0)


def _short(message: str) -> str:
    return " ".join(message.split())[:400]


def _advice(result: Mapping[str, Any], parts: Parts) -> list[str]:
    """What would make it fit, the cheapest first."""
    advice, memory = [], result["memory"]
    capacity, model = memory["capacity"], parts.model
    held = sum(memory.get(name, 0) for name in ("parameters", "optimizer", "average"))
    if held > 0.3 * capacity and parts.partitioner.fsdp == 1:
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
    shards = parts.partitioner.num_data_shards
    factor = (memory["peak"] or 2 * capacity) - held
    factor = max(2, factor / max(capacity - held, 0.1 * capacity))
    divides = [
        k
        for k in range(2, 65)
        if k >= factor and all(stream.batch_size % (k * shards) == 0 for stream in parts.streams)
    ]
    if divides and held < capacity:
        k = divides[0] * parts.gradient_accumulation
        advice.append(
            f"--gin.train.gradient_accumulation={k} computes {k} parts of the batch one "
            "after another (about; batch norm then sees each part by itself)"
        )
    advice.append("more chips, or a smaller batch_size of the streams")
    return advice


# ------------------------------------------------------------------------------- command line


class _Devices(tuple):
    """gin copies what is bound to it, and devices cannot be copied."""

    def __deepcopy__(self, memo: Any) -> "_Devices":
        return self


def _bound(name: str) -> Any:
    """What the gin files bind to a parameter of `train`, else its default; `train` is not called.

    Raises:
      ValueError: it has neither.
    """
    try:
        value = gin.query_parameter(f"train.{name}")
    except ValueError as error:
        default = inspect.signature(build_run).parameters[name].default
        if default is inspect.Parameter.empty:
            raise ValueError(
                f"train.{name} is not set: give a gin file of a run, such as "
                "gin_configs/runs/pretrain.gin."
            ) from error
        return default
    # gin evaluates the references in a value when it copies it, as for every call.
    return copy.deepcopy(value)


def _topology_devices(chip: Chip, shape: str, slices: int) -> list[Any]:
    """Devices that exist only as a description.

    Raises:
      ImportError, ValueError: the compiler is missing, or knows no such topology.
    """
    if chip.platform == "cuda":
        return gpu.devices(shape, slices)
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError(
            "Compiling for a TPU needs libtpu, which runs without one: install the extra "
            "`plan`, as in `pip install '.[plan]'`."
        )
    options = {"num_slices": slices} if slices > 1 else {}
    if chip.name == "v4":
        options["chip_config_name"] = "megacore"
    try:
        described = topologies.get_topology_desc(
            topology_name=f"{chip.name}:{shape}", platform="tpu", **options
        )
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"libtpu knows no topology {chip.name}:{shape}: {_short(str(error))}"
        ) from error
    return list(described.devices)


def _sweep(parts: Parts) -> Iterator[Parts]:
    """Meshes, then what saves memory, over the run as it is configured."""
    original, devices = parts.partitioner, parts.partitioner.mesh.size // parts.partitioner.slices
    meshes = [(-1, 1, 1), (1, -1, 1)]
    meshes += [(1, -1, tensor) for tensor in (2, 4) if devices % tensor == 0]
    for data, fsdp, tensor in meshes:
        mesh = dataclasses.replace(original, data=data, fsdp=fsdp, tensor=tensor)
        for remat in dict.fromkeys((parts.model.remat, "weight_dots", "full")):
            for accumulation in (1, 2, 4):
                if all(
                    s.batch_size % (accumulation * mesh.num_data_shards) == 0 for s in parts.streams
                ):
                    yield dataclasses.replace(
                        parts,
                        partitioner=mesh,
                        model=parts.model.replace(remat=remat),
                        gradient_accumulation=accumulation,
                    )


def _run_sweep(parts: Parts, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Plans each; of a mesh and a remat, more accumulation only where less did not fit."""
    plans: list[dict[str, Any]] = []
    done = set()
    for candidate in _sweep(parts):
        mesh = candidate.partitioner.mesh.shape
        if tuple(mesh.values()) in done:
            continue
        per_slice = dict(mesh) | {"data": mesh["data"] // candidate.partitioner.slices}
        settings = {f"Partitioner.{axis}": size for axis, size in per_slice.items()} | {
            "model_config.remat": repr(candidate.model.remat),
            "train.gradient_accumulation": candidate.gradient_accumulation,
        }
        result = _plan_apart(
            [*arguments, "--json", *(f"--gin.{name}={value}" for name, value in settings.items())]
        )
        plans.append(result)
        print(f"... {report.table([result]).splitlines()[1]}", file=sys.stderr, flush=True)
        if result["fits"]:
            done.add(tuple(mesh.values()))
    return plans


def _plan_apart(arguments: Sequence[str]) -> dict[str, Any]:
    """What this command answers in a process of its own, see `compiling.PartialCompiler`."""
    done = subprocess.run(
        [sys.executable, "-m", "ofa_jax.plan", *arguments], capture_output=True, text=True
    )
    if done.returncode not in (0, DOES_NOT_FIT):
        raise ValueError(done.stderr.strip().splitlines()[-1].removeprefix("error: "))
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: Sequence[str]) -> None:
    """Runs the command line `arguments` (without the program)."""
    logging.set_verbosity(logging.ERROR)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--topology", default="")
    parser.add_argument("--slices", type=int, default=1)
    parser.add_argument("--vocab_size", type=int)
    parser.add_argument("--program", default="train", choices=programs.PROGRAMS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--sweep", action="store_true")
    own, rest = parser.parse_known_args(arguments)
    with common.user_errors():
        gin_registry.register({"train": build_run, "model_config": model_config})
        common.parse_arguments("python -m ofa_jax.plan", __doc__ or "", rest, _NOT_NEEDED)
        if not own.topology:
            raise ValueError("No topology given: add --topology=v5e:16x16, for example.")
        chip, shape = parse_topology(own.topology)
        compiler = None if own.sweep else _compiler(chip)
        devices = _topology_devices(chip, shape, own.slices)
        parts = _configured(devices, own.slices, own.vocab_size)
        # A program for other chips cannot be read back from the cache, which would warn.
        jax.config.update("jax_enable_compilation_cache", False)
        if own.sweep:
            plans = _run_sweep(parts, [a for a in arguments if a not in ("--sweep", "--json")])
            answer = json.dumps(plans) if own.json else report.table(plans)
            fits = any(result["fits"] for result in plans)
        else:
            result = plan(parts, chip, own.topology, own.slices, compiler, own.program)
            answer, fits = json.dumps(result) if own.json else report.text(result), result["fits"]
    print(answer, flush=True)
    sys.exit(0 if fits else DOES_NOT_FIT)


def _compiler(chip: Chip) -> Compiler:
    """Before JAX is asked for devices."""
    if chip.platform == "cuda":
        gpu.set_flags()
        return lambda lowered: compiling.finished(lowered.compile())
    return compiling.PartialCompiler().compile


def _configured(devices: Sequence[Any], slices: int, vocab_size: int | None) -> Parts:
    """What the gin files say, on these devices, without what belongs to data."""
    with gin.unlock_config():
        gin.bind_parameter("Partitioner.devices", _Devices(devices))
        gin.bind_parameter("Partitioner.slices", slices)
    parts = Parts(
        decoding=gin.get_configurable("DecodingConfig")(),
        **{
            field.name: _bound(field.name)
            for field in dataclasses.fields(Parts)
            if field.name != "decoding"
        },
    )
    if not parts.streams:
        raise ValueError("train.streams is empty: give at least one Stream.")
    model = parts.model
    if vocab_size is not None:
        model = model.replace(vocab_size=vocab_size)
    partitioner = parts.partitioner or Partitioner(slices=slices, devices=tuple(devices))
    return dataclasses.replace(parts, model=model, partitioner=partitioner)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except SystemExit as ended:
        # The compiler may still be at work, and cannot be called off.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended.code if isinstance(ended.code, int) else 1)
