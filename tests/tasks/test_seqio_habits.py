"""What users of seqio do with our tasks: cache them, mix them with their own, convert them."""

import contextvars
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import seqio
import seqio_cache
import seqio_evaluation
import tensorflow as tf

import tasks.scenes_negative_controls  # noqa: F401  registers its tasks
from ofa_jax.data import seqio_bridge
from ofa_jax.data.feature_converter import OFAFeatureConverter
from ofa_jax.data.features import Stream
from ofa_jax.data.registration import PRETRAINING_FEATURES, fill_features
from ofa_jax.data.scenes_downstream import ScenesDownstreamSettings
from ofa_jax.data.seqio_tasks import RecordDataSource
from ofa_jax.data.sources.memory import InMemoryRecords
from ofa_jax.data.sources.negative_controls import ABSENT_NOUN, SWAPPED, SWAPPED_OBJECTIVES
from ofa_jax.data.sources.scenes import Scenes
from ofa_jax.data.task_settings import default_settings, set_default_settings
from ofa_jax.preprocessing import objectives
from tasks import reworded, scenes_downstream, scenes_unseen

LENGTHS = {"inputs": 64, "targets": 40}
STREAM = Stream("s", "ofa_pretrain_pairs", 4, LENGTHS, image_size=64, code_targets=True)


@pytest.fixture(scope="module", autouse=True)
def settings(scenes_settings):
    return scenes_settings


@pytest.fixture
def cache_dirs():
    """Restores seqio's cache folders, and what tasks remember of them."""
    before = list(seqio.get_global_cache_dirs())
    yield
    seqio.set_global_cache_dirs(before)
    for name in seqio.TaskRegistry.names():
        task = seqio.TaskRegistry.get(name)
        task._cache_dir, task._stats = None, {}


def examples(name, split="validation", **options):
    dataset = seqio.get_mixture_or_task(name).get_dataset(
        None, split, shuffle=False, num_epochs=1, **options
    )
    return list(dataset.as_numpy_iterator())


# ------------------------------------------------------------------------------------- caching


def test_every_task_can_be_cached_and_draws_only_afterwards():
    for name in objectives.OBJECTIVES:
        task = seqio.TaskRegistry.get(name)
        assert task.supports_caching and not task.requires_caching
        assert isinstance(task.preprocessors[0], seqio.CacheDatasetPlaceholder)


ALL_TASKS = """
import importlib, json, pathlib
import seqio
from ofa_jax.data.downstream_settings import DownstreamSettings
from ofa_jax.data.pretraining_settings import scenes_settings
from ofa_jax.data.seqio_tasks import RecordDataSource
from ofa_jax.data.task_settings import default_settings
from ofa_jax.evaluation import eval_spec

names = {}
for path in sorted(pathlib.Path("tasks").glob("[!_]*.py")):
    before = set(seqio.TaskRegistry.names())
    importlib.import_module(f"tasks.{path.stem}")
    names[path.stem] = sorted(set(seqio.TaskRegistry.names()) - before)
scenes = scenes_settings()
with default_settings(scenes, DownstreamSettings(scenes.vocabulary)):
    found = {task.name: {
        "of records": isinstance(task.source, RecordDataSource),
        "cached first": isinstance(task.preprocessors[0], seqio.CacheDatasetPlaceholder),
        "features have a length": all(own.rank > 0 for own in task.output_features.values()),
        "has metrics": bool(task.metric_fns) and task.postprocessor is not None,
        "has a spec": eval_spec.find(task.name).task == task.name,
    } for task in map(seqio.TaskRegistry.get, seqio.TaskRegistry.names())}
print(json.dumps([names, found]))
"""
OVER_SCENES = {
    "reworded": [name + own for name in objectives.OBJECTIVES for own in reworded.SUFFIXES],
    "scenes_downstream": list(scenes_downstream.TASKS),
    "scenes_negative_controls": [ABSENT_NOUN, *(name + SWAPPED for name in SWAPPED_OBJECTIVES)],
    "scenes_unseen": [
        name + own
        for name in scenes_unseen.NAMES
        for own in (
            "",
            *([scenes_unseen.AMONG_ANSWERS] if scenes_unseen.has_answers(name) else []),
            *(f"_{number}" for number in scenes_unseen.TRAINING_EXAMPLES),
        )
    ],
}
"""Module -> its tasks. Those of the other modules are compared in test_pretraining_eval and in
test_downstream_tasks."""
# One of each kind; the others differ in their instruction or in their training examples.
COMPARED_FAST = [
    "visual_grounding_unseen_wordings",
    "scenes_text_to_image",
    "scenes_vqa",
    "visual_question_answering" + SWAPPED,
    "region_neighbour_among_answers",
]


def test_every_module_of_tasks_gives_seqio_all_that_it_asks_for(small_scenes):
    """In a process of its own, as other tests register tasks as well."""
    lines = subprocess.run(
        [sys.executable, "-c", ALL_TASKS],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OFA_DATA_DIR": str(small_scenes)},
    ).stdout.splitlines()
    names, found = json.loads(lines[-1])
    assert {"vqa", "coco_captioning", "glue_cola", "gigaword", *objectives.OBJECTIVES} <= set(found)
    assert {name: own for name, own in found.items() if not all(own.values())} == {}
    assert {own: names[own] for own in OVER_SCENES} == {
        module: sorted(own) for module, own in OVER_SCENES.items()
    }


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in COMPARED_FAST else pytest.mark.slow)
        for own in OVER_SCENES.values()
        for name in own
    ],
)
def test_seqio_evaluator_computes_the_metrics_of_every_task_over_scenes(
    name, settings, small_scenes
):
    if name in scenes_downstream.TASKS:
        settings = ScenesDownstreamSettings(
            Scenes(str(small_scenes)), image_size=64, code_image_size=32, num_train=40,
            num_validation=6,
        )  # fmt: skip
    with default_settings(settings):
        theirs, ours, _ = seqio_evaluation.compare(name, settings)
    assert theirs == ours and ours


def test_the_loader_does_not_see_the_placeholder():
    (task,) = seqio_bridge.weighted_tasks("image_captioning", "train")
    assert len(task.preprocess.functions) == 1


@pytest.mark.parametrize("name", ["object_detection", "visual_grounding"])
def test_a_cached_task_reads_back(name, tmp_path, cache_dirs):
    plain = examples(name)
    seqio_cache.write(name, tmp_path, ["train", "validation"])
    cached = examples(name, use_cached=True)
    assert len(cached) == len(plain) and cached[0].keys() == plain[0].keys()

    def by_image_and_target(found):
        return sorted(
            (
                own["image"].tobytes(),
                own["references"],
                own["box_transform"].tobytes(),
                own["loss_weight"].tobytes(),
                b"" if name == "text_infilling" else own["targets"].tobytes(),
            )
            for own in found
        )

    assert by_image_and_target(cached) == by_image_and_target(plain)


def test_random_preprocessing_follows_the_cache(tmp_path, cache_dirs):
    name = "visual_question_answering"
    seqio_cache.write(name, tmp_path, ["train"])

    def targets(seed):
        return [
            own["inputs"].tolist() for own in examples(name, "train", use_cached=True, seed=seed)
        ]

    assert targets(1) == targets(1) != targets(2)
    dataset = seqio.get_dataset(
        name,
        LENGTHS,
        OFAFeatureConverter(STREAM),
        use_cached=True,
        trim_output_features=False,
    )
    batch = next(dataset.batch(4).as_numpy_iterator())
    assert batch["encoder_images"].shape == (4, 64, 64, 3)


def test_seqio_evaluator_reads_the_cache(settings, tmp_path, cache_dirs):
    seqio_cache.write("object_detection", tmp_path, ["validation"], num_shards=1)
    theirs, ours, _ = seqio_evaluation.compare(
        "object_detection", settings, num_examples=None, use_cached=True
    )
    assert theirs == ours and ours


def test_large_splits_are_cached_in_parallel():
    records = InMemoryRecords([{"id": str(number), "text": "a"} for number in range(3000)])
    source = RecordDataSource(lambda split: records, "text")
    shards = source.list_shards("train")
    assert shards == ["train-00000-of-00003", "train-00001-of-00003", "train-00002-of-00003"]
    found = [
        int(element["id"])
        for index in range(3)
        for element in source.get_dataset(
            "train", shuffle=False, shard_info=seqio.ShardInfo(index, 3)
        ).as_numpy_iterator()
    ]
    assert sorted(found) == list(range(3000))


@pytest.mark.slow
def test_seqio_cache_tasks_writes_what_is_read_back(small_scenes, tmp_path, cache_dirs):
    pytest.importorskip("apache_beam", reason="needs apache-beam")
    program = os.path.join(os.path.dirname(sys.executable), "seqio_cache_tasks")
    if not os.path.exists(program) and (program := shutil.which("seqio_cache_tasks")) is None:
        pytest.skip("needs the command seqio_cache_tasks")
    name = "object_detection"
    subprocess.run(
        [
            sys.executable,
            program,
            f"--tasks={name}",
            f"--output_cache_dir={tmp_path}",
            "--module_import=tasks.pretraining",
            "--min_shards=2",
        ],
        check=True,
        env={**os.environ, "OFA_DATA_DIR": str(small_scenes), "PYTHONPATH": os.getcwd()},
    )
    seqio.add_global_cache_dirs([str(tmp_path)])
    cached, plain = examples(name, use_cached=True), examples(name)
    key = [own["image"].tobytes() for own in plain]
    assert sorted(own["image"].tobytes() for own in cached) == sorted(key)


# -------------------------------------------------------------------------------------- mixing


def _register(name, preprocessors, **features):
    def read(split, shuffle_files=False, seed=None):
        return tf.data.Dataset.from_tensor_slices({"number": tf.range(6), **features})

    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(read, splits=["train", "validation"]),
        preprocessors=preprocessors,
        output_features=PRETRAINING_FEATURES,
    )


@seqio.map_over_dataset
def tokenize(element):
    vocabulary = PRETRAINING_FEATURES["targets"].vocabulary
    ids = vocabulary.encode_tf(tf.constant(" a dog"))
    return {"inputs": tf.concat([[0], ids, [2]], 0), "targets": tf.concat([ids, [2]], 0)}


@seqio.map_over_dataset
def with_image(element):
    image = tf.zeros([64, 64, 3], tf.uint8)
    return {**element, "image": image, "loss_weight": tf.constant(0.5, tf.float64)}


@pytest.fixture
def own_tasks():
    _register("habit_text", [tokenize, fill_features])
    _register("habit_image", [tokenize, with_image, fill_features])
    seqio.MixtureRegistry.add(
        "habit_mixture", [("habit_text", 1.0), ("habit_image", 1.0), ("object_detection", 1.0)]
    )
    yield
    seqio.MixtureRegistry.remove("habit_mixture")
    for name in ("habit_text", "habit_image"):
        seqio.TaskRegistry.remove(name)


def test_a_task_of_tf_data_mixes_with_ours(own_tasks, settings):
    mixture = seqio.get_mixture_or_task("habit_mixture")
    dataset = mixture.get_dataset(None, "train", shuffle=False, seed=0, num_epochs=None)
    found = list(dataset.take(60).as_numpy_iterator())
    kinds = {(own["image"].shape, float(own["loss_weight"][0])) for own in found}
    assert kinds == {((0, 0, 3), 1.0), ((64, 64, 3), 0.5), ((64, 64, 3), 2.0)}
    stream = Stream("s", "habit_mixture", 8, LENGTHS, image_size=64, code_targets=True)
    converted = seqio.get_dataset(
        "habit_mixture", LENGTHS, OFAFeatureConverter(stream), trim_output_features=False
    )
    rows = list(converted.take(40).as_numpy_iterator())
    weights = {float(row["decoder_loss_weights"].max()) for row in rows}
    assert weights == {0.5, 1.0, 2.0}
    assert seqio_bridge.weighted_tasks("habit_mixture", "train") is None
    batches = seqio_bridge.sequential_batches(stream, 0, "train", 0, 1, (0,), 0)
    taken = list(itertools.islice(batches, 6))
    assert {float(w) for batch in taken for w in batch["decoder_loss_weights"].max(1)} == weights
    assert {bool(x) for batch in taken for x in batch["encoder_image_mask"]} == {True, False}


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        (lambda ds: ds, "The examples have no inputs and no targets: give"),
        (
            lambda ds: tokenize(ds).map(lambda x: {**x, "image": tf.zeros([4, 4, 3])}),
            "image is float32: give pixels as uint8",
        ),
        (
            lambda ds: tokenize(ds).map(lambda x: {**x, "image": tf.zeros([4, 4], tf.uint8)}),
            "The feature image has rank 2, but fill_features expects rank 3",
        ),
    ],
)
def test_what_cannot_be_filled_is_refused(step, sentence):
    with pytest.raises(ValueError, match=sentence):
        fill_features(step(tf.data.Dataset.from_tensors({"number": 1})))


# ---------------------------------------------------------------------------------- converting


@pytest.mark.parametrize("pack", [False, True])
def test_seqios_own_converter_is_refused(pack):
    sentence = "EncDecFeatureConverter cannot convert the tasks of ofa_jax: it drops their images"
    with pytest.raises(ValueError, match=sentence):
        seqio.get_dataset("image_captioning", LENGTHS, seqio.EncDecFeatureConverter(pack=pack))
    with pytest.raises(ValueError, match=sentence):
        seqio.get_dataset("ofa_pretrain_pairs", LENGTHS, seqio.EncDecFeatureConverter(pack=pack))
    with pytest.raises(ValueError, match=sentence):
        seqio.Evaluator("text_infilling", seqio.EncDecFeatureConverter(pack=False))


def test_seqios_own_converter_still_converts_other_tasks():
    dataset = tf.data.Dataset.from_tensors({"inputs": [3, 4], "targets": [5]})
    converted = seqio.EncDecFeatureConverter(pack=False)(dataset, {"inputs": 3, "targets": 3})
    (row,) = converted.as_numpy_iterator()
    np.testing.assert_array_equal(row["decoder_input_tokens"], [0, 5, 0])


def test_a_converter_of_ones_own_may_take_our_tasks():
    class Mine(seqio.EncDecFeatureConverter):
        def _convert_features(self, ds, task_feature_lengths):
            return super()._convert_features(ds, task_feature_lengths)

    seqio.get_dataset("text_infilling", LENGTHS, Mine(pack=False))


# ------------------------------------------------------------------------------------ settings


def test_threads_and_modules_see_the_default_settings(settings):
    def vocabulary_size():
        return PRETRAINING_FEATURES["targets"].vocabulary.vocab_size

    def in_a_thread(found):
        found.append(vocabulary_size())

    found = []
    with default_settings(settings):
        thread = threading.Thread(target=in_a_thread, args=(found,))
        thread.start()
        thread.join()
    assert found == [settings.vocabulary.vocab_size]
    set_default_settings(settings)
    try:
        assert contextvars.Context().run(vocabulary_size) == settings.vocabulary.vocab_size
    finally:
        set_default_settings()
