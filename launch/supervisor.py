"""Starts a run and starts it again when it crashes; on this machine, as several processes too.

    python -m launch.supervisor [--processes=N] [--restarts=R] [--dry_run] -- COMMAND ...

    python -m launch.supervisor --processes=2 -- \\
      python -m ofa_jax.train --gin_file=gin_configs/runs/pretrain_scenes.gin

On a pod each host has a supervisor of its own around the same command: when one process dies, the
others notice (see `ofa_jax.utils.distributed`), end too, and all meet again. With --processes=N the
command runs N times on this machine, over loopback and through the same code; that is for trying
things out, and for tests.

Exit codes: 0, the run is complete or was asked to stop (SIGTERM is passed on: the run saves and
ends); 2, a mistake in the call, which no restart would mend; else the last crash's, after so many
restarts in a row. A run that has been well for --healthy_seconds has all its restarts again.
"""

import argparse
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

_POLL_SECONDS = 0.1
_MISTAKE = 2


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """The parsed command line."""
    description, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        "python -m launch.supervisor",
        description=description,
        epilog=epilog,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="run the command as N processes that meet on this machine; without "
        "it, once and as it is",
    )
    parser.add_argument(
        "--restarts",
        type=int,
        default=10,
        metavar="R",
        help="crashes in a row after which it gives up (default %(default)s)",
    )
    parser.add_argument(
        "--backoff_seconds",
        type=float,
        default=5,
        metavar="S",
        help="wait before a restart, doubled with each crash in a row, up to five "
        "minutes (default %(default)s)",
    )
    parser.add_argument(
        "--healthy_seconds",
        type=float,
        default=600,
        metavar="S",
        help="a run that lasts so long counts as well (default %(default)s)",
    )
    parser.add_argument(
        "--grace_seconds",
        type=float,
        default=300,
        metavar="S",
        help="time to save after SIGTERM, before SIGKILL (default %(default)s)",
    )
    parser.add_argument("--dry_run", action="store_true", help="print the commands, run nothing")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="after --")
    options = parser.parse_args(given)
    if options.processes is not None and options.processes < 1:
        parser.error(f"--processes is {options.processes}; give at least 1")
    return options


def commands(command: Sequence[str], processes: int | None, port: int | str) -> list[list[str]]:
    """The command of each process."""
    if processes is None:
        return [list(command)]
    return [
        [
            *command,
            f"--coordinator_address=127.0.0.1:{port}",
            f"--num_processes={processes}",
            f"--process_id={number}",
        ]
        for number in range(processes)
    ]


class Supervisor:
    """Runs the processes of one run, over and over until they end well."""

    def __init__(self, options: argparse.Namespace):
        self._options = options
        self._running: list[subprocess.Popen] = []
        self._asked_to_stop: float | None = None

    def run(self) -> int:
        """Returns the exit code."""
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        crashes = 0
        while True:
            started = time.monotonic()
            code = self._once()
            if self._asked_to_stop is not None:
                # One that was not yet ready to save has nothing to save.
                return 0 if code == -signal.SIGTERM else _exit_code(code)
            if code in (0, _MISTAKE):
                return code
            if time.monotonic() - started > self._options.healthy_seconds:
                crashes = 0
            crashes += 1
            if crashes > self._options.restarts:
                _say(f"{_how(code)} {crashes} times in a row: giving up.")
                return _exit_code(code)
            wait = min(self._options.backoff_seconds * 2 ** (crashes - 1), 300)
            _say(f"{_how(code)}: restart {crashes} of {self._options.restarts} in {wait:.0f} s.")
            self._sleep(wait)
            if self._asked_to_stop is not None:
                return 0

    def _once(self) -> int:
        """One life of the run: 0 if all processes ended well, else what tells most."""
        port = free_port() if self._options.processes else ""
        self._running = [
            subprocess.Popen(command)
            for command in commands(self._options.command, self._options.processes, port)
        ]
        if self._asked_to_stop is not None:  # between the last look and now
            self._forward()
        codes = self._wait_for_first_crash()
        for process in self._running:
            # What is left waits for the one that is gone. It has written nothing that counts: a
            # checkpoint becomes valid at once, when all have written their part.
            process.kill()
        codes += [process.wait() for process in self._running if process.returncode is None]
        if _MISTAKE in codes:
            return _MISTAKE
        # A process that was told why says more than those that it took with it.
        return next((code for code in codes if code), 0)

    def _wait_for_first_crash(self) -> list[int]:
        """The exit codes of those that ended, in their order, when all did or one did badly."""
        codes: list[int] = []
        waiting = list(self._running)
        doomed_since = None
        while waiting:
            for process in list(waiting):
                if process.poll() is not None:
                    waiting.remove(process)
                    codes.append(process.returncode)
            now = time.monotonic()
            if any(codes) and doomed_since is None:
                doomed_since = now
            if doomed_since is not None and now - doomed_since > 1:
                break
            late = self._asked_to_stop is not None and (
                now - self._asked_to_stop > self._options.grace_seconds
            )
            if late:
                _say(f"Not ended {self._options.grace_seconds:.0f} s after SIGTERM: killing it.")
                break
            time.sleep(_POLL_SECONDS)
        return codes

    def _stop(self, number: int, frame: object) -> None:
        if self._asked_to_stop is None:
            self._asked_to_stop = time.monotonic()
        self._forward()

    def _forward(self) -> None:
        for process in self._running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._asked_to_stop is None:
            time.sleep(_POLL_SECONDS)


def free_port() -> int:
    """A port of this machine that nothing listens on; another one in every life of a run."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _exit_code(code: int) -> int:
    """As a shell would say it."""
    return code if code >= 0 else 128 - code


def _how(code: int) -> str:
    if code < 0:
        return f"The run was ended by {signal.Signals(-code).name}"
    return f"The run failed with exit code {code}"


def _say(message: str) -> None:
    print(f"supervisor: {message}", file=sys.stderr, flush=True)


def main(given: Sequence[str]) -> int:
    """Runs the command line without the program; returns the exit code."""
    options = arguments(given)
    if options.dry_run:
        for command in commands(options.command, options.processes, "PORT"):
            print(shlex.join(command))
        return 0
    return Supervisor(options).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
