"""Where every array lives: the mesh, the rules from logical axes to mesh axes, the batch's rows.

The mesh has three axes: `data` (copies of the model), `fsdp` (parameters and moments split, batch
too) and `tensor` (heads, feed-forward and vocabulary split). A batch is split over data and fsdp.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from absl import logging
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

Rules = Sequence[tuple[str, str | tuple[str, ...] | None]]

STANDARD_RULES: Rules = (
    ("activation_batch", BATCH_AXES),
    ("activation_images", AXES),
    ("activation_heads", "tensor"),
    ("activation_mlp", "tensor"),
    ("activation_vocab", "tensor"),
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("embed", "fsdp"),
    ("conv_out", "fsdp"),
)
"""For every mesh: what is split over an axis of size 1 is whole. Axes not named are whole."""


@dataclasses.dataclass(frozen=True)
class Partitioner:
    """The mesh and its rules.

    Attributes:
      data, fsdp, tensor: devices along each axis, within a slice; one of them may be -1 for all
        the rest.
      slices: number of slices (TPU pods joined by the data-centre network); they multiply `data`.
      gather_params_once: the weights that are split over `fsdp` are gathered once a step and
      held, in the
        dtype of the computation (2 bytes a weight in bfloat16), instead of anew wherever they are
        used: by every stream, forward and backward.
      logical_axis_rules: logical axis -> mesh axis, first match; see `ofa_jax.model` for the names.
      devices: to use; all devices of all hosts when None.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    slices: int = 1
    gather_params_once: bool = False
    logical_axis_rules: Rules = STANDARD_RULES
    devices: tuple[Any, ...] | None = None
    mesh: Mesh = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for logical, axes in self.logical_axis_rules:
            for axis in (axes,) if isinstance(axes, str) else axes or ():
                if axis not in AXES:
                    raise ValueError(
                        f"Partitioner.logical_axis_rules sends {logical!r} to {axis!r}, but the "
                        f"mesh has the axes {', '.join(AXES)}."
                    )
        object.__setattr__(self, "mesh", self._make_mesh())

    def _make_mesh(self) -> Mesh:
        devices = list(self.devices or jax.devices())
        shape = self._shape(len(devices))
        if self.slices > 1:
            grid = mesh_utils.create_hybrid_device_mesh(
                shape, (self.slices, 1, 1), devices, allow_split_physical_axes=True
            )
        else:
            grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        # Auto: the compiler propagates shardings; Explicit breaks nn.with_logical_constraint.
        return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))

    def _shape(self, num_devices: int) -> tuple[int, ...]:
        """The mesh of one slice."""
        shape = [self.data, self.fsdp, self.tensor]
        said = f"Partitioner(data={self.data}, fsdp={self.fsdp}, tensor={self.tensor})"
        if shape.count(-1) > 1 or any(size < 1 and size != -1 for size in shape):
            raise ValueError(f"{said}: give positive sizes, and -1 for at most one axis.")
        if num_devices % self.slices:
            raise ValueError(
                f"Partitioner.slices is {self.slices}, which does not divide the {num_devices} "
                "devices here."
            )
        per_slice = num_devices // self.slices
        known = math.prod(size for size in shape if size != -1)
        if -1 in shape and per_slice % known == 0:
            shape[shape.index(-1)] = per_slice // known
        if math.prod(shape) != per_slice:
            raise ValueError(
                f"{said} does not fit the {per_slice} devices{' a slice' * (self.slices > 1)} "
                f"here: the product of the axes must be {per_slice}; set one of them to -1 to have "
                "it filled in."
            )
        return tuple(shape)

    @contextlib.contextmanager
    def mesh_context(self) -> Iterator[None]:
        """Within, traced code knows the mesh and the rules."""
        with jax.set_mesh(self.mesh), nn.logical_axis_rules(list(self.logical_axis_rules)):
            yield

    # ------------------------------------------------------------------------------ arrays

    def shardings(self, boxed: Any) -> Any:
        """The shardings of arrays that carry their logical axes.

        An axis that does not divide over its mesh axis stays whole, which is logged: 59,457 rows
        over two tensor devices, for example.

        Args:
          boxed: a tree of `nn.LogicallyPartitioned` boxes, and of arrays or ShapeDtypeStructs
            without one, which are whole everywhere.

        Returns:
          A tree of NamedSharding; it has the structure of the tree without boxes.
        """
        rules = list(self.logical_axis_rules)

        def one(leaf: Any) -> Any:
            if not isinstance(leaf, nn.meta.AxisMetadata):
                return self.replicated
            value = leaf.value
            if not hasattr(value, "shape"):
                return value  # optax has no moments of what is not trained
            spec = nn.logical_to_mesh_axes(leaf.names, rules)
            return NamedSharding(self.mesh, self._dividing(spec, value.shape))

        return jax.tree.map(one, boxed, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata))

    def _dividing(self, spec: PartitionSpec, shape: Sequence[int]) -> PartitionSpec:
        kept = []
        for axes, size in zip(spec, shape, strict=False):
            names = (axes,) if isinstance(axes, str) else tuple(axes or ())
            parts = math.prod(self.mesh.shape[name] for name in names)
            if size % parts:
                logging.warning(
                    "An axis of %d does not divide over %s (%d devices): it stays whole.",
                    size,
                    "+".join(names),
                    parts,
                )
                axes = None
            kept.append(axes)
        return PartitionSpec(*kept)

    def gathering(self, params: Any, dtype: str) -> Callable[[Any], Any] | None:
        """How a training step begins with `gather_params_once`; None without.

        Args:
          params: their shapes and shardings. What is looked up in stays as it is: a gradient that
            adds up tokens wants float32.
          dtype: of the computation.

        Returns:
          params -> the same tree, its weights whole along `fsdp` and in `dtype`.
        """
        if not self.gather_params_once or self.mesh.shape["fsdp"] == 1:
            return None

        def whole(path: Any, x: Any) -> NamedSharding | None:
            spec = [axis if axis != "fsdp" else None for axis in x.sharding.spec]
            if path[-1].key != "kernel" or spec == list(x.sharding.spec):
                return None
            return NamedSharding(self.mesh, PartitionSpec(*spec))

        kept = [x.sharding for x in jax.tree.leaves(params)]
        shardings = [whole(path, x) for path, x in jax.tree_util.tree_leaves_with_path(params)]

        def gather(params: Any) -> Any:
            leaves, structure = jax.tree.flatten(params)
            return jax.tree.unflatten(
                structure,
                [
                    x if sharding is None else _gathered(x, old, sharding, dtype)
                    for x, old, sharding in zip(leaves, kept, shardings, strict=True)
                ],
            )

        return gather

    @property
    def replicated(self) -> NamedSharding:
        """The same on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch_sharding(self) -> NamedSharding:
        """Leading axis over data and fsdp."""
        return NamedSharding(self.mesh, PartitionSpec(BATCH_AXES))

    # --------------------------------------------------------------------------- batches

    @property
    def num_data_shards(self) -> int:
        """Into how many parts a batch is split."""
        return math.prod(self.mesh.shape[axis] for axis in BATCH_AXES)

    @property
    def data_shards(self) -> tuple[int, ...]:
        """The parts that this host's devices need.

        By position on the mesh, not by number of the host: the order of the devices on the mesh
        need not follow that of the hosts, and a batch split by host would silently be another one.
        """
        own = jax.process_index()
        grid = self.mesh.devices.reshape(self.num_data_shards, -1)
        return tuple(
            position
            for position, devices in enumerate(grid)
            if any(device.process_index == own for device in devices)
        )

    @property
    def primary_shards(self) -> tuple[int, ...]:
        """Those of `data_shards` that this host speaks for, where several hosts have the same.

        Every part has one speaker; so what is written down is written once.
        """
        own = jax.process_index()
        grid = self.mesh.devices.reshape(self.num_data_shards, -1)
        return tuple(
            position for position, devices in enumerate(grid) if devices[0].process_index == own
        )

    def put_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """This host's rows to global arrays.

        Args:
          batch: arrays whose leading axis holds the rows of `data_shards`, one part after another.

        Returns:
          The arrays of the whole batch, split over data and fsdp.
        """
        own, parts, sharding = self.data_shards, self.num_data_shards, self.batch_sharding

        def put(local: np.ndarray) -> jax.Array:
            size = len(local) // len(own)

            def rows(index: tuple[slice, ...]) -> np.ndarray:
                place = own.index((index[0].start or 0) // size)
                return local[place * size : (place + 1) * size]

            return jax.make_array_from_callback((size * parts, *local.shape[1:]), sharding, rows)

        return {name: put(array) for name, array in batch.items()}

    def take_rows(self, array: jax.Array) -> np.ndarray:
        """The inverse of `put_batch`: this host's rows of an array with `batch_sharding`."""
        parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
        return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gathered(x: jax.Array, kept: NamedSharding, whole: NamedSharding, dtype: str) -> jax.Array:
    """x in `dtype`, whole; its gradient is split as x is, wherever it is made."""
    return jax.lax.with_sharding_constraint(x.astype(dtype), whole)


def _gathered_forward(x, kept, whole, dtype):
    return _gathered(x, kept, whole, dtype), None


def _gathered_backward(kept, whole, dtype, nothing, gradient):
    # Left alone it would be whole too: summed, held and added up in full for each stream.
    return (jax.lax.with_sharding_constraint(gradient, kept).astype("float32"),)


_gathered.defvjp(_gathered_forward, _gathered_backward)
