"""Times how long a command takes until it does something: the seconds a person waits.

    python -m tools.benchmark_start --run=runs/pretrain_scenes
    python -m tools.benchmark_start --run=runs/pretrain_scenes --image=room.jpg --repeats=5 --json

first step     a copy of the run continues from its oldest checkpoint, with its own config.gin, from
               the start of the process until the line of its first step
first answer   a new process makes a Predictor of the run and gets one answer about the image (one
               of the validation split of Scenes, in OFA_DATA_DIR, if none is given), with the
               commands' compilation cache (`cache_compiled_programs`)
modules        how many modules either has imported by then, and whether TensorFlow is among them

The first of the repeats fills the compilation cache and is reported apart. The run stays as it is.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

from ofa_jax.checkpoints import storage
from ofa_jax.data.sources.scenes import Scenes

from .command import user_command

_STEP = re.compile(r"step \d[\d,]*/")
_ANSWER, _MODULES = "answer: ", "modules: "
_PREDICT = f"""
import sys, ofa_jax
from ofa_jax.cli.compilation_cache import cache_compiled_programs
cache_compiled_programs()
predictor = ofa_jax.Predictor(sys.argv[1])
print({_ANSWER!r} + repr(predictor.predict(sys.argv[2], sys.argv[3]).text), flush=True)
print({_MODULES!r} + str(len(sys.modules)), "tensorflow" in sys.modules, flush=True)
"""
# As `python -m ofa_jax.train`, with the modules at the end of the first step.
_TRAIN = f"""
import sys
from ofa_jax.training import loop
log = loop.Trainer._log
def log_and_tell(self, state):
    log(self, state)
    print({_MODULES!r} + str(len(sys.modules)), "tensorflow" in sys.modules, flush=True)
loop.Trainer._log = log_and_tell
from ofa_jax import train
train.main(sys.argv[1:])
"""


@dataclasses.dataclass(frozen=True)
class Starts:
    """Seconds of several starts.

    Attributes:
      first: of the start that may have to compile.
      later: of the others.
      modules: that the last one had imported.
      tensorflow: whether TensorFlow was among them.
    """

    first: float
    later: tuple[float, ...]
    modules: int
    tensorflow: bool

    def text(self, what: str) -> str:
        """Returns a line for people."""
        later = ", ".join(f"{seconds:.1f}" for seconds in self.later)
        median = f"{statistics.median(self.later):.1f} s (of {later}); " if self.later else ""
        return (
            f"{what}: {median}{self.first:.1f} s the first time; {self.modules:,} modules, "
            f"TensorFlow {'' if self.tensorflow else 'not '}imported"
        )


def wait_for(command: Sequence[str], found: Callable[[str], bool]) -> tuple[float, int, bool]:
    """Starts a program, and stops it once it has done something.

    Args:
      command: the program, which then prints its modules.
      found: whether a line of its output says that it has.

    Returns:
      (seconds, number of modules, whether TensorFlow is imported).

    Raises:
      ValueError: it ended before; the message has its last line.
    """
    start, seconds, lines = time.perf_counter(), None, []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            for line in _lines(process):
                if seconds is None and found(line):
                    seconds = time.perf_counter() - start
                if seconds is not None and line.startswith(_MODULES):
                    number, has_tensorflow = line.removeprefix(_MODULES).split()
                    return seconds, int(number), has_tensorflow == "True"
                lines.append(line.strip())
        finally:
            process.kill()
    last = next((line for line in reversed(lines) if line), "nothing was printed")
    raise ValueError(f"The program ended before it had done what is measured: {last}")


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    yield from process.stdout


def measure(
    command: Callable[[int], Sequence[str]], found: Callable[[str], bool], repeats: int
) -> Starts:
    """Times a program several times; `command` gives that of each number."""
    timed = [wait_for(command(number), found) for number in range(repeats)]
    (first, *_), later = timed[0], tuple(seconds for seconds, *_ in timed[1:])
    return Starts(first, later, *timed[-1][1:])


def measure_first_step(run: pathlib.Path, repeats: int) -> Starts:
    """Times a run that is resumed, in copies of it.

    Raises:
      ValueError: it has nothing to resume.
    """
    checkpoints = storage.list_checkpoints(run)
    if len(checkpoints) < 2 or not (run / "config.gin").is_file():
        raise ValueError(
            f"{run} has {len(checkpoints)} checkpoints; give a run directory with a config.gin and "
            "two of them: a copy is resumed from the older one."
        )
    oldest = min(checkpoints)
    with tempfile.TemporaryDirectory() as folder:

        def command(number: int) -> list[str]:
            copy = pathlib.Path(folder) / str(number)
            ignored = shutil.ignore_patterns(*(str(s) for s in checkpoints if s != oldest), "*.v2")
            shutil.copytree(run, copy, ignore=ignored)
            options = [f"--gin_file={run / 'config.gin'}", f"--gin.MODEL_DIR='{copy}'"]
            return [sys.executable, "-u", "-c", _TRAIN, *options]

        return measure(command, lambda line: _STEP.search(line) is not None, repeats)


def measure_first_answer(run: pathlib.Path, image: str, instruction: str, repeats: int) -> Starts:
    """Times a Predictor in a new process, until its first answer."""
    command = [sys.executable, "-u", "-c", _PREDICT, str(run), image, instruction]
    return measure(lambda number: command, lambda line: line.startswith(_ANSWER), repeats)


def _scene(folder: str) -> str:
    """Writes an image of Scenes; returns its path."""
    record = Scenes().records("captions", "validation")[0]
    path = pathlib.Path(folder) / "scene.png"
    path.write_bytes(record["image"])
    return str(path)


@user_command
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        "python -m tools.benchmark_start",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", required=True, help="a run directory")
    parser.add_argument("--image", help="what the Predictor sees")
    parser.add_argument("--instruction", default="what does the image describe?")
    parser.add_argument("--repeats", type=int, default=4, help="starts of each kind (default: 4)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        raise ValueError(f"--repeats is {options.repeats}; give at least 1.")
    run = pathlib.Path(options.run)
    # What a process started by hand has; the allocator's settings are inherited from this one.
    os.environ["PYTHONPATH"] = os.pathsep.join((os.getcwd(), os.environ.get("PYTHONPATH", "")))
    found = {"first step": measure_first_step(run, options.repeats)}
    with tempfile.TemporaryDirectory() as folder:
        image = options.image or _scene(folder)
        found["first answer"] = measure_first_answer(
            run, image, options.instruction, options.repeats
        )
    if options.json:
        print(json.dumps({name: dataclasses.asdict(starts) for name, starts in found.items()}))
    else:
        for name, starts in found.items():
            print(starts.text(name))


if __name__ == "__main__":
    sys.exit(main())
