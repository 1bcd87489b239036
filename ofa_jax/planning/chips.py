"""Published figures of accelerator chips, and the names of their topologies.

Sources: Google Cloud's TPU system architecture pages (docs.cloud.google.com/tpu/docs/v2 to v6e,
tpu7x, read in 2026): peak bf16, HBM, and interchip interconnect bandwidth, halved where it is
stated in both directions; the data-centre network as stated per pod, divided by its chips, and
for v4 and v5p the 50 Gbit/s per chip of "How to Scale Your Model" (jax-ml.github.io/scaling-book).
H100: NVIDIA's H100 SXM data sheet, dense bf16; NVLink 4 in one direction, one 400 Gbit/s NIC a GPU.
The rows of v5e, v5p and v6e were read off those pages; the others and the networks of v4 and v5p
were written down from memory of them, and want to be checked before they decide anything.
"""

import dataclasses
import re

from ofa_jax.gin_check import nearest


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one chip can do, at most.

    Attributes:
      name: as in `--topology=NAME:SHAPE`.
      flops: bf16 matrix operations per second.
      hbm_bytes, hbm_bandwidth: bytes, and bytes per second.
      interconnect: bytes per second that one chip can send to the others of its slice.
      torus_dimensions: over which its links are spread; 1 for a switch.
      network: bytes per second that one chip can send to other slices.
      devices: that JAX sees of one chip.
    """

    name: str
    flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    interconnect: float
    torus_dimensions: int
    network: float
    devices: int = 1


_TERA, _GIGA = 1e12, 1e9
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v2", 45 * _TERA, 16 * _GIGA, 700 * _GIGA, 248 * _GIGA, 2, 3.1 * _GIGA, 2),
        Chip("v3", 123 * _TERA, 32 * _GIGA, 900 * _GIGA, 328 * _GIGA, 2, 3.1 * _GIGA, 2),
        Chip("v4", 275 * _TERA, 32 * _GIGA, 1228 * _GIGA, 300 * _GIGA, 3, 6.25 * _GIGA),
        Chip("v5e", 197 * _TERA, 16 * _GIGA, 819 * _GIGA, 200 * _GIGA, 2, 3.125 * _GIGA),
        Chip("v5p", 459 * _TERA, 95 * _GIGA, 2765 * _GIGA, 600 * _GIGA, 3, 6.25 * _GIGA),
        Chip("v6e", 918 * _TERA, 32 * _GIGA, 1638 * _GIGA, 400 * _GIGA, 2, 12.5 * _GIGA),
        Chip("tpu7x", 2307 * _TERA, 192 * _GIGA, 7380 * _GIGA, 600 * _GIGA, 3, 12.5 * _GIGA, 2),
        Chip("h100", 989 * _TERA, 80 * _GIGA, 3350 * _GIGA, 450 * _GIGA, 1, 50 * _GIGA),
    )
}


def parse_topology(name: str) -> tuple[Chip, str]:
    """"v5e:16x16" to the chip and the shape.

    Raises:
      ValueError: an unknown chip, or no shape.
    """
    kind, _, shape = name.partition(":")
    if kind not in CHIPS:
        raise ValueError(
            f"--topology={name} begins with {kind!r}; known chips are {', '.join(CHIPS)}."
            f"{nearest(kind, CHIPS)}")
    if not re.fullmatch(r"\d+(x\d+)*", shape):
        raise ValueError(
            f"--topology={name} has no shape: write e.g. {kind}:4x4 (chips along each dimension).")
    return CHIPS[kind], shape
