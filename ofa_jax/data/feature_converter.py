"""Converts the examples of plain seqio to the features that the model takes.

    stream = Stream("mine", "my_mixture", 32, {"inputs": 40, "targets": 24}, image_size=128)
    dataset = seqio.get_dataset(
        "my_mixture", dict(stream.task_feature_lengths),
        feature_converter=OFAFeatureConverter(stream), trim_output_features=False,
    ).batch(32)

Without `trim_output_features=False` seqio truncates long inputs first, and they lose their eos.
The converter runs `features.to_features` inside a tf.data graph. `ofa_jax.train` does not use it
(see `loader`).
"""

from collections.abc import Mapping

import numpy as np
import seqio
import tensorflow as tf

from ofa_jax.data import features
from ofa_jax.data.features import Stream
from ofa_jax.data.tensors import EXAMPLE_SIGNATURE

_RANKS = {name: spec.shape.rank for name, spec in EXAMPLE_SIGNATURE.items()}


class OFAFeatureConverter(seqio.FeatureConverter):
    """Converts each example to `encoder_*` and `decoder_*` arrays of the stream's static shapes.

    Batch the resulting dataset as usual. If the stream samples patches, they are drawn from a
    generator that is seeded with the position of the example in the dataset.
    """

    TASK_FEATURES = {
        name: seqio.FeatureConverter.FeatureSpec(dtype=spec.dtype, rank=_RANKS[name])
        for name, spec in EXAMPLE_SIGNATURE.items()
        if name in ("inputs", "targets")
    }
    # Depend on the stream, so `__call__` sets shapes and types.
    MODEL_FEATURES: Mapping[str, seqio.FeatureConverter.FeatureSpec] = {}
    PACKING_FEATURE_DTYPES = None

    def __init__(self, stream: Stream, task_id: int = 0):
        """Creates a converter.

        Args:
          stream: fixes lengths, image size and options.
          task_id: value of `task_ids`.
        """
        super().__init__(
            pack=False,
            passthrough_features={
                name: seqio.FeatureConverter.FeatureSpec(dtype=spec.dtype, rank=_RANKS[name])
                for name, spec in EXAMPLE_SIGNATURE.items()
                if name not in self.TASK_FEATURES
            },
        )
        self._stream, self._task_id = stream, task_id

    def __call__(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
    ) -> tf.data.Dataset:
        """Converts every example. The lengths are those of the stream, not those given to seqio."""
        del task_feature_lengths
        empty = features.empty_features(self._stream, self._task_id)
        names = [name for name in ds.element_spec if name in EXAMPLE_SIGNATURE]

        def convert(index: np.ndarray, *values: np.ndarray) -> list[np.ndarray]:
            example = dict(zip(names, values, strict=True))
            rng = np.random.default_rng(int(index))
            row = features.to_features(example, self._stream, self._task_id, rng)
            return [row[name] for name in empty]

        def convert_tensors(
            index: tf.Tensor, example: Mapping[str, tf.Tensor]
        ) -> dict[str, tf.Tensor]:
            outputs = tf.numpy_function(
                convert,
                [index, *(example[name] for name in names)],
                [tf.as_dtype(array.dtype) for array in empty.values()],
            )
            converted = {
                name: tf.ensure_shape(output, array.shape)
                for (name, array), output in zip(empty.items(), outputs, strict=True)
            }
            return converted | self._pass_on(example)

        return ds.enumerate().map(convert_tensors, num_parallel_calls=tf.data.AUTOTUNE)

    def _pass_on(self, example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns what a subclass takes over from an example beside the stream's features."""
        del example
        return {}

    def _convert_features(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
    ) -> tf.data.Dataset:
        """Raises NotImplementedError: only the `__call__` of seqio, replaced here, calls this."""
        raise NotImplementedError("OFAFeatureConverter converts in __call__: call the converter.")

    def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> dict[str, int]:
        """Returns the lengths of the token features."""
        del task_feature_lengths
        lengths = self._stream.task_feature_lengths
        return {
            "encoder_input_tokens": lengths["inputs"],
            "decoder_input_tokens": lengths["targets"],
            "decoder_target_tokens": lengths["targets"],
            "decoder_loss_weights": lengths["targets"],
        }
