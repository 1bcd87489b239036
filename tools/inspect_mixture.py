"""Shows what a task or mixture yields: rates, sizes, lengths, and some examples as text.

    python -m tools.inspect_mixture ofa_pretrain_pairs --data_dir=data
    PYTHONPATH=. python -m tools.inspect_mixture counting_and_captions --module=counting
    PYTHONPATH=. python -m tools.inspect_mixture image_captioning --gin_file=my_run.gin

The data set is Scenes, or that of the run in the gin files (`--gin.NAME=value` overrides them).
The lengths are what `TASK_FEATURE_LENGTHS` must hold; the examples are what the model will read.
"""

import argparse
import importlib
import itertools
import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import seqio
from rich.console import Console
from rich.table import Table

from ofa_jax.cli import common, gin_registry
from ofa_jax.data import seqio_bridge
from ofa_jax.data.features import Example
from ofa_jax.data.sampling import WeightedTask
from ofa_jax.data.task_settings import default_settings
from ofa_jax.model.named_config import model_config
from ofa_jax.preprocessing.records import InvalidRecordError
from ofa_jax.training.build import build_run
from ofa_jax.utils import modules

from .command import user_command


def lengths_table(lengths: dict[str, dict[str, Sequence[int]]]) -> Table:
    """Returns a table of lengths (median, 95th percentile, largest) by task and feature."""
    table = Table(title="Lengths in tokens (median / 95 % / largest)", title_justify="left")
    table.add_column("task", no_wrap=True)
    table.add_column("examples", justify="right")
    table.add_column("inputs", justify="right")
    table.add_column("targets", justify="right")
    for name, features in lengths.items():
        cells = [
            f"{np.median(values):.0f} / {np.percentile(values, 95):.0f} / {max(values)}"
            for values in (features["inputs"], features["targets"])
        ]
        table.add_row(name, str(len(features["inputs"])), *cells)
    return table


def draw(name: str, split: str, count: int, seed: int) -> list[Example]:
    """Returns the first examples of a task as in training, without invalid records."""
    rated = seqio_bridge.weighted_tasks(name, split)
    if rated is None:
        dataset = seqio.get_mixture_or_task(name).get_dataset(
            sequence_length=None, split=split, shuffle=False, seed=seed, num_epochs=1
        )
        return list(dataset.take(count).as_numpy_iterator())
    # Without TensorFlow around it, a mistake in the function has a short traceback.
    (task,) = rated
    return list(itertools.islice(_good_examples(task, seed), count))


def _good_examples(task: WeightedTask, seed: int) -> Iterator[Example]:
    for index in range(len(task.records)):
        try:
            yield task.preprocess(task.records[index], np.random.default_rng([seed, index]))
        except InvalidRecordError as error:
            print(f"Skipped {task.name}, record {index}: {error}", file=sys.stderr)
        except Exception as error:
            traceback.print_exc()
            raise ValueError(
                f"{task.name} fails on record {index}, see above: {type(error).__name__}: {error}"
            ) from error


def describe(example: Example, task: seqio.Task) -> Iterable[tuple[str, str]]:
    """Yields the parts of an example as (name, text)."""
    for name in ("inputs", "targets"):
        vocabulary = task.output_features[name].vocabulary
        yield name, vocabulary.decode([int(token) for token in example[name]])
    image = example.get("image")
    if image is not None and image.size:
        yield "image", f"{image.shape[0]} x {image.shape[1]} pixels"
    if example.get("loss_weight", 1.0) != 1.0:
        yield "weight", f"{example['loss_weight']:g}"


def show(name: str, split: str, examples: int, sample: int, seed: int, console: Console) -> None:
    """Prints rates, sizes, lengths and examples."""
    rates = seqio_bridge.rates(name)
    tasks = {task: seqio.TaskRegistry.get(task) for task in sorted(rates)}
    table = Table(title=f"{name}, split {split}", title_justify="left")
    table.add_column("task", no_wrap=True)
    for column in ("share", "records", "order"):
        table.add_column(column, justify="right")
    exact = seqio_bridge.weighted_tasks(name, split) is not None
    for task_name, task in tasks.items():
        records = task.source.num_input_examples(split)
        table.add_row(
            task_name,
            f"{rates[task_name] / sum(rates.values()):.1%}",
            "?" if records is None else f"{records:,}",
            "exact" if exact else "seqio's own",
        )
    console.print(table)
    lengths = {}
    for task_name, task in tasks.items():
        drawn = draw(task_name, split, max(sample, examples), seed)
        if not drawn:
            raise ValueError(f"The task {task_name} yields nothing on the split {split!r}.")
        lengths[task_name] = {
            feature: [len(example[feature]) for example in drawn]
            for feature in ("inputs", "targets")
        }
        for number, example in enumerate(drawn[:examples], 1):
            console.print(f"[bold]{task_name}[/bold] {number}")
            for what, text in describe(example, task):
                console.print(f"    {what:8}{text}", markup=False, highlight=False)
    console.print(lengths_table(lengths))


def run_settings(arguments: Sequence[str]) -> list[Any]:
    """Returns the settings of the run that gin files configure, and imports its task modules.

    Args:
      arguments: `--gin_file=FILE` and `--gin.NAME=value`; without any, there are no settings.
    """
    if not arguments:
        return []
    gin_registry.register({"train": build_run, "model_config": model_config})
    common.parse_arguments(
        "python -m tools.inspect_mixture", __doc__ or "", arguments, {"MODEL_DIR": ""}
    )
    modules.import_modules(gin_registry.bound_value("train.mixture_or_task_module"))
    return [gin_registry.bound_value("train.settings")]


@user_command
def main(arguments: Sequence[str]) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.inspect_mixture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help="of a task or mixture")
    parser.add_argument(
        "--module", action="append", default=[], help="to import first, besides tasks.pretraining"
    )
    parser.add_argument("--split", default="train")
    parser.add_argument("--examples", type=int, default=3, help="to show of each task")
    parser.add_argument("--sample", type=int, default=200, help="to measure of each task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data_dir", default=None, help="where scenes are, if not OFA_DATA_DIR")
    parser.add_argument(
        "--gin_file", action="append", default=[], help="of the run whose data to show"
    )
    options, rest = parser.parse_known_args(arguments)
    if options.data_dir is not None:
        os.environ["OFA_DATA_DIR"] = options.data_dir
    try:
        for module in ("tasks.pretraining", *options.module):
            importlib.import_module(modules.find_module(module))
        settings = run_settings([*(f"--gin_file={file}" for file in options.gin_file), *rest])
        with default_settings(*settings):
            show(
                options.name,
                options.split,
                options.examples,
                options.sample,
                options.seed,
                Console(),
            )
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
