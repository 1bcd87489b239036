"""Progress of a command: bars on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress(name: str, action: str) -> Iterator[Callable[[str, int, int], None]]:
    """Shows a progress bar per part on a terminal, or a line every ten seconds elsewhere.

    Args:
      name: of the command, for the lines.
      action: what it does to a part, for the bars.

    Yields:
      `show(part, done, count)`; it may be called after every item.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    stream = sys.stdout  # as it is now: TFDS is silenced by redirecting it
    console = Console(file=stream)
    if not console.is_terminal:
        last = time.monotonic()

        def show_line(part: str, done: int, count: int) -> None:
            nonlocal last
            if done == count or time.monotonic() - last > 10:
                last = time.monotonic()
                print(f"{name}: {part} {done}/{count}", file=stream, flush=True)

        yield show_line
        return
    columns = [*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=console) as bars:
        tasks = {}

        def show_bar(part: str, done: int, count: int) -> None:
            if part not in tasks:
                tasks[part] = bars.add_task(f"{action} {part}", total=count)
            bars.update(tasks[part], completed=done)

        yield show_bar
