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
    previous, previous_unraisable = sys.excepthook, sys.unraisablehook

    def excepthook(
        kind: type[BaseException], error: BaseException, trace: types.TracebackType | None
    ) -> None:
        in_main = threading.current_thread() is threading.main_thread()
        if in_main or not _is_of_closed_loop(error):
            previous(kind, error, trace)

    def unraisablehook(unraisable: "sys.UnraisableHookArgs") -> None:
        if not _is_of_closed_loop(unraisable.exc_value):
            previous_unraisable(unraisable)

    sys.excepthook, sys.unraisablehook = excepthook, unraisablehook


def _is_of_closed_loop(error: BaseException | None) -> bool:
    """Returns whether a callback of TensorStore came after the failure had been reported."""
    return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
