"""The programs of a run that can be planned: the training step, and decoding.

Both are traced from shapes and shardings alone, for devices that need not exist. The training step
comes from `training.train_program.build_train_program`, as in `ofa_jax.train`. A plan opens no
data; where the step depends on data, a stand-in takes its place:

* `restrict_to_candidates`: a trie of `NUM_STAND_IN_CANDIDATES` random candidates. The mask that is
  computed from it has the size of the logits, whatever the number of candidates;
* the number of tasks, whose losses are summed separately: eight, as in pretraining.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax
import numpy as np

from ofa_jax.data import features
from ofa_jax.data.features import AT_LEAST_ONE_STREAM, Stream
from ofa_jax.decoding import DecodingConfig, Trie, make_decoder
from ofa_jax.model import OFA, OFAConfig
from ofa_jax.sharding import Partitioner, train_state
from ofa_jax.training.flops import decoding_flops
from ofa_jax.training.losses import LossConfig
from ofa_jax.training.optimizer import OptimizerConfig, make_optimizer
from ofa_jax.training.self_critical import SelfCriticalConfig
from ofa_jax.training.train_program import build_train_program, loss_groups_of
from ofa_jax.utils import options
from ofa_jax.utils.option_checks import checked

NUM_STAND_IN_CANDIDATES = 3129
"""The number of answers that the published fine-tuning on VQA chooses from."""

AbstractBatch = dict[str, jax.ShapeDtypeStruct]


@checked
@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """What decides the cost of a run: parameters of `train`, and of decoding.

    Fields that are not listed are those of `training.build.build_run`.

    Attributes:
      partitioner: the mesh.
      decoding: of the program `decode`.
      num_tasks: number of tasks of all streams.
      candidates: stream name -> trie, where they are known; stand-ins when None.
    """

    model: OFAConfig
    streams: Annotated[Sequence[Stream], options.NotEmpty(), AT_LEAST_ONE_STREAM]
    optimizer: OptimizerConfig
    partitioner: Partitioner
    loss: LossConfig | None = None
    gradient_accumulation: options.Count = 1
    restrict_to_candidates: bool = False
    self_critical: SelfCriticalConfig | None = None
    seed: options.Seed = 0
    decoding: DecodingConfig = DecodingConfig()
    num_tasks: options.Count = 8
    candidates: Mapping[str, Trie] | None = None

    @property
    def stand_ins(self) -> list[str]:
        """What stands in for data in the training step, in words."""
        if self.restrict_to_candidates and self.candidates is None:
            return [f"{NUM_STAND_IN_CANDIDATES:,} random candidates instead of those of the task"]
        return []


@dataclasses.dataclass(frozen=True)
class TracedProgram:
    """A program that can be compiled.

    Attributes:
      lowered: by `jax.jit`.
      held: kind -> arrays (with shardings) that stay on the devices from one call to the next.
      batches: its other argument.
      num_parameters: of the model.
      model_flops: of one call, by the formulas of `ofa_jax.training.flops`.
      examples: of one call.
      stand_ins: what stands in for data, in words.
      trip_count: of loops that may stop early; None if there are none.
    """

    lowered: jax.stages.Lowered
    held: Mapping[str, Any]
    batches: Any
    num_parameters: int
    model_flops: int
    examples: int
    stand_ins: Sequence[str] = ()
    trip_count: int | None = None


def trace_training(run: PlannedRun) -> TracedProgram:
    """Traces one training step over a batch of every stream.

    Raises:
      ValueError: a batch that does not divide, or options that do not go together.
    """
    candidates = None
    if run.restrict_to_candidates:
        candidates = run.candidates or {
            stream.name: stand_in_trie(run.model.vocab_size) for stream in run.streams
        }
    program = build_train_program(
        run.model,
        run.optimizer,
        run.loss,
        run.partitioner,
        loss_groups_of(run.streams),
        run.num_tasks,
        run.seed,
        run.gradient_accumulation,
        candidates,
    )
    batches = {stream.name: abstract_batch(stream, run) for stream in run.streams}
    if run.self_critical is not None:
        (stream,) = run.streams
        batches[stream.name] |= _sampled_targets(
            program.network, program.abstract_state.variables, batches[stream.name], run
        )
    state = program.abstract_state
    return TracedProgram(
        lowered=program.lower(batches),
        held={
            "parameters": (state.params, state.batch_stats),
            "optimizer": state.opt_state,
            "average": state.ema_params,
        },
        batches=batches,
        num_parameters=program.num_parameters,
        model_flops=program.model_flops(batches),
        examples=sum(stream.batch_size for stream in run.streams),
        stand_ins=run.stand_ins,
    )


def trace_decoding(run: PlannedRun) -> TracedProgram:
    """Traces decoding of one batch of the first stream, of all patches, at the maximum length.

    Raises:
      ValueError: a batch that does not divide, or settings that do not fit.
    """
    partitioner, stream = run.partitioner, run.streams[0]
    model = run.model.on_platform(partitioner.platform)
    network, optimizer = OFA(model), make_optimizer(run.optimizer)
    abstract = train_state.abstract_state(network, optimizer, partitioner)
    stream = dataclasses.replace(stream, num_sampled_patches=None)
    batch = {
        name: array
        for name, array in abstract_batch(stream, run).items()
        if name.startswith("encoder_") or name == "decoder_code_mask"
    }
    decode = make_decoder(network, run.decoding)
    key = jax.eval_shape(lambda: jax.random.key(0)) if run.decoding.method == "sample" else None
    with partitioner.mesh_context():
        lowered = jax.jit(decode).lower(abstract.variables, batch, key)
    length = 1 + run.decoding.max_output_length(batch["encoder_input_tokens"].shape[1], model)
    return TracedProgram(
        lowered=lowered,
        held={"parameters": abstract.variables},
        batches=batch,
        num_parameters=sum(x.size for x in jax.tree.leaves(abstract.params)),
        model_flops=decoding_flops(batch, model, run.decoding.beam_size, length),
        examples=stream.batch_size,
        trip_count=length,
    )


def abstract_batch(stream: Stream, run: PlannedRun) -> AbstractBatch:
    """Returns the shapes and shardings of a batch; raises ValueError if it does not divide."""
    shards = run.partitioner.num_data_shards * run.gradient_accumulation
    if stream.batch_size % shards:
        raise ValueError(
            f"Stream {stream.name!r} has a batch_size of {stream.batch_size}, which does not "
            f"divide over {run.partitioner.num_data_shards} devices of the axes data and fsdp "
            f"with train.gradient_accumulation = {run.gradient_accumulation}: make it a "
            f"multiple of {shards}, or use Partitioner.tensor."
        )
    return {
        name: jax.ShapeDtypeStruct(
            (stream.batch_size, *array.shape),
            array.dtype,
            sharding=run.partitioner.batch_sharding,
        )
        for name, array in features.empty_features(stream, 0).items()
    }


def stand_in_trie(vocab_size: int) -> Trie:
    """Returns a trie of random candidates of one to four tokens."""
    rng = np.random.default_rng(0)
    sequences = [
        rng.integers(features.EOS_ID + 2, vocab_size, size=1 + number % 4).tolist()
        for number in range(NUM_STAND_IN_CANDIDATES)
    ]
    return Trie.from_sequences(sequences, vocab_size)


def _sampled_targets(
    network: OFA, variables: Any, batch: AbstractBatch, run: PlannedRun
) -> AbstractBatch:
    """Returns the decoder's arrays of self-critical training, [B, G, T] of G samples each."""
    assert run.self_critical is not None
    decode = make_decoder(network, run.self_critical.decoding)
    encoder_inputs = {name: x for name, x in batch.items() if not name.startswith("decoder_")}
    shape = jax.eval_shape(decode, variables, encoder_inputs, jax.random.key(0)).tokens.shape
    return {
        name: jax.ShapeDtypeStruct(shape, batch[name].dtype, sharding=batch[name].sharding)
        for name in ("decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights")
    }


PROGRAMS = {"train": trace_training, "decode": trace_decoding}
"""By the names of `--program`."""
