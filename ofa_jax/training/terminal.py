"""What a person sees while a run goes on: a live view on a terminal, plain lines elsewhere."""

import contextlib
import dataclasses
import datetime
import types
from collections.abc import Mapping

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text


@dataclasses.dataclass(frozen=True)
class Report:
    """What has happened since the last report.

    Attributes:
      step, total_steps: steps made; steps of the whole run.
      steps_per_second, examples_per_second: over all hosts.
      data_wait: share of the time spent waiting for batches.
      loss: of the training objective, mean.
      task_losses: objective -> nats per token.
      learning_rate, gradient_norm: of the last step.
      skipped_records: bad records so far.
      skipped_steps: non-finite steps so far.
    """

    step: int
    total_steps: int
    steps_per_second: float
    examples_per_second: float
    data_wait: float
    loss: float
    task_losses: Mapping[str, float]
    learning_rate: float
    gradient_norm: float
    skipped_records: int
    skipped_steps: int

    @property
    def time_left(self) -> datetime.timedelta:
        """At the present speed."""
        seconds = (self.total_steps - self.step) / max(self.steps_per_second, 1e-9)
        return datetime.timedelta(seconds=round(seconds))

    @property
    def scalars(self) -> dict[str, float]:
        """For TensorBoard."""
        values = {
            "loss": self.loss,
            "learning_rate": self.learning_rate,
            "gradient_norm": self.gradient_norm,
            "steps_per_second": self.steps_per_second,
            "examples_per_second": self.examples_per_second,
            "data_wait": self.data_wait,
            "skipped_records": self.skipped_records,
            "skipped_steps": self.skipped_steps,
        }
        losses = {f"loss/{name}": loss for name, loss in self.task_losses.items()}
        return {f"train/{name}": value for name, value in (values | losses).items()}

    def headline(self) -> str:
        """One line without the objectives."""
        skipped = ""
        if self.skipped_records:
            skipped += f"  {self.skipped_records} records skipped"
        if self.skipped_steps:
            skipped += f"  {self.skipped_steps} steps skipped"
        return (
            f"step {self.step}/{self.total_steps}  loss {self.loss:.3f}  "
            f"{self.steps_per_second:.2f} steps/s  {self.examples_per_second:.0f} examples/s  "
            f"{self.time_left} left  waiting for data {self.data_wait:.0%}{skipped}"
        )


class Progress(contextlib.AbstractContextManager):
    """Shows reports; a context manager."""

    def __init__(self, console: Console):
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    def show(self, report: Report) -> None:
        """Replaces the view on a terminal; prints two lines elsewhere."""
        if self._live:
            self._live.update(_view(report), refresh=True)
            return
        self._console.print(report.headline(), highlight=False, soft_wrap=True)
        if report.task_losses:
            losses = "  ".join(f"{name} {loss:.3f}" for name, loss in report.task_losses.items())
            self._console.print(f"    {losses}", highlight=False, soft_wrap=True)

    def say(self, message: str) -> None:
        """Prints a sentence above the view."""
        self._console.print(message, highlight=False, soft_wrap=True)


def _view(report: Report) -> Group:
    table = Table(box=None, pad_edge=False)
    table.add_column("objective")
    table.add_column("loss, nats per token", justify="right")
    for name, loss in report.task_losses.items():
        table.add_row(name, f"{loss:.3f}")
    bar = ProgressBar(total=report.total_steps, completed=report.step, width=60)
    return Group(Text(report.headline()), bar, table)
