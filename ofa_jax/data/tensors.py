"""The tensor types of records and examples, and conversion between tensors and plain values."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from ofa_jax.data.seqio_evaluation import BOX_TRANSFORM, REFERENCES
from ofa_jax.preprocessing.records import DOWNSTREAM_FIELDS, RECORD_FIELDS
from ofa_jax.utils.text_files import replace_surrogates

_STRING, _STRINGS = tf.TensorSpec([], tf.string), tf.TensorSpec([None], tf.string)
_BOXES = tf.TensorSpec([None, 4], tf.float32)
_NUMBERS = tf.TensorSpec([None], tf.float32)
FIELDS = {**RECORD_FIELDS, **DOWNSTREAM_FIELDS}
RECORD_SIGNATURE: Mapping[str, tf.TensorSpec] = {
    "id": _STRING,
    "image": _STRING,
    "captions": _STRINGS,
    "negative_captions": _STRINGS,
    "questions": _STRINGS,
    "answers": _STRINGS,
    "answer_confidences": _NUMBERS,
    "answer_types": _STRINGS,
    "phrases": _STRINGS,
    "phrase_boxes": _BOXES,
    "true_phrases": _STRINGS,
    "true_phrase_boxes": _BOXES,
    "object_labels": _STRINGS,
    "object_boxes": _BOXES,
    "codes": tf.TensorSpec([None], tf.int32),
    "text": _STRING,
    "data_set": _STRING,
    "summary": _STRING,
    "label": _STRING,
    "sentence": _STRING,
    "sentence1": _STRING,
    "sentence2": _STRING,
    "question": _STRING,
    "question1": _STRING,
    "question2": _STRING,
    "premise": _STRING,
    "hypothesis": _STRING,
    "reference_answers": _STRINGS,
    "reference_confidences": _NUMBERS,
}
"""How the fields of a record look as tensors; what a record lacks is empty."""

EXAMPLE_SIGNATURE: Mapping[str, tf.TensorSpec] = {
    "inputs": tf.TensorSpec([None], tf.int32),
    "targets": tf.TensorSpec([None], tf.int32),
    "image": tf.TensorSpec([None, None, 3], tf.uint8),
    "blank_box": tf.TensorSpec([4], tf.int32),
    "loss_weight": tf.TensorSpec([1], tf.float32),
    "code_mask": tf.TensorSpec([1], tf.bool),
    "unscored_targets": tf.TensorSpec([1], tf.int32),
    "noisy_targets": tf.TensorSpec([None], tf.int32),
}
"""How an example looks as tensors (see `features`): seqio mixes only tasks that look alike, so an
example without an image has one of 0x0 pixels. Single numbers are vectors of one element, because
`seqio.Evaluator` measures a length of every feature."""
EVALUATION_SIGNATURE: Mapping[str, tf.TensorSpec] = {
    REFERENCES: tf.TensorSpec([], tf.string),
    BOX_TRANSFORM: tf.TensorSpec([None], tf.float64),
}
"""What examples that are not for training have besides, see `seqio_evaluation`."""
SINGLE = tuple(name for name, spec in EXAMPLE_SIGNATURE.items() if spec.shape == [1])
"""The features of one number."""

DEFAULTS = {
    "image": np.zeros((0, 0, 3), np.uint8),
    "blank_box": np.zeros(4, np.int32),
    "loss_weight": np.ones(1, np.float32),
    "code_mask": np.zeros(1, np.bool_),
    "unscored_targets": np.zeros(1, np.int32),
    "noisy_targets": np.zeros(0, np.int32),
}


def numpy_function(
    function: Callable[..., list[np.ndarray]],
    inputs: list[tf.Tensor],
    signature: Mapping[str, tf.TensorSpec],
) -> dict[str, tf.Tensor]:
    """Runs a Python function of arrays within a TensorFlow graph."""
    outputs = tf.numpy_function(function, inputs, [spec.dtype for spec in signature.values()])
    return dict(zip(signature, outputs, strict=True))


def shaped(
    tensors: dict[str, tf.Tensor], signature: Mapping[str, tf.TensorSpec]
) -> dict[str, tf.Tensor]:
    """Returns the tensors with the static shapes of their signature."""
    return {name: tf.ensure_shape(tensors[name], spec.shape) for name, spec in signature.items()}


def to_tensors(
    fields: Mapping[str, Any], signature: Mapping[str, tf.TensorSpec]
) -> list[np.ndarray]:
    """Returns the fields of a record or an example as `numpy_function` hands them over.

    Fields that are missing or None become empty values; those without a specification are left out.

    Raises:
      TypeError, ValueError: a field does not have the type or the shape of its specification.
    """
    return [_to_tensor(fields.get(name), spec) for name, spec in signature.items()]


def _to_tensor(value: Any, spec: tf.TensorSpec) -> np.ndarray:
    """Returns a field as `numpy_function` hands it over; None becomes an empty value.

    Raises:
      TypeError, ValueError: it does not have the type or the shape of its specification.
    """
    shape = [0 if size is None else size for size in spec.shape]
    if spec.dtype == tf.string:
        if value is None:
            value = b"" if not shape else []
        if shape and isinstance(value, str | bytes):
            raise TypeError(f"a {type(value).__name__} in place of a list of texts")
        encoded = _encode(value) if not shape else [_encode(text) for text in value]
        return np.array(encoded, object)
    if value is None:
        return np.zeros(shape, spec.dtype.as_numpy_dtype)
    array = np.asarray(value, spec.dtype.as_numpy_dtype)
    if not array.ndim and spec.shape == [1]:
        array = array.reshape(1)
    if not spec.shape.is_compatible_with(array.shape):
        raise ValueError(f"an array of the shape {array.shape} in place of {spec.shape}")
    return array


def _encode(text: Any) -> Any:
    """Returns a text as UTF-8, with U+FFFD for lone surrogates; None as an empty one.

    Raises:
      TypeError: it is not a text.
    """
    if isinstance(text, str):
        return replace_surrogates(text).encode("utf-8")
    if text is not None and not isinstance(text, bytes):
        raise TypeError(f"a {type(text).__name__} in place of a text")
    return text or b""


def from_tensors(names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """Returns the fields of a record from the values of its tensors."""
    return {
        name: _from_tensor(value[0] if name in SINGLE else value)
        for name, value in zip(names, values, strict=True)
    }


def _from_tensor(value: Any) -> Any:
    """Returns a tensor's value as a record holds it: str where it is UTF-8, else bytes."""
    if isinstance(value, bytes):
        return _text(value)
    if value.dtype == object:
        texts = [_text(text) for text in value.reshape(-1)]
        return texts if value.ndim else texts[0]
    return value


def _text(value: bytes) -> str | bytes:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value
