"""The random bits of `jax.random`, computed element by element, as a kernel needs them."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def threefry(
    key: tuple[Array, Array], x0: UInt[Array, "*n"], x1: UInt[Array, "*n"]
) -> tuple[UInt[Array, "*n"], UInt[Array, "*n"]]:
    """Computes Threefry-2x32 with 20 rounds (Salmon et al. 2011, section 4.2).

    Args:
      key: its two words.
      x0: upper half of the counters.
      x1: lower half of the counters.

    Returns:
      Two random words for each counter.
    """
    keys = (*key, key[0] ^ key[1] ^ jnp.uint32(_PARITY))
    x0, x1 = x0 + keys[0], x1 + keys[1]
    for injection in range(1, 6):
        for rotation in _ROTATIONS[(injection - 1) % 2]:
            x0 = x0 + x1
            x1 = (x1 << jnp.uint32(rotation)) | (x1 >> jnp.uint32(32 - rotation))
            x1 = x0 ^ x1
        x0 = x0 + keys[injection % 3]
        x1 = x1 + keys[(injection + 1) % 3] + jnp.uint32(injection)
    return x0, x1


def keeps(
    key: tuple[Array, Array],
    row: Int[Array, "*n"],
    column: Int[Array, "*n"],
    columns: int,
    probability: float,
) -> Bool[Array, "*n"]:
    """Computes elements of `jax.random.bernoulli(key, probability, (rows, columns))`.

    Equals its partitionable form (`jax_threefry_partitionable`, JAX's default), in which an element
    depends on the key and its index alone.

    Args:
      key: its two words.
      row: of each element.
      column: of each element.
      columns: below 2 ** 16.
      probability: of True.

    Returns:
      Whether each element is True.
    """
    row, column = row.astype(jnp.uint32), column.astype(jnp.uint32)
    # The index row * columns + column may need more than 32 bits.
    low = (row & jnp.uint32(0xFFFF)) * jnp.uint32(columns) + column
    high = (row >> jnp.uint32(16)) * jnp.uint32(columns) + (low >> jnp.uint32(16))
    index = (high << jnp.uint32(16)) | (low & jnp.uint32(0xFFFF))
    bits0, bits1 = threefry(key, high >> jnp.uint32(16), index)
    # A uniform number of 23 bits below float32(probability), compared as whole numbers.
    bound = math.ceil(float(np.float32(probability)) * 2**23)
    return ((bits0 ^ bits1) >> jnp.uint32(9)).astype(jnp.int32) < jnp.int32(bound)
