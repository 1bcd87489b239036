"""The types of torch's storages, by the names that its files have for them."""

from typing import Any

import ml_dtypes
import numpy as np

from ofa_jax.utils.wrong_files import shorten

STORAGES = {
    "FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32,
    "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}  # fmt: skip
STORAGE_OF = {np.dtype(dtype): name for name, dtype in STORAGES.items()}


def dtype_of(name: Any) -> np.dtype:
    """Returns the dtype of a name, such as "bfloat16". Raises ValueError if torch has none."""
    for dtype in STORAGE_OF:
        if str(dtype) == name:
            return dtype
    raise ValueError(f"torch has no tensors of the type {shorten(name)}.")


def is_floating(dtype: np.dtype) -> bool:
    """Returns whether a type has floating-point numbers."""
    return dtype.kind == "f" or dtype == ml_dtypes.bfloat16
