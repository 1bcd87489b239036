"""Keeps Orbax's own messages out of the log: a failure is one sentence of ours, not ten traces.

When a checkpoint cannot be written, each of Orbax's threads logs the error with its trace, as does
each callback of TensorStore into an event loop that has ended.
"""

import logging as standard_logging
import re
import sys
import threading
import types

from absl import logging

__all__ = ["quiet"]

_ORBAX = re.compile(r"[/\\]orbax[/\\]checkpoint[/\\]")


def _is_wanted(record: standard_logging.LogRecord) -> bool:
    """Returns whether to log a record: all where the user asks for details, else none of Orbax."""
    return logging.get_verbosity() >= logging.INFO or not _ORBAX.search(record.pathname)


def quiet() -> None:
    """Drops Orbax's messages from now on; a second call changes nothing."""
    logger = logging.get_absl_logger()
    if _is_wanted in logger.filters:
        return
    logger.addFilter(_is_wanted)
    previous = sys.excepthook

    def excepthook(
        kind: type[BaseException], error: BaseException, trace: types.TracebackType | None
    ) -> None:
        # Of TensorStore's threads, after the failure has been reported.
        closed = isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
        if not (closed and threading.current_thread() is not threading.main_thread()):
            previous(kind, error, trace)

    sys.excepthook = excepthook
