"""Runs the attention kernel on the examples and heads of each device of a mesh."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array

if TYPE_CHECKING:  # importing Pallas takes half a second
    from ofa_jax.model.attention_kernel import Integers, Terms


def mesh_axes() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the mesh axes that examples and heads are split over."""
    if jax.sharding.get_abstract_mesh().empty:
        return (), ()
    names = nn.logical_to_mesh_axes(("activation_batch", "activation_heads")) or (None, None)
    batch, heads = ((axes,) if isinstance(axes, str) else tuple(axes or ()) for axes in names)
    return batch, heads


def parts(axes: Sequence[str]) -> int:
    """Returns the number of devices along mesh axes."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[name] for name in axes)


def _specs(terms: "Terms", integers: "Integers") -> tuple["Terms", "Integers"]:
    """Returns how the kernel's arguments are split over the mesh."""
    batch, heads = (axes or None for axes in mesh_axes())
    both = PartitionSpec(batch, heads)
    by_head = PartitionSpec(None, heads)

    def of_positions(x: Array) -> PartitionSpec:
        return by_head if x.shape[0] == 1 else both

    by_example = PartitionSpec(batch)
    images = len(terms.bands)
    return terms.replace(
        query=both,
        key=both,
        value=both,
        position_query=of_positions(terms.position_query),
        position_key=of_positions(terms.position_key),
        head_scale=PartitionSpec(heads),
        relative=None if terms.relative is None else by_head,
        bands=(PartitionSpec(heads),) * images,
    ), integers.replace(
        kinds=by_example,
        mask=by_example,
        query_rows=(by_example,) * images,
        query_columns=(by_example,) * images,
        key_codes=(by_example,) * images,
        seed=PartitionSpec(),
        examples=by_example,
        heads=PartitionSpec(heads),
    )


def per_device(
    function: Callable[..., Any], arguments: tuple[Any, ...], result: Callable[..., Any]
) -> Any:
    """Runs the kernel on each device's examples and heads; the compiler cannot split a kernel.

    Args:
      function: of the arguments of one device.
      arguments: terms, integers, and what is split as queries are.
      result: returns the argument that the result is split like.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return function(*arguments)
    terms, integers = _specs(*arguments[:2])
    specs = (terms, integers, *(terms.query for _ in arguments[2:]))
    return jax.shard_map(function, in_specs=specs, out_specs=result(*specs), check_vma=False)(
        *arguments
    )


def sum_over_devices(slopes: "Terms", shared: Sequence[str]) -> "Terms":
    """Sums the gradients of what all examples share over the devices that split the examples.

    Args:
      slopes: of one device's examples.
      shared: names of terms.
    """
    axes, _ = mesh_axes()
    if not axes:
        return slopes
    sums = {name: jax.lax.psum(getattr(slopes, name), axes) for name in shared}
    return slopes.replace(**sums)
