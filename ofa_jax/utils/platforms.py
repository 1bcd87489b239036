"""Keeps JAX from starting platforms that this machine does not have."""

import glob
from collections.abc import Sequence
from typing import NoReturn

import jax
from jax.extend import backend

__all__ = ["skip_missing_tpu"]

_TPU_DEVICES = ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*")


def skip_missing_tpu(devices: Sequence[str] = _TPU_DEVICES) -> None:
    """Keeps JAX from loading libtpu on a machine without a TPU, where it logs errors.

    There the package is installed for its compiler alone (the extra `plan`). JAX chooses among the
    other platforms as if libtpu were absent. Before the call JAX must not have been used for
    anything; a choice of platforms, such as JAX_PLATFORMS, is kept.

    Args:
      devices: patterns of the files by which the kernel offers TPUs.
    """
    # When it is imported, JAX looks for TPUs among the PCI devices and sets this if it finds one.
    platforms = getattr(jax.config, "jax_platforms", None)  # not in the annotations of JAX
    if platforms is not None or any(glob.glob(pattern) for pattern in devices):
        return
    backend.register_backend_factory("tpu", _no_tpu, fail_quietly=True)


def _no_tpu() -> NoReturn:
    """Reports to JAX that the platform cannot be used; stands for the factory of its client."""
    raise RuntimeError("this machine has no TPU")
