"""Published figures of accelerator chips, and the notation of topologies.

Read in November 2026. "TPU pages" are docs.cloud.google.com/tpu/docs/{v3,v4,v5e,v5p,v6e,tpu7x};
"book" is the table of chips in part 2 of "How to Scale Your Model"
(jax-ml.github.io/scaling-book/tpus).

* Peak bf16 and HBM: the TPU pages. The pages of v5e and v6e write the capacity in GB and mean GiB.
* Interconnect: the TPU pages state it in both directions for v5e (400 GB/s), v5p (1200), v6e (800)
  and tpu7x (1200), which is halved here; v3 and v4 are the book's bandwidth of a link one way (100
  and 45 GB/s) times their 4 and 6 links.
* Where a dimension of a slice closes to a ring: the book (all 16 chips of a v5e's or v6e's pod;
  multiples of 4 for v4, v5p and tpu7x) and the page of v3 (a torus as the whole pod, 32 a side).
* Network: the TPU pages for v5e (6.4 Tbit/s for 256 chips), v5p (50 Gbit/s a chip), v6e and tpu7x
  (100 Gbit/s); the book's "typically" 6.25 GB/s for v3 and v4.
* H100 SXM: dense bf16 989.4 TFLOP/s, 80 GB and 3.35 TB/s (glennklockwood.com/garden/processors/
  h100, after NVIDIA's white paper), NVLink 450 GB/s one way (github.com/NVIDIA/nccl/issues/1264).
  NVIDIA's own data sheet could not be opened. UNCONFIRMED: 400 Gbit/s of network for each GPU,
  which does not matter within one machine of eight.

TPU v2 is left out: its bandwidths could not be confirmed.
"""

import dataclasses
import math
import re

from ofa_jax.utils.option_text import show
from ofa_jax.utils.suggestions import nearest


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak figures of one chip.

    Attributes:
      name: as in `--topology=NAME:SHAPE`.
      flops: bf16 operations of matrix products per second.
      hbm_bytes, hbm_bandwidth: bytes, and bytes per second.
      interconnect: bytes per second that one chip can send to the others of its slice.
      torus_dimensions: number of dimensions that its links are spread over; 1 for a switch.
      ring: chips of a dimension that closes to a ring, as do its multiples; a shorter dimension is
        a line, which sends half as fast. 1 for a switch.
      network: bytes per second that one chip can send to other slices.
      devices: number of JAX devices of one chip.
      platform: "tpu" or "cuda", which determines the compiler.
    """

    name: str
    flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    interconnect: float
    torus_dimensions: int
    ring: int
    network: float
    devices: int = 1
    platform: str = "tpu"


_MAX_CHIPS = 100_000
_TERA, _GIGA, _GIB = 1e12, 1e9, 2.0**30
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v3", 123 * _TERA, 32 * _GIB, 900 * _GIGA, 400 * _GIGA, 2, 32, 6.25 * _GIGA, 2),
        Chip("v4", 275 * _TERA, 32 * _GIB, 1200 * _GIGA, 270 * _GIGA, 3, 4, 6.25 * _GIGA),
        Chip("v5e", 197 * _TERA, 16 * _GIB, 819 * _GIGA, 200 * _GIGA, 2, 16, 3.125 * _GIGA),
        Chip("v5p", 459 * _TERA, 95 * _GIB, 2765 * _GIGA, 600 * _GIGA, 3, 4, 6.25 * _GIGA),
        Chip("v6e", 918 * _TERA, 32 * _GIB, 1638 * _GIGA, 400 * _GIGA, 2, 16, 12.5 * _GIGA),
        Chip("tpu7x", 2307 * _TERA, 192 * _GIB, 7380 * _GIGA, 600 * _GIGA, 3, 4, 12.5 * _GIGA, 2),
        Chip(
            "h100",
            989.4 * _TERA,
            80 * _GIGA,
            3350 * _GIGA,
            450 * _GIGA,
            1,
            1,
            50 * _GIGA,
            platform="cuda",
        ),
    )
}


_CHIP_OF_KIND = {
    "TPU v3": "v3",
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5": "v5p",
    "TPU v6 lite": "v6e",
    "TPU7x": "tpu7x",
    "NVIDIA H100 80GB HBM3": "h100",
}
"""`jax.Device.device_kind` -> a key of CHIPS. The TPU names are those of libtpu 0.0.42."""

_OTHER_FLOPS = {
    "NVIDIA H200": CHIPS["h100"].flops,  # the same chip with more memory
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
}
"""Dense bf16 FLOP/s of kinds that are not in CHIPS, from NVIDIA's data sheets."""


def peak_flops(device_kind: str) -> float | None:
    """Returns the peak bf16 FLOP/s of one JAX device, which MFU is measured against.

    Args:
      device_kind: as `jax.Device.device_kind`.

    Returns:
      None for a kind that is not listed, CPUs among them.
    """
    if device_kind in _CHIP_OF_KIND:
        chip = CHIPS[_CHIP_OF_KIND[device_kind]]
        return chip.flops / chip.devices
    return _OTHER_FLOPS.get(device_kind)


def parse_topology(name: str) -> tuple[Chip, str]:
    """Parses a topology such as "v5e:16x16".

    Returns:
      (chip, shape).

    Raises:
      ValueError: an unknown chip, or no shape.
    """
    kind, _, shape = name.partition(":")
    if kind not in CHIPS:
        raise ValueError(
            f"--topology={name} begins with {kind!r}; known chips are {', '.join(CHIPS)}."
            f"{nearest(kind, CHIPS)}"
        )
    if not re.fullmatch(r"\d+(x\d+)*", shape):
        raise ValueError(
            f"--topology={name} has no shape: write e.g. "
            + (
                "h100:8 (GPUs of a machine)."
                if kind == "h100"
                else f"{kind}:4x4 (chips along each dimension)."
            )
        )
    sizes = [int(size) for size in shape.split("x") if len(size) < 8]
    if len(sizes) <= shape.count("x") or not 1 <= math.prod(sizes) <= _MAX_CHIPS:
        raise ValueError(
            f"--topology={show(name)[1:-1]} must have between 1 and {_MAX_CHIPS:,} chips."
        )
    return CHIPS[kind], shape
