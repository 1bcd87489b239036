"""The model card of a Hugging Face folder (README.md), with the evaluation table of a run."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ofa_jax.model import OFAConfig
from ofa_jax.utils.text_files import DamagedFileError, read_json
from ofa_jax.utils.wrong_files import shorten

__all__ = ["FILE", "Result", "model_card", "read_results"]

FILE = "README.md"
_SUMMARY, _METRICS = "summary.json", "metrics.json"
_PIPELINES = {
    "image_captioning": "image-to-text",
    "visual_question_answering": "visual-question-answering",
    "object_detection": "object-detection",
    "image_infilling": "text-to-image",
}
"""Task of ours -> the Hub's name; other tasks keep their own."""


@dataclasses.dataclass(frozen=True)
class Result:
    """A measured number.

    Attributes:
      split: of the data, or "summary" for what a run's summary.json says.
      step: of the checkpoint; None where it is not known.
      task, metric, value: what was measured.
    """

    split: str
    step: int | None
    task: str
    metric: str
    value: float


def read_results(path: pathlib.Path, step: int | None = None) -> list[Result]:
    """Reads the results of a run.

    Args:
      path: a run directory (its `evaluations/SPLIT/metrics.json` and `summary.json`), the folder
        of an evaluation, or one of these files.
      step: of the checkpoint whose evaluations are wanted; the newest evaluated one when None, or
        when this one was not evaluated.

    Returns:
      The numbers; none if the run was not evaluated.

    Raises:
      FileNotFoundError: the path does not exist.
      DamagedFileError: a file does not hold results.
    """
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = [*sorted(path.glob(f"evaluations/*/{_METRICS}")), path / _METRICS, path / _SUMMARY]
    else:
        raise FileNotFoundError(
            f"There is no {path}: give a run directory, or the metrics.json of an evaluation."
        )
    found: dict[tuple[str, str, float], Result] = {}
    for file in filter(pathlib.Path.is_file, files):
        for result in _read_file(file, step):
            # The summary repeats what the evaluation of one split says.
            found.setdefault((result.task, result.metric, result.value), result)
    return list(found.values())


def _read_file(path: pathlib.Path, step: int | None) -> list[Result]:
    """Returns the results of a summary (task -> metric -> value) or of an evaluation by step."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise DamagedFileError(f"{path} does not hold the metrics of tasks.")
    steps = [int(name) for name in content if name.isascii() and name.isdecimal()]
    if not steps or len(steps) != len(content):
        return list(_rows(path, content, "summary", step))
    shown = step if step in steps else max(steps)
    return list(_rows(path, content[str(shown)], path.parent.name, shown))


def _rows(path: pathlib.Path, tasks: Any, split: str, step: int | None) -> list[Result]:
    """Returns the results of tasks. Raises DamagedFileError for anything else."""
    if not isinstance(tasks, dict):
        raise DamagedFileError(f"{path} does not hold the metrics of tasks.")
    rows = []
    for task, metrics in tasks.items():
        if not isinstance(metrics, dict) or not all(map(_is_number, metrics.values())):
            raise DamagedFileError(f"{path} has no numbers for the task {shorten(task)}.")
        for metric, value in metrics.items():
            rows.append(Result(split, step, shorten(task), shorten(metric), value))
    return rows


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def model_card(
    name: str,
    config: OFAConfig,
    num_parameters: int,
    results: Sequence[Result] = (),
    image_size: int | None = None,
    source: str = "",
) -> str:
    """Returns a model card in Markdown, with the metadata that the Hub reads.

    Args:
      name: of the model.
      config: of the model.
      num_parameters: of the model.
      results: of its evaluation.
      image_size: side of its images in pixels.
      source: what it was converted from.
    """
    parts = [
        _front_matter(name, results),
        f"# {name}",
        "An [OFA](https://arxiv.org/abs/2202.03052) model (Wang et al. 2022): an encoder-decoder "
        "for text and images in which every task is an instruction. It was written by `ofa_jax`"
        + (f", from `{source}`." if source else "."),
        "## Model",
        _table(("property", "value"), _properties(config, num_parameters, image_size)),
        "## Use",
        "With `ofa_jax`:",
        '```python\nimport ofa_jax\n\npredictor = ofa_jax.Predictor("FOLDER")\n'
        'print(predictor.predict("room.jpg", "what does the image describe?").text)\n```',
        "With OFA's own port to `transformers`, or the package `modelscope`, "
        '`OFAModel.from_pretrained("FOLDER")` and `OFATokenizer.from_pretrained("FOLDER")`. '
        "Images are scaled to the size above (bicubic) and normalised with mean and standard "
        "deviation 0.5, as `preprocessor_config.json` says.",
        "## Evaluation",
        _evaluation(results),
        "## Training data, limitations, license",
        "To be written by whoever publishes the model. The model repeats the biases of its "
        "training data, and what it says of an image may be wrong.",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(name: str, results: Sequence[Result]) -> str:
    """Returns the metadata as YAML; its values are JSON, which YAML contains."""
    lines = [
        "---",
        "language: en",
        "library_name: ofa_jax",
        "pipeline_tag: image-text-to-text",
        'tags: ["ofa", "jax", "vision-language"]',
    ]
    if results:
        lines += ["model-index:", f"- name: {json.dumps(name)}", "  results:"]
    of_task: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        of_task.setdefault((result.split, result.task), []).append(result)
    for (split, task), rows in of_task.items():
        metrics = [
            {"type": row.metric, "name": row.metric, "value": round(row.value, 6)} for row in rows
        ]
        entry: Mapping[str, Any] = {
            "task": {"type": _PIPELINES.get(task, task), "name": task},
            "dataset": {"type": task, "name": task, "split": split},
            "metrics": metrics,
        }
        lines.append(f"  - {json.dumps(entry)}")
    return "\n".join([*lines, "---"])


def _properties(
    config: OFAConfig, num_parameters: int, image_size: int | None
) -> list[tuple[str, str]]:
    """Returns what the card says of the model."""
    rows = [
        ("parameters", f"{num_parameters:,}"),
        ("layers", f"{config.encoder_layers} in the encoder, {config.decoder_layers} in the "
         "decoder"),
        ("width", f"{config.width}, {config.num_heads} heads"),
        ("vocabulary", f"{config.vocab_size:,} ids of text, image codes and location bins"),
    ]  # fmt: skip
    return [*rows, ("image size", f"{image_size} x {image_size} pixels")] if image_size else rows


def _evaluation(results: Sequence[Result]) -> str:
    """Returns the table of results, or that there are none."""
    if not results:
        return "Not evaluated yet: `ofa-evaluate` writes the numbers that belong here."
    rows = [
        (
            result.task,
            result.metric,
            f"{result.value:.4g}",
            result.split,
            "-" if result.step is None else str(result.step),
        )
        for result in results
    ]
    return _table(("task", "metric", "value", "split", "step"), rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(c.replace('|', '&#124;') for c in row)} |" for row in lines)
