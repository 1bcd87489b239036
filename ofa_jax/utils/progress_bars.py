"""The bars of `progress` on a terminal. What is printed meanwhile appears above them, untorn."""

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID
from rich.segment import Segment
from rich.table import Column
from rich.text import Text

from ofa_jax.utils.progress_lines import Display
from ofa_jax.utils.progress_stage import Stage, as_time

_REFRESHES_PER_SECOND = 5


class Bars(Display):
    """Shows a row for each open stage; all of them vanish at the end."""

    def __init__(self, stream: TextIO):
        """Draws on a terminal, and takes over what is printed on it."""
        self._console = _Console(
            file=cast(TextIO, _Forgiving(stream)),
            force_terminal=True,
            force_interactive=True,
            highlight=False,
        )
        self._bars = _Bars(self._console)
        self._rows: dict[int, TaskID] = {}
        self._redirected = contextlib.ExitStack()
        self._redirected.enter_context(_redirect_streams(stream, self._console))
        self._bars.start()

    def opened(self, stages: list[Stage]) -> None:
        """Adds a row below the others."""
        stage = stages[-1]
        indent = "  " * (len(stages) - 1)
        self._rows[id(stage)] = self._bars.add_task(
            "", total=stage.total, stage=stage, indent=indent
        )

    def closed(self, stages: list[Stage], stage: Stage, has_failed: bool) -> None:
        """Shows a row once more, and removes it."""
        self._bars.refresh()
        self._bars.remove_task(self._rows.pop(id(stage)))

    def close(self) -> None:
        """Removes everything from the terminal and gives the streams back."""
        try:
            self._bars.stop()
        finally:
            self._redirected.close()


class _Bars(Progress):
    """Rich's rows, with the numbers that their stages have at each refresh."""

    def __init__(self, console: Console):
        super().__init__(
            _TextColumn(self._name_of),
            BarColumn(None, table_column=Column(ratio=1)),
            _TextColumn(lambda task: _counts(task.fields["stage"])),
            _TextColumn(lambda task: task.fields["stage"].rate_text()),
            _TextColumn(lambda task: _time(task.fields["stage"])),
            console=console,
            transient=True,
            expand=True,
            refresh_per_second=_REFRESHES_PER_SECOND,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def get_renderables(self) -> Iterator[Any]:
        """Yields the table of all rows."""
        for task in self.tasks:
            stage: Stage = task.fields["stage"]
            self.update(task.id, completed=stage.done, total=stage.total)
        yield from super().get_renderables()

    def _name_of(self, task: Task) -> str:
        """Returns the name of a row's stage, which leaves most of the width to the others."""
        name = task.fields["indent"] + task.fields["stage"].name
        width = self.console.width // 3
        return name if len(name) <= width else f"{name[: width - 3]}..."


class _TextColumn(ProgressColumn):
    """A text about the stage of each row."""

    def __init__(self, text_of: Callable[[Task], str]):
        super().__init__(Column(no_wrap=True, overflow="crop"))
        self._text_of = text_of

    def render(self, task: Task) -> Text:
        """Returns the text."""
        return Text(self._text_of(task), style="progress.description")


def _counts(stage: Stage) -> str:
    return stage.counts_text() if stage.done or stage.total is not None else ""


def _time(stage: Stage) -> str:
    """Returns the time left, or else the time so far."""
    return stage.left_text() or f"{as_time(stage.seconds)} so far"


class _Console(Console):
    """A console that leaves the cursor visible: a killed command cannot bring it back."""

    def show_cursor(self, show: bool = True) -> bool:
        """Does nothing."""
        return False


class _Forgiving:
    """A stream whose failures do not end the work: the terminal may be gone."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes what can be written."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes what can be flushed."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _AboveBars:
    """Takes the place of a stream on the terminal: prints its lines above the bars.

    A line appears when it is complete. After the bars have ended, everything goes to the stream.
    """

    def __init__(self, stream: TextIO, console: Console):
        self._stream, self._console = stream, console
        self._lock = threading.RLock()
        self._rest = ""
        self._has_ended = False

    def write(self, text: str) -> int:
        """Prints the lines that are complete now."""
        with self._lock:
            if self._has_ended:
                return self._stream.write(text)
            lines, end, self._rest = (self._rest + text).rpartition("\n")
            if end:
                self._console.print(_Raw(lines + end), soft_wrap=True, end="")
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Writes several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flushes the stream."""
        self._stream.flush()

    def end(self) -> None:
        """Prints an incomplete line; from now on everything goes to the stream."""
        with self._lock:
            self._has_ended = True
            if self._rest:
                self._stream.write(self._rest)
                self._rest = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Raw:
    """Text that Rich leaves as it is."""

    def __init__(self, text: str):
        self._text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Segment(self._text)


@contextlib.contextmanager
def _redirect_streams(terminal: TextIO, console: Console) -> Iterator[None]:
    """Prints above the bars what is written to this terminal in the block, by loggers as well."""
    taken: dict[int, _AboveBars] = {}
    before: dict[str, Any] = {}
    stream: Any
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if _same_terminal(stream, terminal):
            stream.flush()
            before[name] = stream
            taken[id(stream)] = _AboveBars(stream, console)
            setattr(sys, name, taken[id(stream)])
    handlers = []
    for handler in _log_handlers():
        stream = getattr(handler, "stream", None)
        if _same_terminal(stream, terminal):
            handlers.append((handler, stream))
            if id(stream) not in taken:
                taken[id(stream)] = _AboveBars(stream, console)
            handler.stream = taken[id(stream)]
    try:
        yield
    finally:
        for above in taken.values():
            above.end()
        for name, stream in before.items():
            if getattr(sys, name) is taken[id(stream)]:
                setattr(sys, name, stream)
        for handler, stream in handlers:
            if handler.stream is taken[id(stream)]:
                handler.stream = stream


def _same_terminal(stream: Any, terminal: TextIO) -> bool:
    """Returns whether a stream writes to the terminal."""
    try:
        if isinstance(stream, _AboveBars) or not stream.isatty():
            return False
        return os.fstat(stream.fileno()).st_rdev == os.fstat(terminal.fileno()).st_rdev
    except (AttributeError, OSError, ValueError):
        return False


def _log_handlers() -> list[Any]:
    """Returns the handlers of all loggers, and those that absl has inside its own."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    own = [handler for logger in loggers for handler in getattr(logger, "handlers", ())]
    inner = [getattr(handler, "python_handler", None) for handler in own]
    unique = {id(handler): handler for handler in (*own, *inner) if handler is not None}
    return list(unique.values())
