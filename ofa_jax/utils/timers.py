"""Goodput: how much of a host's time goes into steps, and what takes the rest."""

import collections
import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping

WAITING_FOR_DATA = "waiting_for_data"
NOT_STEPPING = ("compilation", "checkpoints", "restoring", "validation")
"""Kinds of time in which no step runs. `WAITING_FOR_DATA` is between steps and not among them."""


@dataclasses.dataclass(frozen=True)
class Interval:
    """A stretch of time and what it was spent on.

    Attributes:
      seconds: its length.
      parts: kind (`WAITING_FOR_DATA` or one of `NOT_STEPPING`) -> seconds; steps take the rest.
    """

    seconds: float
    parts: Mapping[str, float]

    @property
    def stepping_seconds(self) -> float:
        """Seconds of steps and of waiting for their data; at least 1e-9."""
        return max(self.seconds - sum(self.parts.get(kind, 0.0) for kind in NOT_STEPPING), 1e-9)

    def share(self, kind: str) -> float:
        """Returns the share of the interval that was spent on `kind`."""
        return self.parts.get(kind, 0.0) / max(self.seconds, 1e-9)

    @property
    def goodput(self) -> float:
        """Share of the interval that was spent on steps alone, without waiting for data."""
        return max(0.0, 1 - sum(self.parts.values()) / max(self.seconds, 1e-9))


class GoodputTimer:
    """Measures, by kind, the time of this host that is not spent on steps."""

    def __init__(self) -> None:
        """Starts the timer."""
        self._start = self._interval_start = time.perf_counter()
        self._total: collections.defaultdict[str, float] = collections.defaultdict(float)
        self._interval: collections.defaultdict[str, float] = collections.defaultdict(float)

    @contextlib.contextmanager
    def measure(self, kind: str) -> Iterator[None]:
        """Counts the time of a `with` block as `WAITING_FOR_DATA` or one of `NOT_STEPPING`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(kind, time.perf_counter() - start)

    def add(self, kind: str, seconds: float) -> None:
        """Adds time of a kind that was measured elsewhere."""
        self._total[kind] += seconds
        self._interval[kind] += seconds

    def next_interval(self) -> Interval:
        """Returns the time since the last call (or the start), and begins the next interval."""
        now = time.perf_counter()
        interval = Interval(now - self._interval_start, dict(self._interval))
        self._interval_start = now
        self._interval.clear()
        return interval

    def total(self) -> Interval:
        """Returns the time since the start."""
        return Interval(time.perf_counter() - self._start, dict(self._total))
