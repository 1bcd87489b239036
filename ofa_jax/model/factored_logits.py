"""Logits as their two factors, and what a loss needs of them without the array of all logits.

The logits of base at a published batch take more memory traffic than any other array of a step:
written once, and read again for the largest, the sum, and the gradient. `statistics` computes them
block by block of the vocabulary, each small enough for the chip's own memory, and again in the
backward pass: V d more multiply-adds for each token, and no array of [tokens, V] in HBM.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from ofa_jax.model.attention_ops import MASKED_SCORE
from ofa_jax.model.layers import with_activation_sharding

LARGEST_BLOCK = 4096
"""Rows of the embedding whose logits are computed at once, at most."""

_LANES = 128
_SCOPE = "OFA._logits"  # of the operations in a profile and in plans

Statistics = tuple[Array, Array, Array]
"""Of each token: log of the sum of the exponentials, logit of the target, sum of the logits; all of
the allowed ids alone."""


class FactoredLogits(flax.struct.PyTreeNode):
    """Logits that were not multiplied yet.

    Attributes:
      hidden: outputs of the decoder, packed by `pack_streams`.
      table: the embedding, in the dtype of `hidden`.
      vocab_size: number of ids that exist; the table may have more rows.
    """

    hidden: Float[Array, "rows length width"]
    table: Float[Array, "vocab width"]
    vocab_size: int = flax.struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the logits."""
        return (*self.hidden.shape[:-1], len(self.table))

    def whole(self) -> Float[Array, "rows length vocab"]:
        """Multiplies the factors in float32."""
        with jax.named_scope(_SCOPE):
            logits = jnp.einsum(
                "btd,vd->btv", self.hidden, self.table, preferred_element_type=jnp.float32
            )
            if logits.shape[-1] > self.vocab_size:
                # Finite, so that sums and differences of padding logits are not NaN.
                ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2)
                logits = jnp.where(ids < self.vocab_size, logits, MASKED_SCORE)
            return with_activation_sharding(logits, "batch", "length", "vocab")

    def statistics(
        self, targets: Int[Array, "rows length"], allowed: Bool[np.ndarray, " vocab"] | None
    ) -> Statistics:
        """Computes what a loss needs, block by block; the vocabulary must not be sharded.

        Args:
          targets: one id for each token.
          allowed: ids that count; None for all of the table's.
        """
        rows = len(self.table)
        size = block_size(rows)
        missing = -rows % size
        table = jnp.pad(self.table, ((0, missing), (0, 0)))
        ids = np.ones(rows, bool) if allowed is None else np.asarray(allowed)
        mask = np.pad(ids, (0, missing)).reshape(-1, size)
        return _statistics(_Mask(mask), self.hidden, table, targets)


def block_size(rows: int) -> int:
    """Returns the number of rows of a block: a divisor of `rows` where a good one exists."""
    largest = min(LARGEST_BLOCK, math.ceil(rows / _LANES) * _LANES)
    sizes = range(largest, largest // 2, -_LANES)
    return next((size for size in sizes if rows % size == 0), largest)


def is_sharded() -> bool:
    """Returns whether the vocabulary is split over devices of the mesh."""
    return any(size > 1 for size in _mesh_sizes("activation_vocab"))


def _mesh_sizes(name: str) -> list[int]:
    """Returns the sizes of the mesh axes of a logical axis."""
    mesh = jax.sharding.get_abstract_mesh()
    return [mesh.shape[axis] for axis in _mesh_axes(name)]


def _mesh_axes(name: str) -> tuple[str, ...]:
    """Returns the mesh axes of a logical axis."""
    if jax.sharding.get_abstract_mesh().empty:
        return ()
    (axes,) = nn.logical_to_mesh_axes((name,)) or (None,)
    return (axes,) if isinstance(axes, str) else tuple(axes or ())


class _Mask:
    """Which ids of each block count; hashable, as a static argument must be."""

    def __init__(self, blocks: Bool[np.ndarray, "blocks size"]):
        self.blocks = blocks

    def __hash__(self) -> int:
        return hash(self.blocks.tobytes())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Mask) and np.array_equal(self.blocks, other.blocks)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _statistics(mask: _Mask, hidden: Array, table: Array, targets: Array) -> Statistics:
    """Computes the statistics of the tokens of each device."""
    return _per_device(
        functools.partial(_forward, mask), (hidden, targets), table, lambda tokens, _: (tokens,) * 3
    )


def _statistics_forward(
    mask: _Mask, hidden: Array, table: Array, targets: Array
) -> tuple[Statistics, tuple[Array, ...]]:
    statistics = _statistics(mask, hidden, table, targets)
    return statistics, (hidden, table, targets, statistics[0])


def _statistics_backward(
    mask: _Mask, saved: tuple[Array, ...], slopes: Statistics
) -> tuple[Array, Array, None]:
    hidden, table, targets, normaliser = saved
    axes = _mesh_axes("activation_batch")

    def run(table: Array, hidden: Array, *others: Array) -> tuple[Array, Array]:
        d_hidden, d_table = _backward(mask, table, hidden, *others)
        return d_hidden, jax.lax.psum(d_table, axes) if axes else d_table

    d_hidden, d_table = _per_device(
        run,
        (hidden, targets, normaliser, *slopes),
        table,
        lambda tokens, everything: (tokens, everything),
    )
    return d_hidden, d_table, None


_statistics.defvjp(_statistics_forward, _statistics_backward)


def _per_device(
    function: Callable[..., Any],
    of_tokens: tuple[Array, ...],
    table: Array,
    results: Callable[[PartitionSpec, PartitionSpec], Any],
) -> Any:
    """Runs a function on each device's tokens and the whole table.

    Left to itself the compiler would sum the gradient of each block over devices by itself.

    Args:
      function: of the table, then the arrays of tokens.
      of_tokens: split over devices by their rows.
      table: of which every device has a copy.
      results: returns how the results are split, from how tokens and the table are.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return function(table, *of_tokens)
    tokens, everything = PartitionSpec(_mesh_axes("activation_batch") or None), PartitionSpec()
    return jax.shard_map(
        function,
        in_specs=(everything, *(tokens for _ in of_tokens)),
        out_specs=results(tokens, everything),
        check_vma=False,
    )(table, *of_tokens)


def _blocks(mask: _Mask, table: Array) -> tuple[Array, Array, Array]:
    """Returns what the loops run over: rows of the table, which ids count, and the first id."""
    count, size = mask.blocks.shape
    rows = table.reshape(count, size, table.shape[1])
    return rows, jnp.asarray(mask.blocks), jnp.arange(count) * size


def _block_logits(hidden: Array, block: tuple[Array, Array, Array], targets: Array) -> Any:
    """Returns the logits of a block, -inf where ids do not count, and where the targets are."""
    rows, allowed, first = block
    logits = jnp.einsum("btd,vd->btv", hidden, rows, preferred_element_type=jnp.float32)
    logits = jnp.where(allowed, logits, -jnp.inf)
    ids = jax.lax.broadcasted_iota(targets.dtype, logits.shape, 2) + first
    return logits, ids == targets[..., None]


def _forward(mask: _Mask, table: Array, hidden: Array, targets: Array) -> Statistics:
    """Computes the statistics, with the largest logit so far."""

    @jax.named_scope(_SCOPE)
    def add(carry: Any, block: Any) -> tuple[Any, None]:
        largest, powers, picked, total = carry
        logits, is_target = _block_logits(hidden, block, targets)
        new = jnp.maximum(largest, logits.max(axis=-1))
        powers = powers * jnp.exp(largest - new) + jnp.exp(logits - new[..., None]).sum(axis=-1)
        picked += jnp.where(is_target, logits, 0).sum(axis=-1)
        total += jnp.where(block[1], logits, 0).sum(axis=-1)
        return (new, powers, picked, total), None

    zeros = jnp.zeros(targets.shape, jnp.float32)
    start = (zeros + MASKED_SCORE, zeros, zeros, zeros)
    (largest, powers, picked, total), _ = jax.lax.scan(add, start, _blocks(mask, table))
    return largest + jnp.log(powers), picked, total


def _backward(
    mask: _Mask, table: Array, hidden: Array, targets: Array, normaliser: Array, *slopes: Array
) -> tuple[Array, Array]:
    """Computes the gradients of this device's tokens and of the table."""
    of_normaliser, of_target, of_total = (slope[..., None] for slope in slopes)

    @jax.named_scope(_SCOPE)
    def add(d_hidden: Any, block: Any) -> tuple[Any, Any]:
        rows, allowed, _ = block
        logits, is_target = _block_logits(hidden, block, targets)
        slope = jnp.exp(logits - normaliser[..., None]) * of_normaliser
        slope += jnp.where(is_target & allowed, of_target, 0)
        slope += jnp.where(allowed, of_total, 0)
        slope = slope.astype(hidden.dtype)
        float32 = {"preferred_element_type": jnp.float32}
        d_hidden += jnp.einsum("btv,vd->btd", slope, rows, **float32)
        d_rows = jnp.einsum("btv,btd->vd", slope, hidden, **float32)
        return d_hidden, d_rows.astype(table.dtype)

    start = jnp.zeros(hidden.shape, jnp.float32)
    d_hidden, d_table = jax.lax.scan(add, start, _blocks(mask, table))
    return d_hidden.astype(hidden.dtype), d_table.reshape(table.shape)
