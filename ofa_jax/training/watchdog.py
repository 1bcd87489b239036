"""A process that is stuck but not dead: its heart still beats, so no other one gives it up."""

import contextlib
import faulthandler
import sys
import types


class Watchdog(contextlib.AbstractContextManager):
    """Ends the process, with where each thread is, unless it is told often enough that all is well.

    The exit code is 1, which makes a supervisor start the run again.
    """

    def __init__(self, seconds: float | None):
        """Not yet active.

        Args:
          seconds: without a word for so long, the process ends; None for never.
        """
        self._seconds = seconds

    def __enter__(self) -> "Watchdog":
        self.well()
        return self

    def well(self) -> None:
        """Begins to count anew."""
        if self._seconds is not None:
            # Not sys.stderr: a notebook's has no file descriptor.
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=sys.__stderr__)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        if self._seconds is not None:
            faulthandler.cancel_dump_traceback_later()
