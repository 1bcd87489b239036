"""Shows the progress of a run: a live view on a terminal, plain lines elsewhere."""

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

from ofa_jax.training.telemetry import Throughput
from ofa_jax.utils.timers import NOT_STEPPING, WAITING_FOR_DATA, Interval


@dataclasses.dataclass(frozen=True)
class Report:
    """The steps since the last report.

    Attributes:
      step, total_steps: number of steps made, and of the whole run.
      throughput: over all hosts.
      data_wait: share of the time since the last report that the devices waited for batches.
      total: how this host has spent its time since the start.
      loss: mean of the training loss.
      task_losses: objective -> nats per token.
      learning_rate, gradient_norm, parameter_norm: of the last step; norms are global.
      padding: "stream/encoder", "stream/decoder" -> share of the tokens that are padding.
      skipped_records: invalid records since the start, over all hosts.
      skipped_steps: non-finite steps so far.
    """

    step: int
    total_steps: int
    throughput: Throughput
    data_wait: float
    total: Interval
    loss: float
    task_losses: Mapping[str, float]
    learning_rate: float
    gradient_norm: float
    parameter_norm: float
    padding: Mapping[str, float]
    skipped_records: int
    skipped_steps: int

    @property
    def time_left(self) -> datetime.timedelta:
        """Remaining time at the current speed."""
        rate = max(self.throughput.steps_per_second, 1e-9)
        seconds = (self.total_steps - self.step) / rate
        return datetime.timedelta(seconds=round(seconds))

    @property
    def scalars(self) -> dict[str, float]:
        """Values for TensorBoard."""
        values = {
            "loss": self.loss,
            "learning_rate": self.learning_rate,
            "gradient_norm": self.gradient_norm,
            "parameter_norm": self.parameter_norm,
            "data_wait": self.data_wait,
            "goodput": self.total.goodput,
            "skipped_records": self.skipped_records,
            "skipped_steps": self.skipped_steps,
        }
        values |= self.throughput.scalars
        values |= {f"time/{kind}": self.total.share(kind) for kind in self.total.parts}
        values |= {f"loss/{name}": loss for name, loss in self.task_losses.items()}
        values |= {f"padding/{name}": share for name, share in self.padding.items()}
        return {f"train/{name}": value for name, value in values.items()}

    def headline(self) -> str:
        """Returns one line without the objectives."""
        skipped = ""
        if self.skipped_records:
            skipped += f"  {self.skipped_records} records skipped"
        if self.skipped_steps:
            skipped += f"  {self.skipped_steps} steps skipped"
        return (
            f"step {self.step}/{self.total_steps}  loss {self.loss:.3f}  "
            f"{self.throughput.steps_per_second:.2f} steps/s  "
            f"{self.throughput.examples_per_second:.0f} examples/s  {self.throughput.arithmetic}  "
            f"{self.time_left} left  waiting for data {self.data_wait:.1%}  "
            f"goodput {self.total.goodput:.0%}{skipped}"
        )


class Progress(contextlib.AbstractContextManager):
    """A context manager that shows reports and messages on a console."""

    def __init__(self, console: Console):
        """Prepares the view."""
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

    def log(self, message: str) -> None:
        """Prints a message above the view."""
        self._console.print(message, highlight=False, soft_wrap=True)

    def log_total(self, time: Interval) -> None:
        """Prints how the time of a run was spent."""
        parts = [f"{time.goodput:.0%} stepping"]
        parts += [
            f"{time.share(kind):.0%} {kind.replace('_', ' ')}"
            for kind in (WAITING_FOR_DATA, *NOT_STEPPING)
            if kind in time.parts
        ]
        seconds = datetime.timedelta(seconds=round(time.seconds))
        self.log(f"Time: {seconds}, of which {', '.join(parts)}.")


def _view(report: Report) -> Group:
    """Returns the live view of a report: headline, progress bar and losses."""
    table = Table(box=None, pad_edge=False)
    table.add_column("objective")
    table.add_column("loss, nats per token", justify="right")
    for name, loss in report.task_losses.items():
        table.add_row(name, f"{loss:.3f}")
    bar = ProgressBar(total=report.total_steps, completed=report.step, width=60)
    return Group(Text(report.headline()), bar, table)
