"""Evaluates a task on a checkpoint: decodes all examples, writes predictions, computes metrics.

    examples ─▶ decoder ─▶ lines in parts ─▶ predictions.jsonl ─▶ metrics

Resumable: finished examples are skipped. Metrics are always computed from the written predictions,
so an interrupted evaluation gives the same numbers as an uninterrupted one.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from ofa_jax.evaluation.batch_decoder import BatchDecoder
from ofa_jax.evaluation.errors import EvaluationError
from ofa_jax.evaluation.eval_sources import EvalSource
from ofa_jax.evaluation.eval_spec import EvalSpec
from ofa_jax.evaluation.image_ranking import ImageRanking
from ofa_jax.evaluation.pipeline import COMPILATION, DATA, DECODING, decode_batches
from ofa_jax.evaluation.prediction_files import PredictionFiles
from ofa_jax.evaluation.prediction_lines import PartWriter, count_findings
from ofa_jax.evaluation.scoring import compute_metrics
from ofa_jax.evaluation.task_folder import TaskFolder
from ofa_jax.model import OFA
from ofa_jax.sharding import Partitioner
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.utils.collectives import first_host_decides
from ofa_jax.utils.json_values import to_json
from ofa_jax.utils.progress import substage
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


@dataclasses.dataclass(frozen=True)
class EvalTask:
    """A task that is ready to be evaluated.

    Attributes:
      spec: how it is decoded and scored.
      source: its examples.
      batch_size: examples per batch over all hosts.
      vocabulary: the vocabulary of instructions and predictions.
      settings: everything besides the model that its predictions depend on, as JSON.
      ranking: orders the images of captions; None to leave hypotheses as they are.
    """

    spec: EvalSpec
    source: EvalSource
    batch_size: int
    vocabulary: OFAVocabulary
    settings: Mapping[str, Any]
    ranking: ImageRanking | None = None

    @property
    def name(self) -> str:
        """Name in the seqio registry."""
        return self.spec.task

    def rank_images(self, ranking: ImageRanking) -> "EvalTask":
        """Returns a copy whose images are chosen and scored by a ranker.

        Args:
          ranking: has the ranker, by whose name its predictions are told from others.
        """
        spec = self.spec.replace(metrics=(*self.spec.metrics, ranking.mean_score))
        task = dataclasses.replace(self, spec=spec, ranking=ranking)
        return task.replace_settings(image_ranker=ranking.ranker.name)

    def replace_settings(self, **added: Any) -> "EvalTask":
        """Returns a copy with some settings added or changed."""
        return dataclasses.replace(self, settings={**self.settings, **added})


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """The result of a task on a checkpoint.

    Attributes:
      metrics: name -> value.
      main_metric: the metric that selects the best checkpoint.
      examples: number of predicted examples.
      skipped: number of examples whose records are invalid.
      scored: number of examples with a reference, over which the metrics are.
      decoded: number of examples that this call decoded; fewer than all if it resumed.
      seconds: this host's time by kind: "data" (waiting for batches), "decoding" (waiting for the
        device), "compilation", "metrics".
      findings: reason -> number of records that were skipped, or of parts that were dropped or
        replaced.
      undefined: names of metrics that are NaN or infinite for these predictions.
      failed: name of a metric that failed -> why; the other metrics are there.
      unscored_reason: why no example was scored; None if some were.
    """

    metrics: Mapping[str, float]
    main_metric: str | None
    examples: int
    skipped: int
    scored: int
    decoded: int
    seconds: Mapping[str, float]
    findings: Mapping[str, int] = dataclasses.field(default_factory=dict)
    undefined: Sequence[str] = ()
    failed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unscored_reason: str | None = None

    @property
    def examples_per_second(self) -> float | None:
        """Rate over all hosts without compilation and metrics; None if nothing was decoded."""
        spent = self.seconds.get(DATA, 0.0) + self.seconds.get(DECODING, 0.0)
        return self.decoded / max(spent, 1e-9) if self.decoded else None

    def to_json(self) -> dict[str, Any]:
        """Returns the contents of `result.json`."""
        fields = dataclasses.asdict(self)
        fields["asked"] = fields.pop("decoded")  # the key of earlier versions
        fields["bad_input"] = fields.pop("findings")
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
        log: Callable[[str], None] = logging.warning,
    ):
        """Creates an evaluator; compiles nothing.

        Args:
          model: the model to evaluate.
          partitioner: the mesh.
          directory: predictions go to `<directory>/<step>/<task>`; all hosts share it.
          seed: seed of sampling.
          candidates_at_once: see `BatchDecoder`.
          batches_per_part: batches per written part of the predictions.
          log: is called with a sentence about each damaged file.
        """
        self._log = log
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

    def _task_folder(self, task: EvalTask, step: int) -> TaskFolder:
        """Returns the task's folder; only the first host logs what is damaged in it."""
        log = self._log if jax.process_index() == 0 else _log_nothing
        path = self.folder(step, task)
        return TaskFolder(path, task.spec.kind, task.source.num_examples, log)

    def check_settings(
        self, task: EvalTask, step: int, checkpoint: str, weights: str | None = None
    ) -> bool:
        """Checks that existing predictions were made with the same settings; writes nothing.

        Args:
          task: the task.
          step: step of the checkpoint.
          checkpoint: name of the checkpoint in the settings.
          weights: fingerprint of the checkpoint; None if it has none.

        Returns:
          Whether there are predictions of the task on this step, complete or not.

        Raises:
          EvaluationError: they were made with other settings.
        """
        return self._task_folder(task, step).check_settings(_settings(task, checkpoint, weights))

    def is_finished(
        self, task: EvalTask, step: int, checkpoint: str, weights: str | None = None
    ) -> bool:
        """Returns whether the task's predictions and metrics on a step are complete and intact.

        A collective call.

        Raises:
          EvaluationError: the predictions were made with other settings.
        """
        finished = self.check_settings(task, step, checkpoint, weights)
        if finished and jax.process_index() == 0:
            finished = self._task_folder(task, step).is_finished()
        return first_host_decides(finished)

    def needs_model(self, task: EvalTask, step: int) -> bool:
        """Returns whether some examples have no prediction yet; a collective call."""
        missing = False
        if jax.process_index() == 0:
            missing = not self._task_folder(task, step).has_all_predictions()
        return first_host_decides(missing)

    def result(self, task: EvalTask, step: int) -> Mapping[str, Any]:
        """Returns the contents of the task's `result.json`; empty if there is none."""
        return self._task_folder(task, step).result() or {}

    def evaluate(
        self,
        task: EvalTask,
        step: int,
        checkpoint: str,
        variables: Any,
        progress: Callable[[int, int], None] = lambda done, total: None,
        weights: str | None = None,
    ) -> TaskResult | None:
        """Decodes the examples without a prediction, and computes the metrics of all.

        All hosts must call it. A metric that fails is part of the result; the predictions are on
        the disk before.

        Args:
          task: the task.
          step: step of the checkpoint.
          checkpoint: as for `check_settings`.
          variables: {"params", "batch_stats"}, on the mesh.
          progress: is called after each batch with the number of batches done and to do.
          weights: as for `check_settings`.

        Returns:
          The result on the first host; None on the others.

        Raises:
          EvaluationError: there are predictions with other settings, or some have disappeared.
        """
        timer, is_first_host = GoodputTimer(), jax.process_index() == 0
        self.check_settings(task, step, checkpoint, weights)
        folder, settings = self._task_folder(task, step), _settings(task, checkpoint, weights)
        if is_first_host:
            folder.begin(settings)
        files = folder.files(self._batches_per_part * task.batch_size)
        numbers = self._unfinished_batches(task, files)
        if numbers:
            if is_first_host:
                folder.delete_result()
            self._decode(task, files, numbers, variables, timer, progress)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"decoded {task.name} on step {step}")
        if not is_first_host:
            return None
        try:
            lines, digest = files.merge()
        except ValueError as error:
            raise EvaluationError(str(error)) from error
        with timer.measure(METRICS), substage("computing metrics"):
            scores = compute_metrics(task.spec, lines)
        size, skipped = task.batch_size, sum("error" in line for line in lines)
        result = TaskResult(
            metrics=scores.metrics,
            main_metric=scores.main_metric,
            examples=len(lines) - skipped,
            skipped=skipped,
            scored=scores.scored,
            decoded=sum(min(size, folder.num_examples - number * size) for number in numbers),
            seconds=timer.total().parts,
            findings=count_findings(lines),
            undefined=scores.undefined,
            failed=scores.failed,
            unscored_reason=scores.unscored_reason,
        )
        identity = {"predictions_sha256": digest, "settings": settings}
        folder.write_result(result.to_json() | identity)
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
        writer = PartWriter(task.spec, task.vocabulary, files, is_own_row)
        batches = task.source.batches(numbers)
        decoder = self.decoder(task)
        for done, (batch, decoded) in enumerate(
            decode_batches(decoder, variables, batches, timer.measure), 1
        ):
            if task.ranking is not None:
                texts = [
                    "" if example is None or example.error is not None else example.instruction
                    for example in batch.examples
                ]
                decoded = task.ranking(decoded, texts)
            writer.add(batch, decoded)
            part = batch.number // self._batches_per_part
            is_last = batch.number == numbers[-1]
            if is_last or (batch.number + 1) // self._batches_per_part != part:
                writer.finish_part(part)
            progress(done, len(numbers))


def _settings(task: EvalTask, checkpoint: str, weights: str | None) -> dict[str, Any]:
    """Returns everything that a task's predictions depend on, as JSON."""
    identity = {"checkpoint": checkpoint} | ({} if weights is None else {"weights": weights})
    return to_json(identity | dict(task.settings))


def _log_nothing(message: str) -> None:
    """Takes the place of `log` on all hosts but the first."""
