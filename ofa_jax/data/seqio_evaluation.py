"""What plain seqio needs to evaluate a task, as `ofa_jax.evaluation.seqio_metrics` makes it.

`seqio.Evaluator` knows an example only. So a dataset that is not for training carries, beside the
features that a model takes, what a prediction is compared with:

    references      bytes        the references of the record, as JSON
    box_transform   float64[6]   from the model's image to the stored one; [0] without an image
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ofa_jax.data.features import Example
from ofa_jax.data.task_settings import TaskContext
from ofa_jax.preprocessing.records import Record
from ofa_jax.utils.decode_options import AS_SEEN, DecodeOptions

REFERENCES, BOX_TRANSFORM = "references", "box_transform"


class DecodedText(str):
    """Text that knows its ids: a text alone does not say whether `<bin_7>` is a bin.

    Attributes:
      ids: what it was decoded from.
    """

    ids: tuple[int, ...]

    def __new__(cls, text: str, ids: Sequence[int] = ()) -> "DecodedText":
        """Creates a text with its ids."""
        decoded = super().__new__(cls, text)
        decoded.ids = tuple(int(index) for index in ids)
        return decoded


@dataclasses.dataclass(frozen=True)
class SeqioEvaluation:
    """How plain seqio evaluates a task.

    Attributes:
      references: what a dataset is built for -> (record -> its references as JSON).
      box_transform: (record, example, how its image is decoded) -> float64 [6], or [0].
      postprocess: the task's `postprocess_fn`.
      metrics: the task's `metric_fns`.
    """

    references: Callable[[TaskContext], Callable[[Record], bytes]]
    box_transform: Callable[[Record, Example, DecodeOptions], np.ndarray]
    postprocess: Callable[..., Any]
    metrics: tuple[Callable[..., Mapping[str, float]], ...]


def decode_options_of(preprocess: Callable[..., Any]) -> DecodeOptions:
    """Returns how a preprocessor decodes images: as its configuration says, or as people do."""
    options = getattr(getattr(preprocess, "config", None), "decode_options", None)
    return AS_SEEN if options is None else options
