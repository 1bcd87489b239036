"""Devices that exist only as a description, and the compilers for them."""

import importlib.util
from typing import Any

import jax
from jax.experimental import topologies

from ofa_jax.planning import compiling, gpu
from ofa_jax.planning.planner import Compiler, shortened
from ofa_jax.utils.hardware import Chip


def topology_devices(chip: Chip, shape: str, slices: int) -> list[Any]:
    """Returns the devices of a topology.

    Args:
      chip: of the topology.
      shape: "16x16", chips along each dimension of a slice; "8", GPUs of a machine.
      slices: number of slices, or of machines.

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
    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if chip.name == "v4":
        options["chip_config_name"] = "megacore"
    try:
        described = topologies.get_topology_desc(
            topology_name=f"{chip.name}:{shape}", platform="tpu", **options
        )
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"libtpu knows no topology {chip.name}:{shape}: {shortened(str(error))}"
        ) from error
    return list(described.devices)


def compiler_for(chip: Chip) -> Compiler:
    """Returns the compiler for a chip; call it before JAX looks for devices."""
    if chip.platform == "cuda":
        gpu.set_flags()
        return lambda lowered: compiling.completed(lowered.compile())
    return compiling.PartialCompiler().compile
