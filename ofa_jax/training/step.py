"""One step: a batch of every stream, one gradient, one update. And one of evaluation."""

from collections.abc import Callable, Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ofa_jax.model import OFA, parameter_groups
from ofa_jax.model.pack_streams import pack_streams, unpack_streams
from ofa_jax.sharding import TrainState
from ofa_jax.training import losses, metrics
from ofa_jax.training.losses import LossConfig, TokenLosses
from ofa_jax.training.metrics import TaskSums
from ofa_jax.training.optimizer import OptimizerConfig, learning_rate_schedule

Batches = Mapping[str, Mapping[str, jax.Array]]


@flax.struct.dataclass
class StepMetrics:
    """Attributes:
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


def make_train_step(
    model: OFA,
    optimizer: optax.GradientTransformation,
    optimizer_config: OptimizerConfig,
    loss_config: LossConfig,
    groups: Mapping[str, str],
    num_tasks: int,
    seed: int,
    gradient_accumulation: int = 1,
    allowed: Mapping[str, Callable[[jax.Array], jax.Array]] | None = None,
    gather: Callable[[Any], Any] | None = None,
) -> Callable[[TrainState, Batches], tuple[TrainState, StepMetrics]]:
    """The training step, to be jitted by the caller with its state donated.

    Args:
      model: OFA.
      optimizer: of the state.
      optimizer_config: what the optimiser was made of.
      loss_config: options of the loss.
      groups: stream name -> loss group. The streams are run in this order: each one's batch norm
        goes on from the statistics that the one before left.
      num_tasks: K of `task_ids`.
      seed: of dropout and stochastic depth, with the step and the stream.
      gradient_accumulation: into how many parts the batch is cut, one being computed after another
        to need less memory. Loss and gradient are those of the whole batch: every part is divided
        by the tokens of the whole. Only batch norm, unless frozen, sees each part by itself.
      allowed: stream name -> from its targets, int32 [B, T], to which tokens may be predicted, bool
        [B, T, V], e.g. `Trie.allowed_along`; of the streams without one, all tokens may.
      gather: what is done to the parameters first, see `Partitioner.gathering`.

    Returns:
      (state, {stream: batch}) -> (state, StepMetrics). A step whose loss or gradient is not finite
      leaves parameters, statistics and moments as they were, and is counted.

    Raises:
      ValueError: for accumulation with an option that must see the whole batch.
    """
    if gradient_accumulation < 1:
        raise ValueError(f"gradient_accumulation is {gradient_accumulation}; give at least 1.")
    if gradient_accumulation > 1 and loss_config.drop_worst_ratio:
        raise ValueError(
            f"gradient_accumulation is {gradient_accumulation}, but LossConfig.drop_worst_ratio "
            "ranks the tokens of the whole batch: set it to 1, or the ratio to 0."
        )
    schedule = learning_rate_schedule(optimizer_config)
    learns = (optimizer_config.frozen, optimizer_config.trainable_groups)

    def loss_of(params, batch_stats, batches: Batches, step, key, group_tokens=None):
        params = parameter_groups.stop_frozen_gradients(params, *learns)
        if gather is not None:
            params = gather(params)
        passes = loss_config.passes
        batches = {  # in the order of the groups
            name: {k: jnp.concatenate([x] * passes) for k, x in batches[name].items()}
            for name in groups
        }
        # All streams in one call: what is as large as the embedding is paid once.
        logits, updates = model.apply(
            {"params": params, "batch_stats": batch_stats},
            batches,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
            method="score_streams",
        )
        batch_stats = updates.get("batch_stats", batch_stats)
        per_stream = _losses_of_streams(
            logits, batches, loss_config, allowed or {}, model.config.vocab_size
        )
        sums = TaskSums.zeros(num_tasks)
        for name, tokens in per_stream.items():
            weights = batches[name]["decoder_loss_weights"].reshape(tokens.nll.shape)
            # The weighted value over its weight: the log shows plain nats, at no second pass.
            plain = tokens.nll / jnp.where(weights == 0, 1, weights)
            sums += metrics.task_sums(plain, tokens.scored, batches[name]["task_ids"], num_tasks)
        loss = losses.grouped_loss(per_stream, groups, loss_config, step, group_tokens)
        return loss, (batch_stats, sums)

    gradient_of = jax.value_and_grad(loss_of, has_aux=True)

    def accumulated(state: TrainState, batches: Batches, key):
        """What `gradient_of` returns, from one part of the batch after another."""
        targets = {name: batches[name]["decoder_target_tokens"] for name in groups}
        tokens = losses.count_tokens(targets, groups, loss_config)

        def one(carry, part):
            gradients, loss, sums, batch_stats = carry
            batches, number = part
            (part_loss, (batch_stats, part_sums)), part_gradients = gradient_of(
                state.params,
                batch_stats,
                batches,
                state.step,
                jax.random.fold_in(key, number),
                tokens,
            )
            gradients = jax.tree.map(jnp.add, gradients, part_gradients)
            return (gradients, loss + part_loss, sums + part_sums, batch_stats), None

        nothing = jax.tree.map(jnp.zeros_like, state.params)
        first = (nothing, jnp.float32(0), TaskSums.zeros(num_tasks), state.batch_stats)
        parts = jax.tree.map(lambda x: _parts(x, gradient_accumulation), dict(batches))
        numbers = jnp.arange(gradient_accumulation)
        (gradients, loss, sums, batch_stats), _ = jax.lax.scan(one, first, (parts, numbers))
        return (loss, (batch_stats, sums)), gradients

    def train_step(state: TrainState, batches: Batches) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        if gradient_accumulation > 1:
            (loss, (batch_stats, sums)), gradients = accumulated(state, batches, key)
        else:
            (loss, (batch_stats, sums)), gradients = gradient_of(
                state.params, state.batch_stats, batches, state.step, key
            )
        norm = optax.tree.norm(gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        good = jnp.isfinite(loss) & jnp.isfinite(norm)
        params = optax.apply_updates(state.params, updates)
        ema_params = _averaged(params, state, optimizer_config)
        changed = (params, batch_stats, opt_state, ema_params)
        unchanged = (state.params, state.batch_stats, state.opt_state, state.ema_params)
        params, batch_stats, opt_state, ema_params = jax.tree.map(
            lambda new, old: jnp.where(good, new, old), changed, unchanged
        )
        new_state = TrainState(
            step=state.step + 1,
            skipped_steps=state.skipped_steps + jnp.where(good, 0, 1),
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema_params=ema_params,
        )
        rate = jnp.asarray(schedule(state.step - state.skipped_steps), jnp.float32)
        return new_state, StepMetrics(loss, norm, optax.tree.norm(params), rate, sums)

    return train_step


def _losses_of_streams(
    logits: jax.Array,
    batches: Batches,
    config: LossConfig,
    allowed: Mapping[str, Callable[[jax.Array], jax.Array]],
    vocab_size: int,
) -> dict[str, TokenLosses]:
    """Stream -> the losses of its tokens, [B, T]; several answers to an example stand in one row.

    Args:
      logits: float32 [R, L, V], side by side as `OFA.score_streams` gives them.
      batches: of the streams.
      config: options.
      allowed: as of `make_train_step`.
      vocab_size: the first ids, those that there are.
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
    parts = {
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


def _parts(x: jax.Array, number: int) -> jax.Array:
    """[B, ...] to [number, B / number, ...]; rows stay on their device."""
    # Every number-th row: a part of neighbours would be on a part of the devices.
    x = x.reshape(x.shape[0] // number, number, *x.shape[1:]).swapaxes(0, 1)
    return nn.with_logical_constraint(x, (None, "activation_batch"))


def _averaged(params: Any, state: TrainState, config: OptimizerConfig) -> Any:
    """The moving average after this update; None without."""
    if config.ema_decay is None:
        return None
    updates = state.step - state.skipped_steps
    decay = jnp.where(updates < config.ema_start, 0.0, config.ema_decay)
    return optax.incremental_update(params, state.ema_params, 1 - decay)


def jit_train_step(
    train_step: Callable[..., tuple[TrainState, StepMetrics]], abstract_state: TrainState
) -> Callable[..., tuple[TrainState, StepMetrics]]:
    """The step compiled: the state's memory is used again, and every array stays where it is.

    Args:
      train_step: of `make_train_step`.
      abstract_state: with the shardings. Left to itself the compiler may choose others for the
        result, and the next step would be compiled again.
    """
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state)
    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None))


def make_eval_step(
    model: OFA, num_tasks: int, pad_id: int = 1
) -> Callable[[Any, Mapping[str, jax.Array], TaskSums], TaskSums]:
    """Evaluation: (variables, batch of one stream, sums) -> the sums with this batch added.

    Without dropout, smoothing, confidences or divergence: nats per token, and how many tokens are
    the most likely ones given the true ones before.
    """

    def eval_step(variables, batch, sums: TaskSums) -> TaskSums:
        logits = model.apply(variables, batch)
        targets = batch["decoder_target_tokens"]
        nll = losses.negative_log_likelihood(logits, targets)
        correct = logits.argmax(-1) == targets
        return sums + metrics.task_sums(
            nll, targets != pad_id, batch["task_ids"], num_tasks, correct
        )

    return eval_step
