"""Starts a command with the allocator settings of the launchers: huge pages for large arrays.

A training step on a CPU allocates and frees hundreds of megabytes. With huge pages the kernel has a
quarter of the work. glibc reads its settings when a process starts, so a command that was started
without them executes itself again, once, under the same process id: arguments, standard input,
signals and the exit code are those of one command. `OFA_JAX_ALLOCATOR=0` keeps it from that, and a
GLIBC_TUNABLES of the user's is kept as it is.
"""

import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["OPT_OUT", "TUNABLES", "restart_with_huge_pages", "settings"]

TUNABLES = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
"""The variable and its value, as in launch/environment.sh."""
OPT_OUT = "OFA_JAX_ALLOCATOR"
"""The variable that keeps a command from executing itself again, if it is 0."""

_RESTARTED = "OFA_JAX_RESTARTED"
_HUGE_PAGES = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
_OLDEST_GLIBC = (2, 35)


def settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables that a command should be started with and lacks."""
    name, value = TUNABLES
    if environment.get(OPT_OUT) == "0" or name in environment:
        return {}
    return {name: value} if _helps() else {}


def restart_with_huge_pages(main: Callable[..., Any] | None = None) -> None:
    """Executes this command again with `settings`, unless it has them or they do not help.

    Call it first of all: what was imported is imported again. It returns where the settings do not
    help, and in the process that has them.

    Args:
      main: a function that is called only by the program that it is in; where it belongs to a
        module that another program has imported, nothing is done.
    """
    if main is not None and main.__module__ != "__main__":
        return
    given = settings(os.environ)
    command = _same_command(sys.orig_argv)
    # glibc withholds its settings from some programs; the process id keeps this from a loop.
    own_id = str(os.getpid())
    if not given or command is None or os.environ.get(_RESTARTED) == own_id:
        return
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    try:
        os.execve(sys.executable, command, {**os.environ, **given, _RESTARTED: own_id})
    except OSError:  # it runs without the settings, only slower
        return


def _same_command(argv: Sequence[str]) -> list[str] | None:
    """Returns the arguments that start this command again; None if they do not.

    A program that Python read from its standard input is gone, and one that Python asks for line by
    line has no command.
    """
    if not sys.executable or len(argv) < 2 or argv[1] == "-":
        return None
    return [sys.executable, *argv[1:]]


def _helps() -> bool:
    """Returns whether glibc can ask this kernel for huge pages."""
    try:
        library = os.confstr("CS_GNU_LIBC_VERSION") or ""
        # In brackets: "always" needs no asking, and under "never" it is in vain.
        offered = "[madvise]" in _HUGE_PAGES.read_text()
    except (OSError, ValueError, AttributeError):  # another system, or another C library
        return False
    name, _, version = library.partition(" ")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    return offered and name == "glibc" and numbers >= _OLDEST_GLIBC
