"""AdamW with warm-up and polynomial decay, as in the official OFA code, built from optax."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax

from ofa_jax.model import parameter_groups
from ofa_jax.utils import options
from ofa_jax.utils.option_checks import checked


@checked
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

    learning_rate: options.Positive
    total_steps: options.Steps
    warmup: options.NonNegative = 0.01
    end_learning_rate: options.NonNegative = 0.0
    decay_power: options.Positive = 1.0
    clip_norm: options.Positive | None = 5.0
    beta1: options.Rate = 0.9
    beta2: options.Rate = 0.999
    epsilon: options.Positive = 1e-8
    weight_decay: options.NonNegative = 0.01
    frozen: Sequence[options.Name] = ()
    trainable_groups: Annotated[Sequence[options.Name], options.NotEmpty()] | None = None
    ema_decay: options.Rate | None = None
    ema_start: options.Natural = 0

    def __post_init__(self) -> None:
        """Raises ValueError for values that do not fit each other."""
        if self.warmup_steps > self.total_steps:
            raise ValueError(
                f"OptimizerConfig.warmup is {self.warmup}, which makes {self.warmup_steps} of "
                f"{self.total_steps} steps; give a share below 1, or a number of steps within them."
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


@checked
def epochs_to_steps(
    epochs: options.Positive, examples: options.Count, batch_size: options.Count
) -> int:
    """Returns the number of steps that go through the examples `epochs` times."""
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
