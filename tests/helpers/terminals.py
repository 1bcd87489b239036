"""Runs programs on a pseudo-terminal, and says what is on its screen."""

import fcntl
import os
import pathlib
import pty
import re
import struct
import subprocess
import sys
import termios

ROOT = pathlib.Path(__file__).resolve().parents[2]
_CONTROL = re.compile(r"\r|\n|\x1b\[(\?25[hl]|\d*[A-Za-z]|[\d;]*m)")


def run_on_terminal(
    program: str, *arguments: str, columns: int = 100, stdout=None, timeout=60, **environment: str
) -> tuple[int, str]:
    """Runs a Python program whose output goes to a terminal; returns its exit code and the output.

    Args:
      program: text for `python -c`, or a module if it begins with "-m ".
      arguments: of the program.
      columns: width of the terminal.
      stdout: where standard output goes instead.
      timeout: seconds until it is killed.
      environment: further variables.
    """
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    start = ["-m", program[3:]] if program.startswith("-m ") else ["-c", program]
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("COLUMNS", "LINES", "NO_COLOR", "CI") and not name.startswith("OFA_")
    }
    process = subprocess.Popen(
        [sys.executable, *start, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=stdout or terminal,
        stderr=terminal,
        cwd=ROOT,
        env=kept | {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"} | environment,
    )
    os.close(terminal)
    output = b""
    try:
        while chunk := _read(controller):
            output += chunk
        code = process.wait(timeout)
    finally:
        process.kill()
        os.close(controller)
    return code, output.decode("utf-8", "replace")


def _read(controller: int) -> bytes:
    try:
        return os.read(controller, 65536)
    except OSError:  # the program has closed the terminal
        return b""


def screen(output: str) -> list[str]:
    """Returns the lines that a terminal shows at the end of some output, without blanks at the end.

    Raises:
      ValueError: the output has a control sequence that no bar needs.
    """
    lines, row, column, start = [""], 0, 0, 0

    def put(text: str) -> None:
        nonlocal column
        if "\x1b" in text:
            raise ValueError(f"an unknown control sequence in {text!r}")
        line = lines[row].ljust(column)
        lines[row] = line[:column] + text + line[column + len(text) :]
        column += len(text)

    for found in _CONTROL.finditer(output):
        put(output[start : found.start()])
        start, control = found.end(), found.group()
        if control == "\r":
            column = 0
        elif control == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif control.endswith("A"):
            row = max(row - int(control[2:-1] or 1), 0)
        elif control.endswith("K"):
            lines[row] = "" if control[2:-1] == "2" else lines[row][:column]
        elif not control.endswith(("m", "h", "l")):
            raise ValueError(f"an unknown control sequence {control!r}")
    put(output[start:])
    while lines and not lines[-1].strip():
        lines.pop()
    return [line.rstrip() for line in lines]
