"""Checks that t5x can be imported, and restores what it needs and JAX no longer has."""

import importlib

import jax.experimental.pjit
from jax.sharding import PartitionSpec

__all__ = ["prepare"]


def prepare() -> None:
    """Makes `import t5x` possible.

    Raises:
      ImportError: t5x or a package that it needs is not installed.
    """
    # jestimator 0.3.3, the newest release, imports this name from its former place.
    if not hasattr(jax.experimental.pjit, "PartitionSpec"):
        setattr(jax.experimental.pjit, "PartitionSpec", PartitionSpec)  # noqa: B010
    try:
        importlib.import_module("t5x.models")
    except ImportError as error:
        raise ImportError(
            f"ofa_jax.t5x needs t5x, which cannot be imported ({error}): it is not on PyPI; put "
            "its repository (github.com/google-research/t5x) and airio's on PYTHONPATH and install "
            "what docs/guides/t5x.md lists."
        ) from error
