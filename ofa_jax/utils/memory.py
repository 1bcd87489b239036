"""The memory of this machine and its devices, and the refusal of what cannot fit into it."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["check_fits_memory", "device_memory", "format_bytes", "host_memory"]

_CONTROL_GROUPS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def host_memory() -> int | None:
    """Returns the bytes of memory that this process may use at most; None if unknown."""
    limits = []
    try:
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        pass
    for path in _CONTROL_GROUPS:
        try:
            text = pathlib.Path(path).read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) > 0:
            limits.append(int(text))
    return min(limits) if limits else None


def device_memory(devices: Sequence[Any]) -> int | None:
    """Returns the bytes of one of the devices; None if unknown, as for CPUs, which use the host's.

    Args:
      devices: JAX devices of one kind.
    """
    for device in devices:
        try:
            stats = device.memory_stats()
        except Exception:  # devices of other processes, and those of a topology, have none
            continue
        limit = (stats or {}).get("bytes_limit")
        if limit:
            return int(limit)
    return None


def check_fits_memory(
    needs: Mapping[str, int], available: int | None, where: str, override: str
) -> None:
    """Raises ValueError if what is needed at least is more than there is.

    Args:
      needs: what takes memory -> bytes, which are a lower bound.
      available: bytes; None if unknown, which never raises.
      where: of the memory, e.g. "a device".
      override: the option that turns the check off.
    """
    total = sum(needs.values())
    if available is None or total <= available:
        return
    largest = sorted(needs.items(), key=lambda need: -need[1])
    parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in largest if size)
    raise ValueError(
        f"This needs at least {format_bytes(total)} of memory on {where} ({parts}), which has "
        f"{format_bytes(available)}: make the model, the batch or the images smaller, or set "
        f"{override} = False if the estimate is wrong."
    )


def format_bytes(count: int) -> str:
    """Returns a number of bytes in the largest unit that leaves at least one: "3.5 GiB"."""
    power = min((max(int(count), 1).bit_length() - 1) // 10, len(_UNITS) - 1)
    if power == 0:
        return f"{count} bytes"
    value = count / 1024**power
    return f"{value:,.1f} {_UNITS[power]}" if value < 1e6 else f"{value:.1e} {_UNITS[power]}"
