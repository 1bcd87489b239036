"""Shows long work on standard error: bars on a terminal, plain lines elsewhere.

    with progress.stage("composing scenes", total=24_000, unit="images") as stage:
        for record in records:
            stage.advance()

Stages may be nested; all of a process share one display, which opens with the first of them and
closes with the last. A library calls `substage`, which is silent unless a command shows its work.
Worker processes count with `advance`, and their counts appear in the stage that follows them.

Hosts other than the first are silent. The environment has the last word: OFA_PROGRESS=lines gives
plain lines on a terminal too, OFA_PROGRESS=off nothing, and OFA_PROGRESS_SECONDS the time between
two lines (10).
"""

import contextlib
import math
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from ofa_jax.utils.progress_lines import DEFAULT_SECONDS, Display, Lines
from ofa_jax.utils.progress_stage import Stage, WorkerCounts

__all__ = [
    "Stage",
    "WorkerCounts",
    "advance",
    "enter_worker",
    "follow",
    "show_stage",
    "stage",
    "substage",
]

MODE, SECONDS = "OFA_PROGRESS", "OFA_PROGRESS_SECONDS"
"""Environment variables; the text above describes them."""

_DUMB_TERMINALS = ("dumb", "unknown")

_lock = threading.RLock()
_stages: list[Stage] = []
_display: Display | None = None
_count_in_worker: Callable[[int], None] | None = None


@contextlib.contextmanager
def stage(
    name: str,
    total: int | None = None,
    unit: str = "",
    *,
    is_even: bool = True,
    has_summary: bool = True,
    has_terminal: bool = True,
) -> Iterator[Stage]:
    """Shows a stage while the block runs; inside another one it appears below that.

    Args:
      name: what is done, e.g. "composing scenes".
      total: how much there is to do; None if unknown.
      unit: what is counted, e.g. "images".
      is_even: whether one of what is counted takes about as long as another, see `Stage`.
      has_summary: whether there is a line at the end, where there is no terminal.
      has_terminal: False if programs that the block starts show their own work: the stage then has
        a line when it advances, even on a terminal.
    """
    begun = Stage(name, total, unit, is_even)
    with show_stage(begun, has_summary=has_summary, has_terminal=has_terminal) as shown:
        yield shown


@contextlib.contextmanager
def substage(name: str, total: int | None = None, unit: str = "") -> Iterator[Stage]:
    """Shows a stage inside one that is shown; nothing otherwise, so that libraries are silent."""
    if _stages:
        with stage(name, total, unit) as shown:
            yield shown
    else:
        yield Stage(name, total, unit)


@contextlib.contextmanager
def show_stage(
    shown: Stage,
    *,
    seconds: float = DEFAULT_SECONDS,
    has_summary: bool = True,
    has_terminal: bool = True,
) -> Iterator[Stage]:
    """Shows a stage while the block runs.

    Args:
      shown: the stage.
      seconds: between two lines, where there is no terminal and the environment names no time.
      has_summary: whether there is a line at the end.
      has_terminal: see `stage`.
    """
    global _display
    with _lock:
        if _display is None:
            _display = _make_display(seconds, has_summary, has_terminal)
        own = _display
        shown.on_change = own.changed
        _stages.append(shown)
        own.opened(list(_stages))
    has_failed = True
    try:
        yield shown
        has_failed = False
    finally:
        with _lock:
            _stages.remove(shown)
            try:
                own.closed(list(_stages), shown, has_failed)
            finally:
                if not _stages:
                    _display = None
                    own.close()


def advance(count: int = 1) -> None:
    """Counts in the innermost stage, or for the main process if this is one of its workers."""
    if _count_in_worker is not None:
        _count_in_worker(count)
    elif innermost := _stages[-1:]:
        innermost[0].advance(count)


def follow(counts: WorkerCounts) -> None:
    """Lets the innermost stage, if there is one, count what worker processes do."""
    for innermost in _stages[-1:]:
        innermost.follow(counts)


def enter_worker(counts: WorkerCounts) -> None:
    """Makes this process a worker: it shows nothing, and `advance` counts for the main process."""
    global _count_in_worker
    _count_in_worker = counts.take()


def _seconds_between_lines(default: float) -> float:
    """Returns the time between two lines that the environment names, or else the default."""
    try:
        seconds = float(os.environ[SECONDS])
    except (KeyError, ValueError):
        return default
    return seconds if 0 <= seconds < math.inf else default


def _make_display(seconds: float, has_summary: bool, has_terminal: bool) -> Display:
    """Returns the display for this process and its standard error."""
    mode, stream = os.environ.get(MODE, "").lower(), sys.stderr
    if mode == "off" or stream is None or _count_in_worker is not None or not _is_first_host():
        return Display()
    # Other processes than the main one do not know what that draws.
    is_main = multiprocessing.parent_process() is None
    if has_terminal and is_main and mode != "lines" and is_terminal(stream):
        with contextlib.suppress(ImportError):  # rich is not among the core's requirements
            from ofa_jax.utils.progress_bars import Bars

            return Bars(stream)
    seconds = _seconds_between_lines(seconds)
    return Lines(stream, seconds, has_summary=has_summary, has_watch=has_terminal)


def is_terminal(stream: TextIO) -> bool:
    """Returns whether a stream is a terminal that can move its cursor."""
    try:
        return stream.isatty() and os.environ.get("TERM", "").lower() not in _DUMB_TERMINALS
    except ValueError:  # it is closed
        return False


def _is_first_host() -> bool:
    """Returns whether this is the first of the hosts that JAX connects; loads no JAX."""
    jax: Any = sys.modules.get("jax")
    distributed = getattr(jax, "distributed", None)
    if distributed is None or not distributed.is_initialized():
        return True
    return jax.process_index() == 0
