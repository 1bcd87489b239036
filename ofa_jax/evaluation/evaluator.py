"""Evaluates a task on a checkpoint: asks all of its examples, writes the answers down, judges them.

    questions ─▶ answerer ─▶ lines in parts ─▶ predictions.jsonl ─▶ metrics

What was asked is not asked again, and metrics are always computed from what was written down: an
evaluation that was killed and one that was not give the same numbers.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from ofa_jax.evaluation import postprocess
from ofa_jax.evaluation.batch_decoder import BatchDecoder
from ofa_jax.evaluation.eval_sources import EvalExample, EvalSource
from ofa_jax.evaluation.eval_spec import EvalSpec
from ofa_jax.evaluation.prediction_files import Line, PredictionFiles
from ofa_jax.model import OFA
from ofa_jax.sharding import Partitioner
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.utils.files import write_json
from ofa_jax.utils.timers import GoodputTimer

DATA, DECODING, COMPILATION, METRICS = "data", "decoding", "compilation", "metrics"
_MOST_LOGGED = 20


class EvaluationError(ValueError):
    """An evaluation cannot go on as it was called; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class EvaluatedTask:
    """A task, ready to be asked.

    Attributes:
      judging: how its answers are found and judged.
      questions: its examples.
      batch_size: of the questions, over all hosts.
      vocabulary: of instructions and answers.
      settings: what its answers follow from besides the model, as JSON.
    """

    judging: EvalSpec
    questions: EvalSource
    batch_size: int
    vocabulary: OFAVocabulary
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """In the seqio registry."""
        return self.judging.task


@dataclasses.dataclass(frozen=True)
class Result:
    """What came out.

    Attributes:
      metrics: name -> value.
      main_metric: the one that "best" means.
      examples: that were judged.
      skipped: whose records were bad.
      asked: examples that were asked in this call; fewer than all where it went on.
      seconds: of this host, by what it did: "data" (waiting for batches), "decoding" (waiting for
        the device), "compilation", "metrics".
    """

    metrics: Mapping[str, float]
    main_metric: str
    examples: int
    skipped: int
    asked: int
    seconds: Mapping[str, float]

    @property
    def examples_per_second(self) -> float | None:
        """Over all hosts, compiling and judging left out; None if none were asked now."""
        spent = self.seconds.get(DATA, 0.0) + self.seconds.get(DECODING, 0.0)
        return self.asked / max(spent, 1e-9) if self.asked else None


class Evaluator:
    """Evaluates tasks with one model, on any number of checkpoints of it."""

    def __init__(
        self,
        model: OFA,
        partitioner: Partitioner,
        directory: epath.Path,
        seed: int = 0,
        candidates_at_once: int = 32,
        batches_per_part: int = 16,
    ):
        """Compiles nothing.

        Args:
          model: to ask.
          partitioner: the mesh.
          directory: predictions go to `<directory>/<step>/<task>`; all hosts share it.
          seed: of answers that are drawn.
          candidates_at_once: see `BatchDecoder`.
          batches_per_part: after so many batches what was answered is written, and not lost.
        """
        self._model = model
        self._partitioner = partitioner
        self._directory = directory
        self._answerer_options = dict(seed=seed, candidates_at_once=candidates_at_once)
        self._answerers: dict[str, BatchDecoder] = {}
        self._per_part = batches_per_part

    def folder(self, step: int, task: EvaluatedTask) -> epath.Path:
        """Where a task's predictions go."""
        return self._directory / str(step) / task.name

    def prepare(self, task: EvaluatedTask) -> BatchDecoder:
        """The task's answerer, made at the first call.

        Raises:
          ValueError: decoding settings or allowed answers do not fit the model.
        """
        if task.name not in self._answerers:
            self._answerers[task.name] = BatchDecoder(
                self._model,
                task.judging,
                task.vocabulary,
                self._partitioner,
                **self._answerer_options,
            )
        return self._answerers[task.name]

    def check_settings(self, task: EvaluatedTask, step: int, checkpoint: str) -> bool:
        """Whether the task's predictions on a step, if there are any, were made as they would be.

        Args:
          task: to ask.
          step: of the checkpoint.
          checkpoint: which one, as the settings shall name it.

        Returns:
          Whether its predictions were begun.

        Raises:
          EvaluationError: they were made with other settings.
        """
        path = self.folder(step, task) / "settings.json"
        if not path.exists():
            return False
        kept, wanted = json.loads(path.read_text()), _settings(task, checkpoint)
        if kept != wanted:
            raise EvaluationError(
                f"{path.parent} holds predictions that were made with {_difference(kept, wanted)}. "
                "Give evaluate.directory another folder, or remove this one."
            )
        return True

    def evaluate(
        self,
        task: EvaluatedTask,
        step: int,
        checkpoint: str,
        variables: Any,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Result | None:
        """Asks, or goes on asking, and judges. All hosts do it together.

        Args:
          task: to ask.
          step: of the checkpoint.
          checkpoint: as for `check_settings`.
          variables: {"params", "batch_stats"}, on the mesh.
          progress: is told how many batches are done, and of how many.

        Returns:
          The result on the first host; None on the others.

        Raises:
          EvaluationError: predictions of other settings are there; or no record could be used.
        """
        clock, first = GoodputTimer(), jax.process_index() == 0
        self.check_settings(task, step, checkpoint)
        folder, questions = self.folder(step, task), task.questions
        files = PredictionFiles(folder, questions.num_examples, self._per_part * task.batch_size)
        if first:
            write_json(folder / "settings.json", _settings(task, checkpoint))
        num_batches = -(-questions.num_examples // task.batch_size)
        numbers = [
            number
            for part in files.unfinished()
            for number in range(
                part * self._per_part, min((part + 1) * self._per_part, num_batches)
            )
        ]
        if numbers:
            self._ask(task, files, numbers, variables, clock, progress)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"asked {task.name} on step {step}")
        if not first:
            return None
        lines = files.merge()
        with clock.measure(METRICS):
            metrics = judge(task.judging, lines)
        skipped = sum("error" in line for line in lines)
        size = task.batch_size
        result = Result(
            metrics=metrics,
            main_metric=task.judging.main_metric or next(iter(metrics)),
            examples=len(lines) - skipped,
            skipped=skipped,
            asked=sum(min(size, questions.num_examples - number * size) for number in numbers),
            seconds=clock.total().parts,
        )
        write_json(
            folder / "result.json",
            dataclasses.asdict(result) | {"examples_per_second": result.examples_per_second},
        )
        return result

    def _ask(
        self,
        task: EvaluatedTask,
        files: PredictionFiles,
        numbers: Sequence[int],
        variables: Any,
        clock: GoodputTimer,
        progress: Callable[[int, int], None],
    ) -> None:
        """Asks batches; the host prepares one while the device works on the one before."""
        answerer = self.prepare(task)
        rows = task.batch_size // self._partitioner.num_data_shards
        led = set(self._partitioner.primary_shards)
        own = [shard in led for shard in self._partitioner.data_shards for _ in range(rows)]
        lines: list[Line] = []
        done = logged = 0

        def finish(number: int, asked: Sequence[EvalExample | None], started: Any) -> None:
            nonlocal done, logged
            with clock.measure(DECODING):
                answered = answerer.finish(started)
            for row, question in enumerate(asked):
                if question is None or not own[row]:
                    continue
                if question.error is not None and logged < _MOST_LOGGED:
                    logging.warning(
                        "Skipped %s, record %d: %s", task.name, question.index, question.error
                    )
                    logged += 1
                lines.append(_line(task, question, *answered.best(row)))
            part = number // self._per_part
            if number == numbers[-1] or (number + 1) // self._per_part != part:
                files.write(part, lines)
                lines.clear()
            done += 1
            progress(done, len(numbers))

        waiting = None
        for number, batch, asked in _measured(task.questions.batches(numbers), clock):
            with clock.measure(COMPILATION if waiting is None else DECODING):
                started = answerer.start(variables, batch, number)
            if waiting is not None:
                finish(*waiting)
            waiting = (number, asked, started)
        finish(*waiting)


def judge(judging: EvalSpec, lines: Iterable[Line]) -> dict[str, float]:
    """The metrics of written-down answers.

    Raises:
      EvaluationError: there is none to judge.
    """
    lines = [line for line in lines if "error" not in line]
    if not lines:
        raise EvaluationError(
            f"Task {judging.task}: every record is bad, so there is nothing to judge."
        )
    references = [line["references"] for line in lines]
    given = [postprocess.from_json(judging.kind, line["prediction"]) for line in lines]
    values: dict[str, float] = {}
    for metric in judging.metrics:
        values |= {name: float(value) for name, value in metric(references, given).items()}
    if not values:
        raise EvaluationError(f"EvalSpec of task {judging.task!r} has no metric: give it some.")
    if judging.main_metric is not None and judging.main_metric not in values:
        raise EvaluationError(
            f"EvalSpec of task {judging.task!r}: main_metric is {judging.main_metric!r}, but its "
            f"metrics give {', '.join(values)}."
        )
    return values


def _line(task: EvaluatedTask, question: EvalExample, ids: Any, score: float) -> Line:
    if question.error is not None:
        return {"index": question.index, "id": question.id, "error": question.error}
    judging = task.judging
    answer = postprocess.read(
        judging.kind, ids, task.vocabulary, judging.max_image_size, question.view
    )
    return {
        "index": question.index,
        "id": question.id,
        "instruction": question.instruction,
        "references": question.references,
        "prediction": postprocess.to_json(judging.kind, answer),
        "score": score if math.isfinite(score) else None,
    }


def _measured(batches: Iterator[Any], clock: GoodputTimer) -> Iterator[Any]:
    """The same batches; waiting for them counts as data."""
    while True:
        with clock.measure(DATA):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _settings(task: EvaluatedTask, checkpoint: str) -> dict[str, Any]:
    """As they come back from JSON."""
    return json.loads(json.dumps({"checkpoint": checkpoint, **task.settings}))


def _difference(kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    flat_kept, flat_wanted = _flat(kept), _flat(wanted)
    return ", ".join(
        f"{name} = {flat_kept.get(name)!r} and not {flat_wanted.get(name)!r}"
        for name in {**flat_kept, **flat_wanted}
        if flat_kept.get(name) != flat_wanted.get(name)
    )


def _flat(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{path}{name}.") if isinstance(value, dict) else {path + name: value}
    return flat
