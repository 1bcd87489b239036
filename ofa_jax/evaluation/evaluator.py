"""Evaluates a task on a checkpoint: decodes all examples, writes predictions, computes metrics.

    examples ─▶ decoder ─▶ lines in parts ─▶ predictions.jsonl ─▶ metrics

Resumable: finished examples are skipped. Metrics are always computed from the written predictions,
so an interrupted evaluation gives the same numbers as an uninterrupted one.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from jaxtyping import Int
from numpy import ndarray

from ofa_jax.evaluation import postprocess
from ofa_jax.evaluation.batch_decoder import BatchDecoder, DecodedBatch
from ofa_jax.evaluation.eval_sources import EvalBatch, EvalExample, EvalSource
from ofa_jax.evaluation.eval_spec import EvalSpec
from ofa_jax.evaluation.pipeline import COMPILATION, DATA, DECODING, decode_batches
from ofa_jax.evaluation.prediction_files import Line, PredictionFiles
from ofa_jax.model import OFA
from ofa_jax.sharding import Partitioner
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.utils.files import write_json
from ofa_jax.utils.timers import GoodputTimer

__all__ = [
    "COMPILATION",
    "DATA",
    "DECODING",
    "METRICS",
    "EvalTask",
    "EvaluationError",
    "Evaluator",
    "TaskResult",
    "compute_metrics",
]

METRICS = "metrics"
_MAX_WARNINGS = 20


class EvaluationError(ValueError):
    """An evaluation cannot continue as configured; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class EvalTask:
    """A task that is ready to be evaluated.

    Attributes:
      spec: how it is decoded and scored.
      source: its examples.
      batch_size: examples per batch over all hosts.
      vocabulary: the vocabulary of instructions and predictions.
      settings: everything besides the model that its predictions depend on, as JSON.
    """

    spec: EvalSpec
    source: EvalSource
    batch_size: int
    vocabulary: OFAVocabulary
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name in the seqio registry."""
        return self.spec.task


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """The result of a task on a checkpoint.

    Attributes:
      metrics: name -> value.
      main_metric: the metric that selects the best checkpoint.
      examples: number of scored examples.
      skipped: number of examples whose records are invalid.
      decoded: number of examples that this call decoded; fewer than all if it resumed.
      seconds: this host's time by kind: "data" (waiting for batches), "decoding" (waiting for the
        device), "compilation", "metrics".
    """

    metrics: Mapping[str, float]
    main_metric: str
    examples: int
    skipped: int
    decoded: int
    seconds: Mapping[str, float]

    @property
    def examples_per_second(self) -> float | None:
        """Rate over all hosts without compilation and metrics; None if nothing was decoded."""
        spent = self.seconds.get(DATA, 0.0) + self.seconds.get(DECODING, 0.0)
        return self.decoded / max(spent, 1e-9) if self.decoded else None

    def to_json(self) -> dict[str, Any]:
        """Returns the contents of `result.json`."""
        fields = dataclasses.asdict(self)
        fields["asked"] = fields.pop("decoded")  # the key of earlier versions
        return fields | {"examples_per_second": self.examples_per_second}


class Evaluator:
    """Evaluates tasks with one model, on any number of its checkpoints."""

    def __init__(
        self,
        model: OFA,
        partitioner: Partitioner,
        directory: epath.Path,
        seed: int = 0,
        candidates_at_once: int = 32,
        batches_per_part: int = 16,
    ):
        """Creates an evaluator; compiles nothing.

        Args:
          model: the model to evaluate.
          partitioner: the mesh.
          directory: predictions go to `<directory>/<step>/<task>`; all hosts share it.
          seed: seed of sampling.
          candidates_at_once: see `BatchDecoder`.
          batches_per_part: batches per written part of the predictions.
        """
        self._model = model
        self._partitioner = partitioner
        self._directory = directory
        self._seed = seed
        self._candidates_at_once = candidates_at_once
        self._batches_per_part = batches_per_part
        self._decoders: dict[str, BatchDecoder] = {}

    def folder(self, step: int, task: EvalTask) -> epath.Path:
        """Returns the folder of a task's predictions."""
        return self._directory / str(step) / task.name

    def decoder(self, task: EvalTask) -> BatchDecoder:
        """Returns the task's decoder, which is created in the first call.

        Raises:
          ValueError: decoding settings or candidates do not fit the model.
        """
        if task.name not in self._decoders:
            self._decoders[task.name] = BatchDecoder(
                self._model,
                task.spec,
                task.vocabulary,
                self._partitioner,
                seed=self._seed,
                candidates_at_once=self._candidates_at_once,
            )
        return self._decoders[task.name]

    def check_settings(self, task: EvalTask, step: int, checkpoint: str) -> bool:
        """Checks that existing predictions were made with the same settings.

        Args:
          task: the task.
          step: step of the checkpoint.
          checkpoint: name of the checkpoint in the settings.

        Returns:
          Whether there are predictions of the task on this step, complete or not.

        Raises:
          EvaluationError: they were made with other settings.
        """
        path = self.folder(step, task) / "settings.json"
        if not path.exists():
            return False
        written, current = json.loads(path.read_text()), _settings(task, checkpoint)
        if written != current:
            raise EvaluationError(
                f"{path.parent} holds predictions that were made with "
                f"{_difference(written, current)}. Set evaluate.directory to another folder, or "
                "delete this one."
            )
        return True

    def evaluate(
        self,
        task: EvalTask,
        step: int,
        checkpoint: str,
        variables: Any,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> TaskResult | None:
        """Decodes the examples without a prediction, and computes the metrics of all.

        All hosts must call it.

        Args:
          task: the task.
          step: step of the checkpoint.
          checkpoint: as for `check_settings`.
          variables: {"params", "batch_stats"}, on the mesh.
          progress: is called after each batch with the number of batches done and to do.

        Returns:
          The result on the first host; None on the others.

        Raises:
          EvaluationError: there are predictions with other settings, or every record is invalid.
        """
        timer, is_first_host = GoodputTimer(), jax.process_index() == 0
        self.check_settings(task, step, checkpoint)
        folder, num_examples = self.folder(step, task), task.source.num_examples
        files = PredictionFiles(folder, num_examples, self._batches_per_part * task.batch_size)
        if is_first_host:
            write_json(folder / "settings.json", _settings(task, checkpoint))
        numbers = self._unfinished_batches(task, files)
        if numbers:
            self._decode(task, files, numbers, variables, timer, progress)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"decoded {task.name} on step {step}")
        if not is_first_host:
            return None
        lines = files.merge()
        with timer.measure(METRICS):
            metrics = compute_metrics(task.spec, lines)
        skipped = sum("error" in line for line in lines)
        size = task.batch_size
        result = TaskResult(
            metrics=metrics,
            main_metric=task.spec.main_metric or next(iter(metrics)),
            examples=len(lines) - skipped,
            skipped=skipped,
            decoded=sum(min(size, num_examples - number * size) for number in numbers),
            seconds=timer.total().parts,
        )
        write_json(folder / "result.json", result.to_json())
        return result

    def _unfinished_batches(self, task: EvalTask, files: PredictionFiles) -> list[int]:
        """Returns the numbers of the batches of all unfinished parts."""
        size = self._batches_per_part
        num_batches = -(-task.source.num_examples // task.batch_size)
        return [
            number
            for part in files.unfinished()
            for number in range(part * size, min((part + 1) * size, num_batches))
        ]

    def _decode(
        self,
        task: EvalTask,
        files: PredictionFiles,
        numbers: Sequence[int],
        variables: Any,
        timer: GoodputTimer,
        progress: Callable[[int, int], None],
    ) -> None:
        """Decodes batches and writes the predictions of each part when it is complete."""
        rows_per_shard = task.batch_size // self._partitioner.num_data_shards
        primary = set(self._partitioner.primary_shards)
        is_own_row = [
            shard in primary
            for shard in self._partitioner.data_shards
            for _ in range(rows_per_shard)
        ]
        writer = _PartWriter(task, files, is_own_row)
        batches = task.source.batches(numbers)
        decoder = self.decoder(task)
        for done, (batch, decoded) in enumerate(
            decode_batches(decoder, variables, batches, timer.measure), 1
        ):
            writer.add(batch, decoded)
            part = batch.number // self._batches_per_part
            is_last = batch.number == numbers[-1]
            if is_last or (batch.number + 1) // self._batches_per_part != part:
                writer.finish_part(part)
            progress(done, len(numbers))


class _PartWriter:
    """Collects the predictions of a part, and writes them as lines."""

    def __init__(self, task: EvalTask, files: PredictionFiles, is_own_row: Sequence[bool]):
        """Creates a writer for this host's rows that are marked as its own."""
        self._task = task
        self._files = files
        self._is_own_row = is_own_row
        self._lines: list[Line] = []
        self._warnings = 0

    def add(self, batch: EvalBatch, decoded: DecodedBatch) -> None:
        """Adds the predictions of a batch."""
        for row, example in enumerate(batch.examples):
            if example is None or not self._is_own_row[row]:
                continue
            if example.error is not None:
                self._warn(example)
            self._lines.append(_line(self._task, example, *decoded.best(row)))

    def finish_part(self, part: int) -> None:
        """Writes the collected lines as a part."""
        self._files.write(part, self._lines)
        self._lines.clear()

    def _warn(self, example: EvalExample) -> None:
        """Logs why an example is skipped, up to a number of warnings."""
        if self._warnings < _MAX_WARNINGS:
            logging.warning(
                "Skipped %s, record %d: %s", self._task.name, example.index, example.error
            )
            self._warnings += 1


def compute_metrics(spec: EvalSpec, lines: Iterable[Line]) -> dict[str, float]:
    """Computes the metrics of written predictions.

    Raises:
      EvaluationError: there is no prediction, no metric, or no metric named `main_metric`.
    """
    lines = [line for line in lines if "error" not in line]
    if not lines:
        raise EvaluationError(
            f"Task {spec.task}: every record is invalid, so there is nothing to evaluate."
        )
    references = [line["references"] for line in lines]
    predictions = [postprocess.from_json(spec.kind, line["prediction"]) for line in lines]
    values: dict[str, float] = {}
    for metric in spec.metrics:
        values |= {name: float(value) for name, value in metric(references, predictions).items()}
    if not values:
        raise EvaluationError(f"EvalSpec of task {spec.task!r} has no metric: give at least one.")
    if spec.main_metric is not None and spec.main_metric not in values:
        raise EvaluationError(
            f"EvalSpec of task {spec.task!r}: main_metric is {spec.main_metric!r}, but its metrics "
            f"give {', '.join(values)}."
        )
    return values


def _line(task: EvalTask, example: EvalExample, ids: Int[ndarray, " n"], score: float) -> Line:
    """Returns the line of an example: its prediction, or why it has none."""
    if example.error is not None:
        return {"index": example.index, "id": example.id, "error": example.error}
    spec = task.spec
    prediction = postprocess.parse(
        spec.kind, ids, task.vocabulary, spec.max_image_size, example.box_transform
    )
    return {
        "index": example.index,
        "id": example.id,
        "instruction": example.instruction,
        "references": example.references,
        "prediction": postprocess.to_json(spec.kind, prediction),
        "score": score if math.isfinite(score) else None,
    }


def _settings(task: EvalTask, checkpoint: str) -> dict[str, Any]:
    """Returns the settings of a task's predictions as they are read back from JSON."""
    return json.loads(json.dumps({"checkpoint": checkpoint, **task.settings}))


def _difference(written: Mapping[str, Any], current: Mapping[str, Any]) -> str:
    """Describes the settings that differ."""
    flat_written, flat_current = _flatten(written), _flatten(current)
    return ", ".join(
        f"{name} = {flat_written.get(name)!r} and not {flat_current.get(name)!r}"
        for name in {**flat_written, **flat_current}
        if flat_written.get(name) != flat_current.get(name)
    )


def _flatten(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Returns a nested dict as one dict with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        nested = isinstance(value, dict)
        flat |= _flatten(value, f"{path}{name}.") if nested else {path + name: value}
    return flat
