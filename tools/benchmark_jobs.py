"""Measures the offline jobs on this machine: images coded and records converted a second.

    python -m tools.benchmark_jobs
    python -m tools.benchmark_jobs --docs=docs/guides/beam.md

Before: `python -m tools.make_codes` and `python -m tools.convert_tsv`, one process each. After: the
jobs of `python -m ofa_jax.jobs` on Beam's direct runner, with one process and with --num_workers.
Images are JPEGs of 640 x 480 pixels; the middle 128 of 256 pixels is coded by a VQGAN of the
published size with random weights, which take as long as trained ones.

Each command runs twice, on few records and on all of them. The rate is that of the further records,
so the start of the processes and the compilation, which a long job has once, are listed apart.
--docs writes the table into a page, between the lines that name it.
"""

import argparse
import base64
import dataclasses
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ofa_jax.interop import vqgan_file
from ofa_jax.tokenizers.vqgan import VQGAN, VQGANConfig
from ofa_jax.utils import files

from .command import user_command
from .report_scenes import commit
from .synthetic_pairs import photograph

BEGIN, END = "<!-- tools.benchmark_jobs -->", "<!-- end -->"
"""Lines of a page between which the table stands."""
_DIFFERENT = 16
"""Photographs that are made; lines repeat them."""
_CODES = 256  # of an image in the official file

Run = Callable[[Sequence[str]], None]


@dataclasses.dataclass(frozen=True)
class Work:
    """What is measured.

    Attributes:
      name: "images" or "records".
      title: in the table.
      few, all: numbers of records of the two runs.
      commands: title -> a function from input, number of records and output folder to the command.
    """

    name: str
    title: str
    few: int
    all: int
    commands: Mapping[str, Callable[[pathlib.Path, int, pathlib.Path], list[str]]]


@dataclasses.dataclass(frozen=True)
class Rate:
    """What was measured of a command.

    Attributes:
      work: title of the work.
      command: title of the command.
      unit: "images" or "records".
      per_second: further records over further seconds.
      start_seconds: of the run on few records, without its records.
    """

    work: str
    command: str
    unit: str
    per_second: float
    start_seconds: float


def random_vqgan(config: VQGANConfig, seed: int = 0) -> VQGAN:
    """Returns a VQGAN with random weights."""
    import jax
    import jax.numpy as jnp

    from ofa_jax.tokenizers.vqgan import Network

    side = config.pixels_per_code
    shapes = jax.eval_shape(Network(config).init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
    rng = np.random.default_rng(seed)
    draw = lambda x: rng.normal(0, 0.02, x.shape).astype(np.float32)  # noqa: E731
    return VQGAN(config, jax.tree.map(draw, shapes["params"]))


def write_input(path: pathlib.Path, count: int) -> pathlib.Path:
    """Writes lines of id, image in base64 and codes."""
    rng = np.random.default_rng(0)
    photographs = [base64.b64encode(photograph(rng)) for _ in range(min(count, _DIFFERENT))]
    codes = " ".join(map(str, range(_CODES))).encode()
    with path.open("wb") as file:
        for number in range(count):
            file.write(b"%d\t%s\t%s\n" % (number, photographs[number % len(photographs)], codes))
    return path


def make_works(vqgan: pathlib.Path, options: argparse.Namespace) -> list[Work]:
    """Returns what is measured."""
    size = ["--image_size", str(options.image_size), "--batch_size", str(options.batch_size)]
    workers = options.num_workers

    def beam(number: int) -> list[str]:
        if number == 1:
            return []
        return [f"--direct_num_workers={number}", "--direct_running_mode=multi_processing"]

    def job(name: str, number: int) -> Callable[[pathlib.Path, int, pathlib.Path], list[str]]:
        def command(path: pathlib.Path, count: int, folder: pathlib.Path) -> list[str]:
            head = ["-m", "ofa_jax.jobs", name, "--input", str(path), f"--output_dir={folder}"]
            if name == "convert_tsv":
                # As many files as workers.
                megabytes = path.stat().st_size / 2**20 / number
                return [*head, "--kind=images", f"--shard_megabytes={megabytes:.3f}", *beam(number)]
            shard = f"--shard_size={-(-count // number)}"
            return [*head, f"--vqgan={vqgan}", *size, shard, *beam(number)]

        return command

    def make_codes(path: pathlib.Path, count: int, folder: pathlib.Path) -> list[str]:
        del count
        output = str(folder.with_suffix(".tsv"))
        return ["-m", "tools.make_codes", str(path), output, f"--vqgan={vqgan}", *size]

    def convert(path: pathlib.Path, count: int, folder: pathlib.Path) -> list[str]:
        del count
        return ["-m", "tools.convert_tsv", f"--output_dir={folder}", "--images", str(path)]

    def commands(
        before: str,
        one: Callable[[pathlib.Path, int, pathlib.Path], list[str]],
        name: str,
    ) -> dict[str, Callable[[pathlib.Path, int, pathlib.Path], list[str]]]:
        return {
            f"before: `{before}`": one,
            "after: 1 process": job(name, 1),
            f"after: {workers} processes": job(name, workers),
        }

    few = options.batch_size
    return [
        Work("images", "coding images", few, options.images,
             commands("tools.make_codes", make_codes, "encode_images")),
        Work("records", "converting TSV", max(2, options.records // 20), options.records,
             commands("tools.convert_tsv", convert, "convert_tsv")),
    ]  # fmt: skip


def run_python(command: Sequence[str]) -> None:
    """Runs Python with arguments.

    Raises:
      ValueError: it failed; with the end of its output.
    """
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
        raise ValueError(f"`python {' '.join(command)}` failed:\n{last}")


def measure(works: Sequence[Work], folder: pathlib.Path, run: Run) -> list[Rate]:
    """Runs all commands twice; returns their rates."""
    rates = []
    for work in works:
        for number, (title, make) in enumerate(work.commands.items()):
            seconds = []
            for count in (work.few, work.all):
                path = folder / f"{work.name}_{count}.tsv"
                if not path.exists():
                    write_input(path, count)
                command = make(path, count, folder / f"{work.name}_{number}_{count}")
                start = time.perf_counter()
                run(command)
                seconds.append(time.perf_counter() - start)
            per_record = max(seconds[1] - seconds[0], 1e-9) / (work.all - work.few)
            begin = max(seconds[0] - work.few * per_record, 0.0)
            rates.append(Rate(work.title, title, work.name, 1 / per_record, begin))
            print(f"{work.title}, {title}: {1 / per_record:.1f} {work.name}/s", flush=True)
    return rates


def table(rates: Sequence[Rate], about: str) -> str:
    """Returns the rates in Markdown."""
    cores = os.cpu_count() or 1
    lines = ["| | | a second | a second and core | start |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {rate.work} | {rate.command} | {rate.per_second:.1f} {rate.unit} "
        f"| {rate.per_second / cores:.1f} | {rate.start_seconds:.0f} s |"
        for rate in rates
    ]
    return "\n".join([*lines, "", about])


def write_into(page: pathlib.Path, text: str) -> None:
    """Puts a text between the lines BEGIN and END of a page.

    Raises:
      ValueError: the page does not have these lines.
    """
    before, begin, rest = page.read_text().partition(BEGIN + "\n")
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} has no lines {BEGIN} and {END}: add them where the table goes.")
    files.write_text(page, f"{before}{begin}{text}\n{end}{after}")


@user_command
def main(arguments: Sequence[str], run: Run = run_python) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmark_jobs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=int, default=32, help="to code, more than --batch_size")
    parser.add_argument("--records", type=int, default=4000, help="to convert, at least 4")
    parser.add_argument("--image_size", type=int, default=256, help="pixels (default: 256)")
    parser.add_argument("--batch_size", type=int, default=8, help="images at once (default: 8)")
    parser.add_argument("--num_workers", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--width", type=int, default=128, help="of the VQGAN; published: 128")
    parser.add_argument("--docs", type=pathlib.Path, help="a page that gets the table")
    parser.add_argument("--json", action="store_true", help="print the rates as JSON, too")
    options = parser.parse_args(arguments)
    if options.batch_size < 1 or options.images <= options.batch_size:
        raise ValueError(
            f"--images is {options.images} and --batch_size {options.batch_size}: give more images."
        )
    if options.records < 4 or options.num_workers < 1:
        raise ValueError("--records is at least 4 and --num_workers at least 1.")
    if options.docs is not None:
        write_into(options.docs, _between(options.docs))  # a page that cannot be used
    with tempfile.TemporaryDirectory(prefix="benchmark_jobs_") as name:
        folder = pathlib.Path(name)
        vqgan = folder / "vqgan.ckpt"
        vqgan_file.write(vqgan, random_vqgan(VQGANConfig(width=options.width)))
        rates = measure(make_works(vqgan, options), folder, run)
    about = (
        f"`python -m tools.benchmark_jobs` on {os.cpu_count()} cores ({platform.machine()}), "
        f"commit {commit()}: {options.images} images, {options.records:,} records."
    )
    text = table(rates, about)
    print(text)
    if options.json:
        print(json.dumps([dataclasses.asdict(rate) for rate in rates]))
    if options.docs is not None:
        write_into(options.docs, text)
    return 0


def _between(page: pathlib.Path) -> str:
    """Returns what stands between the lines BEGIN and END of a page; "" if they are missing."""
    return page.read_text().partition(BEGIN + "\n")[2].partition("\n" + END)[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
