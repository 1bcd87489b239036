r"""Runs a command and restarts it when it crashes, also as several processes on this machine.

    python -m launch.supervisor [--processes=N] [--restarts=R] [--dry_run] -- COMMAND ...

    python -m launch.supervisor --processes=2 -- \
      python -m ofa_jax.train --gin_file=gin_configs/runs/pretrain_scenes.gin

On a pod each host has its own supervisor around the same command. When one process dies, the others
notice (see `ofa_jax.utils.distributed`) and exit, and the supervisors start all of them again. With
--processes=N the command runs N times on this machine, over loopback and through the same code, for
trials and tests.

Exit codes: 0 if the run completed; --stopped_exit_code (0) if it was stopped (SIGTERM is passed on:
the run saves a checkpoint and ends); 2 for a mistake in the command line, which no restart would
fix; otherwise the code of the last crash, after --restarts crashes in a row. A run that lasts
--healthy_seconds resets that count.
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
    """Parses the command line."""
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
        help="run the command as N processes on this machine; without it, once and unchanged",
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
        help="a run that lasts this long resets the count of crashes (default %(default)s)",
    )
    parser.add_argument(
        "--grace_seconds",
        type=float,
        default=300,
        metavar="S",
        help="time to save after SIGTERM, before SIGKILL (default %(default)s)",
    )
    parser.add_argument(
        "--stopped_exit_code",
        type=int,
        default=0,
        metavar="CODE",
        help="exit code of a run that SIGTERM has ended, for schedulers that take 0 for completed, "
        "e.g. 75 (default %(default)s)",
    )
    parser.add_argument("--dry_run", action="store_true", help="print the commands, run nothing")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="after --")
    options = parser.parse_args(given)
    if not 0 <= options.stopped_exit_code < 256:
        parser.error(f"--stopped_exit_code is {options.stopped_exit_code}; give 0 to 255")
    if options.processes is not None and options.processes < 1:
        parser.error(f"--processes is {options.processes}; give at least 1")
    return options


def commands(command: Sequence[str], processes: int | None, port: int | str) -> list[list[str]]:
    """Returns the command of each process."""
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
    """Runs the processes of a run and restarts them until they succeed."""

    def __init__(self, options: argparse.Namespace):
        self._options = options
        self._running: list[subprocess.Popen] = []
        self._stop_requested: float | None = None

    def run(self) -> int:
        """Returns the exit code."""
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        crashes = 0
        while True:
            started = time.monotonic()
            code = self._once()
            if self._stop_requested is not None:
                # One that was not yet ready to save has nothing to save.
                was_stopped = code in (0, -signal.SIGTERM)
                return self._options.stopped_exit_code if was_stopped else _exit_code(code)
            if code in (0, _MISTAKE):
                return code
            if time.monotonic() - started > self._options.healthy_seconds:
                crashes = 0
            crashes += 1
            if crashes > self._options.restarts:
                _log(f"{_describe_exit(code)} {crashes} times in a row: giving up.")
                return _exit_code(code)
            wait = min(self._options.backoff_seconds * 2 ** (crashes - 1), 300)
            attempt = f"restart {crashes} of {self._options.restarts}"
            _log(f"{_describe_exit(code)}: {attempt} in {wait:.0f} s.")
            self._sleep(wait)
            if self._stop_requested is not None:
                return self._options.stopped_exit_code

    def _once(self) -> int:
        """Runs the processes once; returns 0 on success, else the most informative exit code."""
        port = free_port() if self._options.processes else ""
        self._running = [
            subprocess.Popen(command)
            for command in commands(self._options.command, self._options.processes, port)
        ]
        if self._stop_requested is not None:  # a signal since the last check
            self._forward()
        codes = self._wait_for_first_crash()
        for process in self._running:
            # The others wait for the process that died. Killing them loses nothing: a checkpoint
            # becomes valid only when all processes have written their part.
            process.kill()
        codes += [process.wait() for process in self._running if process.returncode is None]
        if _MISTAKE in codes:
            return _MISTAKE
        # The process that failed first says more than those that failed because of it.
        return next((code for code in codes if code), 0)

    def _wait_for_first_crash(self) -> list[int]:
        """Waits until all processes have ended or one has failed; returns their exit codes."""
        codes: list[int] = []
        waiting = list(self._running)
        failed_since = None
        while waiting:
            for process in list(waiting):
                if process.poll() is not None:
                    waiting.remove(process)
                    codes.append(process.returncode)
            now = time.monotonic()
            if any(codes) and failed_since is None:
                failed_since = now
            if failed_since is not None and now - failed_since > 1:
                break
            late = self._stop_requested is not None and (
                now - self._stop_requested > self._options.grace_seconds
            )
            if late:
                _log(
                    f"Still running {self._options.grace_seconds:.0f} s after SIGTERM: killing it."
                )
                break
            time.sleep(_POLL_SECONDS)
        return codes

    def _stop(self, number: int, frame: object) -> None:
        if self._stop_requested is None:
            self._stop_requested = time.monotonic()
        self._forward()

    def _forward(self) -> None:
        for process in self._running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._stop_requested is None:
            time.sleep(_POLL_SECONDS)


def free_port() -> int:
    """Returns a free port of this machine; every restart takes a new one."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _exit_code(code: int) -> int:
    """Returns the exit code as a shell reports it."""
    return code if code >= 0 else 128 - code


def _describe_exit(code: int) -> str:
    if code < 0:
        return f"The run was ended by {signal.Signals(-code).name}"
    return f"The run failed with exit code {code}"


def _log(message: str) -> None:
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
