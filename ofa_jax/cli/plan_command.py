"""The command line of `python -m ofa_jax.plan`; see there."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

import gin
import jax
from absl import logging

from ofa_jax.cli import common, errors, gin_registry
from ofa_jax.model.named_config import model_config
from ofa_jax.planning import planner, programs, report, sweep, topologies
from ofa_jax.planning.programs import PlannedRun
from ofa_jax.sharding import Partitioner
from ofa_jax.training.build import build_run
from ofa_jax.utils import options, progress
from ofa_jax.utils.hardware import parse_topology
from ofa_jax.utils.option_checks import check_options

# Macros that only the data would need.
_NOT_NEEDED = {
    "MODEL_DIR": "",
    "DATA_SET": None,
    "VOCABULARY": None,
    "DATA_DIR": "",
    "BPE_DIR": "",
    "MIXTURE_OR_TASK_MODULE": None,
    "MIXTURE_OR_TASK_NAME": "not opened",
}


class _Devices(tuple):
    """A tuple of devices that gin can bind: it copies its values, and devices cannot be copied."""

    def __deepcopy__(self, memo: Any) -> "_Devices":
        return self


def run_command(description: str, arguments: Sequence[str]) -> None:
    """Plans what the command line asks for, prints the result, and exits.

    Args:
      description: for `--help`.
      arguments: the command line without the program.

    Raises:
      SystemExit: always; code `sweep.DOES_NOT_FIT` if nothing fits.
    """
    logging.set_verbosity(logging.ERROR)
    parser = common.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--topology", default="")
    parser.add_argument("--slices", type=int, default=1)
    parser.add_argument("--vocab_size", type=int)
    parser.add_argument("--program", default="train", choices=programs.PROGRAMS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--sweep", action="store_true")
    with errors.user_errors():
        own, rest = parser.parse_known_args(arguments)
        check_options(_flags, {"slices": own.slices, "vocab_size": own.vocab_size}, "plan")
        gin_registry.register(
            {"plan": PlannedRun, "train": build_run, "model_config": model_config}
        )
        common.parse_arguments("python -m ofa_jax.plan", description, rest, _NOT_NEEDED)
        if not own.topology:
            raise ValueError("No topology given: add --topology=v5e:16x16, for example.")
        chip, shape = parse_topology(own.topology)
        compiler = None if own.sweep else topologies.compiler_for(chip)
        devices = topologies.topology_devices(chip, shape, own.slices)
        run = configured_run(devices, own.slices, own.vocab_size)
        # A program for other chips cannot be read back from the cache, which would warn.
        jax.config.update("jax_enable_compilation_cache", False)
        if compiler is None:
            plans = sweep.sweep(run, [a for a in arguments if a not in ("--sweep", "--json")])
            output = json.dumps(plans) if own.json else report.table(plans)
            fits = any(result["fits"] for result in plans)
        else:
            with progress.stage("planning", planner.STEPS, "steps", is_even=False):
                result = planner.plan(run, chip, own.topology, own.slices, compiler, own.program)
            output, fits = json.dumps(result) if own.json else report.text(result), result["fits"]
    print(output, flush=True)
    sys.exit(0 if fits else sweep.DOES_NOT_FIT)


def _flags(slices: options.Count, vocab_size: options.Count | None) -> None:
    """Declares what the flags may be."""


def configured_run(devices: Sequence[Any], slices: int, vocab_size: int | None) -> PlannedRun:
    """Returns what the gin files configure, on these devices and without data.

    Raises:
      ValueError: a parameter of `train` that a plan needs is not set.
    """
    with gin.unlock_config():
        gin.bind_parameter("Partitioner.devices", _Devices(devices))
        gin.bind_parameter("Partitioner.slices", slices)
        for field in dataclasses.fields(PlannedRun):
            if _is_bound(f"train.{field.name}"):
                value = gin.query_parameter(f"train.{field.name}")
                gin.bind_parameter(f"plan.{field.name}", value)
    for name in ("model", "streams", "optimizer"):
        if not _is_bound(f"plan.{name}"):
            raise ValueError(
                f"train.{name} is not set: give a gin file of a run, such as "
                "gin_configs/runs/pretrain.gin."
            )
    given: dict[str, Any] = {"decoding": gin.get_configurable("DecodingConfig")()}
    if not _is_bound("plan.partitioner") or gin.query_parameter("plan.partitioner") is None:
        given["partitioner"] = Partitioner(slices=slices, devices=tuple(devices))
    run: PlannedRun = gin.get_configurable("plan")(**given)
    if vocab_size is not None:
        run = dataclasses.replace(run, model=run.model.replace(vocab_size=vocab_size))
    return run


def _is_bound(parameter: str) -> bool:
    """Returns whether a gin file or the command line sets a parameter."""
    try:
        gin.query_parameter(parameter)
    except ValueError:  # as gin reports a parameter that is not bound
        return False
    return True
