"""From the seqio registry to tasks that can be asked.

A task with a `EvalSpec` and records with random access is the usual case. One made of ordinary
tf.data preprocessors is asked in seqio's order; one without a `EvalSpec` is judged by its own
`metric_fns`, its answers being text.
"""

import dataclasses
import functools
import itertools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import seqio

from ofa_jax.data import seqio_bridge
from ofa_jax.data.features import Example, Stream
from ofa_jax.decoding import DecodingConfig
from ofa_jax.evaluation import eval_spec as judgings
from ofa_jax.evaluation.eval_sources import EvalBatcher, RecordEvalSource, SeqioEvalSource
from ofa_jax.evaluation.eval_spec import EvalSpec
from ofa_jax.evaluation.evaluator import EvaluatedTask
from ofa_jax.sharding import Partitioner
from ofa_jax.tokenizers.vocabulary import OFAVocabulary


@dataclasses.dataclass(frozen=True)
class Opening:
    """What all tasks of an evaluation share.

    Attributes:
      split: of the data.
      partitioner: the mesh.
      num_examples: of each task, the first ones; None for all.
      batch_size: over all hosts; None for that of each stream.
      decoding: changes a task's decoding settings: (task, settings) -> settings.
      seed: of what preprocessors draw.
      num_threads, num_workers: that make batches.
    """

    split: str
    partitioner: Partitioner
    num_examples: int | None = None
    batch_size: int | None = None
    decoding: Callable[[str, DecodingConfig], DecodingConfig] = lambda task, config: config
    seed: int = 0
    num_threads: int = 2
    num_workers: int = 0

    def tasks(
        self, stream: Stream, only: Sequence[str] | None, say: Callable[[str], None]
    ) -> list[EvaluatedTask]:
        """The tasks of a stream; those of a mixture that cannot be judged are named and left out.

        Args:
          stream: shapes, and which task or mixture.
          only: names of the tasks that are wanted; None for all.
          say: is told what is left out.

        Raises:
          ValueError: an unknown name, nothing to evaluate, records that do not fit the stream.
        """
        rates = seqio_bridge.rates(stream.mixture_or_task_name)
        opened, lacking = [], []
        for name in sorted(rates):
            if only is not None and name not in only:
                continue
            try:
                judging = self._judging(name)
            except ValueError as error:
                # In a mixture one may be for training only.
                lacking.append((name, error))
                continue
            opened.append(self._open(name, judging, stream))
        if lacking and not opened:
            raise lacking[0][1]
        for name, _ in lacking:
            say(f"{name} is left out: it is registered without a EvalSpec and without metric_fns.")
        return opened

    def _judging(self, name: str) -> EvalSpec:
        try:
            found = judgings.find(name)
        except ValueError:
            task = seqio.TaskRegistry.get(name)
            if not task.predict_metric_fns:
                raise
            found = _seqio_judging(task)
        return found.replace(decoding=self.decoding(name, found.decoding))

    def _open(self, name: str, judging: EvalSpec, stream: Stream) -> EvaluatedTask:
        stream = dataclasses.replace(
            stream,
            mixture_or_task_name=name,
            batch_size=self.batch_size or stream.batch_size,
            num_sampled_patches=None,  # drawing some is for training
        )
        shards = self.partitioner.num_data_shards
        if stream.batch_size % shards:
            raise ValueError(
                f"Stream {stream.name!r}: batch_size {stream.batch_size} does not divide over the "
                f"{shards} data shards of the mesh; choose a multiple of {shards}, for example "
                f"with --gin.evaluate.batch_size={-(-stream.batch_size // shards) * shards}."
            )
        asking = EvalBatcher(
            stream, vocabulary_of(name), judging.references, shards, self.partitioner.data_shards
        )
        lifted = None
        if not isinstance(judging.references, _DecodedTargets):
            lifted = seqio_bridge.weighted_tasks(name, self.split)
        if lifted is not None:
            questions = RecordEvalSource.of(
                lifted[0],
                asking,
                self.num_examples,
                seed=self.seed,
                num_threads=self.num_threads,
                num_workers=self.num_workers,
            )
        else:
            questions = self._sequential(name, judging, stream, asking)
            judging = _with_examples(judging, questions)
        return EvaluatedTask(
            judging,
            questions,
            stream.batch_size,
            asking.vocabulary,
            self._settings(judging, questions.num_examples, stream),
        )

    def _sequential(
        self, name: str, judging: EvalSpec, stream: Stream, asking: EvalBatcher
    ) -> SeqioEvalSource:
        examples = functools.partial(
            seqio_bridge.examples_in_order, name, stream.task_feature_lengths, self.split, self.seed
        )
        count = sum(1 for _ in itertools.islice(examples(), self.num_examples))
        if not count:
            raise ValueError(f"Task {name}: there is nothing to evaluate, for the split is empty.")
        return SeqioEvalSource(examples, asking, count)

    def _settings(self, judging: EvalSpec, count: int, stream: Stream) -> dict[str, Any]:
        """What the answers follow from, besides the checkpoint."""
        settings = {
            "split": self.split,
            "examples": count,
            "seed": self.seed,
            "kind": judging.kind,
            "decoding": dataclasses.asdict(judging.decoding),
            "score_all": judging.score_all,
            "lengths": dict(stream.task_feature_lengths),
            "image_size": stream.image_size,
            "max_image_size": judging.max_image_size,
        }
        if judging.candidates is not None:
            texts = list(judging.candidates())
            settings["answers"] = f"{len(texts)}, {zlib.crc32(chr(10).join(texts).encode()):08x}"
        return settings


def vocabulary_of(name: str) -> OFAVocabulary:
    """The vocabulary that a task's targets are written in.

    Raises:
      ValueError: it is not OFA's.
    """
    vocabulary = seqio_bridge.find(name).output_features["targets"].vocabulary
    wrapped = getattr(vocabulary, "wrapped", None)
    if not isinstance(wrapped, OFAVocabulary):
        raise ValueError(
            f"The targets of {name} are written in a {type(vocabulary).__name__}: a model of OFA "
            "answers in an OFAVocabulary; register the task with `vocabulary.as_seqio()`."
        )
    return wrapped


# ------------------------------------------------------------------ tasks judged by seqio's metrics


@dataclasses.dataclass(frozen=True)
class _DecodedTargets:
    """The targets of an example as text."""

    task: str

    def __call__(self, example: Mapping[str, Any]) -> str:
        return vocabulary_of(self.task).decode(example["targets"]).strip()


@dataclasses.dataclass(frozen=True)
class _SeqioMetrics:
    """The task's `metric_fns` over (targets, predictions), both through its `postprocess_fn`."""

    task: str
    examples: Callable[[], Iterator[Example]] | None = None

    def __call__(self, references: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
        task = seqio.TaskRegistry.get(self.task)
        targets, predictions = [], []
        for reference, answer, example in zip(references, answers, self.examples(), strict=False):
            targets.append(task.postprocess_fn(reference, example=example, is_target=True))
            predictions.append(task.postprocess_fn(answer, example=example, is_target=False))
        values: dict[str, float] = {}
        for metric in task.predict_metric_fns:
            values |= metric(targets, predictions)
        return {name: float(getattr(value, "value", value)) for name, value in values.items()}


def _seqio_judging(task: seqio.Task) -> EvalSpec:
    return EvalSpec(task.name, "text", _DecodedTargets(task.name), (_SeqioMetrics(task.name),))


def _with_examples(judging: EvalSpec, questions: SeqioEvalSource) -> EvalSpec:
    """seqio's metrics look at the examples too."""
    return judging.replace(
        metrics=tuple(
            dataclasses.replace(metric, examples=questions.examples)
            if isinstance(metric, _SeqioMetrics)
            else metric
            for metric in judging.metrics
        )
    )
