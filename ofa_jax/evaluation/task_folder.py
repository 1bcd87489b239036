"""The folder of a task's evaluation on a checkpoint: what made its predictions, and its result.

    <directory>/<step>/<task>/settings.json       what the predictions depend on
    <directory>/<step>/<task>/predictions.jsonl   see `prediction_files`
    <directory>/<step>/<task>/result.json         metrics and counts, and the settings once more

Predictions of other settings, data or weights are refused, never mixed. A damaged `settings.json`
is replaced by its copy in `result.json`; without either, nobody knows what made the predictions,
and they are made anew.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from ofa_jax.evaluation import postprocess
from ofa_jax.evaluation.errors import EvaluationError
from ofa_jax.evaluation.prediction_files import Line, PredictionFiles
from ofa_jax.utils import files
from ofa_jax.utils.bad_input import Treatment, declare
from ofa_jax.utils.json_values import to_json
from ofa_jax.utils.text_files import DamagedFileError, read_json

SETTINGS, RESULT = "settings.json", "result.json"

DAMAGED_RECORD = declare(
    "damaged record of an evaluation",
    Treatment.RECOVERED,
    "`settings.json`, `result.json` or `metrics.json` of an evaluation is not what was written. "
    "The settings are taken from the result, the metrics are computed again from the predictions, "
    "and the table of all metrics is put together from the results. Without its settings a task's "
    "predictions are made anew.",
    __name__,
)


@dataclasses.dataclass(frozen=True)
class TaskFolder:
    """The folder of a task on a checkpoint.

    Attributes:
      path: the folder.
      kind: what the task's predictions are, see `EvalSpec`.
      num_examples: number of examples of the task.
      log: is called with a sentence about everything that is not as it was written.
    """

    path: epath.Path
    kind: str
    num_examples: int
    log: Callable[[str], None] = logging.warning

    def check_settings(self, current: Mapping[str, Any]) -> bool:
        """Checks that existing predictions were made with the same settings; writes nothing.

        Args:
          current: the settings, as JSON.

        Returns:
          Whether there are predictions, complete or not, that were made with these settings.

        Raises:
          EvaluationError: they were made with other settings.
        """
        written = self._settings()
        if written is None:
            return False
        difference = _difference(written, to_json(current))
        if difference:
            raise EvaluationError(
                f"{self.path} holds predictions that were made with {difference}. Set "
                "evaluate.directory to another folder, or delete this one."
            )
        return True

    def _settings(self, log: bool = True) -> dict[str, Any] | None:
        """Returns the settings of the existing predictions; None if there are none."""
        written = self._read(SETTINGS)
        if written is None and (result := self.result()) is not None:
            written = result.get("settings")
        if log and written is None and self._has_predictions():
            self.log(
                f"{self.path} holds predictions without the settings that made them "
                f"({DAMAGED_RECORD.name}): they are made anew, and the old files are renamed to "
                "*.unverified."
            )
        return written if isinstance(written, dict) else None

    def _has_predictions(self) -> bool:
        return self.path.is_dir() and any(
            path.name == "predictions.jsonl" or path.name.startswith("part-")
            for path in self.path.iterdir()
        )

    def result(self) -> dict[str, Any] | None:
        """Returns what `result.json` says; None if it does not exist or is damaged."""
        result = self._read(RESULT)
        if result is not None and not is_metrics(result.get("metrics")):
            self.log(f"{self.path / RESULT} has no metrics ({DAMAGED_RECORD.name}).")
            return None
        return result

    def _read(self, name: str) -> dict[str, Any] | None:
        """Returns the content of a JSON file; None if it does not exist or is damaged."""
        path = self.path / name
        if not path.exists():
            return None
        try:
            value = read_json(path)
            if isinstance(value, dict):
                return value
            problem = f"{path} is not a JSON object"
        except (DamagedFileError, OSError) as error:
            problem = str(error).rstrip(".")
        self.log(f"{problem} ({DAMAGED_RECORD.name}).")
        return None

    def files(self, part_size: int) -> PredictionFiles:
        """Returns the prediction files, which are checked against the result if there is one."""
        return PredictionFiles(
            self.path,
            self.num_examples,
            part_size,
            self.is_valid_line,
            (self._read(RESULT) or {}).get("predictions_sha256"),
            self.log,
        )

    def is_valid_line(self, line: Line) -> bool:
        """Returns whether a line of the predictions has what the metrics need."""
        if not isinstance(line, dict) or type(line["index"]) is not int:
            return False
        if any(not isinstance(reason, str) for reason, _ in line.get("notes", ())):
            return False
        if "error" in line:
            return isinstance(line["error"], str)
        prediction = postprocess.from_json(self.kind, line["prediction"])
        if self.kind == "text":
            return "references" in line and isinstance(prediction, str)
        if self.kind == "objects":
            return "references" in line and len(prediction["boxes"]) == len(prediction["labels"])
        return "references" in line and np.ndim(prediction) == 1

    def is_finished(self) -> bool:
        """Returns whether all predictions are there, and all of their metrics."""
        result = self.result()
        if result is None or result.get("failed"):
            return False
        return self.has_all_predictions()

    def has_all_predictions(self) -> bool:
        """Returns whether all predictions are there and intact; writes nothing."""
        return self.files(max(self.num_examples, 1)).is_complete()

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Writes the settings of the predictions to come; sets aside those of unknown settings."""
        self.path.mkdir(parents=True, exist_ok=True)
        if self._settings(log=False) is None:
            for path in list(self.path.glob("*.jsonl")):
                path.replace(path.with_name(f"{path.name}.unverified"))
        files.write_json(self.path / SETTINGS, to_json(settings))

    def delete_result(self) -> None:
        """Deletes the result of predictions that are made anew."""
        (self.path / RESULT).unlink(missing_ok=True)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Writes the result."""
        files.write_json(self.path / RESULT, to_json(result))


def is_metrics(value: Any) -> bool:
    """Returns whether a value read from JSON maps names to numbers."""
    return isinstance(value, dict) and all(
        type(number) in (int, float) and math.isfinite(number) for number in value.values()
    )


def _difference(written: Mapping[str, Any], current: Mapping[str, Any]) -> str:
    """Describes the settings that differ; those that are unknown on one side do not."""
    flat_written, flat_current = _flatten(written), _flatten(current)
    return ", ".join(
        f"{name} = {_short(flat_written.get(name))} and not {_short(flat_current.get(name))}"
        for name in {**flat_written, **flat_current}
        if flat_written.get(name) != flat_current.get(name)
        and not _is_unknown(name.partition(".")[0], written, current)
    )


_MAYBE_UNKNOWN = frozenset(("data", "weights", "dtype"))
"""Settings that earlier versions did not write, or that a checkpoint without checksums lacks."""


def _is_unknown(name: str, written: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    """Returns whether a setting cannot be compared."""
    return name in _MAYBE_UNKNOWN and not (name in written and name in current)


def _short(value: Any) -> str:
    """Returns a value as it is shown, without most of a long one."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."


def _flatten(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Returns a nested dict as one dict with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        nested = isinstance(value, dict)
        flat |= _flatten(value, f"{path}{name}.") if nested else {path + name: value}
    return flat
