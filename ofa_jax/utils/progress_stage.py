"""A piece of work that `progress` shows: how much is done, how fast, and how long it will take."""

import collections
import datetime
import threading
import time
from collections.abc import Callable
from multiprocessing.context import BaseContext

_WINDOW_SECONDS = 60.0
_SECONDS_BETWEEN_SAMPLES = 0.25

Clock = Callable[[], float]


class Stage:
    """A piece of work, counted from 0.

    Attributes:
      name: what is done.
      total: how much there is to do; None if unknown.
      unit: what is counted, in the plural; "bytes" are shown as MB and GB.
      is_even: whether one of what is counted takes about as long as another; if not, there is
        neither a rate nor a time left.
      started: when it began, in seconds of its clock.
      on_change: is called whenever the work advances, if it is set.
    """

    def __init__(
        self,
        name: str,
        total: int | None = None,
        unit: str = "",
        is_even: bool = True,
        clock: Clock = time.monotonic,
    ):
        """Begins the work, at the present time of the clock."""
        self.name, self.total, self.unit, self.is_even = name, total, unit, is_even
        self.started = clock()
        self.on_change: Callable[[Stage], None] | None = None
        self._clock = clock
        self._lock = threading.Lock()
        self._counted = 0
        self._followed: list[tuple[WorkerCounts, int]] = []
        # (time, done); the first one is the start.
        self._samples = collections.deque([(self.started, 0)])

    def advance(self, count: int = 1) -> None:
        """Counts what was done since the last call."""
        with self._lock:
            self._counted += count
        self._changed()

    def update(self, done: int, total: int | None = None) -> None:
        """Sets how much is done, and the total if it is another one."""
        with self._lock:
            self._counted = done
            self.total = self.total if total is None else total
        self._changed()

    def _changed(self) -> None:
        self._sample()
        if self.on_change is not None:
            self.on_change(self)

    def follow(self, counts: "WorkerCounts") -> None:
        """Counts what worker processes do from now on, too."""
        self._followed.append((counts, counts.total()))

    @property
    def done(self) -> int:
        """How much is done, here and in the worker processes."""
        return self._counted + sum(counts.total() - start for counts, start in self._followed)

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return self._clock() - self.started

    def rate(self) -> float | None:
        """Returns how much is done in a second of the last minute; None if that is not known.

        The first step, which often has a compilation in it, counts only until there are others.
        """
        if not self.is_even:
            return None
        self._sample()
        with self._lock:
            samples = list(self._samples)
        if samples[0] == (self.started, 0) and len(samples) > 2:
            samples = samples[1:]
        (begin, before), (end, done) = samples[0], samples[-1]
        return (done - before) / (end - begin) if done > before and end > begin else None

    def seconds_left(self) -> float | None:
        """Returns the time left at the present rate; None if that is not known."""
        rate = self.rate()
        if rate is None or self.total is None:
            return None
        since = self._clock() - self._samples[-1][0]
        return max((self.total - self.done) / rate - since, 0.0)

    def _sample(self) -> None:
        """Notes how much is done now, if it has changed."""
        now, done = self._clock(), self.done
        with self._lock:
            samples = self._samples
            if done == samples[-1][1]:
                return
            if len(samples) > 2 and now - samples[-2][0] < _SECONDS_BETWEEN_SAMPLES:
                samples.pop()
            samples.append((now, done))
            while len(samples) > 3 and now - samples[1][0] > _WINDOW_SECONDS:
                samples.popleft()

    def counts_text(self) -> str:
        """Returns how much is done, and of how much, e.g. "120/1,000 images"."""
        if self.unit == "bytes":
            scale, name = (1e9, "GB") if max(self.done, self.total or 0) >= 1e9 else (1e6, "MB")
            numbers = [f"{value / scale:,.1f}" for value in self._numbers()]
        else:
            numbers, name = [f"{value:,}" for value in self._numbers()], self.unit
        return f"{'/'.join(numbers)} {name}".strip()

    def _numbers(self) -> list[int]:
        return [self.done] if self.total is None else [self.done, self.total]

    def rate_text(self) -> str:
        """Returns the rate, e.g. "33.1 images/s"; empty if it is not known."""
        return _rate_text(self.rate(), self.unit)

    def left_text(self) -> str:
        """Returns the time left, e.g. "0:01:30 left"; empty if it is not known."""
        seconds = self.seconds_left()
        return "" if seconds is None else f"{as_time(seconds)} left"

    def text(self) -> str:
        """Returns the line of the stage."""
        if not self.done and self.total is None:
            return f"{self.name}: {as_time(self.seconds)} so far"
        time_text = self.left_text()
        if not time_text and not self.is_even:
            time_text = f"{as_time(self.seconds)} so far"
        parts = [self.counts_text(), self.rate_text(), time_text]
        return f"{self.name}: {', '.join(filter(None, parts))}"

    def summary(self) -> str:
        """Returns the line of the stage when it has ended."""
        took = f"in {as_time(self.seconds)}"
        if not self.done:
            return f"{self.name}: done {took}"
        is_known = self.is_even and self.seconds > 0
        rate = _rate_text(self.done / self.seconds if is_known else None, self.unit)
        return f"{self.name}: {self.counts_text()} {took}{', ' if rate else ''}{rate}"


def _rate_text(rate: float | None, unit: str) -> str:
    if rate is None:
        return ""
    if unit == "bytes":
        return f"{rate / 1e6:,.1f} MB/s"
    # Slow work in a unit of time in which something happens.
    factor, time_unit = 3600, "h"
    if rate * 60 >= 0.1:
        factor, time_unit = (1, "s") if rate >= 0.1 else (60, "min")
    shown = rate * factor
    digits = 2 if shown < 10 else 1 if shown < 100 else 0
    return f"{shown:,.{digits}f}{' ' if unit else ''}{unit}/{time_unit}"


def as_time(seconds: float) -> str:
    """Returns a time as hours, minutes and seconds."""
    return str(datetime.timedelta(seconds=round(seconds)))


class WorkerCounts:
    """How much each of several worker processes has done; one number each, so without a lock."""

    def __init__(self, context: BaseContext, num_workers: int):
        """Makes room for the numbers in memory that processes of the context share."""
        self._next = context.Value("i", 0)
        self._counts = context.RawArray("q", num_workers)

    def total(self) -> int:
        """Returns how much they have done together."""
        return sum(self._counts)

    def take(self) -> Callable[[int], None]:
        """Returns a function that counts, for one process alone."""
        with self._next.get_lock():
            number = self._next.value
            self._next.value += 1

        def add(count: int) -> None:
            self._counts[number] += count

        return add
