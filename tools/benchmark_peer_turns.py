"""Runs two commands in turn and reads the seconds that they print; for `tools.benchmark_peer`."""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from typing import IO, Any, NoReturn

from ofa_jax.utils import allocator
from ofa_jax.utils.text_files import replace_surrogates

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
"""How the libraries of either side are told their number of threads."""
_MAX_OUTPUT = 1_000_000  # bytes
_MAX_SECONDS = 1e6
_SHOWN = 80


class PeerError(ValueError):
    """What a command printed, or how it ended, is of no use: a sentence."""


@dataclasses.dataclass
class Samples:
    """What one side of a comparison has printed so far.

    Attributes:
      seconds: of every repeat.
      parts: seconds by the name of a part of the work.
      notes: other numbers, such as a rate that is measured beside.
      skipped: why this side does not do the work; empty if it does.
    """

    seconds: list[float] = dataclasses.field(default_factory=list)
    parts: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    notes: dict[str, float] = dataclasses.field(default_factory=dict)
    skipped: str = ""

    def add(self, other: "Samples") -> None:
        """Appends what another turn has printed."""
        self.seconds += other.seconds
        for name, seconds in other.parts.items():
            self.parts.setdefault(name, []).extend(seconds)
        self.notes |= other.notes
        self.skipped = self.skipped or other.skipped


# ------------------------------------------------------------------------------ what they print


def parse_output(text: str, whose: str) -> Samples:
    """Reads what a command printed: JSON lines with the seconds of its repeats.

    A line is a number, a list of numbers, or an object with `seconds` (a number or a list), perhaps
    `parts` and `notes` (objects of numbers; those of parts may be lists), or with `skipped`, a
    reason. Other keys are ignored, as are empty lines.

    Args:
      text: standard output.
      whose: what to call the command in an error.

    Raises:
      PeerError: a line is something else, or there are no seconds.
    """
    samples = Samples()
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            samples.add(_parse_line(line, f"Line {number} of what {whose} printed"))
    if not samples.seconds and not samples.skipped:
        raise PeerError(
            f"{whose[0].upper()}{whose[1:]} printed no seconds: print one JSON line a repeat, such "
            'as {"seconds": 1.25}, on standard output.'
        )
    return samples


def _parse_line(line: str, where: str) -> Samples:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        _refuse(where, f"is no JSON ({_excerpt(line)})")
    if not isinstance(value, dict):
        return Samples(_numbers(value, where))
    if isinstance(reason := value.get("skipped"), str) and reason:
        return Samples(skipped=_excerpt(reason))
    if "seconds" not in value:
        _refuse(where, f"has no `seconds` ({_excerpt(line)})")
    parts, notes = (_mapping(value, name, where) for name in ("parts", "notes"))
    return Samples(
        _numbers(value["seconds"], where),
        {name: _numbers(own, f"{where}, part {name},") for name, own in parts.items()},
        {name: _numbers(own, f"{where}, note {name},", math.inf)[0] for name, own in notes.items()},
    )


def _mapping(value: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    """Returns an object in a line; empty if there is none."""
    found = value.get(name) or {}
    if not isinstance(found, dict):
        _refuse(where, f"has `{name}` that are no object")
    return {_excerpt(key): own for key, own in found.items()}


def _numbers(value: Any, where: str, limit: float = _MAX_SECONDS) -> list[float]:
    """Returns one or several positive numbers as a list."""
    values = value if isinstance(value, list) and value else [value]
    for own in values:
        is_number = isinstance(own, int | float) and not isinstance(own, bool)
        # A huge integer has no float; comparing it is exact.
        if not is_number or not 0 < own < limit:
            _refuse(where, f"has {_excerpt(json.dumps(own))} where positive seconds are expected")
    return [float(own) for own in values]


def _refuse(where: str, problem: str) -> NoReturn:
    raise PeerError(
        f'{where} {problem}: print JSON lines such as {{"seconds": 1.25}} on standard output, and '
        "everything else on standard error."
    )


def _excerpt(text: str) -> str:
    """Returns the beginning of a text, on one line."""
    shown = replace_surrogates(" ".join(text[: 4 * _SHOWN].split()))
    printable = "".join(character if character.isprintable() else "?" for character in shown)
    return printable if len(printable) <= _SHOWN else f"{printable[: _SHOWN - 3]}..."


# ------------------------------------------------------------------------------ how they are run


def environment(threads: int, work: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment of both sides: the same allocator settings and number of threads.

    Args:
      threads: of every library.
      work: variables that describe the work.
    """
    name, value = allocator.TUNABLES
    settings = dict.fromkeys(THREAD_VARIABLES, str(threads))
    # Neither side takes the settings of a shell: both have these.
    return {**os.environ, name: value, **settings, **work}


@contextlib.contextmanager
def cores(threads: int) -> Iterator[list[int]]:
    """Binds this process, and those that it starts, to its first cores; yields their numbers.

    Raises:
      ValueError: there are fewer.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield []
        return
    before = os.sched_getaffinity(0)
    if threads > len(before):
        raise ValueError(f"--threads is {threads}, and there are {len(before)} cores: lower it.")
    chosen = sorted(before)[:threads]
    os.sched_setaffinity(0, chosen)
    try:
        yield chosen
    finally:
        os.sched_setaffinity(0, before)


def run(
    command: str,
    whose: str,
    variables: Mapping[str, str],
    folder: pathlib.Path,
    timeout: float,
    directory: pathlib.Path | None = None,
) -> Samples:
    """Runs a command once and returns the seconds that it printed.

    Args:
      command: program and arguments as in a shell, but no shell runs them; `{work}` and `{folder}`
        become the name of the work and the folder of its inputs.
      whose: what to call it in an error.
      variables: its environment, with `OFA_BENCHMARK_WORK`.
      folder: of the inputs.
      timeout: in seconds; then it is killed with all that it started.
      directory: where it runs; None for the current folder.

    Raises:
      PeerError: it cannot be started, fails, takes too long, or prints something else.
    """
    named = {"{work}": variables["OFA_BENCHMARK_WORK"], "{folder}": str(folder)}
    words = split_command(command, whose)
    for name, value in named.items():
        words = [word.replace(name, value) for word in words]
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                env=dict(variables),
                cwd=directory,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise PeerError(
                f"{whose[0].upper()}{whose[1:]} cannot be started: {words[0]} ({reason})."
            ) from error
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise PeerError(
                f"{whose[0].upper()}{whose[1:]} took more than {timeout:.0f} s for "
                f"{named['{work}']}: raise --timeout, or lower --repeats."
            ) from error
        finally:
            _end(process)
        if code:
            raise PeerError(
                f"{whose[0].upper()}{whose[1:]} failed at {named['{work}']} with exit code {code}: "
                f"{_last_line(errors) or 'it wrote nothing on standard error'}"
            )
        return parse_output(_read(output, whose), whose)


def split_command(command: str, whose: str) -> list[str]:
    """Returns the words of a command. Raises PeerError if there are none."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise PeerError(f"The command of {whose} cannot be read ({error}): {command}") from error
    if not words:
        raise PeerError(f'The command of {whose} is empty: give one, as --peer="python peer.py".')
    return words


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kills what is left of a command, its own processes included."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read(file: IO[bytes], whose: str) -> str:
    size = file.seek(0, os.SEEK_END)
    if size > _MAX_OUTPUT:
        raise PeerError(
            f"{whose[0].upper()}{whose[1:]} printed {size:,} bytes: print only the JSON lines on "
            "standard output."
        )
    file.seek(0)
    return file.read().decode("utf-8", "replace").removeprefix("\ufeff")


def _last_line(file: IO[bytes]) -> str:
    """Returns the last line of what a command wrote on standard error."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 4096))
    lines = file.read().decode("utf-8", "replace").split("\n")
    return next((_excerpt(line) for line in reversed(lines) if line.strip()), "")
