"""The loader and plain seqio make the same examples of the same functions."""

import dataclasses
import itertools
import logging

import numpy as np
import pytest
import seqio
import tensorflow as tf

from ofa_jax.data import features, seqio_bridge
from ofa_jax.data.feature_converter import OFAFeatureConverter
from ofa_jax.data.features import Stream
from ofa_jax.data.loader import Loader
from ofa_jax.data.seqio_bridge import RecordDataSource, numpy_preprocessor
from ofa_jax.data.sources.memory import InMemoryRecords
from ofa_jax.preprocessing.records import InvalidRecordError
from ofa_jax.utils import bad_input

SIZE = 32
STREAM = Stream(
    "s", "bridge_mixture", 4, {"inputs": 6, "targets": 4}, image_size=SIZE, num_sampled_patches=2
)
pytestmark = pytest.mark.usefixtures("absl_flags")
IMAGE = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


def records(split):
    texts = [f"é {split} {k}" for k in range(8)]
    texts[5] = ""
    return InMemoryRecords([{"id": str(k), "text": text} for k, text in enumerate(texts)])


@numpy_preprocessor
def spell(record, rng):
    """Makes a target of the shuffled letters of a text, with an image of noise."""
    if not record["text"]:
        raise InvalidRecordError("has no text")
    letters = np.frombuffer(record["text"].encode(), np.uint8).astype(np.int32)
    return {
        "inputs": np.array([0, 40, 2], np.int32),
        "targets": np.append(rng.permutation(letters)[:3], 2).astype(np.int32),
        "image": IMAGE,
        "loss_weight": np.float32(0.5),
    }


@numpy_preprocessor
def number(record, rng):
    """Makes the record's id the target: nothing random."""
    target = [int(record["id"]), 3, 2]
    return {
        "inputs": np.array([0, 41, 2], np.int32),
        "targets": np.array(target, np.int32),
        "image": IMAGE,
    }


@numpy_preprocessor
def everything(record, rng):
    """Makes an example with every field and with an instruction that is too long."""
    return {
        "inputs": np.array([0, *range(50, 58), 2], np.int32),
        "targets": np.array([int(record["id"]) + 10, 11, 12, 13, 14, 2], np.int32),
        "image": IMAGE,
        "blank_box": np.array([4, 8, 12, 16], np.int32),
        "loss_weight": np.float32(0.25),
        "code_mask": np.bool_(True),
        "unscored_targets": np.int32(1),
    }


@numpy_preprocessor
def halve(example, rng):
    """Halves the loss weight, as a second preprocessor after one of the others."""
    return {**example, "loss_weight": np.float32(example["loss_weight"] / 2)}


TASKS = {
    "spell": [spell],
    "number": [number],
    "everything": [everything],
    "chain": [everything, halve],
}
LONG = np.array([[0, 100 + k, 5, 6, 7, 2] for k in range(8)], np.int32)


@pytest.fixture(scope="module", autouse=True)
def registry():
    outputs = seqio_bridge.output_features(seqio.PassThroughVocabulary(300))
    for name, functions in TASKS.items():
        seqio.TaskRegistry.add(
            f"bridge_{name}",
            source=RecordDataSource(records, "text", ("train", "validation")),
            preprocessors=functions,
            output_features=outputs,
        )
    seqio.MixtureRegistry.add("bridge_mixture", [("bridge_spell", 3.0), ("bridge_number", 1.0)])
    seqio.MixtureRegistry.add("bridge_nested", [("bridge_mixture", 2.0), ("bridge_number", 0.0)])
    seqio.MixtureRegistry.add("bridge_without", [("bridge_spell", 0.0), ("bridge_number", 1.0)])
    plain = {
        name: seqio.Feature(seqio.PassThroughVocabulary(300), add_eos=False)
        for name in ("inputs", "targets")
    }
    seqio.TaskRegistry.add(
        "bridge_tensors",
        source=seqio.FunctionDataSource(
            lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices(LONG),
            ["train"],
        ),
        preprocessors=[lambda ds: ds.map(lambda x: {"inputs": x, "targets": x})],
        output_features=plain,
    )
    yield
    for name in (*TASKS, "tensors"):
        seqio.TaskRegistry.remove(f"bridge_{name}")
    for name in ("bridge_mixture", "bridge_nested", "bridge_without"):
        seqio.MixtureRegistry.remove(name)


def seqio_examples(name, split="train", **options):
    dataset = seqio.get_mixture_or_task(name).get_dataset(
        sequence_length=None, split=split, shuffle=False, num_epochs=1, **options
    )
    return list(dataset.as_numpy_iterator())


def test_plain_seqio_yields_the_examples_of_the_function():
    examples = seqio_examples("bridge_number", "validation")
    assert len(examples) == 8
    for k, example in enumerate(examples):
        assert set(example) >= set(seqio_bridge.EXAMPLE_SIGNATURE)
        np.testing.assert_array_equal(example["targets"], [k, 3, 2])
        np.testing.assert_array_equal(example["image"], IMAGE)
        assert example["loss_weight"] == 1.0 and not example["code_mask"]


def test_an_invalid_record_is_skipped_and_logged(caplog):
    with caplog.at_level(logging.WARNING):
        assert len(seqio_examples("bridge_spell")) == 7
    assert "Skipped a record: has no text" in caplog.text


def test_a_record_that_cannot_be_read_is_skipped_and_logged(caplog):
    class Torn(InMemoryRecords):
        def __getitem__(self, index):
            if index == 2:
                raise OSError("short read")
            return super().__getitem__(index)

    source = RecordDataSource(lambda split: Torn(records(split).records[:4]), "text")
    with caplog.at_level(logging.WARNING):
        kept = list(spell(source.get_dataset("train", shuffle=False)).as_numpy_iterator())
    assert len(kept) == 3
    assert "Record 2 of train cannot be read: short read" in caplog.text


def test_shards_of_plain_seqio_have_every_record_once_even_without_a_seed():
    """Without one, every host shuffles in its own way."""
    source = RecordDataSource(
        lambda split: InMemoryRecords([{"id": str(k)} for k in range(40)]), "text"
    )
    shards = [
        [
            int(x["id"])
            for x in source.get_dataset(
                "train", shuffle=True, shard_info=seqio.ShardInfo(index, 2)
            ).as_numpy_iterator()
        ]
        for index in range(2)
    ]
    assert len(shards[0]) == len(shards[1])
    assert sorted(shards[0] + shards[1]) == list(range(40))
    assert shards[0] != sorted(shards[0])


def test_random_preprocessors_follow_the_seed_of_seqio():
    def targets(seed):
        return [x["targets"].tolist() for x in seqio_examples("bridge_spell", seed=seed)]

    assert targets(1) == targets(1) != targets(2)


def test_the_loader_runs_the_same_functions():
    tasks = seqio_bridge.weighted_tasks("bridge_mixture", "validation")
    assert [(task.name, task.rate) for task in tasks] == [
        ("bridge_number", 1.0),
        ("bridge_spell", 3.0),
    ]
    loader = Loader([STREAM], {"s": tasks}, 0)
    batch = next(loader.batches())["s"]
    numbers = batch["decoder_target_tokens"][batch["task_ids"] == 0]
    assert len(numbers) == 1 and numbers[0][1] == 3
    np.testing.assert_array_equal(batch["encoder_images"][0], IMAGE)


def test_several_preprocessors_run_in_order_in_seqio_and_in_the_loader():
    (task,) = seqio_bridge.weighted_tasks("bridge_chain", "train")
    ours = task.preprocess(task.records[3], np.random.default_rng(0))
    theirs = seqio_examples("bridge_chain")[3]
    assert ours["loss_weight"] == theirs["loss_weight"] == 0.125
    for name in seqio_bridge.EXAMPLE_SIGNATURE:
        np.testing.assert_array_equal(ours.get(name, []), theirs[name], err_msg=name)


def test_rates_of_nested_mixtures_multiply_and_tasks_of_rate_zero_are_left_out():
    # seqio: the outer rate is shared out by the inner ones, 2 * 3/4 and 2 * 1/4.
    assert seqio_bridge.rates("bridge_nested") == {"bridge_spell": 1.5, "bridge_number": 0.5}
    assert seqio_bridge.rates("bridge_without") == {"bridge_number": 1.0}
    assert seqio_bridge.rates("bridge_spell") == {"bridge_spell": 1.0}


def test_an_unknown_name_is_refused_with_the_nearest_known_one():
    with pytest.raises(ValueError, match="called 'bridge_mixtrue'. Did you mean bridge_mixture?"):
        seqio_bridge.find("bridge_mixtrue")


def test_an_unknown_split_or_kind_of_record_is_refused():
    with pytest.raises(ValueError, match="no split 'test': choose from train, validation"):
        seqio_bridge.weighted_tasks("bridge_spell", "test")
    with pytest.raises(ValueError, match="There is no kind of record 'texts'"):
        RecordDataSource(records, "texts")


def test_ordinary_tensor_preprocessors_train_in_seqios_order_with_a_warning(caplog):
    assert seqio_bridge.weighted_tasks("bridge_tensors", "train") is None
    stream = Stream("t", "bridge_tensors", 4, {"inputs": 3, "targets": 3})

    def take(start, data_shards=(0, 1)):
        batches = seqio_bridge.sequential_batches(stream, 5, "train", 0, 2, data_shards, start)
        return list(itertools.islice(batches, 6))

    with caplog.at_level(logging.WARNING):
        taken = take(0)
    assert "exact resuming does not cover" in caplog.text
    for batch in taken:
        assert (batch["task_ids"] == 5).all()
        # What is too long keeps its eos here as well.
        np.testing.assert_array_equal(batch["encoder_input_tokens"][:, [0, 2]], [[0, 2]] * 4)
    numbers = np.stack([batch["encoder_input_tokens"][:, 1] - 100 for batch in taken])
    # seqio repeats before it shuffles, so epochs are not exact; but hosts share nothing.
    assert not set(numbers[:, :2].flat) & set(numbers[:, 2:].flat)
    assert set(numbers.flat) <= set(range(8))
    # A host feeds its own share; a run that starts later reads in another order.
    second = np.stack([batch["encoder_input_tokens"][:, 1] - 100 for batch in take(0, (1,))])
    np.testing.assert_array_equal(second, numbers[:, 2:])
    later = np.stack([batch["encoder_input_tokens"][:, 1] - 100 for batch in take(1)])
    assert (later != numbers).any()


@pytest.mark.parametrize(
    ("split", "training", "expected"),
    [
        ("train", None, True),
        ("validation", None, False),
        ("train", False, False),
        ("validation", True, True),
    ],
)
def test_an_argument_decides_about_training_in_seqios_order_too(split, training, expected):
    contexts = []

    def open_records(split, context):
        contexts.append(context)
        return records(split)

    source = RecordDataSource(open_records, "text", ("train", "validation"), takes_context=True)
    seqio.TaskRegistry.add(
        "bridge_context",
        source=source,
        # A task in seqio's own order: not all of its preprocessors are numpy functions.
        preprocessors=[number, lambda dataset: dataset],
        output_features=seqio_bridge.output_features(seqio.PassThroughVocabulary(300)),
    )
    stream = dataclasses.replace(STREAM, mixture_or_task_name="bridge_context")
    try:
        next(seqio_bridge.sequential_batches(stream, 0, split, 0, 1, (0,), 0, training=training))
    finally:
        seqio.TaskRegistry.remove("bridge_context")
    assert {context.training for context in contexts} == {expected}


@pytest.mark.parametrize(
    ("name", "stream"),
    [
        ("bridge_number", STREAM),
        (
            "bridge_everything",
            dataclasses.replace(
                STREAM, mixture_or_task_name="bridge_everything", code_targets=True
            ),
        ),
        ("bridge_tensors", Stream("t", "bridge_tensors", 4, {"inputs": 4, "targets": 9})),
    ],
)
def test_the_converter_makes_the_same_features_in_a_graph(name, stream):
    dataset = seqio.get_dataset(
        name,
        dict(stream.task_feature_lengths),
        dataset_split="train",
        shuffle=False,
        feature_converter=OFAFeatureConverter(stream, task_id=2),
        trim_output_features=False,
    )
    rows = list(dataset.as_numpy_iterator())
    examples = seqio_examples(name)
    assert len(rows) == len(examples) == 8
    for k, (row, example) in enumerate(zip(rows, examples, strict=True)):
        expected = features.to_features(example, stream, 2, np.random.default_rng(k))
        assert row.keys() == expected.keys()
        for feature, array in expected.items():
            np.testing.assert_array_equal(row[feature], array, err_msg=feature)
            assert row[feature].dtype == array.dtype
    # Shapes are static: what compiles a step can ask the dataset for them.
    assert {k: v.shape.as_list() for k, v in dataset.batch(8, True).element_spec.items()} == {
        feature: [8, *array.shape] for feature, array in expected.items()
    }


# --------------------------------------------------------------------------- damage in tf.data


@pytest.fixture
def tfrecords(tmp_path):
    """Returns a function that registers a task over TFRecord files, and the files."""
    names = []

    def register(count=3, preprocess=None):
        paths = []
        for shard in range(count):
            paths.append(tmp_path / f"data.tfrecord-{shard:05d}-of-{count:05d}")
            with tf.io.TFRecordWriter(str(paths[-1])) as writer:
                for number in range(4):
                    writer.write(f"{4 * shard + number}".encode() * 40)

        def parse(dataset):
            def example(text):
                number = tf.strings.to_number(tf.strings.substr(text, 0, 1), tf.int32)
                ids = tf.stack([0, 100 + number, 2])
                return {"inputs": ids, "targets": ids}

            dataset = dataset.map(example)
            return dataset.map(preprocess) if preprocess else dataset

        names.append(f"bridge_records_{len(names)}_{tmp_path.name}")
        plain = seqio.PassThroughVocabulary(1000)
        seqio.TaskRegistry.add(
            names[-1],
            source=seqio.FunctionDataSource(
                lambda split, shuffle_files=False, seed=None: tf.data.TFRecordDataset(
                    list(map(str, paths))
                ),
                splits=["train"],
            ),
            preprocessors=[parse],
            output_features={
                name: seqio.Feature(plain, add_eos=False) for name in ("inputs", "targets")
            },
        )
        return names[-1], paths

    yield register
    for name in names:
        seqio.TaskRegistry.remove(name)


def test_a_damaged_tfrecord_file_ends_neither_training_nor_evaluation(tfrecords):
    name, paths = tfrecords()
    data = bytearray(paths[1].read_bytes())
    data[len(data) // 2] ^= 1
    paths[1].write_bytes(data[: len(data) - 7])
    with bad_input.collect() as notes:
        examples = list(seqio_bridge.examples_in_order(name, STREAM.task_feature_lengths, "train"))
    assert len(examples) == 10  # the two before the damage, and the other files
    assert [note.reason.name for note in notes] == ["damaged example of tf.data"]
    stream = Stream("t", name, 4, {"inputs": 3, "targets": 3})
    loader = Loader(
        [stream],
        {},
        0,
        sequential={
            "t": lambda start: seqio_bridge.sequential_batches(
                stream, 0, "train", 0, 1, (0,), start
            )
        },
    )
    for _ in itertools.islice(loader.batches(), 20):
        pass
    assert loader.findings[name, "damaged example of tf.data"] > 1


def test_an_error_for_one_example_skips_it(tfrecords):
    def refuse(example):
        with tf.control_dependencies([tf.debugging.assert_none_equal(example["inputs"], 103)]):
            return {name: tf.identity(value) for name, value in example.items()}

    name, _ = tfrecords(1, refuse)
    with bad_input.collect() as notes:
        examples = list(seqio_bridge.examples_in_order(name, STREAM.task_feature_lengths, "train"))
    assert [int(example["inputs"][1]) for example in examples] == [100, 101, 102]
    assert len(notes) == 1 and "0x" not in notes[0].detail and "\n" not in notes[0].detail


def test_a_task_that_gives_only_errors_or_nothing_ends_in_a_sentence(tfrecords, monkeypatch):
    def first_batch(name):
        stream = Stream("t", name, 4, {"inputs": 3, "targets": 3})
        with bad_input.collect():
            next(seqio_bridge.sequential_batches(stream, 0, "train", 0, 1, (0,), 0))

    def refuse(example):
        with tf.control_dependencies([tf.debugging.assert_negative(example["inputs"])]):
            return {name: tf.identity(value) for name, value in example.items()}

    monkeypatch.setattr(seqio_bridge, "_MAX_DAMAGED", 100)
    name, _ = tfrecords(1, refuse)
    with pytest.raises(ValueError, match=f"{name} gave 100 errors in a row, e.g. InvalidArgument"):
        first_batch(name)
    name, paths = tfrecords(1)
    for content in (b"not a TFRecord file", b""):
        paths[0].write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} yields nothing on the split 'train'"):
            first_batch(name)


def test_an_example_of_odd_types_is_skipped_in_plain_seqio(caplog):
    @numpy_preprocessor
    def odd(record, rng):
        if record["id"] == "3":
            return {"inputs": ["a"], "targets": {}}
        if record["id"] == "4":
            raise KeyError("odd")
        return {"inputs": np.array([int(record["id"])], np.int32), "targets": np.ones(1, np.int32)}

    seqio.TaskRegistry.add(
        "bridge_odd",
        source=RecordDataSource(records, "text", ("train",)),
        preprocessors=[odd],
        output_features=seqio.TaskRegistry.get("bridge_spell").output_features,
    )
    try:
        examples = list(
            seqio_bridge.examples_in_order("bridge_odd", STREAM.task_feature_lengths, "train")
        )
    finally:
        seqio.TaskRegistry.remove("bridge_odd")
    assert [int(example["inputs"][0]) for example in examples] == [0, 1, 2, 5, 6, 7]
