"""Ends a process that hangs although it still sends heartbeats to the other hosts."""

import contextlib
import faulthandler
import sys
import types


class Watchdog(contextlib.AbstractContextManager):
    """A context manager that ends the process unless `heartbeat` is called often enough.

    It prints the stack of every thread. The exit code is 1, on which a supervisor restarts the run.
    """

    def __init__(self, timeout_secs: float | None):
        """Prepares the watchdog; it is active within the context.

        Args:
          timeout_secs: the longest time between two heartbeats; None for no limit.
        """
        self._timeout_secs = timeout_secs

    def __enter__(self) -> "Watchdog":
        """Starts the timeout."""
        self.heartbeat()
        return self

    def heartbeat(self) -> None:
        """Restarts the timeout."""
        if self._timeout_secs is not None:
            # Not sys.stderr: a notebook's has no file descriptor.
            assert sys.__stderr__ is not None
            faulthandler.dump_traceback_later(self._timeout_secs, exit=True, file=sys.__stderr__)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        if self._timeout_secs is not None:
            faulthandler.cancel_dump_traceback_later()
