"""tf.train.Example as it is defined here, against that of TFDS."""

import numpy as np
import pytest
from tensorflow_datasets.proto import tf_example_pb2

from ofa_jax.data.sources.example_message import example_class


def fill(example):
    """Fills an example with values of every kind."""
    feature = example.features.feature
    feature["image"].bytes_list.value.append(bytes(range(256)))
    feature["texts"].bytes_list.value.extend(["a \u00fc".encode(), b""])
    feature["boxes"].float_list.value.extend([1.5, -0.0, float("inf"), 1e-40])
    feature["codes"].int64_list.value.extend([0, -1, 2**62])
    feature["empty list"].int64_list.value.extend([])
    feature["nothing"].SetInParent()
    feature["\u00fc"].bytes_list.value.append(b"x")
    return example


def test_its_bytes_are_those_of_tensorflows_message():
    ours, theirs = fill(example_class()()), fill(tf_example_pb2.Example())
    stored = theirs.SerializeToString(deterministic=True)
    assert ours.SerializeToString(deterministic=True) == stored
    read = example_class().FromString(stored)
    assert read == ours and read.features.feature["boxes"].float_list.value[0] == 1.5
    assert tf_example_pb2.Example.FromString(ours.SerializeToString()) == theirs


def test_only_one_list_of_a_feature_is_set():
    feature = example_class()().features.feature["a"]
    feature.int64_list.value.append(3)
    feature.bytes_list.value.append(b"b")
    assert feature.WhichOneof("kind") == "bytes_list" and not feature.int64_list.value


@pytest.mark.parametrize("seed", range(20))
def test_damaged_bytes_are_refused_as_by_tensorflows_message(seed):
    rng = np.random.default_rng(seed)
    stored = bytearray(fill(tf_example_pb2.Example()).SerializeToString())
    for place in rng.integers(0, len(stored), 3):
        stored[place] = rng.integers(256)

    def outcome(message):
        try:
            return message.FromString(bytes(stored)).SerializeToString(deterministic=True)
        except Exception as error:  # noqa: BLE001  protobuf's own
            return type(error).__name__

    assert outcome(example_class()) == outcome(tf_example_pb2.Example)
