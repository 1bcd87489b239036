"""The works that `tools.benchmark_peer` compares, their inputs, and our side of them.

    python -m tools.benchmark_peer_works --work=step_tiny --folder=FOLDER --repeats=3

prints the JSON line that `tools.benchmark_peer` reads, for inputs that it has written.
"""

import argparse
import dataclasses
import itertools
import json
import math
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from ofa_jax.data.loader import Loader
from ofa_jax.data.sources.array_records import OfaArrayRecords
from ofa_jax.model import OFA, OFAConfig
from ofa_jax.utils import files, platforms, text_files

from . import benchmark_decoding, benchmark_loader, benchmark_step, synthetic_pairs
from .command import user_command

WORK_FILE, TENSOR_FILE, SAMPLE_FILE = "work.json", "tensors.npz", "pairs.tsv"
WARM_UP_BATCHES = 4


@dataclasses.dataclass(frozen=True)
class Work:
    """What both sides do in a repeat.

    Attributes:
      kind: "step", "decode" or "data".
      title: of its row in the table.
      size: of the model.
      batch_size: examples; of "data", in a batch.
      image_size: pixels a side.
      num_patches: sampled ones; 0 for all.
      source_length, target_length: tokens; of "decode", the target is every output without its eos.
      beam_size: hypotheses; 1 is greedy search.
      examples: made in a repeat of "data".
      images: different ones of "data".
      shared_images: whether two examples of "data" share an image, as in `Stream.shared_images`.
    """

    kind: str
    title: str
    size: str = "base"
    batch_size: int = 4
    image_size: int = 384
    num_patches: int = 0
    source_length: int = 16
    target_length: int = 16
    beam_size: int = 1
    examples: int = 0
    images: int = 0
    shared_images: bool = False

    def __post_init__(self) -> None:
        if self.examples % self.batch_size or (self.kind == "data" and self.examples < 1):
            raise ValueError(
                f"{self.title}: {self.examples} examples are no whole batches of "
                f"{self.batch_size}; choose a multiple."
            )

    @property
    def config(self) -> OFAConfig:
        """The model, in float32, with the dropout of pretraining."""
        return getattr(OFAConfig, self.size)()

    @property
    def _step(self) -> benchmark_step.Workload:
        names = {field.name for field in dataclasses.fields(benchmark_step.Workload)}
        own = {name: value for name, value in vars(self).items() if name in names}
        return benchmark_step.Workload(**own)

    def write_inputs(self, folder: pathlib.Path) -> None:
        """Writes what both sides read: the description, and the tensors or the data set."""
        config = {
            name: value
            for name, value in dataclasses.asdict(self.config).items()
            if isinstance(value, int | float | str | list | tuple)
        }
        files.write_json(folder / WORK_FILE, {**dataclasses.asdict(self), "model": config})
        if self.kind == "data":
            synthetic_pairs.make_records(folder, self.images)
            return
        if self.kind == "step":
            tensors = self._step.batch()
        else:
            side = self.image_size
            tensors = benchmark_decoding.random_batch(self.batch_size, self.source_length, side)
        np.savez(folder / TENSOR_FILE, **tensors)

    def time(self, folder: pathlib.Path, repeats: int, threads: int) -> dict[str, Any]:
        """Does our side, after a repeat that does not count; returns the line to print."""
        if self.kind == "step":
            rate = benchmark_step.matmul_rate(repeats)
            timing = benchmark_step.time_step(self._step, repeats)
            return {
                "seconds": list(timing.runs),
                "notes": {"matmul_flops_per_second": rate, "flops": timing.flops},
            }
        if self.kind == "data":
            return {"seconds": self._time_data(folder, repeats, threads)}
        timings = benchmark_decoding.measure(
            OFA(self.config),
            self.batch_size,
            self.beam_size,
            self.target_length,
            self.image_size,
            self.source_length,
            repeats,
        )
        return timings.protocol()

    def _time_data(self, folder: pathlib.Path, repeats: int, threads: int) -> list[float]:
        """Returns the seconds that the loader needs for `examples` examples, again and again."""
        data_set = OfaArrayRecords(str(folder / "records"))
        config = benchmark_loader.make_config(data_set, self.image_size)
        stream = benchmark_loader.make_stream(self.batch_size, self.image_size, self.shared_images)
        tasks = {"pairs": benchmark_loader.make_tasks(data_set, config)}
        how = dict(num_threads=1, num_workers=threads) if threads > 1 else dict(num_threads=1)
        batches = Loader([stream], tasks, seed=0, **how).batches()
        for _ in itertools.islice(batches, WARM_UP_BATCHES):
            pass
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            for _ in itertools.islice(batches, self.examples // self.batch_size):
                pass
            seconds.append(time.perf_counter() - start)
        return seconds


_STEP = dict(kind="step", num_patches=196, source_length=32, target_length=30)
_DATA = dict(kind="data", batch_size=32, examples=256, images=96)
WORKS = {
    "step_tiny": Work(title="training step, tiny, batch 4", size="tiny", **_STEP),
    "step_base": Work(title="training step, base, batch 4", **_STEP),
    "beam_base": Work("decode", "base, beam 5, batch 4, 16 tokens", beam_size=5),
    "greedy_base": Work("decode", "base, greedy, batch 1, 16 tokens", batch_size=1),
    "pairs": Work(title="data of `pairs`, 256 examples", **_DATA),
    "pairs_shared": Work(title="the same, two examples of an image", shared_images=True, **_DATA),
}
"""Name -> work, in the order of the table."""


def read_work(name: str, folder: pathlib.Path) -> Work:
    """Returns the work that a folder's inputs are for.

    Raises:
      ValueError: there is no work of the name, or the folder is another's.
    """
    if name not in WORKS:
        raise ValueError(f"There is no work {name!r}: choose from {', '.join(WORKS)}.")
    path = folder / WORK_FILE
    described = text_files.read_json(path)
    names = {field.name for field in dataclasses.fields(Work)}
    if not isinstance(described, dict) or not names <= set(described):
        raise ValueError(f"{path} describes no work: let tools.benchmark_peer write the folder.")
    return Work(**{name: described[name] for name in names})


@user_command
def main(arguments: Sequence[str]) -> None:
    """Runs the command line."""
    flags.FLAGS(["benchmark_peer_works"])  # grain reads its options from absl
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmark_peer_works",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--work", required=True, help=f"one of {', '.join(WORKS)}")
    parser.add_argument("--folder", required=True, type=pathlib.Path, help="of the inputs")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    if min(options.repeats, options.threads) < 1:
        parser.error("--repeats and --threads must be at least 1.")
    platforms.skip_missing_tpu()
    work = read_work(options.work, options.folder)
    line = work.time(options.folder, options.repeats, options.threads)
    print(json.dumps({name: _finite(value) for name, value in line.items()}), flush=True)


def _finite(value: Any) -> Any:
    """Drops the notes that are not finite, such as FLOPs that XLA does not count."""
    if not isinstance(value, dict):
        return value
    return {key: own for key, own in value.items() if isinstance(own, list) or math.isfinite(own)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
