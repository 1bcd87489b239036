"""Plans a run on several meshes, with less and less memory for activations, and ranks what fits."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from ofa_jax.planning import report
from ofa_jax.planning.programs import PlannedRun
from ofa_jax.utils import progress

DOES_NOT_FIT = 3
"""Exit code of `ofa_jax.plan` for a program that does not fit."""


def candidates(run: PlannedRun) -> Iterator[PlannedRun]:
    """Yields the run on several meshes, each with settings that save more and more memory."""
    partitioner = run.partitioner
    devices = partitioner.mesh.size // partitioner.slices
    meshes = [(-1, 1, 1), (1, -1, 1)]
    meshes += [(1, -1, tensor) for tensor in (2, 4) if devices % tensor == 0]
    for data, fsdp, tensor in meshes:
        mesh = dataclasses.replace(partitioner, data=data, fsdp=fsdp, tensor=tensor)
        for remat in dict.fromkeys((run.model.remat, "weight_dots", "full")):
            for accumulation in (1, 2, 4):
                shards = accumulation * mesh.num_data_shards
                if all(stream.batch_size % shards == 0 for stream in run.streams):
                    yield dataclasses.replace(
                        run,
                        partitioner=mesh,
                        model=run.model.replace(remat=remat),
                        gradient_accumulation=accumulation,
                    )


def sweep(run: PlannedRun, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Plans all candidates; none that saves more memory than the first of its mesh that fits.

    Args:
      run: as configured.
      arguments: of `ofa_jax.plan`, without --sweep and --json.
    """
    plans: list[dict[str, Any]] = []
    done = set()
    all_candidates = list(candidates(run))
    with progress.stage("planning", len(all_candidates), "candidates") as stage:
        for candidate in all_candidates:
            mesh = tuple(candidate.partitioner.mesh.shape.values())
            if mesh not in done:
                plans.append(_plan_candidate(candidate, arguments))
                if plans[-1]["fits"]:
                    done.add(mesh)
            stage.advance()
    return plans


def _plan_candidate(candidate: PlannedRun, arguments: Sequence[str]) -> dict[str, Any]:
    """Plans a candidate in a process of its own, and prints its row on standard error."""
    mesh = candidate.partitioner.mesh.shape
    per_slice = dict(mesh) | {"data": mesh["data"] // candidate.partitioner.slices}
    settings = {f"Partitioner.{axis}": size for axis, size in per_slice.items()} | {
        "model_config.remat": repr(candidate.model.remat),
        "train.gradient_accumulation": candidate.gradient_accumulation,
    }
    result = plan_in_subprocess(
        [*arguments, "--json", *(f"--gin.{name}={value}" for name, value in settings.items())]
    )
    print(f"... {report.table([result]).splitlines()[1]}", file=sys.stderr, flush=True)
    return result


def plan_in_subprocess(arguments: Sequence[str]) -> dict[str, Any]:
    """Returns the plan of `ofa_jax.plan` in a process of its own, see `compiling.PartialCompiler`.

    Raises:
      ValueError: the command failed; with its message.
    """
    done = subprocess.run(
        [sys.executable, "-m", "ofa_jax.plan", *arguments], capture_output=True, text=True
    )
    if done.returncode not in (0, DOES_NOT_FIT):
        raise ValueError(done.stderr.strip().splitlines()[-1].removeprefix("error: "))
    return json.loads(done.stdout.splitlines()[-1])
