"""Runs cases one after the other in this process; `runner` starts it and stops it.

Each line of standard input is a case as JSON, [seed, target, number], where
null as the number stands for preparing the target; each line of standard output
is its result, {"outcome": ..., "failure": ..., "place": ..., "seconds": ...}. What anything else
prints goes to standard error.
"""

import json
import os
import pathlib
import random
import shutil
import sys
import time
import traceback
from typing import Any

from fuzz.cases import Target, Violation
from fuzz.guard import Guard, scratch_folder
from fuzz.targets import make_target

_ADDRESS_SPACE_BEYOND = 1_024
_PROJECT = ("ofa_jax", "tools", "tasks")


class Worker:
    """Runs cases in a folder of its own."""

    def __init__(self, folder: pathlib.Path | None = None) -> None:
        self._folder = folder or scratch_folder()
        self._targets: dict[str, Target] = {}
        self._guard = Guard()

    def _target(self, name: str) -> Target:
        """Returns a target with its good inputs."""
        if name not in self._targets:
            target = make_target(name)
            good = self._folder / "good" / name
            shutil.rmtree(good, ignore_errors=True)
            good.mkdir(parents=True)
            target.prepare(good)
            self._targets[name] = target
        return self._targets[name]

    def prepare(self, name: str) -> dict[str, Any]:
        """Makes the good inputs of a target; returns its result."""
        try:
            self._target(name)
        except Exception as error:  # noqa: BLE001  shown as a failure of the target
            return describe(error)
        return {"outcome": "prepared"}

    def run(self, seed: int, name: str, number: int) -> dict[str, Any]:
        """Runs a case; returns its result."""
        target = self._target(name)
        folder = self._folder / "case"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        rng = random.Random(f"{seed}/{name}/{number}")
        self._guard.limit_memory(target.megabytes + _ADDRESS_SPACE_BEYOND)
        started = time.monotonic()
        result: dict[str, Any] = {"outcome": "failed"}
        self._guard.start(folder)
        try:
            outcome = target.run(rng, folder)
            self._guard.stop()
            self._guard.check(target.megabytes)
            result["outcome"] = outcome
        except BaseException as error:  # noqa: BLE001  whatever it is, it is a failure
            self._guard.stop()
            result |= describe(error)
        result["seconds"] = time.monotonic() - started
        return result


def describe(error: BaseException) -> dict[str, str]:
    """Returns an error's sentence, its place in the project, and its traceback."""
    kind = "" if isinstance(error, Violation) else f"{type(error).__name__}: "
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    place = "?"
    for entry in traceback.extract_tb(cause.__traceback__):
        path = pathlib.Path(entry.filename)
        if set(path.parts) & set(_PROJECT) and "tests" not in path.parts:
            place = f"{path.name}:{entry.name}"
    return {
        "failure": f"{kind}{error}"[:1_000],
        "kind": f"{type(error).__name__}, {type(cause).__name__}, {str(error)[:24]}",
        "place": place,
        "traceback": "".join(traceback.format_exception(error))[-8_000:],
    }


def main() -> None:
    """Runs the cases of standard input."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints, prints to standard error
    worker = Worker(pathlib.Path(sys.argv[1]))
    for line in sys.stdin:
        seed, target, number = json.loads(line)
        result = worker.prepare(target) if number is None else worker.run(seed, target, number)
        replies.write(json.dumps(result) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
