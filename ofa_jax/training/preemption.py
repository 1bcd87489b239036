"""SIGTERM, which clusters send before they take a machine away: save, then end in order."""

import signal
import threading
import types

import jax
from jax.experimental import multihost_utils


class Preemption:
    """A context manager in which SIGTERM is a request to stop, not the end.

    On several hosts one of them is told, and all must save the same step: JAX's preemption service,
    which took the signal over in `jax.distributed.initialize`, agrees on the step.
    """

    def __init__(self) -> None:
        self._told = False
        self._before: signal.Handlers | None = None

    def __enter__(self) -> "Preemption":
        # Python allows handlers only in the main thread; a test or a notebook may be in another.
        main = threading.current_thread() is threading.main_thread()
        if main and not jax.distributed.is_initialized():
            self._before = signal.signal(signal.SIGTERM, self._tell)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _tell(self, number: int, frame: types.FrameType | None) -> None:
        self._told = True

    def requested(self, step: int) -> bool:
        """Whether to stop after this step; to be asked after every step, by all hosts."""
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(step)
        return self._told
