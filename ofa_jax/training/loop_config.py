"""When the loop reports, saves, validates and ends; gin's `LoopConfig`."""

import dataclasses
from collections.abc import Sequence

from ofa_jax.training import validation


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """When things happen.

    Attributes:
      total_steps: of the whole run.
      log_period: steps between two reports; the host waits for the device only then.
      checkpoint_period: steps between two checkpoints; the last step is always saved.
      validation_period: steps between two validations; 0 for one at the end.
      checkpoints_to_keep: the newest ones stay; None for all.
      checkpoint_keep_period: of every so many steps, a checkpoint stays for good; None for none.
      best_metric: the checkpoint that validates best stays too, by "loss" or "token_accuracy", the
        mean of all objectives, or e.g. "visual_grounding/loss"; None for none. Only steps that are
        both validated and saved take part.
      max_skipped_steps: so many steps that are not finite stop the run.
      watchdog_timeout_secs: a process that takes longer from one report to the next is killed, to
        be restarted by a supervisor; None for never. Includes compilation and validation.
      profile_steps: record a profile of the steps from the first to the second of these, both
        included, into MODEL_DIR/profile; None for none.
      max_minutes: the run is finished after so many minutes of training, whatever steps are left;
        looked at with every report. Minutes before a restart count, as far as they are in a
        checkpoint; validating does not. None for no such end.
    """

    total_steps: int
    log_period: int = 50
    checkpoint_period: int = 1000
    validation_period: int = 0
    checkpoints_to_keep: int | None = 3
    checkpoint_keep_period: int | None = None
    best_metric: str | None = None
    max_skipped_steps: int = 100
    watchdog_timeout_secs: float | None = 3600
    profile_steps: Sequence[int] | None = None
    max_minutes: float | None = None

    def __post_init__(self) -> None:
        for name in ("total_steps", "log_period", "checkpoint_period"):
            if getattr(self, name) < 1:
                raise ValueError(f"LoopConfig.{name} is {getattr(self, name)}; give at least 1.")
        # None of the newest would leave nothing to go on from.
        for name in ("checkpoints_to_keep", "checkpoint_keep_period"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"LoopConfig.{name} is {value}; give at least 1, or None.")
        if self.best_metric is not None:
            validation.check_metric(self.best_metric, "LoopConfig.best_metric")
            if self.validation_period % self.checkpoint_period or not self.validation_period:
                raise ValueError(
                    f"LoopConfig.best_metric keeps checkpoints that are validated: set "
                    f"validation_period ({self.validation_period}) to a multiple of "
                    f"checkpoint_period ({self.checkpoint_period})."
                )
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise ValueError(
                f"LoopConfig.max_minutes is {self.max_minutes}; give a positive number, or None."
            )
        if self.profile_steps is not None:
            steps = list(self.profile_steps)
            if len(steps) != 2 or not 1 <= steps[0] <= steps[1]:
                raise ValueError(
                    f"LoopConfig.profile_steps is {self.profile_steps}; give the first and the "
                    "last step, e.g. (10, 12)."
                )
