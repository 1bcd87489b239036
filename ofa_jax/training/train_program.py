"""The compiled part of a run: network, state and training step, built by one function.

`ofa_jax.train` runs what `build_train_program` returns and `ofa_jax.plan` compiles it for other
chips, so that a plan describes exactly the step that trains.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax

from ofa_jax.data.features import Stream
from ofa_jax.decoding import Trie
from ofa_jax.model import OFA, OFAConfig, parameter_groups
from ofa_jax.sharding import Partitioner, TrainState, train_state
from ofa_jax.training import flops, step
from ofa_jax.training.losses import LossConfig
from ofa_jax.training.optimizer import OptimizerConfig, make_optimizer


@dataclasses.dataclass(frozen=True)
class TrainProgram:
    """Everything of a run that is compiled, and what it is compiled for.

    Attributes:
      network: the model that trains, see `training_model`.
      optimizer: of the state.
      optimizer_config: what the optimiser was made from.
      loss: options of the loss.
      partitioner: the mesh.
      abstract_state: shapes and shardings of the state.
      train_step, eval_step: not jitted.
    """

    network: OFA
    optimizer: optax.GradientTransformation
    optimizer_config: OptimizerConfig
    loss: LossConfig
    partitioner: Partitioner
    abstract_state: TrainState
    train_step: step.TrainStep
    eval_step: step.EvalStep

    def new_state(self, seed: int) -> TrainState:
        """Makes the state of step 0, with its parameters drawn from a seed."""
        return train_state.create_state(self.network, self.optimizer, self.abstract_state, seed)

    def lower(self, batches: Mapping[str, Mapping[str, Any]]) -> jax.stages.Lowered:
        """Lowers the training step as the loop compiles it.

        Args:
          batches: {stream: batch}, arrays or shapes with their shardings.
        """
        jitted = step.jit_train_step(self.train_step, self.abstract_state)
        with self.partitioner.mesh_context():
            return jitted.lower(self.abstract_state, batches)

    def model_flops(self, batches: Mapping[str, Mapping[str, Any]]) -> int:
        """Returns the operations of a step by the formula of `training.flops`.

        Args:
          batches: {stream: batch} of all hosts, arrays or shapes.
        """
        params, config = self.abstract_state.params, self.optimizer_config
        learns = parameter_groups.trainable_mask(params, config.frozen, config.trainable_groups)
        factors = flops.training_factors(params, learns)
        return flops.training_flops(batches, self.network.config, self.loss.passes, factors)

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the model."""
        return sum(x.size for x in jax.tree.leaves(self.abstract_state.params))


def training_model(model: OFAConfig, optimizer: OptimizerConfig) -> OFAConfig:
    """Returns the model as it trains: batch norm is frozen with the ResNet."""
    if "resnet" in optimizer.frozen or "encoder" in optimizer.frozen:
        # Moving statistics under frozen kernels would change what is said to be frozen.
        return model.replace(freeze_batch_norm=True)
    return model


def build_train_program(
    model: OFAConfig,
    optimizer: OptimizerConfig,
    loss: LossConfig | None,
    partitioner: Partitioner,
    loss_groups: Mapping[str, str],
    num_tasks: int,
    seed: int = 0,
    gradient_accumulation: int = 1,
    candidates: Mapping[str, Trie] | None = None,
) -> TrainProgram:
    """Builds the network, the state's shapes and the steps of a run; compiles nothing.

    Args:
      model: sizes and options, with the vocabulary size of the run.
      optimizer: and its schedule.
      loss: options of the loss; plain cross-entropy when None.
      partitioner: the mesh.
      loss_groups: stream name -> loss group, see `loss_groups_of`.
      num_tasks: number of tasks of all streams.
      seed: of dropout.
      gradient_accumulation: see `step.make_train_step`.
      candidates: stream name -> trie of the only targets that have probability; a stream without
        one is trained on all texts.

    Raises:
      ValueError: options that do not go together, or nothing to train.
    """
    model = training_model(model, optimizer).on_platform(partitioner.platform)
    loss = loss or LossConfig(pad_id=model.pad_id)
    network, transformation = OFA(model), make_optimizer(optimizer)
    abstract = train_state.abstract_state(
        network, transformation, partitioner, optimizer.ema_decay is not None
    )
    train_step = step.make_train_step(
        network,
        transformation,
        optimizer,
        loss,
        loss_groups,
        num_tasks,
        seed,
        gradient_accumulation,
        {name: trie.allowed_along for name, trie in (candidates or {}).items()},
        partitioner.make_gather_params(abstract.params, model.dtype),
    )
    return TrainProgram(
        network=network,
        optimizer=transformation,
        optimizer_config=optimizer,
        loss=loss,
        partitioner=partitioner,
        abstract_state=abstract,
        train_step=train_step,
        eval_step=step.make_eval_step(network, num_tasks, model.pad_id),
    )


def loss_groups_of(streams: Sequence[Stream]) -> dict[str, str]:
    """Returns stream name -> loss group, in the order in which the step computes the streams."""
    return {stream.name: stream.loss_group for stream in streams}


def abstract_batches(
    streams: Sequence[Stream], batches: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Returns the shapes of the batches of all hosts.

    Args:
      streams: of the run.
      batches: {stream: batch}, this host's rows.
    """
    return {
        stream.name: {
            name: jax.ShapeDtypeStruct((stream.batch_size, *array.shape[1:]), array.dtype)
            for name, array in batches[stream.name].items()
        }
        for stream in streams
    }
