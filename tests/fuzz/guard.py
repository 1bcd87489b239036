"""Limits of a process that runs cases, and a watch on what it does.

An audit hook sees what Python code does: programs that are started, libraries that are loaded,
files that are written outside the case's folder, connections, and code that is executed from a
string or from a file of the case. Python cannot remove a hook, so only workers install it.
"""

import logging
import os
import pathlib
import resource
import sys
import tempfile
import warnings
from typing import Any

from fuzz.cases import Violation

_PROGRAMS = {
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn",
    "os.startfile",
}  # fmt: skip
_CONNECTIONS = {"socket.connect", "socket.bind", "urllib.Request"}
_PICKLES = {"pickle.find_class"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_MAX_MESSAGES = 25
_ALWAYS_WRITABLE = ("/dev/null", "/proc/self/clear_refs", "/dev/shm/")


class Guard:
    """Watches this process while a case runs."""

    def __init__(self) -> None:
        """Installs the audit hook and collects warnings and messages."""
        self._folder: str | None = None
        self._events: list[str] = []
        self._messages: list[str] = []
        self._project = str(pathlib.Path(__file__).resolve().parents[2] / "ofa_jax")
        sys.addaudithook(self._hook)
        warnings.showwarning = self._keep_warning
        handler = logging.Handler()
        handler.emit = self._keep_message  # type: ignore[method-assign]
        logging.getLogger().handlers = [handler]
        for name in ("absl", "py.warnings"):
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = [], True

    def limit_memory(self, megabytes: int) -> None:
        """Limits the address space to what is used now and `megabytes` more."""
        used = _status("VmSize")
        limit = (used + megabytes) << 20
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def start(self, folder: pathlib.Path) -> None:
        """Begins a case, which may write in its folder alone."""
        self._events, self._messages = [], []
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak of memory starts anew
        self._before = _status("VmRSS")
        self._folder = str(folder)

    def stop(self) -> None:
        """Ends a case, so that nothing is watched."""
        self._folder = None

    def check(self, megabytes: int) -> None:
        """Raises Violation for what the case has done.

        Args:
          megabytes: of memory that it may have used at its peak.
        """
        if self._events:
            raise Violation("; ".join(dict.fromkeys(self._events)))
        used = _status("VmHWM") - self._before
        if used > megabytes:
            raise Violation(f"it took {used} MB of memory instead of at most {megabytes}")
        for message in self._messages:
            if "Traceback" in message:
                raise Violation(f"a traceback is logged: {message[-2_000:]}")
        if len(self._messages) > _MAX_MESSAGES:
            raise Violation(f"{len(self._messages)} messages, e.g. {self._messages[-1][:200]}")

    def _keep_warning(self, message: Any, *_: Any, **__: Any) -> None:
        self._messages.append(f"warning: {message}")

    def _keep_message(self, record: Any) -> None:
        text = record.getMessage()
        if record.exc_info:
            error = record.exc_info[1]
            text += f" Traceback: {type(error).__name__}: {error}"
        self._messages.append(text)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        folder = self._folder
        if folder is None:
            return
        if event in _PROGRAMS:
            self._events.append(f"a program is started: {str(arguments)[:200]}")
        elif event in _CONNECTIONS:
            self._events.append(f"a connection is made: {str(arguments)[:200]}")
        elif event == "open":
            self._check_open(folder, *arguments)
        elif event in _PICKLES:
            if event == "pickle.find_class":
                self._events.append(f"a pickle asks for {arguments[0]}.{arguments[1]}")
        elif event == "exec":
            self._check_code(folder, arguments[0])
        elif event == "ctypes.dlopen" and str(arguments[0]).startswith(folder):
            self._events.append(f"a library is loaded: {arguments[0]}")

    def _check_open(self, folder: str, path: Any, mode: Any, flags: Any) -> None:
        del mode
        if not isinstance(path, str | bytes) or not isinstance(flags, int) or not flags & _WRITES:
            return
        name = os.path.abspath(os.fsdecode(path))
        if "__pycache__" in name or name.startswith((folder, *_ALWAYS_WRITABLE)):
            return
        self._events.append(f"a file outside is written: {name}")

    def _check_code(self, folder: str, code: Any) -> None:
        name = getattr(code, "co_filename", "")
        if name.startswith(folder):
            self._events.append(f"code of the input is executed: {name}")
        elif name.startswith("<"):
            # dataclasses and namedtuples execute texts of their own when modules are imported.
            caller = sys._getframe(2).f_code.co_filename
            if caller.startswith(self._project) or caller.endswith("pickle.py"):
                self._events.append(f"a text is executed in {caller}")


def _status(field: str) -> int:
    """Returns a field of this process's status in megabytes."""
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(field + ":"):
                return int(line.split()[1]) >> 10
    return 0


def scratch_folder() -> pathlib.Path:
    """Returns a new folder for the cases of a process."""
    return pathlib.Path(tempfile.mkdtemp(prefix="ofa-fuzz-")).resolve()
