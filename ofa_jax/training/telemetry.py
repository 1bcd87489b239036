"""What a run does with its time: speed, goodput, padding, and profiles on request."""

import collections
import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from etils import epath

WAITING_FOR_DATA = "waiting_for_data"
LOST = ("compilation", "checkpoints", "restoring", "validation")
"""Kinds of time in which no step is made; waiting for data is told from stepping separately."""


@dataclasses.dataclass(frozen=True)
class Lap:
    """A stretch of time.

    Attributes:
      seconds: all of it.
      parts: kind -> the seconds of it that were not spent stepping.
    """

    seconds: float
    parts: Mapping[str, float]

    @property
    def stepping_seconds(self) -> float:
        """What remains for steps; waiting for their data is in it."""
        return max(self.seconds - sum(self.parts.get(kind, 0.0) for kind in LOST), 1e-9)

    def share(self, kind: str) -> float:
        """Of all the seconds."""
        return self.parts.get(kind, 0.0) / max(self.seconds, 1e-9)

    @property
    def goodput(self) -> float:
        """Share of the seconds that went into steps: no waiting, saving, compiling, validating."""
        return max(0.0, 1 - sum(self.parts.values()) / max(self.seconds, 1e-9))


class Clock:
    """Adds up, by kind, the time of this host that is not spent stepping."""

    def __init__(self) -> None:
        self._begin = self._lap_begin = time.perf_counter()
        self._all: collections.Counter[str] = collections.Counter()
        self._lap: collections.Counter[str] = collections.Counter()

    @contextlib.contextmanager
    def measure(self, kind: str) -> Iterator[None]:
        """A context whose time is of a kind: `WAITING_FOR_DATA` or one of `LOST`."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - begin
            self._all[kind] += seconds
            self._lap[kind] += seconds

    def lap(self) -> Lap:
        """Since the last call."""
        now = time.perf_counter()
        lap = Lap(now - self._lap_begin, dict(self._lap))
        self._lap_begin = now
        self._lap.clear()
        return lap

    def total(self) -> Lap:
        """Since the clock was made."""
        return Lap(time.perf_counter() - self._begin, dict(self._all))


@dataclasses.dataclass(frozen=True)
class Throughput:
    """How fast the whole run is, over all hosts.

    Attributes:
      steps_per_second: while stepping; compilation, checkpoints and validation do not count.
      examples_per_second: of all streams.
      target_tokens_per_second: scored ones.
      num_devices: chips that share the work.
    """

    steps_per_second: float
    examples_per_second: float
    target_tokens_per_second: float
    num_devices: int

    @classmethod
    def over(cls, lap: Lap, steps: int, examples: float, target_tokens: float) -> "Throughput":
        """Of so many steps, examples and target tokens made in a lap."""
        seconds = lap.stepping_seconds
        return cls(
            steps / seconds, examples / seconds, target_tokens / seconds, jax.device_count()
        )

    @property
    def scalars(self) -> dict[str, float]:
        """For TensorBoard."""
        return {
            "steps_per_second": self.steps_per_second,
            "examples_per_second": self.examples_per_second,
            "examples_per_second_per_chip": self.examples_per_second / self.num_devices,
            "target_tokens_per_second_per_chip": self.target_tokens_per_second / self.num_devices,
        }


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
        """"stream/encoder", "stream/decoder" -> share, since the last call."""
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
