"""Starts workers, gives them cases, stops what hangs, and reports failures."""

import collections
import dataclasses
import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from fuzz.guard import scratch_folder
from fuzz.targets import SLOW

ROOT = pathlib.Path(__file__).resolve().parents[2]
_SECONDS_TO_START = 240.0
_LARGEST_COPY = 5_000_000

Result = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """What determines a case, and how it is run again."""

    seed: int
    target: str
    number: int

    @property
    def command(self) -> str:
        """The command that runs it again."""
        return (
            f"bash tests/run.sh fuzz --seed={self.seed} --target={self.target} --case={self.number}"
        )


def environment() -> dict[str, str]:
    """Returns the environment of a worker."""
    paths = os.pathsep.join(map(str, (ROOT / "tests", ROOT / "tests" / "helpers", ROOT)))
    return os.environ | {
        "PYTHONPATH": paths,
        "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
    }


class WorkerProcess:
    """A process that runs cases; it is started when it is needed, and again after it died."""

    def __init__(self) -> None:
        self.folder = scratch_folder()
        self._process: subprocess.Popen | None = None
        self._prepared: set[str] = set()

    def run(self, case: Case, seconds: float) -> Result:
        """Runs a case; it counts as hanging after `seconds`."""
        if case.target not in self._prepared or self._process is None:
            prepared = self._ask([case.seed, case.target, None], _SECONDS_TO_START)
            if "failure" in prepared:
                return prepared | {"outcome": "failed", "seconds": 5.0}
            self._prepared.add(case.target)
        return self._ask([case.seed, case.target, case.number], seconds)

    def _start(self) -> subprocess.Popen:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self._prepared.clear()
        with open(self.folder / "stderr", "wb") as errors:
            return subprocess.Popen(
                [sys.executable, "-m", "fuzz.worker", str(self.folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment(),
                cwd=ROOT,
                start_new_session=True,
            )

    def _ask(self, question: list[Any], seconds: float) -> Result:
        """Returns the worker's reply, or what happened instead."""
        if self._process is None:
            self._process = self._start()
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
            if not select.select([process.stdout], [], [], seconds)[0]:
                self.stop()
                return _ended("hang", f"it hangs: no end after {seconds:.0f} s", seconds)
            if reply := process.stdout.readline():
                return json.loads(reply)
        except BrokenPipeError:
            pass
        code = process.wait()
        tail = (self.folder / "stderr").read_bytes()[-2_000:].decode("utf-8", "replace")
        self.stop()
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return _ended("crash", f"the process ended with {name}", 0.0) | {"traceback": tail}

    def stop(self) -> None:
        """Ends the process and everything that it has started."""
        if self._process is not None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                assert stream is not None
                stream.close()
        self._process = None

    def close(self) -> None:
        """Ends the process and deletes its folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def _ended(kind: str, sentence: str, seconds: float) -> Result:
    return {
        "outcome": "failed",
        "failure": sentence,
        "kind": kind,
        "place": sentence.rsplit(" ", 1)[-1] if kind == "crash" else "?",
        "traceback": "",
        "seconds": seconds,
    }


class Schedule:
    """Gives the next case to whoever asks: of the target that has had the least time so far."""

    def __init__(self, seed: int, targets: Sequence[str], minutes: float, cases: int | None):
        self._seed, self._cases = seed, cases
        self._seconds = dict.fromkeys(targets, 0.0)
        self._numbers = dict.fromkeys(targets, 0)
        self._end = time.monotonic() + 60 * minutes

    def next(self) -> Case | None:
        """Returns the next case; None at the end."""
        names = [
            name
            for name, used in self._numbers.items()
            if self._cases is None or used * SLOW.get(name, 1) < self._cases
        ]
        if not names or (self._cases is None and time.monotonic() >= self._end):
            return None
        name = min(names, key=self._seconds.__getitem__)
        self._seconds[name] += 1e-3  # until the real time is known, others have their turn
        self._numbers[name] += 1
        return Case(self._seed, name, self._numbers[name] - 1)

    def add_time(self, case: Case, seconds: float) -> None:
        """Counts what a case took."""
        self._seconds[case.target] += seconds


class Report:
    """Counts outcomes, and keeps the first failing case of each group with its files."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self.counts: dict[str, collections.Counter[str]] = collections.defaultdict(
            collections.Counter
        )
        self.seconds: collections.Counter[str] = collections.Counter()
        self.groups: dict[tuple[str, str, str], list[Case]] = collections.defaultdict(list)
        self.failures: dict[tuple[str, str, str], Result] = {}

    def add(self, case: Case, result: Result, files: pathlib.Path | None) -> None:
        """Adds a result; `files` is the folder of the case while it still exists."""
        self.counts[case.target][result["outcome"]] += 1
        self.seconds[case.target] += result.get("seconds", 0.0)
        if "failure" not in result:
            return
        key = (case.target, result.get("kind", ""), result.get("place", ""))
        self.groups[key].append(case)
        if key not in self.failures:
            self.failures[key] = result
            self._keep(case, result, files)

    def _keep(self, case: Case, result: Result, files: pathlib.Path | None) -> None:
        kept = self._folder / f"{case.target}-{case.seed}-{case.number}"
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        text = f"{case.command}\n{result['failure']}\n{result.get('place')}\n"
        (kept / "report.txt").write_text(f"{text}\n{result.get('traceback', '')}", errors="replace")
        if files is not None and files.is_dir() and _size(files) < _LARGEST_COPY:
            shutil.copytree(files, kept / "files", symlinks=True, copy_function=_copy_regular)

    def lines(self) -> Iterator[str]:
        """Yields the lines of the summary."""
        outcomes = sorted({name for counts in self.counts.values() for name in counts})
        yield f"{'target':<12}{'cases':>8}{'seconds':>9}" + "".join(f"{o:>11}" for o in outcomes)
        for target, counts in sorted(self.counts.items()):
            cells = "".join(f"{counts[outcome]:>11}" for outcome in outcomes)
            yield f"{target:<12}{sum(counts.values()):>8}{self.seconds[target]:>9.0f}{cells}"
        for key, cases in sorted(self.groups.items()):
            result = self.failures[key]
            again = {True: "", False: " (not when it is run alone)", None: ""}[
                result.get("reproduced")
            ]
            yield f"\nFAILED {len(cases)} x {key[0]}, {key[2]}: {result['failure'][:300]}{again}"
            yield f"  {cases[0].command}"
        failed = sum(map(len, self.groups.values()))
        total = sum(sum(counts.values()) for counts in self.counts.values())
        yield f"\n{total:,} cases, {failed} failures in {len(self.groups)} groups" + (
            f"; the files of the first of each are in {self._folder}." if failed else "."
        )


def _size(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _copy_regular(source: str, target: str) -> None:
    """Copies a regular file; a pipe or a device is left out."""
    if pathlib.Path(source).is_file():
        shutil.copyfile(source, target)


def run_seed(schedule: Schedule, report: Report, seconds: float, num_workers: int) -> None:
    """Runs the cases of a schedule with several workers."""
    lock = threading.Lock()

    def work() -> None:
        worker = WorkerProcess()
        try:
            while True:
                with lock:
                    case = schedule.next()
                if case is None:
                    return
                result = worker.run(case, seconds)
                with lock:
                    schedule.add_time(case, result.get("seconds", 0.0))
                    report.add(case, result, worker.folder / "case")
        finally:
            worker.close()

    threads = [threading.Thread(target=work) for _ in range(num_workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def confirm(report: Report, seconds: float) -> None:
    """Runs the first case of each group again in a new process, and notes whether it fails."""
    for key, result in report.failures.items():
        worker = WorkerProcess()
        try:
            result["reproduced"] = "failure" in worker.run(report.groups[key][0], seconds)
        finally:
            worker.close()
