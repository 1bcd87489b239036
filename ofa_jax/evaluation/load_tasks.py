"""Loads registered tasks for evaluation.

A task normally has an `EvalSpec` and records with random access. The examples of a task with
ordinary tf.data preprocessors are read in seqio's order; a task without an `EvalSpec` is scored by
its own `metric_fns` on text predictions.
"""

import dataclasses
import functools
import itertools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ofa_jax.data import seqio_bridge
from ofa_jax.data.features import Example, Stream
from ofa_jax.decoding import DecodingConfig
from ofa_jax.evaluation import eval_spec, fingerprints
from ofa_jax.evaluation.eval_sources import (
    EvalBatcher,
    EvalSource,
    RecordEvalSource,
    SeqioEvalSource,
)
from ofa_jax.evaluation.eval_spec import EvalSpec
from ofa_jax.evaluation.evaluator import EvalTask
from ofa_jax.sharding import Partitioner
from ofa_jax.tokenizers.vocabulary import OFAVocabulary

OverrideDecoding = Callable[[str, DecodingConfig], DecodingConfig]
"""(task, its decoding settings) -> the decoding settings to use."""


@dataclasses.dataclass(frozen=True)
class TaskLoader:
    """Loads the tasks of an evaluation with the settings that they share.

    Attributes:
      split: the split of the data.
      partitioner: the mesh.
      num_examples: how many examples of each task are evaluated; None for all.
      batch_size: over all hosts; None for that of each stream.
      override_decoding: changes a task's decoding settings.
      seed: seed of the preprocessors' draws.
      num_threads, num_workers: threads or processes that prepare batches.
      settings: of the run, which its tasks need; None for their defaults.
    """

    split: str
    partitioner: Partitioner
    num_examples: int | None = None
    batch_size: int | None = None
    override_decoding: OverrideDecoding = lambda task, config: config
    seed: int = 0
    num_threads: int = 2
    num_workers: int = 0
    settings: Any = None

    def load(
        self, stream: Stream, only: Sequence[str] | None, log: Callable[[str], None]
    ) -> list[EvalTask]:
        """Loads the tasks of a stream.

        Tasks of a mixture that have neither an EvalSpec nor metric_fns are logged and left out:
        they may be for training only.

        Args:
          stream: shapes, and the name of the task or mixture.
          only: names of the tasks to load; None for all.
          log: is called with a sentence about each task that is left out.

        Raises:
          ValueError: an unknown name, no task to evaluate, or records that do not fit the stream.
        """
        tasks, errors = [], {}
        for name in sorted(seqio_bridge.rates(stream.mixture_or_task_name, self.settings)):
            if only is not None and name not in only:
                continue
            try:
                spec = self._find_spec(name)
            except ValueError as error:
                errors[name] = error
                continue
            tasks.append(self._load_task(name, spec, stream))
        if errors and not tasks:
            raise next(iter(errors.values()))
        for name in errors:
            log(f"{name} is left out: it is registered without an EvalSpec and without metric_fns.")
        return tasks

    def _find_spec(self, name: str) -> EvalSpec:
        """Returns the EvalSpec of a task; without one, a spec of its seqio metrics."""
        if not eval_spec.is_registered(name) and seqio_bridge.metric_task(name) is not None:
            spec = _seqio_spec(name)
        else:
            spec = eval_spec.find(name, self.settings)
        return spec.replace(decoding=self.override_decoding(name, spec.decoding))

    def _load_task(self, name: str, spec: EvalSpec, stream: Stream) -> EvalTask:
        """Loads one task of a stream."""
        stream = dataclasses.replace(
            stream,
            mixture_or_task_name=name,
            batch_size=self.batch_size or stream.batch_size,
            num_sampled_patches=None,  # patches are sampled in training only
        )
        shards = self.partitioner.num_data_shards
        if stream.batch_size % shards:
            raise ValueError(
                f"Stream {stream.name!r}: batch_size {stream.batch_size} does not divide over the "
                f"{shards} data shards of the mesh; choose a multiple of {shards}, for example "
                f"with --gin.evaluate.batch_size={-(-stream.batch_size // shards) * shards}."
            )
        batcher = EvalBatcher(
            stream,
            vocabulary_of(name, self.settings),
            spec.references,
            shards,
            self.partitioner.data_shards,
        )
        weighted_tasks = None
        if not isinstance(spec.references, _DecodedTargets):
            weighted_tasks = seqio_bridge.weighted_tasks(
                name, self.split, self.settings, training=False
            )
        source: EvalSource
        data: dict[str, Any] = {}
        if weighted_tasks is not None:
            source = RecordEvalSource.open(
                weighted_tasks[0],
                batcher,
                self.num_examples,
                seed=self.seed,
                num_threads=self.num_threads,
                num_workers=self.num_workers,
            )
            data["examples"] = fingerprints.of_examples(source.num_examples, source.content)
            data["files"] = fingerprints.of_records(weighted_tasks[0].records)
        else:
            source, data["examples"] = self._open_sequential(name, stream, batcher)
            spec = _with_examples(spec, source)
        settings = self._settings(spec, source.num_examples, stream) | {"data": data}
        return EvalTask(spec, source, stream.batch_size, batcher.vocabulary, settings)

    def _open_sequential(
        self, name: str, stream: Stream, batcher: EvalBatcher
    ) -> tuple[SeqioEvalSource, str]:
        """Returns the examples of a task with tf.data preprocessors, and their fingerprint."""
        examples = functools.partial(
            seqio_bridge.examples_in_order, name, stream.task_feature_lengths, self.split, self.seed
        )
        count, fingerprint = fingerprints.of_sequence(
            itertools.islice(examples(), self.num_examples)
        )
        if not count:
            raise ValueError(f"Task {name}: the split is empty, so there are no examples.")
        return SeqioEvalSource(examples, batcher, count), fingerprint

    def _settings(self, spec: EvalSpec, count: int, stream: Stream) -> dict[str, Any]:
        """Returns everything besides the checkpoint that the predictions depend on."""
        settings = {
            "split": self.split,
            "examples": count,
            "seed": self.seed,
            "kind": spec.kind,
            "decoding": spec.decoding.to_json(),
            "score_all": spec.score_all,
            "lengths": dict(stream.task_feature_lengths),
            "image_size": stream.image_size,
            "max_image_size": spec.max_image_size,
        }
        if spec.candidates is not None:
            texts = list(spec.candidates())
            content = chr(10).join(texts).encode("utf-8", "surrogatepass")
            # The key of earlier versions.
            settings["answers"] = f"{len(texts)}, {zlib.crc32(content):08x}"
        return settings


def vocabulary_of(name: str, settings: Any = None) -> OFAVocabulary:
    """Returns the vocabulary of a task's targets.

    Raises:
      ValueError: it is not an OFAVocabulary.
    """
    vocabulary = seqio_bridge.vocabulary_of(name, settings)
    if not isinstance(vocabulary, OFAVocabulary):
        raise ValueError(
            f"The targets of {name} use a {type(vocabulary).__name__}, but OFA models generate "
            "tokens of an OFAVocabulary; register the task with `SeqioVocabulary(vocabulary)`."
        )
    return vocabulary


# --------------------------------------------------------------- tasks scored by seqio's metrics


@dataclasses.dataclass(frozen=True)
class _DecodedTargets:
    """Returns the targets of an example as text."""

    task: str

    def __call__(self, example: Mapping[str, Any]) -> str:
        return vocabulary_of(self.task).decode(example["targets"]).strip()


@dataclasses.dataclass(frozen=True)
class _SeqioMetrics:
    """Computes a task's `metric_fns` of (targets, predictions) after its `postprocess_fn`."""

    task: str
    examples: Callable[[], Iterator[Example]]

    def __call__(self, references: Sequence[str], outputs: Sequence[str]) -> dict[str, float]:
        task = seqio_bridge.metric_task(self.task)
        assert task is not None, "only tasks with metrics have these"
        targets, predictions = [], []
        for reference, output, example in zip(references, outputs, self.examples(), strict=False):
            targets.append(task.postprocess_fn(reference, example=example, is_target=True))
            predictions.append(task.postprocess_fn(output, example=example, is_target=False))
        values: dict[str, float] = {}
        for metric in task.predict_metric_fns:
            values |= metric(targets, predictions)
        return {name: float(getattr(value, "value", value)) for name, value in values.items()}


def _seqio_spec(task: str) -> EvalSpec:
    """Returns the spec of a task that is scored by its seqio metrics."""
    metrics = _SeqioMetrics(task, lambda: iter(()))
    return EvalSpec(task, "text", _DecodedTargets(task), (metrics,))


def _with_examples(spec: EvalSpec, source: SeqioEvalSource) -> EvalSpec:
    """Gives seqio's metrics the examples of the split, which `postprocess_fn` takes."""
    return spec.replace(
        metrics=tuple(
            dataclasses.replace(metric, examples=source.examples)
            if isinstance(metric, _SeqioMetrics)
            else metric
            for metric in spec.metrics
        )
    )
