"""What every tool does on the command line: errors in a sentence, and a quiet Ctrl-C."""

import contextlib
import functools
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import ParamSpec

from ofa_jax.cli.errors import report_error, report_interrupt
from ofa_jax.utils import allocator, progress

Parameters = ParamSpec("Parameters")


def user_command(main: Callable[Parameters, int | None]) -> Callable[Parameters, int]:
    """Wraps a tool's `main`, so that a user's mistake is one sentence and exit code 2.

    ValueError, OSError and ImportError are taken for mistakes; other exceptions are bugs and keep
    their traceback. Ctrl-C gives exit code 130 and no traceback. A tool that is a program of its
    own, `python -m tools.NAME`, restarts with huge pages, see `ofa_jax.utils.allocator`.

    Args:
      main: runs a command line; returns an exit code, or None for 0.
    """

    @functools.wraps(main)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> int:
        try:
            allocator.restart_with_huge_pages(main)
            return main(*args, **kwargs) or 0
        except KeyboardInterrupt:
            return report_interrupt()
        except BrokenProcessPool:
            return report_error(
                "a worker process was killed, perhaps for lack of memory: lower --num_workers."
            )
        except (ValueError, OSError, ImportError) as error:
            return report_error(str(error))

    return run


@contextlib.contextmanager
def worker_processes(num_workers: int) -> Iterator[ProcessPoolExecutor]:
    """Yields an executor whose processes share nothing with this one but the code.

    Ctrl-C and errors end the processes at once, whatever they are doing. Unlike a
    multiprocessing.Pool, the executor raises when one of them is killed. What they count with
    `progress.advance` appears in the stage that is shown now.
    """
    context = _Context()
    counts = progress.WorkerCounts(context, num_workers)
    progress.follow(counts)
    with ProcessPoolExecutor(num_workers, context, _begin_worker, (counts,)) as executor:
        try:
            yield executor
        except BaseException:
            # The executor does not know a process that has just been started: such a process would
            # wait for work, and this one for its end. So all children are killed.
            for process in multiprocessing.active_children():
                process.kill()
            executor.shutdown(wait=False, cancel_futures=True)
            raise


class _Process(SpawnProcess):
    """A process that never receives Ctrl-C, not even while Python starts in it."""

    def start(self) -> None:
        """Starts it with SIGINT blocked, which it inherits; this process gets its own later."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Context(SpawnContext):
    """Makes processes that Ctrl-C does not reach."""

    Process = _Process  # type: ignore[assignment]


def _begin_worker(counts: progress.WorkerCounts) -> None:
    """Leaves Ctrl-C, which a terminal sends to all processes, to the main process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    progress.enter_worker(counts)
