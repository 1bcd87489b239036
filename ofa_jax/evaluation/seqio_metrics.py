"""The metrics of an `EvalSpec` for plain seqio, so that `seqio.Evaluator` gives the same numbers.

    add_pretraining_task("counting", "objects", count_objects, evaluation=of_spec("counting"))
    eval_spec.register(EvalSpec("counting", ...))

    evaluator = seqio.Evaluator(
        "counting", OFAFeatureConverter(stream), sequence_length=None, async_compute_metrics=False
    )
    metrics, _ = evaluator.evaluate(compute_metrics=True, predict_fn=predict)

`predict` returns (index, token ids) of each example, all of one length. The spec is looked up when
a dataset is built and when metrics are computed, under the default settings of `task_settings`.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Float64, Int32

from ofa_jax.data.features import Example
from ofa_jax.data.seqio_evaluation import (
    BOX_TRANSFORM,
    REFERENCES,
    DecodedText,
    SeqioEvaluation,
)
from ofa_jax.data.task_settings import TaskContext
from ofa_jax.evaluation import eval_spec, postprocess
from ofa_jax.evaluation.eval_example import read_references
from ofa_jax.evaluation.eval_sources import box_transform_of
from ofa_jax.evaluation.load_tasks import vocabulary_of
from ofa_jax.evaluation.postprocess import BoxTransform
from ofa_jax.evaluation.scoring import compute_metrics
from ofa_jax.preprocessing.records import Record
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.utils.bad_input import collect
from ofa_jax.utils.decode_options import DecodeOptions

__all__ = ["of_spec"]

_SYMBOLS = re.compile(r"(<(?:code|bin)_\d+>|<mask>)")


def of_spec(task: str) -> SeqioEvaluation:
    """Returns how plain seqio evaluates a task that has an EvalSpec, registered now or later.

    Args:
      task: name in the seqio registry.
    """
    return SeqioEvaluation(
        functools.partial(_references_of, task),
        _pack_box_transform,
        Postprocess(task),
        (SpecMetrics(task),),
    )


@dataclasses.dataclass(frozen=True)
class Postprocess:
    """The `postprocess_fn` of a task: parses a prediction, or returns the references.

    Attributes:
      task: name in the seqio registry.
    """

    task: str

    def __call__(self, output: str, example: Mapping[str, Any], is_target: bool = False) -> Any:
        """Returns what `predictions.jsonl` has for an example, as JSON values.

        Args:
          output: decoded text, with symbols such as `<bin_12>`.
          example: of the dataset.
          is_target: whether the references are asked for, instead of the parsed output.

        Returns:
          A prediction, None if it cannot be parsed; or the references.

        Raises:
          ValueError: the dataset was built for training, so that it has no references.
        """
        if is_target:
            return self._references(example)
        spec = eval_spec.find(self.task)
        vocabulary = vocabulary_of(self.task)
        ids = output.ids if isinstance(output, DecodedText) else _encode(output, vocabulary)
        transform = _unpack_box_transform(example[BOX_TRANSFORM])
        try:
            parsed = postprocess.parse(spec.kind, ids, vocabulary, spec.max_image_size, transform)
        except Exception as error:  # noqa: BLE001  a model may generate anything
            logging.log_first_n(
                logging.WARNING, "%s: a prediction is odd: %s", 20, spec.task, error
            )
            return None
        return postprocess.to_json(spec.kind, parsed)

    def _references(self, example: Mapping[str, Any]) -> Any:
        """Returns the references of an example."""
        references = example.get(REFERENCES)
        if not references:
            raise ValueError(
                f"The examples of {self.task} have no references, because they were made for "
                "training: build the seqio.Evaluator within "
                "`ofa_jax.data.seqio_tasks.training_mode(False)`."
            )
        return json.loads(references)


@dataclasses.dataclass(frozen=True)
class SpecMetrics:
    """A `metric_fn` that computes all metrics of a task's EvalSpec.

    Attributes:
      task: name in the seqio registry.
    """

    task: str

    def __call__(self, targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
        """Returns the metrics as `ofa_jax.evaluate` does; those that fail are logged."""
        lines = [
            {"error": "its prediction cannot be parsed"}
            if prediction is None
            else {"references": target, "prediction": prediction}
            for target, prediction in zip(targets, predictions, strict=True)
        ]
        scores = compute_metrics(eval_spec.find(self.task), lines)
        for name, reason in scores.failed.items():
            logging.warning("%s: the metric %s failed (%s)", self.task, name, reason)
        return dict(scores.metrics)


def _references_of(task: str, context: TaskContext) -> Callable[[Record], bytes]:
    """Returns a function that reads the references of a record as JSON."""
    references = eval_spec.find(task, context.settings).references

    def read(record: Record) -> bytes:
        with collect():  # what is odd about a record is noted when it is preprocessed
            return json.dumps(read_references(references, record)).encode()

    return read


def _pack_box_transform(
    record: Record, example: Example, options: DecodeOptions
) -> Float64[np.ndarray, " n"]:
    """Returns the transform of an example's boxes as numbers; none if it has no image."""
    transform = box_transform_of(record, example, options)
    numbers = () if transform is None else (*transform.region, *transform.size)
    return np.array(numbers, np.float64)


def _unpack_box_transform(numbers: Float64[np.ndarray, " n"]) -> BoxTransform | None:
    """Returns the transform that `_pack_box_transform` has packed."""
    if not len(numbers):
        return None
    x0, y0, x1, y1, width, height = map(float, numbers)
    return BoxTransform((x0, y0, x1, y1), (int(width), int(height)))


def _encode(text: str, vocabulary: OFAVocabulary) -> Int32[np.ndarray, " n"]:
    """Returns the ids of a text that has symbols in it."""
    parts = [
        vocabulary.encode_symbols(part) if _SYMBOLS.fullmatch(part) else vocabulary.encode(part)
        for part in _SYMBOLS.split(text)
        if part
    ]
    return np.concatenate([np.zeros(0, np.int32), *parts]).astype(np.int32)
