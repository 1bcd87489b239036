"""Reports a user's mistakes in one sentence on standard error, and sets the exit code.

A mistake of the user's ends with exit code 2 before anything is compiled. Any other exception is a
bug and keeps its traceback.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import NoReturn

__all__ = [
    "FAILURE",
    "INTERRUPTED",
    "USAGE_ERROR",
    "ConfigError",
    "fail",
    "interruptible",
    "report_error",
    "report_interrupt",
    "user_errors",
]

FAILURE, USAGE_ERROR = 1, 2
"""Exit codes; a supervisor restarts a run after a failure, but not after a user's mistake."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 and the number of SIGINT."""


class ConfigError(ValueError):
    """A user's mistake in one sentence: what is wrong, where, and what to do."""


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turns the errors that a user can correct into one sentence and exit code 2.

    Wrap only what happens before compilation: there, constructors, data sources and checks raise
    ValueError, TypeError, LookupError, OSError or ImportError with a sentence. Later exceptions are
    bugs and keep their traceback.
    """
    try:
        yield
    except RecursionError:
        fail(
            ConfigError("The configuration refers to itself, or is nested too deeply: simplify it.")
        )
    except MemoryError:
        fail(ConfigError("There is not enough memory for this: make the model or batch smaller."))
    except (ValueError, TypeError, LookupError, OSError, ImportError) as error:
        fail(error)


@contextlib.contextmanager
def interruptible(advice: str = "") -> Iterator[None]:
    """Ends the program after Ctrl-C with one line instead of a traceback, and exit code 130.

    Args:
      advice: a sentence that follows, e.g. how to continue.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(report_interrupt(advice))


def report_interrupt(advice: str = "") -> int:
    """Prints that Ctrl-C ended the program; returns the exit code. See `interruptible`."""
    print(f"Stopped (Ctrl-C). {advice}".strip(), file=sys.stderr)
    return INTERRUPTED


def fail(error: Exception, code: int = USAGE_ERROR) -> NoReturn:
    """Prints the error's sentence and ends the program with an exit code."""
    # gin appends where the configurable was called; the text before that is the error's own.
    message = str(error).split("\n  In call to configurable")[0].strip()
    if isinstance(error, OSError) and error.strerror and error.filename is None:
        message = error.strerror  # a sentence of ours, without the number
    sys.exit(report_error(message, code))


def report_error(message: str, code: int = USAGE_ERROR) -> int:
    """Prints an error's sentence in one line; returns the exit code."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code
