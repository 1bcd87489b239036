"""Reads what a report shows of a run directory; damaged files are left out and named."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from ofa_jax.evaluation.gallery import GALLERIES, GALLERY_FILE, GalleryExample
from ofa_jax.evaluation.results import METRICS_FILE
from ofa_jax.utils.text_files import read_json, read_text

Metrics = Mapping[int, Mapping[str, Mapping[str, float]]]
"""Step -> task -> metric -> value."""


@dataclasses.dataclass(frozen=True)
class Scalars:
    """The values of one TensorBoard tag.

    Attributes:
      steps: increasing.
      values: one for each step; the last one written where a step was written twice.
    """

    steps: Int64[np.ndarray, " n"]
    values: Float64[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class Gallery:
    """The gallery of a task: what `gallery.make` returned, as JSON.

    Attributes:
      split: of the data.
      step: of the checkpoint.
      task: its name.
      examples: see `gallery.GalleryExample`.
    """

    split: str
    step: int
    task: str
    examples: Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """What a run directory holds.

    Attributes:
      name: a short name of the run, different from those of other runs in the report.
      path: the run directory.
      scalars: TensorBoard tag -> values.
      evaluations: split -> metrics of all evaluated checkpoints.
      galleries: of the latest checkpoint of each split and task.
      config: the text of config.gin; empty if there is none.
      damaged: sentences about files that could not be read.
    """

    name: str
    path: pathlib.Path
    scalars: Mapping[str, Scalars]
    evaluations: Mapping[str, Metrics]
    galleries: Sequence[Gallery]
    config: str = ""
    damaged: Sequence[str] = ()


def read_run(path: pathlib.Path, name: str | None = None) -> RunFiles:
    """Reads a run directory.

    Args:
      path: of the run directory.
      name: see `RunFiles`; the directory's name when None.

    Raises:
      FileNotFoundError: there is no such directory, or nothing to report in it.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"There is no run directory {path}: check the path.")
    reader = _Reader(path)
    run = RunFiles(
        name or path.resolve().name,
        path,
        reader.scalars(),
        reader.evaluations(),
        reader.galleries(),
        reader.read(path / "config.gin", read_text, ""),
        reader.damaged,
    )
    if not (run.scalars or run.evaluations or run.galleries):
        raise FileNotFoundError(
            f"{path} has neither TensorBoard events nor evaluations: give the MODEL_DIR of a run."
        )
    return run


def read_galleries(path: pathlib.Path) -> Sequence[Gallery]:
    """Returns the galleries of the latest step of each split and task; damaged ones are left out.

    Args:
      path: of a run directory; there may be none in it.
    """
    return _Reader(path).galleries()


class _Reader:
    """Reads the files of a run directory and collects sentences about damaged ones."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self.damaged: list[str] = []

    def read(self, path: pathlib.Path, load: Callable[[pathlib.Path], Any], default: Any) -> Any:
        """Returns the content of a file; the default if it does not exist or is damaged."""
        if not path.exists():
            return default
        try:
            return load(path)
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            self.damaged.append(f"{path.relative_to(self._path)} is left out: {error}")
            return default

    def scalars(self) -> dict[str, Scalars]:
        """Returns all scalars in the event files of training and evaluation."""
        found: dict[str, dict[int, float]] = {}
        folders = {file.parent for file in self._path.glob("events.out.tfevents.*")}
        folders |= {file.parent for file in self._path.glob("evaluations/*/events.out.tfevents.*")}
        for folder in sorted(folders):
            for tag, values in self.read(folder, _read_events, {}).items():
                found.setdefault(tag, {}).update(values)
        return {
            tag: Scalars(
                np.array(sorted(values)), np.array([values[step] for step in sorted(values)])
            )
            for tag, values in sorted(found.items())
        }

    def evaluations(self) -> dict[str, Metrics]:
        """Returns the metrics of the evaluations of each split."""
        found = {}
        for path in sorted(self._path.glob(f"evaluations/*/{METRICS_FILE}")):
            if metrics := self.read(path, _read_metrics, {}):
                found[path.parent.name] = metrics
        return found

    def galleries(self) -> list[Gallery]:
        """Returns the galleries of the latest step of each split and task."""
        latest: dict[tuple[str, str], tuple[int, pathlib.Path]] = {}
        for path in sorted(self._path.glob(f"{GALLERIES}/*/*/*.json")):
            split, step = path.parts[-3:-1]
            _keep_latest(latest, (split, path.stem), step, path)
        # Later, as of the same step those of evaluations are kept: they are of all examples.
        for path in sorted(self._path.glob(f"evaluations/*/*/*/{GALLERY_FILE}")):
            split, step, task = path.parts[-4:-1]
            _keep_latest(latest, (split, task), step, path)
        return [
            Gallery(split, latest_step, task, examples)
            for (split, task), (latest_step, path) in sorted(latest.items())
            if (examples := self.read(path, _read_gallery, []))
        ]


def _keep_latest(
    latest: dict[tuple[str, str], tuple[int, pathlib.Path]],
    key: tuple[str, str],
    step: str,
    path: pathlib.Path,
) -> None:
    """Keeps the gallery of the highest step."""
    if step.isdigit() and int(step) >= latest.get(key, (-1, path))[0]:
        latest[key] = int(step), path


def _read_gallery(path: pathlib.Path) -> list[Mapping[str, Any]]:
    """Reads the examples of a gallery; what earlier versions did not write has its default.

    Raises:
      ValueError: they are no examples.
    """
    fields = dataclasses.fields(GalleryExample)
    defaults = {own.name: own.default for own in fields if own.default is not dataclasses.MISSING}
    required = {own.name for own in fields} - {*defaults}
    examples = read_json(path)
    if not isinstance(examples, list) or not all(
        isinstance(example, dict) and required <= example.keys() for example in examples
    ):
        raise ValueError("it holds no examples of a gallery")
    return [{**defaults, **example} for example in examples]


def _read_metrics(path: pathlib.Path) -> Metrics:
    """Reads metrics.json; numbers that are not finite become nan."""
    # Not read_json, which refuses NaN: older versions wrote it for a metric without a value.
    content = json.loads(read_text(path))
    return {
        int(step): {
            task: {name: float("nan" if value is None else value) for name, value in row.items()}
            for task, row in tasks.items()
        }
        for step, tasks in content.items()
    }


def _read_events(folder: pathlib.Path) -> dict[str, dict[int, float]]:
    """Reads all scalars in a folder's event files: tag -> step -> value.

    Images and texts are passed over one by one, so that they take no memory.
    """
    # Loads TensorFlow.
    from tensorboard.backend.event_processing import event_file_loader
    from tensorboard.util import tensor_util

    found: dict[str, dict[int, float]] = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in event_file_loader.EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                # The loader converts scalars of every age to tensors with this metadata.
                if value.metadata.plugin_data.plugin_name == "scalars":
                    number = float(tensor_util.make_ndarray(value.tensor))
                    found.setdefault(value.tag, {})[event.step] = number
    return found
