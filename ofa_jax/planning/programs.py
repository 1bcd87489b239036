"""The programs of a run that can be planned: the training step, and the one that writes answers.

Both are traced with shapes and shardings alone, for devices that need not be there.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from ofa_jax.data import features
from ofa_jax.data.features import Stream
from ofa_jax.decoding import DecodingConfig, make_decoder
from ofa_jax.model import OFA, OFAConfig
from ofa_jax.model.parameter_groups import trainable_mask
from ofa_jax.sharding import Partitioner, train_state
from ofa_jax.training import step
from ofa_jax.training.flops import decoding_flops, training_factors, training_flops
from ofa_jax.training.losses import LossConfig
from ofa_jax.training.optimizer import OptimizerConfig, make_optimizer

_NUM_TASKS = 8


@dataclasses.dataclass(frozen=True)
class Parts:
    """What of a run decides its cost; all fields but `decoding` are parameters of `train`."""

    model: OFAConfig
    streams: Sequence[Stream]
    optimizer: OptimizerConfig
    loss: LossConfig | None
    partitioner: Partitioner
    gradient_accumulation: int
    decoding: DecodingConfig = DecodingConfig()


@dataclasses.dataclass(frozen=True)
class Traced:
    """A program that can be compiled.

    Attributes:
      lowered: by `jax.jit`.
      held: kind -> arrays (with shardings) that stay on the devices from one call to the next.
      batches: its other argument.
      num_parameters: of the model.
      model_flops: of one call, by the formulas of `ofa_jax.training.flops`.
      examples: of one call.
      trips: of loops that stop when they like; None for none.
    """

    lowered: Any
    held: Mapping[str, Any]
    batches: Any
    num_parameters: int
    model_flops: int
    examples: int
    trips: int | None = None


def training(parts: Parts) -> Traced:
    """One step over a batch of every stream.

    Raises:
      ValueError: a batch that does not divide.
    """
    model, partitioner = parts.model, parts.partitioner
    if "resnet" in parts.optimizer.frozen or "encoder" in parts.optimizer.frozen:
        model = model.replace(freeze_batch_norm=True)
    network, optimizer = OFA(model), make_optimizer(parts.optimizer)
    loss = parts.loss or LossConfig(pad_id=model.pad_id)
    ema = parts.optimizer.ema_decay is not None
    abstract = train_state.abstract_state(network, optimizer, partitioner, ema)
    batches = {stream.name: abstract_batch(stream, parts) for stream in parts.streams}
    groups = {stream.name: stream.loss_group for stream in parts.streams}
    train_step = step.make_train_step(
        network,
        optimizer,
        parts.optimizer,
        loss,
        groups,
        _NUM_TASKS,
        0,
        parts.gradient_accumulation,
        gather=partitioner.make_gather_params(abstract.params, model.dtype),
    )
    learns = trainable_mask(
        abstract.params, parts.optimizer.frozen, parts.optimizer.trainable_groups
    )
    with partitioner.mesh_context():
        lowered = step.jit_train_step(train_step, abstract).lower(abstract, batches)
    return Traced(
        lowered=lowered,
        held={
            "parameters": (abstract.params, abstract.batch_stats),
            "optimizer": abstract.opt_state,
            "average": abstract.ema_params,
        },
        batches=batches,
        num_parameters=sum(x.size for x in jax.tree.leaves(abstract.params)),
        model_flops=training_flops(
            batches, model, loss.passes, training_factors(abstract.params, learns)
        ),
        examples=sum(stream.batch_size for stream in parts.streams),
    )


def decoding(parts: Parts) -> Traced:
    """Answers to one batch of the first stream, all patches seen, as long as they may get.

    Raises:
      ValueError: a batch that does not divide, or settings that do not fit.
    """
    model, partitioner, stream = parts.model, parts.partitioner, parts.streams[0]
    network, optimizer = OFA(model), make_optimizer(parts.optimizer)
    abstract = train_state.abstract_state(network, optimizer, partitioner)
    stream = dataclasses.replace(stream, num_sampled_patches=None)
    batch = {
        name: array
        for name, array in abstract_batch(stream, parts).items()
        if name.startswith("encoder_") or name == "decoder_code_mask"
    }
    decode = make_decoder(network, parts.decoding)
    key = jax.eval_shape(lambda: jax.random.key(0)) if parts.decoding.method == "sample" else None
    with partitioner.mesh_context():
        lowered = jax.jit(decode).lower(abstract.variables, batch, key)
    length = 1 + parts.decoding.max_output_length(batch["encoder_input_tokens"].shape[1], model)
    return Traced(
        lowered=lowered,
        held={"parameters": abstract.variables},
        batches=batch,
        num_parameters=sum(x.size for x in jax.tree.leaves(abstract.params)),
        model_flops=decoding_flops(batch, model, parts.decoding.beam_size, length),
        examples=stream.batch_size,
        trips=length,
    )


def abstract_batch(stream: Stream, parts: Parts) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a batch, on the devices.

    Raises:
      ValueError: it does not divide.
    """
    shards = parts.partitioner.num_data_shards * parts.gradient_accumulation
    if stream.batch_size % shards:
        raise ValueError(
            f"Stream {stream.name!r} has a batch_size of {stream.batch_size}, which does not "
            f"divide over {parts.partitioner.num_data_shards} devices of the axes data and fsdp "
            f"with train.gradient_accumulation = {parts.gradient_accumulation}: make it a "
            f"multiple of {shards}, or use Partitioner.tensor."
        )
    return {
        name: jax.ShapeDtypeStruct(
            (stream.batch_size, *array.shape),
            array.dtype,
            sharding=parts.partitioner.batch_sharding,
        )
        for name, array in features.empty_features(stream, 0).items()
    }


PROGRAMS = {"train": training, "decode": decoding}
"""By the names of `--program`."""
