"""Describes H100s to XLA, so that it compiles for them without a GPU.

The description is a `GpuTargetConfigProto`. Its values are

* those of every GPU of compute capability 9.0, from the tables of the CUDA C++ Programming Guide
  (docs.nvidia.com/cuda/cuda-c-programming-guide, "Compute Capabilities"): sizes of warps, blocks
  and grids, 65,536 registers, 228 KiB of shared memory of a multiprocessor (a block gets
  48 KiB by default, and up to 227 on request);
* those of an H100 SXM: 132 multiprocessors of 128 units for float32, 1.98 GHz, 80 GB and 3.35 TB/s
  (glennklockwood.com/garden/processors/h100, after NVIDIA's white paper), 50 MiB of L2
  (docs.nvidia.com/launchpad/ai/h100-mig/latest/h100-mig-gpu.html).

No kernel is timed (`--xla_gpu_autotune_level=0`), so products are those of cuBLAS and cuDNN: a plan
reads what they compute, not how fast.
"""

import importlib.util
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

_H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  threads_per_warp: 32
  threads_per_block_limit: 1024
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  threads_per_core_limit: 2048
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  device_memory_size: 80000000000 memory_bandwidth: 3350000000000 l2_cache_size: 52428800
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
_PLUGIN = "jax_plugins.xla_cuda12"


def set_flags() -> None:
    """Sets XLA's flags; call it before JAX looks for devices, because XLA reads them once."""
    # Triton's matrix products need tile sizes that only timing can choose.
    flags = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    # CUDA's libraries are not needed.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")


def devices(shape: str, slices: int) -> list[Any]:
    """Returns all GPUs of `slices` machines.

    Args:
      shape: how many a machine has, "8".
      slices: machines, joined by the network.

    Raises:
      ImportError: JAX's plugin for CUDA is missing.
      ValueError: a shape of several dimensions, or one that XLA does not take.
    """
    if not re.fullmatch(r"\d+", shape):
        raise ValueError(
            f"--topology=h100:{shape}: write the number of GPUs of one machine, as in h100:8, and "
            "--slices=2 for two machines."
        )
    if not _installed():
        raise ImportError(
            "Compiling for GPUs needs JAX's plugin for CUDA, which runs without a GPU: "
            "install the extra `plan-cuda`, as in `pip install '.[plan-cuda]'`."
        )
    try:
        described = topologies.get_topology_desc(
            f"h100:{shape}", "cuda", topology=f"{slices}x1x{shape}", target_config=_H100
        )
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"XLA knows no topology of {slices} x {shape} GPUs: {error}") from error
    return list(described.devices)


def _installed() -> bool:
    try:
        return importlib.util.find_spec(_PLUGIN) is not None
    except ModuleNotFoundError:  # no plugin at all
        return False
