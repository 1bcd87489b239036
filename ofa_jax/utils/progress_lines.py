"""What `progress` shows where there is no terminal: plain lines, or nothing."""

import contextlib
import threading
import time
from typing import TextIO

from ofa_jax.utils.progress_stage import Clock, Stage

DEFAULT_SECONDS = 10.0

_INTERVALS_OF_SILENCE = 6
"""Work that does not advance has a line after so many intervals."""


class Display:
    """Shows nothing, as on hosts other than the first; other displays show the open stages."""

    def changed(self, stage: Stage) -> None:
        """Is called whenever a stage advances."""

    def opened(self, stages: list[Stage]) -> None:
        """Is called when a stage begins; it is the last one."""

    def closed(self, stages: list[Stage], stage: Stage, has_failed: bool) -> None:
        """Is called when a stage ends, with those that are left."""

    def close(self) -> None:
        """Ends the display."""


class Lines(Display):
    """Prints the innermost stage, with those around it, at most every so many seconds.

    A stage inside no other one has a line when it ends as well.
    """

    def __init__(
        self,
        stream: TextIO,
        seconds: float = DEFAULT_SECONDS,
        clock: Clock = time.monotonic,
        has_summary: bool = True,
        has_watch: bool = True,
    ):
        """Begins to watch; without an interval every change is printed.

        Args:
          stream: where the lines go.
          seconds: between two lines.
          clock: gives the time in seconds.
          has_summary: whether the outermost stage has a line when it ends.
          has_watch: whether there are lines also while nothing advances in this thread.
        """
        self._stream, self._seconds, self._clock = stream, seconds, clock
        self._has_summary = has_summary
        self._lock = threading.RLock()
        self._last = clock()
        self._stages: list[Stage] = []
        self._shown: tuple[Stage, int] | None = None
        self._ended = threading.Event()
        if seconds > 0 and has_watch:
            threading.Thread(target=self._watch, name="progress", daemon=True).start()

    def changed(self, stage: Stage) -> None:
        """Prints a line if it is time."""
        if self._clock() - self._last >= self._seconds:
            self._show()

    def tick(self) -> None:
        """Prints a line if it is time and something has changed, or nothing has for long."""
        with self._lock:
            if not self._stages:
                return
            since = self._clock() - self._last
            is_new = (self._stages[-1], self._stages[-1].done) != self._shown
            if since >= self._seconds * (0.99 if is_new else _INTERVALS_OF_SILENCE):
                self._show()

    def opened(self, stages: list[Stage]) -> None:
        """Takes over the stages."""
        with self._lock:
            self._stages = stages
            self._shown = self._shown or (stages[-1], 0)

    def closed(self, stages: list[Stage], stage: Stage, has_failed: bool) -> None:
        """Prints the summary of the outermost stage."""
        with self._lock:
            self._stages = stages
            if not stages and not has_failed and self._has_summary:
                self._print(stage.summary())

    def close(self) -> None:
        """Ends the watch."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(self._seconds):
            self.tick()

    def _show(self) -> None:
        with self._lock:
            if self._stages and not self._ended.is_set():
                self._last = self._clock()
                self._shown = (self._stages[-1], self._stages[-1].done)
                self._print(" > ".join(stage.text() for stage in self._stages))

    def _print(self, line: str) -> None:
        # A log that cannot be written to (a full disk, a closed pipe) must not end the work.
        with contextlib.suppress(OSError, ValueError):
            print(" ".join(line.splitlines()), file=self._stream, flush=True)
