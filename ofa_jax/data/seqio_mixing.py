"""Ordinary seqio tasks beside those of this project: what they lack, and what they may not be.

seqio mixes only tasks with the same output features, and its own feature converters know nothing
of images and of a padding that is not 0.
"""

import functools
from collections.abc import Mapping
from typing import Any

import seqio
import tensorflow as tf
from seqio import feature_converters

from ofa_jax.data.tensors import DEFAULTS, EXAMPLE_SIGNATURE, SINGLE

__all__ = ["fill_features", "refuse_converters_of_seqio"]

_REFUSES = "_refuses_examples_of_ofa"


def fill_features(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Gives the examples of tf.data preprocessors the features that they lack; a preprocessor.

        seqio.TaskRegistry.add(
            "mine",
            source=...,
            preprocessors=[tokenize, fill_features],
            output_features=PRETRAINING_FEATURES,
        )

    The task then mixes with those of this project. It gives int32 `inputs`, which begin with bos
    (0) and end with eos (2), and `targets`, which end with eos, of the vocabulary in
    `PRETRAINING_FEATURES`. Any other feature may be there too, see `ofa_jax.data.features`; an
    image is uint8, of the stream's size. Features that are not among those stay as they are.

    Raises:
      ValueError: inputs or targets are missing, or a feature has another rank.
    """
    spec = dataset.element_spec
    given = spec if isinstance(spec, Mapping) else {}
    if missing := sorted({"inputs", "targets"} - set(given)):
        raise ValueError(
            f"The examples have no {' and no '.join(missing)}: give a task's instruction as "
            "`inputs` and its target as `targets`, both as ids, before fill_features."
        )
    for name, expected in EXAMPLE_SIGNATURE.items():
        rank = given[name].shape.rank if name in given else None
        if rank not in (None, expected.shape.rank) and not (rank == 0 and name in SINGLE):
            raise ValueError(
                f"The feature {name} has rank {rank}, but fill_features expects rank "
                f"{expected.shape.rank}: see ofa_jax.data.features for its shape."
            )
        is_pixels = expected.dtype == tf.uint8
        if name in given and is_pixels and given[name].dtype != tf.uint8:
            raise ValueError(
                f"The feature {name} is {given[name].dtype.name}: give pixels as uint8, from 0 to "
                "255 and not normalised."
            )

    def fill(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        filled = dict(example)
        for name, expected in EXAMPLE_SIGNATURE.items():
            value = tf.cast(filled.get(name, DEFAULTS.get(name)), expected.dtype)
            if name in SINGLE:
                value = tf.reshape(value, [1])
            filled[name] = tf.ensure_shape(value, expected.shape)
        return filled

    return dataset.map(fill, num_parallel_calls=tf.data.AUTOTUNE)


def refuse_converters_of_seqio() -> None:
    """Lets seqio's own feature converters refuse the examples of this project's tasks.

    They would drop the image and pad with 0, which is bos in OFA, without a word. A converter that
    converts by its own `_convert_features` may take them.
    """
    original = seqio.FeatureConverter.__call__
    if hasattr(original, _REFUSES):
        return

    @functools.wraps(original)
    def convert(
        self: seqio.FeatureConverter, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, Any]
    ) -> tf.data.Dataset:
        is_of_seqio = type(self)._convert_features.__module__ == feature_converters.__name__
        if is_of_seqio and EXAMPLE_SIGNATURE.keys() <= set(ds.element_spec):
            raise ValueError(
                f"{type(self).__name__} cannot convert the tasks of ofa_jax: it drops their images "
                "and pads with 0, which is the id of bos. Use "
                "ofa_jax.data.feature_converter.OFAFeatureConverter(stream)."
            )
        return original(self, ds, task_feature_lengths)

    setattr(convert, _REFUSES, True)
    seqio.FeatureConverter.__call__ = convert
