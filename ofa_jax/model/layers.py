"""Basic layers: dense, normalisation, embedding, stochastic depth, rematerialisation."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from ofa_jax.model.config import OFAConfig

_Module = TypeVar("_Module", bound=nn.Module)

LAYER_NORM_EPSILON = 1e-5

ATTENDED = "attended"
"""Name of the values that fused attention has mixed; rematerialised layers save them."""

bert_init = nn.initializers.normal(0.02)
"""N(0, 0.02): how the reference implementation initialises linear and embedding layers, including
the relative position tables."""


def dtype_of(config: OFAConfig) -> jnp.dtype:
    """Returns the compute dtype of the layers."""
    return jnp.dtype(config.dtype)


def attention_implementation(config: OFAConfig) -> str:
    """Returns how attention is computed; "auto" is that of JAX's default platform."""
    return config.on_platform(jax.default_backend()).attention_implementation


def with_logical_axes(
    init: Callable[..., Array], axes: Sequence[str | None]
) -> Callable[..., Array]:
    """Returns an initializer whose parameters carry logical axes.

    `nn.Module.param` unboxes the parameter, so that modules see a plain array.
    """
    return cast(Callable[..., Array], nn.with_logical_partitioning(init, tuple(axes)))


def with_activation_sharding(x: Shaped[Array, "..."], *axes: str | None) -> Shaped[Array, "..."]:
    """Constrains an activation by the rules for its logical axes; does nothing without a mesh.

    Args:
      x: the activation.
      *axes: logical name of each axis without the prefix "activation_"; None for no constraint.

    Returns:
      x, constrained.
    """
    return nn.with_logical_constraint(x, tuple(f"activation_{a}" if a else None for a in axes))


def with_image_sharding(
    x: Float[Array, "images height width channels"],
) -> Float[Array, "images height width channels"]:
    """Splits the activations of the ResNet over all mesh axes of the rule "activation_images".

    The ResNet does not split its weights over `tensor`, so without this rule all devices along
    `tensor` would compute the same. Falls back to the axes of "activation_batch" if the number of
    images does not divide, if no rule names any axis, or if JAX does not tell the sizes of the axes
    (`with mesh:` outside of jit, as t5x has it).
    """
    (axes,) = nn.logical_to_mesh_axes(("activation_images",)) or (None,)
    names = (axes,) if isinstance(axes, str) else axes or ()
    mesh = jax.sharding.get_abstract_mesh()
    is_known = bool(names) and all(name in mesh.shape for name in names)
    parts = math.prod(mesh.shape[name] for name in names) if is_known else 0
    leading = "images" if is_known and len(x) % parts == 0 else "batch"
    return with_activation_sharding(x, leading, "height", "width", "channels")


class Dense(nn.Module):
    """A linear layer whose input and output may span several axes (heads, width of a head).

    `nn.DenseGeneral` cannot hold a rank-3 kernel with logical axes under `jax.set_mesh`.

    Attributes:
      in_features: shape of the input axes.
      features: shape of the output axes.
      in_axes: logical names of the input axes, the last axes of x.
      out_axes: logical names of the output axes.
      dtype: compute dtype.
      kernel_init: initializer of the kernel.
    """

    in_features: Sequence[int]
    features: Sequence[int]
    in_axes: Sequence[str]
    out_axes: Sequence[str]
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer = bert_init

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Maps [..., *in_features] to [..., *features]."""
        kernel = self.param(
            "kernel",
            with_logical_axes(self.kernel_init, (*self.in_axes, *self.out_axes)),
            (*self.in_features, *self.features),
        )
        bias_axes = ["norm" if axis == "embed" else axis for axis in self.out_axes]
        bias = self.param(
            "bias", with_logical_axes(nn.initializers.zeros, bias_axes), tuple(self.features)
        )
        # A single 2-D product suits the matrix units of every backend.
        inputs, outputs = math.prod(self.in_features), math.prod(self.features)
        flat = x.astype(self.dtype).reshape(*x.shape[: x.ndim - len(self.in_features)], inputs)
        y = flat @ kernel.astype(self.dtype).reshape(inputs, outputs)
        return y.reshape(*y.shape[:-1], *self.features) + bias.astype(self.dtype)


def layer_norm(dtype: jnp.dtype, name: str | None = None) -> nn.LayerNorm:
    """Returns a LayerNorm over the last axis with float32 statistics."""
    return remat_norm(nn.LayerNorm, dtype)(
        epsilon=LAYER_NORM_EPSILON,
        dtype=dtype,
        use_fast_variance=False,
        name=name,
        scale_init=with_logical_axes(nn.initializers.ones, ("norm",)),
        bias_init=with_logical_axes(nn.initializers.zeros, ("norm",)),
    )


class Embed(nn.Module):
    """An embedding table, looked up by index or returned whole.

    Attributes:
      num_embeddings, features: shape of the table.
      axes: logical names of its two axes.
    """

    num_embeddings: int
    features: int
    axes: tuple[str, str]

    def setup(self) -> None:
        """Creates the table."""
        self.embedding = self.param(
            "embedding",
            with_logical_axes(bert_init, self.axes),
            (self.num_embeddings, self.features),
        )

    def __call__(
        self, ids: Int[Array | np.ndarray, "..."] | None = None
    ) -> Float[Array, "... features"]:
        """Looks up ids in float32; without ids returns the table."""
        if ids is None:
            return self.embedding
        return jnp.take(self.embedding, ids, axis=0, mode="clip")


def remat_norm(norm: Any, dtype: jnp.dtype) -> Any:
    """Rematerialises a norm so that only its low-precision input is saved.

    Norms compute in float32, and their derivative saves several float32 arrays of the input's
    shape: in bfloat16 these are most of the memory traffic of a layer. Recomputing them is cheaper.

    Args:
      norm: a function or an `nn.Module` class.
      dtype: dtype of the norm's input.

    Returns:
      The norm, rematerialised unless `dtype` is float32.
    """
    if dtype == jnp.float32:
        return norm
    transform = nn.remat if isinstance(norm, type) else jax.checkpoint
    # Common subexpressions could only come from the same step, where XLA may choose to share them.
    return transform(norm, prevent_cse=False)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016), drawn per example; kept examples are scaled up."""

    @nn.compact
    def __call__(
        self, x: Float[Array, " batch *rest"], rate: float | Float[Array, ""], train: bool
    ) -> Float[Array, " batch *rest"]:
        """Keeps each example with probability 1 - rate and zeroes the others."""
        if not train or (isinstance(rate, float) and rate == 0.0):
            return x
        keep = jax.random.bernoulli(
            self.make_rng("dropout"), 1.0 - rate, (x.shape[0],) + (1,) * (x.ndim - 1)
        )
        return jnp.where(keep, x / jnp.asarray(1.0 - rate, x.dtype), 0).astype(x.dtype)


def remat(
    module: type[_Module], config: OFAConfig, static: Sequence[str] = ("train",)
) -> type[_Module]:
    """Rematerialises a module as `OFAConfig.remat` says; values and parameters do not change.

    Args:
      module: class of a layer.
      config: configuration of the model.
      static: names of the arguments of its `__call__` that are plain Python values.

    Returns:
      The class to instantiate instead of `module`.
    """
    if config.remat == "none":
        return module
    policy = {
        "full": None,
        "dots": _is_matmul_or_convolution,
        "weight_dots": _is_weight_matmul_or_convolution,
    }
    arguments = list(inspect.signature(module.__call__).parameters)
    rematerialised = nn.remat(
        module,
        policy=policy[config.remat],
        static_argnums=tuple(arguments.index(name) for name in static),
    )
    return cast(type[_Module], rematerialised)


def _is_matmul_or_convolution(primitive: Any, *_: Any, **parameters: Any) -> bool:
    return primitive.name in ("dot_general", "conv_general_dilated") or _is_attended(
        primitive, parameters
    )


def _is_attended(primitive: Any, parameters: Mapping[str, Any]) -> bool:
    """Tells the result of fused attention, which consists of products within attention."""
    return primitive.name == "name" and parameters["name"] == ATTENDED


def _is_weight_matmul_or_convolution(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """Leaves out products within attention: they have batch axes, products with weights do not."""
    if primitive.name == "dot_general":
        return not any(parameters["dimension_numbers"][1])
    return primitive.name == "conv_general_dilated" or _is_attended(primitive, parameters)


def linear_drop_path_rates(last: float, layers: int) -> list[float]:
    """Returns the stochastic depth rate of each layer, growing linearly from 0 to `last`."""
    return [last * i / (layers - 1) if layers > 1 else 0.0 for i in range(layers)]
