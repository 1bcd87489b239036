"""Measures a run: throughput, MFU, waiting for data, padding, and profiles on request."""

import collections
import concurrent.futures
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from etils import epath

from ofa_jax.utils.timers import WAITING_FOR_DATA, GoodputTimer, Interval

T = TypeVar("T")


class DispatchThrottle:
    """Keeps the host at most a few steps ahead, and measures how long the devices wait for data.

    A dispatched step holds its batch in the devices' memory, so only a few may be in flight. While
    the host waits for a batch, the devices may still run earlier steps: only the time that remains
    after these have finished counts as waiting for data.
    """

    def __init__(self, timer: GoodputTimer, max_in_flight: int = 2) -> None:
        """Starts with no step in flight.

        Args:
          timer: receives the time that the devices waited, in `drain`.
          max_in_flight: number of steps that may be dispatched and not finished.
        """
        self._timer, self._max_in_flight = timer, max_in_flight
        # A thread of its own observes when steps finish, so that the host does not have to wait.
        self._observer = concurrent.futures.ThreadPoolExecutor(1, "dispatch_throttle")
        self._in_flight: collections.deque[concurrent.futures.Future[float]] = collections.deque()
        # (request, arrival, end of the step before) of every batch since the last drain.
        self._waits: list[tuple[float, float, concurrent.futures.Future[float] | None]] = []

    def next(self, batches: Iterator[T]) -> T:
        """Returns the next batch, and notes how long it took."""
        requested = time.perf_counter()
        batch = next(batches)
        before = self._in_flight[-1] if self._in_flight else None
        self._waits.append((requested, time.perf_counter(), before))
        return batch

    def after_dispatch(self, results: Any) -> None:
        """Registers a dispatched step by its results; waits while too many are in flight."""
        self._in_flight.append(self._observer.submit(_time_when_ready, results))
        if len(self._in_flight) > self._max_in_flight:
            self._in_flight.popleft().result()

    def drain(self) -> None:
        """Waits for all steps, and adds the time that they waited for data to the timer."""
        while self._in_flight:
            self._in_flight.popleft().result()
        for requested, arrived, before in self._waits:
            start = requested if before is None else max(requested, before.result())
            self._timer.add(WAITING_FOR_DATA, max(0.0, arrived - start))
        self._waits.clear()

    def close(self) -> None:
        """Ends the observing thread."""
        self._observer.shutdown()


def _time_when_ready(results: Any) -> float:
    """Waits for arrays; returns the time at which they were ready."""
    jax.block_until_ready(results)
    return time.perf_counter()


@dataclasses.dataclass(frozen=True)
class Throughput:
    """Speed of the whole run, over all hosts.

    Attributes:
      steps_per_second: during steps; compilation, checkpoints and validation do not count.
      examples_per_second: of all streams.
      target_tokens_per_second: number of scored target tokens.
      num_devices: chips that share the work.
      flops_per_second: of the model, by the formula of `flops`; the devices may compute more.
      peak_flops: of one device, per second; None where it is not known.
    """

    steps_per_second: float
    examples_per_second: float
    target_tokens_per_second: float
    num_devices: int
    flops_per_second: float
    peak_flops: float | None = None

    @classmethod
    def over(
        cls,
        interval: Interval,
        steps: int,
        examples: float,
        target_tokens: float,
        flops: float,
        peak_flops: float | None = None,
    ) -> "Throughput":
        """Returns the throughput of an interval from the number of each that it made."""
        seconds = interval.stepping_seconds
        return cls(
            steps / seconds,
            examples / seconds,
            target_tokens / seconds,
            jax.device_count(),
            flops / seconds,
            peak_flops,
        )

    @property
    def flops_per_second_per_chip(self) -> float:
        """FLOP/s of the model on each device."""
        return self.flops_per_second / self.num_devices

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation (PaLM, Chowdhery et al. 2022, appendix B): share of the peak."""
        return self.flops_per_second_per_chip / self.peak_flops if self.peak_flops else None

    @property
    def arithmetic(self) -> str:
        """MFU as text; the rate itself where the peak is not known."""
        if self.mfu is not None:
            return f"MFU {self.mfu:.1%}"
        rate = self.flops_per_second_per_chip
        if rate >= 1e12:
            return f"{rate / 1e12:.1f} TFLOP/s a chip"
        return f"{rate / 1e9:.1f} GFLOP/s a chip"

    @property
    def scalars(self) -> dict[str, float]:
        """Values for TensorBoard."""
        values = {
            "steps_per_second": self.steps_per_second,
            "examples_per_second": self.examples_per_second,
            "examples_per_second_per_chip": self.examples_per_second / self.num_devices,
            "target_tokens_per_second_per_chip": self.target_tokens_per_second / self.num_devices,
            "model_flops_per_second_per_chip": self.flops_per_second_per_chip,
        }
        return values if self.mfu is None else values | {"mfu": self.mfu}


class Padding:
    """Counts the share of each stream's tokens that are padding, in this host's rows."""

    def __init__(self, pad_id: int) -> None:
        """Starts with no tokens counted."""
        self._pad_id = pad_id
        self._padding: collections.Counter[str] = collections.Counter()
        self._tokens: collections.Counter[str] = collections.Counter()

    def add(self, batches: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Counts a step's batches."""
        for stream, batch in batches.items():
            for side in ("encoder", "decoder"):
                tokens = batch.get(f"{side}_input_tokens")
                if tokens is None:  # images alone
                    continue
                name = f"{stream}/{side}"
                self._padding[name] += int(np.count_nonzero(tokens == self._pad_id))
                self._tokens[name] += tokens.size

    def shares(self) -> dict[str, float]:
        """Returns "stream/encoder" and "stream/decoder" -> share since the last call."""
        shares = {name: self._padding[name] / self._tokens[name] for name in self._tokens}
        self._padding.clear()
        self._tokens.clear()
        return shares


class Profiler:
    """Records a profile of the devices during some steps, for TensorBoard or xprof."""

    def __init__(self, directory: epath.Path, steps: Sequence[int] | None) -> None:
        """Prepares the profiler; nothing is recorded yet.

        Args:
          directory: where the profile goes.
          steps: first and last step, both included; None for no profile.
        """
        self._directory = directory
        self._steps = steps
        self._active = False

    def before(self, step: int) -> None:
        """Starts the profile within its range (a run may resume in it); call before every step."""
        if self._steps and not self._active and self._steps[0] <= step <= self._steps[1]:
            jax.profiler.start_trace(str(self._directory))
            self._active = True

    def after(self, step: int, results: Any) -> None:
        """Ends the profile after its last step; call it after every step with its results."""
        if self._active and self._steps and step >= self._steps[1]:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Ends the profile if one is being recorded."""
        if self._active:
            jax.profiler.stop_trace()
            self._active = False
