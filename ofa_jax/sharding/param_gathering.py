"""Gathers sharded weights once per training step instead of at each use (ZeRO-3 to ZeRO-2)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def make_gather_params(mesh: Mesh, params: Any, dtype: str) -> Callable[[Any], Any]:
    """Builds a function that gathers the kernels along the `fsdp` axis.

    Only kernels are gathered. Embedding tables stay sharded and float32, because their gradients
    sum over all tokens that share a row.

    Args:
      mesh: the device mesh.
      params: a tree of arrays or ShapeDtypeStructs with shardings.
      dtype: dtype of the gathered kernels.

    Returns:
      A function params -> params whose kernels are whole along `fsdp` and cast to `dtype`.
    """

    def gathered_sharding(path: Any, x: Any) -> NamedSharding | None:
        spec = [axis if axis != "fsdp" else None for axis in x.sharding.spec]
        if path[-1].key != "kernel" or spec == list(x.sharding.spec):
            return None
        return NamedSharding(mesh, PartitionSpec(*spec))

    original = [x.sharding for x in jax.tree.leaves(params)]
    gathered = [
        gathered_sharding(path, x) for path, x in jax.tree_util.tree_leaves_with_path(params)
    ]

    def gather_params(params: Any) -> Any:
        """Gathers the kernels and leaves other parameters as they are."""
        leaves, treedef = jax.tree.flatten(params)
        return jax.tree.unflatten(
            treedef,
            [
                x if after is None else _gather(x, before, after, dtype)
                for x, before, after in zip(leaves, original, gathered, strict=True)
            ],
        )

    return gather_params


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(
    x: jax.Array, original: NamedSharding, gathered: NamedSharding, dtype: str
) -> jax.Array:
    """Casts x to `dtype` and gathers it; its gradient gets the sharding that x had."""
    return jax.lax.with_sharding_constraint(x.astype(dtype), gathered)


def _gather_forward(
    x: jax.Array, original: NamedSharding, gathered: NamedSharding, dtype: str
) -> tuple[jax.Array, None]:
    return _gather(x, original, gathered, dtype), None


def _gather_backward(
    original: NamedSharding,
    gathered: NamedSharding,
    dtype: str,
    residuals: None,
    gradient: jax.Array,
) -> tuple[jax.Array]:
    """Shards the gradient like the parameter, in float32."""
    # Without the constraint the gradient of each stream would be gathered too, and held in full.
    return (jax.lax.with_sharding_constraint(gradient, original).astype("float32"),)


_gather.defvjp(_gather_forward, _gather_backward)
