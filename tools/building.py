"""What commands that build data sets share: progress, and folders that appear when complete.

A folder is written beside its place, under a name that ends with the process's id, and renamed at
the end: what has its proper name is whole.
"""

import contextlib
import os
import pathlib
import shutil
import sys
import time


def remove_left_over(folder: pathlib.Path, prefix: str) -> None:
    """Removes what killed builds have left behind: `<prefix><process id>` of no living process."""
    for path in folder.glob(f"{prefix}*"):
        process = path.name.rpartition("-")[2]
        if process.isdigit() and not _is_running(int(process)):
            shutil.rmtree(path, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def put_in_place(source: pathlib.Path, target: pathlib.Path) -> None:
    """Renames source to target; an old target goes only when the new one is ready."""
    if target.exists():
        old = source.parent / "replaced"
        target.rename(old)
    source.rename(target)


@contextlib.contextmanager
def progress(name: str, action: str):
    """A bar for each part on a terminal, a line every ten seconds elsewhere.

    Yields `show(part, done, count)`, to be called as often as one likes.
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
