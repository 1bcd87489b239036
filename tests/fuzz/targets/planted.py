"""Faults that the fuzzer must notice: `tests/test_fuzz.py` runs each of them once."""

import builtins
import os
import pathlib
import random
import signal
import subprocess
import time
import warnings
from collections.abc import Callable

from absl import logging

from fuzz import cases


def _start_program(folder: pathlib.Path) -> None:
    del folder
    subprocess.run(["true"], check=False)


def _write_outside(folder: pathlib.Path) -> None:
    outside = folder.parent / "outside"
    outside.write_text("a")
    outside.unlink()


def _execute(folder: pathlib.Path) -> None:
    path = folder / "code.py"
    path.write_text("x = 1")
    exec(compile(path.read_text(), str(path), "exec"), {"__builtins__": builtins})


def _hang(folder: pathlib.Path) -> None:
    del folder
    time.sleep(600)


def _crash(folder: pathlib.Path) -> None:
    del folder
    os.kill(os.getpid(), signal.SIGSEGV)


def _take_memory(folder: pathlib.Path) -> None:
    del folder
    bytearray(300 << 20)[::4096] = bytes(300 << 8)


def _flood(folder: pathlib.Path) -> None:
    del folder
    for number in range(100):
        warnings.warn(f"warning {number}", stacklevel=1)


def _log_traceback(folder: pathlib.Path) -> None:
    del folder
    try:
        _ = 1 / 0
    except ZeroDivisionError as error:
        logging.warning("a record is skipped", exc_info=error)


def _raise_by_accident(folder: pathlib.Path) -> None:
    cases.attempt(lambda: int(folder.name), ValueError)


def _raise_another_class(folder: pathlib.Path) -> None:
    del folder
    cases.attempt(lambda: {}["key"], ValueError)


def _change_input(folder: pathlib.Path) -> None:
    before = cases.snapshot(folder)
    (folder / "a").write_text("a")
    cases.check_unchanged(before, folder)


def _surrogate(folder: pathlib.Path) -> None:
    del folder
    cases.check_line({"id": "\udce9"})


FAULTS: dict[str, Callable[[pathlib.Path], None]] = {
    "a program is started": _start_program,
    "a file outside is written": _write_outside,
    "code of the input is executed": _execute,
    "it hangs": _hang,
    "the process ended with SIGSEGV": _crash,
    "MB of memory": _take_memory,
    "100 messages": _flood,
    "a traceback is logged": _log_traceback,
    "not raised on purpose": _raise_by_accident,
    "KeyError": _raise_another_class,
    "has changed": _change_input,
    "cannot be written as a line": _surrogate,
}
"""What the failure says -> a fault; the number of a case selects one."""


class Planted(cases.Target):
    """Commits one of the faults."""

    name = "planted"
    megabytes = 200

    def run(self, rng: random.Random, folder: pathlib.Path) -> str:
        """Commits the fault that the generator's first draw selects."""
        list(FAULTS.values())[rng.randrange(len(FAULTS))](folder)
        return cases.ACCEPTED


TARGETS = {"planted": Planted}
