"""What a run does with its time: speed, MFU, goodput, padding, and profiles on request."""

import collections
import concurrent.futures
import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from ofa_jax.utils.timers import WAITING_FOR_DATA, GoodputTimer, Interval


class DispatchThrottle:
    """Keeps the host close to the devices, and tells when they stood still for want of a batch.

    The host hands steps over before they are made. Each holds its batch in the devices' memory, so
    it may be only a few steps ahead. While it waits for a batch, the devices may still be at the
    steps before: only what remains after these counts as waiting for data.
    """

    def __init__(self, clock: GoodputTimer, ahead: int = 2) -> None:
        """Nothing is under way.

        Args:
          clock: gets the time that the devices waited, at `settle`.
          ahead: so many steps may be handed over and not yet made.
        """
        self._clock, self._ahead = clock, ahead
        # Of its own, for the host must not stop to look when a step is done.
        self._watcher = concurrent.futures.ThreadPoolExecutor(1, "pace")
        self._under_way: collections.deque[concurrent.futures.Future[float]] = collections.deque()
        self._waits: list[tuple[float, float, concurrent.futures.Future[float] | None]] = []

    def next(self, batches: Iterator[Any]) -> Any:
        """The next batch."""
        asked = time.perf_counter()
        batch = next(batches)
        before = self._under_way[-1] if self._under_way else None
        self._waits.append((asked, time.perf_counter(), before))
        return batch

    def after_dispatch(self, results: Any) -> None:
        """To be called with what a step will make; waits until it is not too far ahead."""
        self._under_way.append(self._watcher.submit(_when_ready, results))
        if len(self._under_way) > self._ahead:
            self._under_way.popleft().result()

    def settle(self) -> None:
        """Waits for all steps, and tells the clock how long they waited for data."""
        while self._under_way:
            self._under_way.popleft().result()
        for asked, arrived, before in self._waits:
            begin = asked if before is None else max(asked, before.result())
            self._clock.add(WAITING_FOR_DATA, max(0.0, arrived - begin))
        self._waits.clear()

    def close(self) -> None:
        """Ends its thread."""
        self._watcher.shutdown()


def _when_ready(results: Any) -> float:
    jax.block_until_ready(results)
    return time.perf_counter()


@dataclasses.dataclass(frozen=True)
class Throughput:
    """How fast the whole run is, over all hosts.

    Attributes:
      steps_per_second: while stepping; compilation, checkpoints and validation do not count.
      examples_per_second: of all streams.
      target_tokens_per_second: scored ones.
      num_devices: chips that share the work.
      flops_per_second: the model's, by the formula of `flops`, not what the devices really compute.
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
        lap: Interval,
        steps: int,
        examples: float,
        target_tokens: float,
        flops: float,
        peak_flops: float | None = None,
    ) -> "Throughput":
        """Of so many steps, examples, target tokens and operations made in a lap."""
        seconds = lap.stepping_seconds
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
        """Of the model."""
        return self.flops_per_second / self.num_devices

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation (PaLM, Chowdhery et al. 2022, appendix B): share of the peak."""
        return self.flops_per_second_per_chip / self.peak_flops if self.peak_flops else None

    @property
    def arithmetic(self) -> str:
        """The share of the peak; without one, the rate itself."""
        if self.mfu is not None:
            return f"MFU {self.mfu:.1%}"
        rate = self.flops_per_second_per_chip
        if rate >= 1e12:
            return f"{rate / 1e12:.1f} TFLOP/s a chip"
        return f"{rate / 1e9:.1f} GFLOP/s a chip"

    @property
    def scalars(self) -> dict[str, float]:
        """For TensorBoard."""
        values = {
            "steps_per_second": self.steps_per_second,
            "examples_per_second": self.examples_per_second,
            "examples_per_second_per_chip": self.examples_per_second / self.num_devices,
            "target_tokens_per_second_per_chip": self.target_tokens_per_second / self.num_devices,
            "model_flops_per_second_per_chip": self.flops_per_second_per_chip,
        }
        return values if self.mfu is None else values | {"mfu": self.mfu}


class Padding:
    """Share of each stream's tokens that are padding, in this host's rows."""

    def __init__(self, pad_id: int) -> None:
        self._pad_id = pad_id
        self._padding: collections.Counter[str] = collections.Counter()
        self._tokens: collections.Counter[str] = collections.Counter()

    def add(self, batches: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Counts a step's batches."""
        for stream, batch in batches.items():
            for side in ("encoder", "decoder"):
                tokens = batch[f"{side}_input_tokens"]
                name = f"{stream}/{side}"
                self._padding[name] += int(np.count_nonzero(tokens == self._pad_id))
                self._tokens[name] += tokens.size

    def shares(self) -> dict[str, float]:
        """ "stream/encoder", "stream/decoder" -> share, since the last call."""
        shares = {name: self._padding[name] / self._tokens[name] for name in self._tokens}
        self._padding.clear()
        self._tokens.clear()
        return shares


class Profiler:
    """Records what the devices do during some steps, for TensorBoard or xprof."""

    def __init__(self, directory: epath.Path, steps: tuple[int, int] | None) -> None:
        """Prepares; nothing is recorded yet.

        Args:
          directory: where the profile goes.
          steps: first and last step, both included; None for no profile.
        """
        self._directory = directory
        self._steps = steps
        self._active = False

    def before(self, step: int) -> None:
        """To be called before every step; begins within the range (a run may resume in it)."""
        if self._steps and not self._active and self._steps[0] <= step <= self._steps[1]:
            jax.profiler.start_trace(str(self._directory))
            self._active = True

    def after(self, step: int, results: object) -> None:
        """To be called after every step with what it made; ends after the last one."""
        if self._active and step >= self._steps[1]:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Ends a profile that is going on."""
        if self._active:
            jax.profiler.stop_trace()
            self._active = False
