"""The state that training updates: one pytree, created on the mesh with its final shardings."""

from collections.abc import Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from ofa_jax.model import OFA
from ofa_jax.sharding.mesh import Partitioner


@flax.struct.dataclass
class TrainState:
    """Everything that a training step changes.

    Attributes:
      step: steps taken so far; skipped steps count too, since their data is used up.
      skipped_steps: steps whose loss or gradient was not finite.
      params: the model's parameters, float32.
      batch_stats: running statistics of batch norm.
      opt_state: state of the optax optimizer.
      ema_params: exponential moving average of the parameters, or None.
    """

    step: Int[Array, ""]
    skipped_steps: Int[Array, ""]
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema_params: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """Variables for `OFA.apply`."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def eval_variables(self) -> dict[str, Any]:
        """Variables for evaluation: with the averaged parameters, if there are any."""
        params = self.params if self.ema_params is None else self.ema_params
        return {"params": params, "batch_stats": self.batch_stats}


def abstract_state(
    model: OFA,
    optimizer: optax.GradientTransformation,
    partitioner: Partitioner,
    ema: bool = False,
) -> TrainState:
    """Computes the shapes, dtypes and shardings of the state without allocating it.

    Call it outside `partitioner.mesh_context()`.

    Args:
      model: the model to train.
      optimizer: the optimizer of the run.
      partitioner: the mesh and its rules.
      ema: whether the state holds a moving average of the parameters.

    Returns:
      A TrainState of jax.ShapeDtypeStruct.
    """
    batch = _minimal_batch()
    # Within the mesh context, unboxing would add sharding constraints, which need concrete devices.
    boxed = jax.eval_shape(
        lambda key: _create_boxed(model, optimizer, key, batch, ema),
        jax.eval_shape(lambda: jax.random.key(0)),
    )
    shardings = partitioner.shardings(boxed)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        nn.meta.unbox(boxed),
        shardings,
    )


def create_state(
    model: OFA, optimizer: optax.GradientTransformation, abstract: TrainState, seed: int
) -> TrainState:
    """Creates a new state, each array directly on its devices.

    Args:
      model: the model to train.
      optimizer: the optimizer of the run.
      abstract: result of `abstract_state`.
      seed: seed of the initial values, which are the same on any mesh.

    Returns:
      The initial state.
    """
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    batch = _minimal_batch()
    ema = abstract.ema_params is not None
    make = jax.jit(
        lambda key: nn.meta.unbox(_create_boxed(model, optimizer, key, batch, ema)),
        out_shardings=shardings,
    )
    return make(jax.random.key(seed))


def _create_boxed(
    model: OFA,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    batch: Mapping[str, Any],
    ema: bool,
) -> TrainState:
    """Creates a new state whose arrays still carry their logical axes."""
    variables = model.init(key, batch)
    return TrainState(
        step=jnp.int32(0),
        skipped_steps=jnp.int32(0),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        # optax maps over the boxes, so the moments have the axes of their parameters.
        opt_state=optimizer.init(variables["params"]),
        # A copy, because each step donates the parameters' buffers.
        ema_params=jax.tree.map(jnp.copy, variables["params"]) if ema else None,
    )


def _minimal_batch() -> dict[str, Any]:
    """Returns the smallest batch; `OFA.init` adds inputs until every parameter is reached."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    return {"encoder_input_tokens": tokens, "decoder_input_tokens": tokens}
