"""What training changes: one pytree, born on the mesh with the shardings it keeps."""

from collections.abc import Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ofa_jax.model import OFA
from ofa_jax.sharding.partitioner import Partitioner


@flax.struct.dataclass
class TrainState:
    """Attributes:
    step: int32 scalar, steps made; a step that was skipped counts too, its data is used up.
    skipped_steps: int32 scalar, steps whose loss or gradient was not finite.
    params: the model's parameters, float32.
    batch_stats: running statistics of batch norm.
    opt_state: of optax.
    ema_params: exponential moving average of the parameters; None without.
    """

    step: jax.Array
    skipped_steps: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema_params: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """What `OFA.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def evaluated_variables(self) -> dict[str, Any]:
        """The same with the averaged parameters, if there are any."""
        params = self.params if self.ema_params is None else self.ema_params
        return {"params": params, "batch_stats": self.batch_stats}


def _create(
    model: OFA,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    batch: Mapping[str, Any],
    ema: bool,
) -> TrainState:
    """A new state whose arrays still carry their logical axes."""
    variables = model.init(key, batch)
    return TrainState(
        step=jnp.int32(0),
        skipped_steps=jnp.int32(0),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        # optax maps over the boxes, so its moments have the axes of their parameters.
        opt_state=optimizer.init(variables["params"]),
        # Its own memory: the parameters' is given away at every step.
        ema_params=jax.tree.map(jnp.copy, variables["params"]) if ema else None,
    )


def abstract_state(
    model: OFA,
    optimizer: optax.GradientTransformation,
    partitioner: Partitioner,
    ema: bool = False,
) -> TrainState:
    """The state's shapes, dtypes and shardings, without making it. Call it outside of the mesh.

    Returns:
      A TrainState of jax.ShapeDtypeStruct.
    """
    batch = _any_batch()
    # Not within `partitioner.mesh_context()`: there, unboxing constrains, which wants concrete
    # devices.
    boxed = jax.eval_shape(
        lambda key: _create(model, optimizer, key, batch, ema),
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
    """A new state, each array made where it will stay.

    Args:
      model: to train.
      optimizer: of the run.
      abstract: of `abstract_state`.
      seed: of the initial values; they are the same on any mesh.
    """
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    batch = _any_batch()
    ema = abstract.ema_params is not None
    make = jax.jit(
        lambda key: nn.meta.unbox(_create(model, optimizer, key, batch, ema)),
        out_shardings=shardings,
    )
    return make(jax.random.key(seed))


def _any_batch() -> dict[str, Any]:
    """The smallest one: `init` adds what it needs to reach every parameter."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    return {"encoder_input_tokens": tokens, "decoder_input_tokens": tokens}
