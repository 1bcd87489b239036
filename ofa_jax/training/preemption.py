"""Handles SIGTERM, which clusters send before they take a machine: save, then end in order."""

import signal
import threading
import types
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
        self._received = False
        self._previous_handler: Any = None

    def __enter__(self) -> "Preemption":
        # Python allows handlers only in the main thread; a test or a notebook may be in another.
        main = threading.current_thread() is threading.main_thread()
        if main and not jax.distributed.is_initialized():
            self._previous_handler = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        if self._previous_handler is not None:
            signal.signal(signal.SIGTERM, self._previous_handler)

    def _receive(self, number: int, frame: types.FrameType | None) -> None:
        self._received = True

    def requested(self, step: int) -> bool:
        """Returns whether to stop after this step; every host must call it after every step."""
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received
