"""Tensors that are made only when they are written, so that one at a time is in memory."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class LazyTensor:
    """A tensor of known shape and type. One that occurs under several names is written once.

    Attributes:
      shape: of the array.
      dtype: of the array.
      make: returns the array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return self.size * self.dtype.itemsize

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Makes some rows of it."""
        return self.make()[rows]


Tensor = np.ndarray | LazyTensor


def content_of(tensor: Tensor) -> memoryview:
    """Returns the bytes of a tensor in C order, whatever the order of its array."""
    array = tensor.make() if isinstance(tensor, LazyTensor) else tensor
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def cast(tensor: Tensor, dtype: np.dtype) -> Tensor:
    """Returns a tensor of another type, which is made when it is written."""
    if tensor.dtype == dtype:
        return tensor

    def make() -> np.ndarray:
        array = tensor.make() if isinstance(tensor, LazyTensor) else tensor
        return array.astype(dtype)

    return LazyTensor(tensor.shape, dtype, make)
