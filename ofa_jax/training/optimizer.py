"""AdamW with warm-up and polynomial decay, as in the official OFA code, built from optax."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ofa_jax.model import parameter_groups


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser and its schedule.

    Attributes:
      learning_rate: the peak; 1e-4 in the released pretraining scripts, 2e-4 in the paper.
      total_steps: when the rate has reached `end_learning_rate`.
      warmup: steps over which the rate grows linearly; a number below 1 is a share of all steps.
      end_learning_rate: at the end of the decay.
      decay_power: 1 is a straight line.
      clip_norm: the gradient's global norm is cut to this; None for no clipping.
      beta1, beta2, epsilon: of Adam.
      weight_decay: decoupled, of all parameters.
      frozen: groups of parameters that are not trained, see `trainable`.
      trainable_groups: groups that alone are trained; None for all.
      ema_decay: keep an exponential moving average of the parameters, which is validated and saved
        beside them; 0.9999 in the published fine-tuning on VQA. None for none.
      ema_start: updates before the average begins; until then it follows the parameters.
    """

    learning_rate: float
    total_steps: int
    warmup: float = 0.01
    end_learning_rate: float = 0.0
    decay_power: float = 1.0
    clip_norm: float | None = 5.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    frozen: Sequence[str] = ()
    trainable_groups: Sequence[str] | None = None
    ema_decay: float | None = None
    ema_start: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        if self.learning_rate <= 0:
            raise ValueError(
                f"OptimizerConfig.learning_rate is {self.learning_rate}; it must be positive."
            )
        if self.total_steps < 1:
            raise ValueError(
                f"OptimizerConfig.total_steps is {self.total_steps}; it must be at least 1."
            )
        if not 0 <= self.warmup_steps <= self.total_steps:
            raise ValueError(
                f"OptimizerConfig.warmup is {self.warmup}, which makes {self.warmup_steps} of "
                f"{self.total_steps} steps; give a share below 1, or a number of steps within them."
            )
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(
                f"OptimizerConfig.clip_norm is {self.clip_norm}; it must be positive, or None."
            )
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(
                f"OptimizerConfig.ema_decay is {self.ema_decay}; give 0 <= x < 1, or None."
            )
        parameter_groups.check_groups(self.frozen, "OptimizerConfig.frozen")
        parameter_groups.check_groups(
            self.trainable_groups or (), "OptimizerConfig.trainable_groups"
        )

    @property
    def warmup_steps(self) -> int:
        """Steps of warm-up."""
        if 0 < self.warmup < 1:
            return round(self.warmup * self.total_steps)
        return int(self.warmup)


def epochs_to_steps(epochs: float, examples: int, batch_size: int) -> int:
    """Returns the number of steps that go through the examples `epochs` times.

    Raises:
      ValueError: a number that is not positive.
    """
    if not (epochs > 0 and examples >= 1 and batch_size >= 1):
        raise ValueError(
            f"epochs_to_steps: {epochs} epochs of {examples} examples in batches of {batch_size} "
            "give no steps; all three must be positive."
        )
    return math.ceil(epochs * examples / batch_size)


def learning_rate_schedule(config: OptimizerConfig) -> optax.Schedule:
    """Returns the schedule: update number (from 0) -> learning rate.

    The official code counts finished updates, and begins with the rate of the first instead of
    zero: updates 0 and 1 both have peak / warmup_steps.
    """
    warmup = config.warmup_steps
    decay = optax.polynomial_schedule(
        config.learning_rate,
        config.end_learning_rate,
        config.decay_power,
        max(config.total_steps - warmup, 1),
    )
    if not warmup:
        return decay
    rising = optax.linear_schedule(0.0, config.learning_rate, warmup)
    joined = optax.join_schedules([rising, decay], [warmup])
    return lambda count: joined(jnp.maximum(count, 1))


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Builds clipping and AdamW; frozen parameters get no updates and have no moments.

    Raises:
      ValueError: on initialisation, if nothing is trained.
    """
    clip = optax.identity()
    if config.clip_norm is not None:
        clip = optax.clip_by_global_norm(config.clip_norm)
    learn = optax.chain(
        clip,
        optax.adamw(
            learning_rate_schedule(config),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
        ),
    )
    if not config.frozen and config.trainable_groups is None:
        return learn

    def labels(params: Any) -> Any:
        """Labels each parameter with the transformation that it gets."""
        learns = parameter_groups.trainable_mask(params, config.frozen, config.trainable_groups)
        if not any(jax.tree.leaves(learns)):
            raise ValueError(
                f"OptimizerConfig trains nothing (trainable_groups={config.trainable_groups}, "
                f"frozen={config.frozen}): does the model have what it names?"
            )
        return jax.tree.map(lambda yes: "learn" if yes else "rest", learns)

    return optax.multi_transform({"learn": learn, "rest": optax.set_to_zero()}, labels)
