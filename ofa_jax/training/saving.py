"""Decides which steps are saved: good checkpoints outlive bad training.

Nothing is saved, and so nothing is deleted, while steps are being skipped because they are not
finite: a save that is due then waits for the next good step.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax

from ofa_jax.checkpoints.manager import Checkpoints
from ofa_jax.sharding import TrainState
from ofa_jax.training.step import StepMetrics
from ofa_jax.utils.bad_input import Treatment, declare

__all__ = ["Saver"]

PARAMETER_NORM, PINNED = "parameter_norm", "kept_checkpoints"
"""Keys in every checkpoint: the norm of its parameters, and steps that are not deleted."""
_JUMP = 100
"""Growth of the parameters' norm between two checkpoints above which the older one is kept."""

NOT_FINITE = declare(
    "step is not finite",
    Treatment.SKIPPED,
    "Loss or gradient of a training step is not finite. The step changes nothing, it is counted, "
    "and nothing is saved or deleted until a step is finite again. More than "
    "`LoopConfig.max_skipped_steps` since the start of the command end it; started again, with a "
    "lower learning rate, it continues from the last good checkpoint.",
    __name__,
)


class Saver:
    """Saves the steps that can be trusted."""

    def __init__(
        self, checkpoints: Checkpoints, metadata: Mapping[str, Any], log: Callable[[str], None]
    ) -> None:
        """Takes over what the checkpoint to continue from says.

        Args:
          checkpoints: of the run.
          metadata: of the checkpoint to continue from; empty for a new run.
          log: prints a message.
        """
        self._checkpoints, self._log = checkpoints, log
        norm = metadata.get(PARAMETER_NORM)
        self._saved_norm = norm if isinstance(norm, float) and norm > 0 else None
        kept = metadata.get(PINNED)
        for step in kept if isinstance(kept, list) else ():
            if isinstance(step, int):
                checkpoints.pin(step)
        self._step = 0
        self._metrics: StepMetrics | None = None
        self._waiting = False
        self.is_requested = False

    def after_step(self, step: int, metrics: StepMetrics) -> None:
        """Registers a dispatched step."""
        self._step, self._metrics = step, metrics

    def request(self) -> None:
        """Asks for this step, or the next good one, to be saved."""
        self.is_requested = True

    def save(self, state: TrainState, metadata: Mapping[str, Any]) -> None:
        """Begins to save the state if its step was good; waits for the devices.

        Raises:
          SaveError: see `Checkpoints`.
        """
        assert self._metrics is not None
        metrics = self._metrics
        values = jax.device_get((metrics.loss, metrics.gradient_norm, metrics.parameter_norm))
        loss, gradient_norm, norm = map(float, values)
        if not (math.isfinite(loss) and math.isfinite(gradient_norm) and math.isfinite(norm)):
            if not self._waiting:
                what = "its parameters are" if math.isfinite(loss + gradient_norm) else "it is"
                self._log(
                    f"Step {self._step} is not saved: {what} not finite. "
                    f"{self.describe_newest()} The next finite step is saved."
                )
            self._waiting = True
            return
        self._keep_before_jump(norm)
        self._checkpoints.save(
            self._step,
            state,
            {**metadata, PARAMETER_NORM: norm, PINNED: self._checkpoints.pinned},
        )
        self._saved_norm = norm if norm > 0 else None
        self._waiting = self.is_requested = False

    def _keep_before_jump(self, norm: float) -> None:
        """Keeps the newest checkpoint if the parameters have exploded since, though finite."""
        newest = self._checkpoints.latest_step
        if newest is None or self._saved_norm is None or norm <= _JUMP * self._saved_norm:
            return
        self._checkpoints.pin(newest)
        self._log(
            f"The norm of the parameters has grown from {self._saved_norm:.3g} to {norm:.3g} since "
            f"step {newest}: the checkpoint of step {newest} is kept in any case. If the training "
            "is spoilt, move the newer ones away and lower the learning rate."
        )

    def describe_newest(self) -> str:
        """Returns a sentence that names the checkpoint from which the run would continue."""
        step = self._checkpoints.newest_complete()
        if step is None:
            return "There is no checkpoint yet."
        path = self._checkpoints.directory / str(step)
        sentence = f"Started again, the run continues from the last good checkpoint, {path}."
        if older := [kept for kept in self._checkpoints.pinned if kept != step]:
            steps = ", ".join(map(str, older))
            sentence += f" From before the parameters exploded, step {steps} is kept beside it."
        return sentence
