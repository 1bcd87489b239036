"""Fetches the first batch and compiles the step while the state is being restored.

    batches = EarlyStart(run.batches(step), compile_step)
    state = restore()         # meanwhile, compile_step(first batch) runs
    batches.wait()
    next(batches)             # the first batch

The three are independent, and each takes seconds. What fails here fails again where the loop needs
it, and is reported there.
"""

import concurrent.futures
import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

__all__ = ["EarlyStart"]

T = TypeVar("T")


class EarlyStart(Generic[T]):
    """An iterator over batches whose first one a thread fetches, and gives to a function."""

    def __init__(self, batches: Iterator[T], prepare: Callable[[T], Any] | None) -> None:
        """Begins at once.

        Args:
          batches: are not to be used elsewhere any more.
          prepare: is called with the first batch; None lets the batches begin when they are asked
            for.
        """
        self._batches = batches
        self._first: concurrent.futures.Future[T] | None = None
        self._prepared: concurrent.futures.Future[None] | None = None
        if prepare is not None:
            executor = concurrent.futures.ThreadPoolExecutor(1, "early_start")
            self._first = first = executor.submit(next, batches)
            self._prepared = executor.submit(lambda: prepare(first.result()))
            executor.shutdown(wait=False)

    def __iter__(self) -> Iterator[T]:
        """Returns itself."""
        return self

    def __next__(self) -> T:
        """Returns the next batch; raises what fetching it raised."""
        if self._first is None:
            return next(self._batches)
        first, self._first = self._first, None
        return first.result()

    def wait(self) -> None:
        """Waits until `prepare` is done, whether it failed or not."""
        if self._prepared is not None:
            with contextlib.suppress(Exception):
                self._prepared.result()

    def close(self) -> None:
        """Waits for the thread, and ends the threads and processes that make batches."""
        self.wait()
        close = getattr(self._batches, "close", None)
        if close is not None:
            close()
