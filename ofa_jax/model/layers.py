"""The small layers everything is built of: dense, normalisation, embedding table, drop path."""

import inspect
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

LAYER_NORM_EPSILON = 1e-5

bert_init = nn.initializers.normal(0.02)
"""N(0, 0.02): what the original does last to every Linear and Embedding, relative tables too."""


def dtype_of(config) -> jnp.dtype:
    """The dtype that the layers compute in."""
    return jnp.dtype(config.dtype)


def with_activation_sharding(x: jax.Array, *axes: str | None) -> jax.Array:
    """Names the axes of an activation, for the sharding rules; does nothing without a mesh."""
    return nn.with_logical_constraint(x, tuple(f"activation_{a}" if a else None for a in axes))


def with_image_sharding(x: jax.Array) -> jax.Array:
    """[N, H, W, C] of a network that splits no weights over `tensor`: by examples alone.

    They go over every axis of the mesh that the rule "activation_images" names, so that the
    devices along `tensor` do not all compute the same; where N does not divide over those, or no
    rule names any, over those of "activation_batch".
    """
    (axes,) = nn.logical_to_mesh_axes(("activation_images",))
    names = (axes,) if isinstance(axes, str) else axes or ()
    mesh = jax.sharding.get_abstract_mesh()
    parts = math.prod(mesh.shape[name] for name in names)
    over = "images" if names and len(x) % parts == 0 else "batch"
    return with_activation_sharding(x, over, "height", "width", "channels")


class Dense(nn.Module):
    """A linear layer whose input and output may each be several axes (heads, width of a head).

    `nn.DenseGeneral` cannot hold a rank-3 kernel with logical axes under `jax.set_mesh`.

    Attributes:
      features: shape of the output axes.
      in_axes: logical names of the input axes, the last ones of x.
      out_axes: logical names of the output axes.
      in_features: shape of the input axes.
      dtype: what to compute in.
      kernel_init: of the kernel.
    """

    in_features: Sequence[int]
    features: Sequence[int]
    in_axes: Sequence[str]
    out_axes: Sequence[str]
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer = bert_init

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., *in_features] to [..., *features]."""
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(self.kernel_init, (*self.in_axes, *self.out_axes)),
            (*self.in_features, *self.features),
        )
        bias = self.param(
            "bias",
            nn.with_logical_partitioning(
                nn.initializers.zeros, tuple("norm" if a == "embed" else a for a in self.out_axes)
            ),
            tuple(self.features),
        )
        # One 2-D product: what every backend's matrix unit wants.
        inputs, outputs = math.prod(self.in_features), math.prod(self.features)
        flat = x.astype(self.dtype).reshape(*x.shape[: x.ndim - len(self.in_features)], inputs)
        y = flat @ kernel.astype(self.dtype).reshape(inputs, outputs)
        return y.reshape(*y.shape[:-1], *self.features) + bias.astype(self.dtype)


def layer_norm(dtype: jnp.dtype, name: str | None = None) -> nn.LayerNorm:
    """LayerNorm over the last axis with float32 statistics."""
    return remat_norm(nn.LayerNorm, dtype)(
        epsilon=LAYER_NORM_EPSILON,
        dtype=dtype,
        use_fast_variance=False,
        name=name,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones, ("norm",)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("norm",)),
    )


class Embed(nn.Module):
    """A table of rows, looked up by index or handed out whole.

    Attributes:
      rows, features: its shape.
      axes: logical names of the two axes.
    """

    rows: int
    features: int
    axes: tuple[str, str]

    def setup(self):
        self.embedding = self.param(
            "embedding",
            nn.with_logical_partitioning(bert_init, self.axes),
            (self.rows, self.features),
        )

    def __call__(self, ids: jax.Array | None = None) -> jax.Array:
        """int [...] to float32 [..., features]; without ids the table itself."""
        if ids is None:
            return self.embedding
        return jnp.take(self.embedding, ids, axis=0, mode="clip")


def remat_norm(normalisation, dtype: jnp.dtype):
    """A normalisation that keeps for its gradient its input alone, where that is narrower.

    It computes in float32, and differentiated as it stands keeps several float32 arrays of its
    input's shape: in bfloat16 that is most of what a layer writes and reads. They are made again.

    Args:
      normalisation: a function or the class of a module.
      dtype: of its input.
    """
    if dtype == jnp.float32:
        return normalisation
    transform = nn.remat if isinstance(normalisation, type) else jax.checkpoint
    # Nothing but the step itself could make one of both computations, and there XLA may choose.
    return transform(normalisation, prevent_cse=False)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016), drawn per example; the survivors are scaled up."""

    @nn.compact
    def __call__(self, x: jax.Array, rate: float | jax.Array, train: bool) -> jax.Array:
        """[B, ...] to the same, each example kept with probability 1 - rate."""
        if not train or (isinstance(rate, float) and rate == 0.0):
            return x
        keep = jax.random.bernoulli(
            self.make_rng("dropout"), 1.0 - rate, (x.shape[0],) + (1,) * (x.ndim - 1)
        )
        return jnp.where(keep, x / jnp.asarray(1.0 - rate, x.dtype), 0).astype(x.dtype)


def remat(module: type[nn.Module], config, static: Sequence[str] = ("train",)) -> type[nn.Module]:
    """The module as `OFAConfig.remat` wants it; values and parameters are the same.

    Args:
      module: the class of a layer.
      config: of the model.
      static: which arguments of its `__call__` are plain Python values.
    """
    if config.remat == "none":
        return module
    policy = {"full": None, "dots": _is_product, "weight_dots": _is_product_with_weights}
    arguments = list(inspect.signature(module.__call__).parameters)
    return nn.remat(
        module,
        policy=policy[config.remat],
        static_argnums=tuple(arguments.index(name) for name in static),
    )


def _is_product(primitive, *_, **__) -> bool:
    return primitive.name in ("dot_general", "conv_general_dilated")


def _is_product_with_weights(primitive, *_, **parameters) -> bool:
    """Products of activations with each other, in attention, have batch axes; weights have none."""
    if primitive.name == "dot_general":
        return not any(parameters["dimension_numbers"][1])
    return primitive.name == "conv_general_dilated"


def linear_rates(last: float, layers: int) -> list[float]:
    """Stochastic depth of each layer: from 0 at the first, linearly, to `last`."""
    return [last * i / (layers - 1) if layers > 1 else 0.0 for i in range(layers)]
