"""The compiled loops over pixels, where they were built: `_image_kernels.c`.

They are built with the package if there is a C compiler, and have the bits of Pillow and numpy,
which do the work without them.
"""

import importlib
from typing import Any

__all__ = ["compiled"]

compiled: Any
"""The module `_image_kernels`; None if it was not built."""
try:
    compiled = importlib.import_module("ofa_jax.preprocessing._image_kernels")
except ImportError:
    compiled = None
