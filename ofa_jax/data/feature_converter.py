"""Batches for people who use plain seqio: from task features to the names of the doors.

    stream = Stream("mine", "my_mixture", 32, {"inputs": 40, "targets": 24}, image_size=128)
    dataset = seqio.get_dataset(
        "my_mixture", dict(stream.task_feature_lengths),
        feature_converter=OFAFeatureConverter(stream), trim_output_features=False,
    ).batch(32)

Without `trim_output_features=False` seqio cuts long inputs first, and their eos is lost.
Training here does not need it (see `loader`); it is `features.to_features` inside a tf.data graph.
"""

from collections.abc import Mapping

import numpy as np
import seqio
import tensorflow as tf

from ofa_jax.data import features
from ofa_jax.data.features import Stream
from ofa_jax.data.seqio_bridge import EXAMPLE_SIGNATURE

_RANKS = {name: spec.shape.rank for name, spec in EXAMPLE_SIGNATURE.items()}


class OFAFeatureConverter(seqio.FeatureConverter):
    """Makes `encoder_*` and `decoder_*` arrays with the stream's static shapes, one example each.

    Batch the result as usual. Patches are sampled, where the stream samples any, from a generator
    seeded with the example's place in the dataset.
    """

    TASK_FEATURES = {
        name: seqio.FeatureConverter.FeatureSpec(dtype=spec.dtype, rank=_RANKS[name])
        for name, spec in EXAMPLE_SIGNATURE.items()
        if name in ("inputs", "targets")
    }
    # Shapes and types come from the stream, so they are checked where it is known.
    MODEL_FEATURES: Mapping[str, seqio.FeatureConverter.FeatureSpec] = {}
    PACKING_FEATURE_DTYPES = None

    def __init__(self, stream: Stream, task_id: int = 0):
        """Converts for a stream.

        Args:
          stream: its lengths, image size and options.
          task_id: what `task_ids` shall be.
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
        """Converts every example; cutting and padding follow the stream, not seqio's lengths."""
        del task_feature_lengths
        empty = features.empty_features(self._stream, self._task_id)
        names = list(ds.element_spec)

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
            return {
                name: tf.ensure_shape(output, array.shape)
                for (name, array), output in zip(empty.items(), outputs, strict=True)
            }

        return ds.enumerate().map(convert_tensors, num_parallel_calls=tf.data.AUTOTUNE)

    def _convert_features(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
    ) -> tf.data.Dataset:
        raise NotImplementedError("__call__ does all of it.")

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
