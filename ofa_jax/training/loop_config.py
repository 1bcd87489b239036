"""`LoopConfig`: when the training loop logs, saves, validates and ends."""

import dataclasses
from typing import Annotated

from ofa_jax.training import validation
from ofa_jax.utils import options
from ofa_jax.utils.option_checks import checked


@checked
@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """When the training loop logs, saves, validates and ends.

    Attributes:
      total_steps: number of steps of the whole run.
      log_period: steps between two logs; the host waits for the devices only then.
      checkpoint_period: steps between two checkpoints; the last step is always saved.
      validation_period: steps between two validations; 0 for one at the end.
      checkpoints_to_keep: number of newest checkpoints that are kept; None for all.
      checkpoint_keep_period: checkpoints at multiples of this step are never deleted; None for
        none.
      best_metric: also keeps the checkpoint that is best by this validation metric: "loss" or
        "token_accuracy" (means of all objectives), or e.g. "visual_grounding/loss"; None for none.
        Only steps that are both validated and saved take part.
      max_skipped_steps: number of steps that may be not finite; one more stops the run.
      watchdog_timeout_secs: the longest time between two logs; a process that takes longer ends, so
        that a supervisor restarts it. None for no limit. Compiling and validating count.
      profile_steps: the first and the last step to profile into MODEL_DIR/profile; None for none.
      max_minutes: minutes of training after which the run ends, whatever steps are left; checked
        with every log. After a restart, the time up to the checkpoint that the run continues from
        counts too; validation does not count. None for no limit.
    """

    total_steps: options.Steps
    log_period: options.Steps = 50
    checkpoint_period: options.Steps = 1000
    validation_period: options.Natural = 0
    checkpoints_to_keep: options.Count | None = 3
    checkpoint_keep_period: options.Steps | None = None
    best_metric: options.Name | None = None
    max_skipped_steps: options.Natural = 100
    watchdog_timeout_secs: options.Seconds | None = 3600
    profile_steps: Annotated[
        tuple[options.Steps, options.Steps] | None,
        options.Help("For the profile give the first and the last step, e.g. (10, 12)."),
    ] = None
    max_minutes: options.Positive | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for values that are impossible together."""
        if self.best_metric is not None:
            validation.check_metric(self.best_metric, "LoopConfig.best_metric")
            if self.validation_period % self.checkpoint_period or not self.validation_period:
                raise ValueError(
                    f"LoopConfig.best_metric keeps checkpoints that are validated: set "
                    f"validation_period ({self.validation_period}) to a multiple of "
                    f"checkpoint_period ({self.checkpoint_period})."
                )
        if self.profile_steps is not None:
            steps = list(self.profile_steps)
            if steps[0] > steps[1]:
                raise ValueError(
                    f"LoopConfig.profile_steps is {self.profile_steps}; give the first and the "
                    "last step, e.g. (10, 12)."
                )
