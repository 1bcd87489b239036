"""The device mesh, the shardings of parameters on it, and the rows of a batch that a host loads.

The mesh has three axes: `data` (copies of the model), `fsdp` (parameters, moments and batch are
split) and `tensor` (heads, feed-forward layers and vocabulary are split). A batch is split over
data and fsdp.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import flax.linen as nn
import jax
import numpy as np
from absl import logging
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from ofa_jax.sharding.axis_rules import (
    BATCH_AXES,
    DEFAULT_AXIS_RULES,
    MESH_AXES,
    AxisRules,
    as_axis_names,
    check_axis_rules,
)
from ofa_jax.sharding.param_gathering import make_gather_params
from ofa_jax.utils import options
from ofa_jax.utils.option_checks import checked

AxisSize = Annotated[int, options.AtLeast(-1), options.AtMost(options.LARGEST)]
"""Devices along an axis of the mesh; -1 for the remaining ones."""


@checked
@dataclasses.dataclass(frozen=True)
class Partitioner:
    """The device mesh and the rules for placing arrays on it.

    Attributes:
      data, fsdp, tensor: devices along each axis, within a slice; one of them may be -1 for all
        remaining devices.
      slices: number of slices (TPU pods joined by the data-centre network); they multiply `data`.
      gather_params_once: gather the weights that are split over `fsdp` once per step and hold them
        in the compute dtype (2 bytes per weight in bfloat16). Otherwise they are gathered at every
        use: by each stream, in the forward and the backward pass.
      logical_axis_rules: logical axis -> mesh axis, first match; see `ofa_jax.model` for the names.
      devices: devices to use; None for all devices of all hosts.
    """

    data: AxisSize = -1
    fsdp: AxisSize = 1
    tensor: AxisSize = 1
    slices: options.Count = 1
    gather_params_once: bool = False
    logical_axis_rules: AxisRules = DEFAULT_AXIS_RULES
    devices: tuple[Any, ...] | None = None
    mesh: Mesh = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_axis_rules(self.logical_axis_rules)
        object.__setattr__(self, "mesh", self._make_mesh())

    def _make_mesh(self) -> Mesh:
        """Arranges the devices, so that fsdp and tensor stay within a slice."""
        devices = list(self.devices or jax.devices())
        if wrong := [device for device in devices if not hasattr(device, "device_kind")]:
            raise ValueError(
                f"Partitioner.devices has a {type(wrong[0]).__name__}; give devices of JAX, as in "
                "jax.devices(), or leave it out for all of them."
            )
        shape = self._slice_shape(len(devices))
        if self.slices > 1:
            grid = mesh_utils.create_hybrid_device_mesh(
                shape, (self.slices, 1, 1), devices, allow_split_physical_axes=True
            )
        else:
            grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        # Auto: the compiler propagates shardings; Explicit breaks nn.with_logical_constraint.
        return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))

    def _slice_shape(self, num_devices: int) -> tuple[int, ...]:
        """Returns the mesh shape of one slice, with -1 filled in."""
        shape = [self.data, self.fsdp, self.tensor]
        request = f"Partitioner(data={self.data}, fsdp={self.fsdp}, tensor={self.tensor})"
        if shape.count(-1) > 1 or any(size < 1 and size != -1 for size in shape):
            raise ValueError(f"{request}: give positive sizes, and -1 for at most one axis.")
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
                f"{request} does not fit the {per_slice} devices{' a slice' * (self.slices > 1)} "
                f"here: the product of the axes must be {per_slice}; set one of them to -1 to have "
                "it filled in."
            )
        return tuple(shape)

    @property
    def platform(self) -> str:
        """Platform of the devices: "tpu", "gpu", "cpu" ..., of described ones too."""
        return self.mesh.devices.flat[0].platform

    @contextlib.contextmanager
    def mesh_context(self) -> Iterator[None]:
        """Makes the mesh and the axis rules known to code that is traced within the context."""
        with jax.set_mesh(self.mesh), nn.logical_axis_rules(list(self.logical_axis_rules)):
            yield

    # ------------------------------------------------------------------------------ arrays

    def shardings(self, boxed: Any) -> Any:
        """Computes the shardings of arrays that carry their logical axes.

        An axis whose size is not a multiple of its number of devices stays whole, which is logged:
        59,457 vocabulary rows over two tensor devices, for example.

        Args:
          boxed: a tree of `nn.LogicallyPartitioned` boxes. Arrays or ShapeDtypeStructs without a
            box are replicated.

        Returns:
          A tree of NamedSharding with the structure of the unboxed tree.
        """
        rules = list(self.logical_axis_rules)

        def leaf_sharding(leaf: Any) -> Any:
            """Returns the sharding of one leaf."""
            if not isinstance(leaf, nn.LogicallyPartitioned):
                return self.replicated
            value = leaf.value
            if not hasattr(value, "shape"):
                return value  # optax keeps no moments for frozen parameters
            spec = nn.logical_to_mesh_axes(leaf.names, rules)
            return NamedSharding(self.mesh, self._drop_uneven_axes(spec, value.shape))

        return jax.tree.map(
            leaf_sharding, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
        )

    def _drop_uneven_axes(self, spec: PartitionSpec | None, shape: Sequence[int]) -> PartitionSpec:
        """Returns the spec without mesh axes that do not divide the size of their array axis."""
        kept = []
        for axes, size in zip(spec or (), shape, strict=False):
            names = as_axis_names(axes)
            parts = math.prod(self.mesh.shape[name] for name in names)
            if size % parts:
                logging.warning(
                    "An axis of size %d does not divide over %s (%d devices): it stays whole.",
                    size,
                    "+".join(names),
                    parts,
                )
                axes = None
            kept.append(axes)
        return PartitionSpec(*kept)

    def make_gather_params(self, params: Any, dtype: str) -> Callable[[Any], Any] | None:
        """Builds the function that starts a training step when `gather_params_once` is set.

        Args:
          params: a tree of arrays or ShapeDtypeStructs with shardings.
          dtype: compute dtype of the model.

        Returns:
          A function params -> params whose kernels are whole along `fsdp` and cast to `dtype`, or
          None if there is nothing to gather.
        """
        if not self.gather_params_once or self.mesh.shape["fsdp"] == 1:
            return None
        return make_gather_params(self.mesh, params, dtype)

    @property
    def replicated(self) -> NamedSharding:
        """Sharding of an array that is the same on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch_sharding(self) -> NamedSharding:
        """Sharding of a batch: the leading axis over data and fsdp."""
        return NamedSharding(self.mesh, PartitionSpec(BATCH_AXES))

    # --------------------------------------------------------------------------- batches

    @property
    def num_data_shards(self) -> int:
        """Number of parts that a batch is split into."""
        return math.prod(self.mesh.shape[axis] for axis in BATCH_AXES)

    @property
    def data_shards(self) -> tuple[int, ...]:
        """Indices of the batch shards that this host's devices need.

        They follow the positions of devices on the mesh, not the host's index: devices on the mesh
        need not be ordered by host, and splitting the batch by host index would silently feed
        other rows.
        """
        own = jax.process_index()
        return tuple(
            shard
            for shard, devices in enumerate(self._devices_of_shards())
            if any(device.process_index == own for device in devices)
        )

    @property
    def primary_shards(self) -> tuple[int, ...]:
        """Indices of the shards that this host owns among replicas.

        Each shard has exactly one owner, so that outputs are written once.
        """
        own = jax.process_index()
        return tuple(
            shard
            for shard, devices in enumerate(self._devices_of_shards())
            if devices[0].process_index == own
        )

    def _devices_of_shards(self) -> np.ndarray:
        """Returns the devices that hold each batch shard: object [num_data_shards, tensor]."""
        return self.mesh.devices.reshape(self.num_data_shards, -1)

    def put_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Assembles global arrays from the rows that each host holds.

        Args:
          batch: arrays whose leading axis holds the rows of `data_shards`, one shard after another.

        Returns:
          Arrays of the whole batch, split over data and fsdp.
        """
        own, num_shards, sharding = self.data_shards, self.num_data_shards, self.batch_sharding

        def put(local: np.ndarray) -> jax.Array:
            """Assembles one global array."""
            shard_size = len(local) // len(own)

            def rows(index: tuple[slice, ...] | None) -> np.ndarray:
                assert index is not None
                place = own.index((index[0].start or 0) // shard_size)
                return local[place * shard_size : (place + 1) * shard_size]

            shape = (shard_size * num_shards, *local.shape[1:])
            return jax.make_array_from_callback(shape, sharding, rows)

        return {name: put(array) for name, array in batch.items()}

    def local_rows(self, array: Shaped[Array, " batch *rest"]) -> Shaped[np.ndarray, " rows *rest"]:
        """Returns this host's rows of an array with `batch_sharding`; inverts `put_batch`."""
        parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
        return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])
