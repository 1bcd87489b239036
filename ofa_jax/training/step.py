"""The training step, which makes one update from a batch of every stream; and the eval step."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from ofa_jax.model import OFA, parameter_groups
from ofa_jax.model.factored_logits import FactoredLogits
from ofa_jax.model.pack_streams import pack_streams, unpack_streams
from ofa_jax.sharding import TrainState
from ofa_jax.training import losses, metrics
from ofa_jax.training.losses import LossConfig, TokenLosses
from ofa_jax.training.metrics import TaskSums
from ofa_jax.training.optimizer import OptimizerConfig, learning_rate_schedule

StreamBatches = Mapping[str, Mapping[str, jax.Array]]
"""Stream name -> the arrays of its batch."""

TargetMask = Callable[[Int[Array, "b t"]], Bool[Array, "b t v"]]
"""From target tokens to the tokens that may be predicted at each position."""


@flax.struct.dataclass
class StepMetrics:
    """Metrics of one step, on the device.

    Attributes:
      loss: float32 scalar, the sum of the groups.
      gradient_norm: float32 scalar, before clipping.
      parameter_norm: float32 scalar, after the update.
      learning_rate: float32 scalar.
      tasks: sums of this step.
    """

    loss: jax.Array
    gradient_norm: jax.Array
    parameter_norm: jax.Array
    learning_rate: jax.Array
    tasks: TaskSums


TrainStep = Callable[[TrainState, StreamBatches], tuple[TrainState, StepMetrics]]
EvalStep = Callable[[Any, Mapping[str, jax.Array], TaskSums], TaskSums]
LossOutput = tuple[jax.Array, tuple[PyTree, TaskSums]]
"""(loss, (batch statistics, sums per task))."""


class LossFunction(Protocol):
    """The loss of a batch, or of a part of one."""

    def __call__(
        self,
        params: PyTree,
        batch_stats: PyTree,
        batches: StreamBatches,
        step: jax.Array,
        key: jax.Array,
        group_tokens: Mapping[str, jax.Array] | None = None,
    ) -> LossOutput:
        """Returns the loss; `group_tokens` are those of the whole batch, see `grouped_loss`."""


def make_train_step(
    model: OFA,
    optimizer: optax.GradientTransformation,
    optimizer_config: OptimizerConfig,
    loss_config: LossConfig,
    groups: Mapping[str, str],
    num_tasks: int,
    seed: int,
    gradient_accumulation: int = 1,
    allowed: Mapping[str, TargetMask] | None = None,
    gather: Callable[[PyTree], PyTree] | None = None,
) -> TrainStep:
    """Makes the training step; the caller jits it with the state donated.

    Args:
      model: OFA.
      optimizer: of the state.
      optimizer_config: what the optimiser was made from.
      loss_config: options of the loss.
      groups: stream name -> loss group. The streams are computed in this order: the batch norm of
        each one continues from the statistics of the one before.
      num_tasks: K of `task_ids`.
      seed: of dropout and stochastic depth, together with the step and the stream.
      gradient_accumulation: number of parts into which the batch is cut. They are computed one
        after another, which needs less memory. Loss and gradient are those of the whole batch:
        every part is divided by the tokens of the whole. Only batch norm, unless frozen, sees each
        part by itself.
      allowed: stream name -> mask of its targets, e.g. `Trie.allowed_along`. In streams without
        one, all tokens may be predicted.
      gather: applied to the parameters first, see `Partitioner.make_gather_params`.

    Returns:
      (state, {stream: batch}) -> (state, StepMetrics). A step whose loss or gradient is not finite
      leaves parameters, statistics and moments unchanged, and is counted.

    Raises:
      ValueError: accumulation with an option that needs the whole batch.
    """
    _check_accumulation(gradient_accumulation, loss_config)
    loss_function = _make_loss_function(
        model, optimizer_config, loss_config, groups, num_tasks, allowed or {}, gather
    )
    gradient_function = jax.value_and_grad(loss_function, has_aux=True)
    schedule = learning_rate_schedule(optimizer_config)

    def train_step(state: TrainState, batches: StreamBatches) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        if gradient_accumulation > 1:
            (loss, (batch_stats, sums)), gradients = _accumulate_gradients(
                gradient_function,
                state,
                batches,
                key,
                gradient_accumulation,
                groups,
                loss_config,
                num_tasks,
            )
        else:
            (loss, (batch_stats, sums)), gradients = gradient_function(
                state.params, state.batch_stats, batches, state.step, key
            )
        norm = optax.tree.norm(gradients)
        new_state = _update(state, gradients, batch_stats, loss, norm, optimizer, optimizer_config)
        rate = jnp.asarray(schedule(state.step - state.skipped_steps), jnp.float32)
        return new_state, StepMetrics(loss, norm, optax.tree.norm(new_state.params), rate, sums)

    return train_step


def _check_accumulation(gradient_accumulation: int, loss_config: LossConfig) -> None:
    """Raises ValueError for accumulation with an option that needs the whole batch."""
    if gradient_accumulation < 1:
        raise ValueError(f"gradient_accumulation is {gradient_accumulation}; give at least 1.")
    if gradient_accumulation > 1 and loss_config.drop_worst_ratio:
        raise ValueError(
            f"gradient_accumulation is {gradient_accumulation}, but LossConfig.drop_worst_ratio "
            "ranks the tokens of the whole batch: set it to 1, or the ratio to 0."
        )


def _make_loss_function(
    model: OFA,
    optimizer_config: OptimizerConfig,
    loss_config: LossConfig,
    groups: Mapping[str, str],
    num_tasks: int,
    allowed: Mapping[str, TargetMask],
    gather: Callable[[PyTree], PyTree] | None,
) -> LossFunction:
    """Makes the function that is differentiated; arguments as of `make_train_step`."""
    learns = (optimizer_config.frozen, optimizer_config.trainable_groups)

    def loss_function(
        params: PyTree,
        batch_stats: PyTree,
        batches: StreamBatches,
        step: jax.Array,
        key: jax.Array,
        group_tokens: Mapping[str, jax.Array] | None = None,
    ) -> LossOutput:
        params = parameter_groups.stop_frozen_gradients(params, *learns)
        if gather is not None:
            params = gather(params)
        passes = loss_config.passes
        batches = {  # in the order of the groups
            name: {k: jnp.concatenate([x] * passes) for k, x in batches[name].items()}
            for name in groups
        }
        # One call for all streams: arrays as large as the embedding are read and written once.
        logits, updates = model.apply(
            {"params": params, "batch_stats": batch_stats},
            batches,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
            method="factor_streams" if loss_config.logits_in_blocks else "score_streams",
        )
        batch_stats = updates.get("batch_stats", batch_stats)
        per_stream = _losses_of_streams(
            logits, batches, loss_config, allowed, model.config.vocab_size
        )
        sums = TaskSums.zeros(num_tasks)
        for name, tokens in per_stream.items():
            weights = batches[name]["decoder_loss_weights"].reshape(tokens.nll.shape)
            # Dividing by the weight recovers the plain nats for the log without a second pass.
            plain = tokens.nll / jnp.where(weights == 0, 1, weights)
            sums += metrics.task_sums(plain, tokens.scored, batches[name]["task_ids"], num_tasks)
        loss = losses.grouped_loss(per_stream, groups, loss_config, step, group_tokens)
        return loss, (batch_stats, sums)

    return loss_function


def _accumulate_gradients(
    gradient_function: Callable[..., tuple[LossOutput, PyTree]],
    state: TrainState,
    batches: StreamBatches,
    key: jax.Array,
    num_parts: int,
    groups: Mapping[str, str],
    loss_config: LossConfig,
    num_tasks: int,
) -> tuple[LossOutput, PyTree]:
    """Returns what `gradient_function` would, computed from one part of the batch after another."""
    targets = {name: batches[name]["decoder_target_tokens"] for name in groups}
    tokens = losses.count_tokens(targets, groups, loss_config)

    def add_part(carry: Any, part: Any) -> tuple[Any, None]:
        gradients, loss, sums, batch_stats = carry
        part_batches, number = part
        (part_loss, (batch_stats, part_sums)), part_gradients = gradient_function(
            state.params,
            batch_stats,
            part_batches,
            state.step,
            jax.random.fold_in(key, number),
            tokens,
        )
        gradients = jax.tree.map(jnp.add, gradients, part_gradients)
        return (gradients, loss + part_loss, sums + part_sums, batch_stats), None

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    first = (zeros, jnp.float32(0), TaskSums.zeros(num_tasks), state.batch_stats)
    parts = jax.tree.map(lambda x: _split(x, num_parts), dict(batches))
    numbers = jnp.arange(num_parts)
    (gradients, loss, sums, batch_stats), _ = jax.lax.scan(add_part, first, (parts, numbers))
    return (loss, (batch_stats, sums)), gradients


def _split(x: Float[Array, "b ..."], num_parts: int) -> Float[Array, "n part ..."]:
    """Cuts a batch into parts, [B, ...] to [num_parts, B / num_parts, ...]; rows stay in place."""
    # Every num_parts-th row: a part of neighbouring rows would be on a part of the devices.
    x = x.reshape(x.shape[0] // num_parts, num_parts, *x.shape[1:]).swapaxes(0, 1)
    return nn.with_logical_constraint(x, (None, "activation_batch"))


def _update(
    state: TrainState,
    gradients: PyTree,
    batch_stats: PyTree,
    loss: Float[Array, ""],
    norm: Float[Array, ""],
    optimizer: optax.GradientTransformation,
    config: OptimizerConfig,
) -> TrainState:
    """Returns the next state; if loss or gradient norm is not finite, only its counters change."""
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    params = optax.apply_updates(state.params, updates)
    ema_params = _moving_average(params, state, config)
    changed = (params, batch_stats, opt_state, ema_params)
    unchanged = (state.params, state.batch_stats, state.opt_state, state.ema_params)
    params, batch_stats, opt_state, ema_params = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), changed, unchanged
    )
    return TrainState(
        step=state.step + 1,
        skipped_steps=state.skipped_steps + jnp.where(finite, 0, 1),
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        ema_params=ema_params,
    )


def _moving_average(params: PyTree, state: TrainState, config: OptimizerConfig) -> PyTree:
    """Returns the moving average of the parameters after this update, or None without one."""
    if config.ema_decay is None:
        return None
    updates = state.step - state.skipped_steps
    decay = jnp.where(updates < config.ema_start, 0.0, config.ema_decay)
    return optax.incremental_update(params, state.ema_params, 1 - decay)


def _losses_of_streams(
    logits: Float[Array, "r l v"] | FactoredLogits,
    batches: StreamBatches,
    config: LossConfig,
    allowed: Mapping[str, TargetMask],
    vocab_size: int,
) -> dict[str, TokenLosses]:
    """Returns stream -> losses of its tokens, [B, T]; several targets of an example share a row.

    Args:
      logits: packed as `OFA.score_streams` or `factor_streams` returns them.
      batches: of the streams.
      config: options.
      allowed: as of `make_train_step`.
      vocab_size: number of ids that exist; logits may have more columns.
    """
    targets, weights = (
        [x.reshape(len(x), -1) for x in (batch[name] for batch in batches.values())]
        for name in ("decoder_target_tokens", "decoder_loss_weights")
    )
    shapes = [x.shape for x in targets]
    mask = None
    if allowed:
        mask = pack_streams(
            [
                allowed[name](x) if name in allowed else jnp.ones((*x.shape, vocab_size), bool)
                for name, x in zip(batches, targets, strict=True)
            ],
            shapes,
        )
    tokens = losses.token_losses(
        logits, pack_streams(targets), pack_streams(weights), config, mask, vocab_size
    )
    parts: dict[str, Any] = {
        "loss": unpack_streams(tokens.loss, shapes),
        "nll": unpack_streams(tokens.nll, shapes),
        "scored": unpack_streams(tokens.scored, shapes),
        "divergence": [None] * len(shapes),
    }
    if tokens.divergence is not None:
        halves = [(rows // 2, length) for rows, length in shapes]
        parts["divergence"] = unpack_streams(tokens.divergence, halves)
    return {
        name: TokenLosses(**{field: values[k] for field, values in parts.items()})
        for k, name in enumerate(batches)
    }


def jit_train_step(train_step: TrainStep, abstract_state: TrainState) -> Any:
    """Jits the training step: the state's memory is reused and every array keeps its sharding.

    Args:
      train_step: of `make_train_step`.
      abstract_state: with the shardings. Left to itself the compiler may choose others for the
        result, and the next step would be compiled again.

    Returns:
      What `jax.jit` returns, to be called or lowered.
    """
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state)
    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None))


def make_eval_step(model: OFA, num_tasks: int, pad_id: int = 1) -> EvalStep:
    """Makes the eval step: (variables, batch of one stream, sums) -> the sums with the batch added.

    Without dropout, smoothing, confidences or divergence: nats per token, and the number of tokens
    that are the most likely ones given the true ones before.
    """

    def eval_step(variables: PyTree, batch: Mapping[str, jax.Array], sums: TaskSums) -> TaskSums:
        logits: Any = model.apply(variables, batch)
        targets = batch["decoder_target_tokens"]
        nll = losses.negative_log_likelihood(logits, targets)
        correct = logits.argmax(-1) == targets
        return sums + metrics.task_sums(
            nll, targets != pad_id, batch["task_ids"], num_tasks, correct
        )

    return eval_step
