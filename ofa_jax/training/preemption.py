"""Handles SIGTERM, which clusters send before they take a machine: save, then end in order.

Ctrl-C is noticed as well where Python loses it: raised in a callback of a library, its exception is
printed and ignored.
"""

import signal
import threading
import types
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preemption:
    """A context manager in which SIGTERM requests a stop instead of ending the process.

    On several hosts only some receive the signal, and all must save the same step: JAX's preemption
    service, which took over the signal in `jax.distributed.initialize`, agrees on the step.
    """

    def __init__(self) -> None:
        """Installs nothing yet."""
        self._received = self._interrupted = False
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> "Preemption":
        # Python allows handlers only in the main thread; a test or a notebook may be in another.
        if threading.current_thread() is threading.main_thread():
            self._handle(signal.SIGINT, self._interrupt)
            if not jax.distributed.is_initialized():
                self._handle(signal.SIGTERM, self._receive)
        return self

    def _handle(self, number: int, handler: Callable[..., None]) -> None:
        self._previous_handlers[number] = signal.signal(number, handler)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        for number, handler in self._previous_handlers.items():
            if handler is not None:  # None: not installed from Python
                signal.signal(number, handler)

    def _receive(self, number: int, frame: types.FrameType | None) -> None:
        self._received = True

    def _interrupt(self, number: int, frame: types.FrameType | None) -> None:
        self._interrupted = True
        previous = self._previous_handlers[number]
        if callable(previous):
            previous(number, frame)  # raises KeyboardInterrupt

    def requested(self, step: int) -> bool:
        """Returns whether to stop after this step; every host must call it after every step.

        Raises:
          KeyboardInterrupt: Ctrl-C was pressed, and its own exception was lost.
        """
        if self._interrupted:
            raise KeyboardInterrupt
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received
