"""Shows what a task or mixture yields: rates, sizes, lengths, skipped records and some examples.

    python -m tools.inspect_mixture ofa_pretrain_pairs --data_dir=data --output=pairs.html
    PYTHONPATH=. python -m tools.inspect_mixture counting_and_captions --module=counting
    PYTHONPATH=. python -m tools.inspect_mixture image_captioning --gin_file=my_run.gin

The data set is Scenes, or that of the run in the gin files (`--gin.NAME=value` overrides them).
The lengths are what `TASK_FEATURE_LENGTHS` must hold; the examples are what the model will read.
The page (one HTML file that opens from disk) shows the same with images, boxes and token ids.
"""

import argparse
import ast
import importlib
import os
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import seqio
from rich.console import Console
from rich.table import Table

from ofa_jax.cli import common, gin_registry
from ofa_jax.cli.errors import user_errors
from ofa_jax.data import seqio_bridge
from ofa_jax.data.features import Example
from ofa_jax.data.task_settings import default_settings
from ofa_jax.model.named_config import model_config
from ofa_jax.reports.mixture import FEATURES, TaskSample, length_summary, sample_mixture
from ofa_jax.reports.mixture_page import write_mixture_page
from ofa_jax.training.build import build_run
from ofa_jax.utils import modules, progress

from .command import user_command

_MAX_FINDINGS = 20


def lengths_table(samples: Sequence[TaskSample]) -> Table:
    """Returns a table of lengths (median, 95th percentile, largest) by task and feature."""
    table = Table(title="Lengths in tokens (median / 95 % / largest)", title_justify="left")
    table.add_column("task", no_wrap=True)
    table.add_column("examples", justify="right")
    for feature in FEATURES:
        table.add_column(feature, justify="right")
    for sample in samples:
        cells = [length_summary(sample.lengths(feature)) for feature in FEATURES]
        table.add_row(sample.name, str(len(sample.examples)), *cells)
    return table


def describe(example: Example, vocabulary: seqio.Vocabulary) -> Iterable[tuple[str, str]]:
    """Yields the parts of an example as (name, text)."""
    for name in FEATURES:
        yield name, vocabulary.decode([int(token) for token in example[name]])
    image = example.get("image")
    if image is not None and image.size:
        yield "image", f"{image.shape[0]} x {image.shape[1]} pixels"
    if example.get("loss_weight", 1.0) != 1.0:
        yield "weight", f"{example['loss_weight']:g}"


def show(title: str, samples: Sequence[TaskSample], examples: int, console: Console) -> None:
    """Prints rates, sizes, lengths and examples."""
    table = Table(title=title, title_justify="left")
    table.add_column("task", no_wrap=True)
    for column in ("share", "records", "order"):
        table.add_column(column, justify="right")
    for sample in samples:
        table.add_row(
            sample.name,
            f"{sample.share:.1%}",
            "?" if sample.num_records is None else f"{sample.num_records:,}",
            "exact" if sample.in_exact_order else "seqio's own",
        )
    console.print(table)
    for sample in samples:
        for finding in sample.findings[:_MAX_FINDINGS]:
            verb = "Skipped" if finding.is_skipped else "Changed"
            print(f"{verb} {finding.detail}", file=sys.stderr)
        for number, example in enumerate(sample.examples[:examples], 1):
            console.print(f"[bold]{sample.name}[/bold] {number}")
            for what, text in describe(example, sample.vocabulary):
                console.print(f"    {what:8}{text}", markup=False, highlight=False)
    console.print(lengths_table(samples))


def configured_lengths(
    given: str | None, has_run: bool, tasks: Iterable[str]
) -> Mapping[str, Mapping[str, int]]:
    """Returns task -> feature -> length: as given for all tasks, or of the run's streams, if any.

    Raises:
      ValueError: `given` is not a dict of lengths.
    """
    if given is not None:
        try:
            lengths = {str(name): int(length) for name, length in ast.literal_eval(given).items()}
        except (ValueError, SyntaxError, AttributeError, TypeError) as error:
            raise ValueError(
                f"--lengths is {given!r}; give, for example, \"{{'inputs': 16, 'targets': 24}}\"."
            ) from error
        return dict.fromkeys(tasks, lengths)
    streams = gin_registry.bound_value("train.streams") if has_run else ()
    return {
        task: dict(stream.task_feature_lengths)
        for stream in streams
        for task in seqio_bridge.rates(stream.mixture_or_task_name)
    }


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


def _max_image_size(settings: Sequence[Any]) -> float:
    """Returns the pixels that the last location bin stands for."""
    for own in settings:
        if own is not None:
            return own.evaluation_config.max_image_size
    return 512


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
    parser.add_argument("--examples", type=int, default=3, help="to print of each task")
    parser.add_argument(
        "--page_examples", type=int, default=12, help="to show of each task on the page"
    )
    parser.add_argument("--sample", type=int, default=200, help="to measure of each task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data_dir", default=None, help="where scenes are, if not OFA_DATA_DIR")
    parser.add_argument(
        "--gin_file", action="append", default=[], help="of the run whose data to show"
    )
    parser.add_argument(
        "--lengths",
        help="configured lengths of all tasks, as a dict; by default those of the gin files",
    )
    parser.add_argument(
        "--output", type=pathlib.Path, help="the page to write; NAME.html by default"
    )
    options, rest = parser.parse_known_args(arguments)
    if options.data_dir is not None:
        os.environ["OFA_DATA_DIR"] = options.data_dir
    with user_errors():
        _inspect(options, rest)


def _inspect(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Prints what a mixture yields and writes its page.

    Args:
      options: of the command line.
      rest: `--gin.NAME=value`.
    """
    for module in ("tasks.pretraining", *options.module):
        importlib.import_module(modules.find_module(module))
    settings = run_settings([*(f"--gin_file={file}" for file in options.gin_file), *rest])
    with default_settings(*settings):
        tasks = seqio_bridge.rates(options.name)
        lengths = configured_lengths(options.lengths, bool(options.gin_file), tasks)
        count = max(options.sample, options.examples)
        with progress.stage(f"inspecting {options.name}", has_summary=False):
            samples = sample_mixture(
                options.name, options.split, count, options.seed, lengths=lengths
            )
        title = f"{options.name}, split {options.split}"
        show(title, samples, options.examples, Console())
        path = options.output or pathlib.Path(f"{options.name}.html")
        with progress.stage("writing the page", has_summary=False):
            write_mixture_page(
                path, title, samples, lengths, options.page_examples, _max_image_size(settings)
            )
        print(f"The page is {path}.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
