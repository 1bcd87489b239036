"""Scenes on demand: a function of their number, the same everywhere, and never the same twice."""

import dataclasses
import itertools
import pickle

import gin
import numpy as np
import pytest

import tasks.pretraining  # noqa: F401  registers the tasks
from ofa_jax.cli import gin_registry
from ofa_jax.data import seqio_bridge
from ofa_jax.data.features import Stream
from ofa_jax.data.loader import Loader
from ofa_jax.data.pretraining_settings import PretrainingSettings, scenes_settings
from ofa_jax.data.sources.mixed import MixedRecords
from ofa_jax.data.sources.scenes import Scenes
from ofa_jax.data.sources.streamed_scenes import StreamedScenes
from ofa_jax.data.task_settings import default_settings
from ofa_jax.preprocessing import objectives
from ofa_jax.reports import mixture
from ofa_jax.scenes import nouns
from tools import convert

PAIRS = Stream("pairs", "ofa_pretrain_pairs", 6, {"inputs": 48, "targets": 24}, image_size=64)
IMAGES = Stream(
    "images",
    "ofa_pretrain_images",
    2,
    {"inputs": 16, "targets": 66},
    image_size=64,
    code_targets=True,
    loss_group="others",
)


@pytest.fixture(scope="module")
def streamed(small_scenes):
    return StreamedScenes(str(small_scenes))


@pytest.fixture(scope="module")
def settings(streamed):
    return scenes_settings(streamed, image_size=64, code_image_size=32)


def loader(settings, **options):
    streams = (PAIRS, IMAGES)
    found = {
        stream.name: seqio_bridge.weighted_tasks(
            stream.mixture_or_task_name, "train", settings, training=True
        )
        for stream in streams
    }
    return Loader(streams, found, seed=5, **options)


def take(settings, count, start=0, **options):
    return list(itertools.islice(loader(settings, **options).batches(start), count))


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def test_the_stream_begins_with_the_scenes_on_disk(streamed, small_scenes):
    for kind in ("all", "captions", "pairs", "questions", "regions", "objects", "images"):
        stored, composed = (
            source.records(kind, "train") for source in (Scenes(str(small_scenes)), streamed)
        )
        for index in (0, 149):
            assert equal(composed[index], stored[index])


def test_a_scene_is_a_function_of_its_number_in_any_order_and_process(streamed):
    records = streamed.records("regions", "train")
    numbers = (3, 10**9, 0, 151)
    first = {number: records[number] for number in numbers}
    other = pickle.loads(pickle.dumps(streamed)).records("regions", "train")
    moved = pickle.loads(pickle.dumps(records))
    for number in reversed(numbers):
        assert equal(other[number], first[number]) and equal(moved[number], first[number])
    for number in (-1, len(records)):
        with pytest.raises(IndexError, match=f"no scene {number}"):
            records[number]


def test_no_scene_is_seen_twice_by_any_tasks(settings):
    own = loader(settings)
    seen = [
        (name, index) for step in range(60) for rows in own.record_ids(step).values()
        for name, index in rows
    ]  # fmt: skip
    records = {
        task.name: task.records
        for stream in (PAIRS, IMAGES)
        for task in seqio_bridge.weighted_tasks(stream.mixture_or_task_name, "train", settings)
    }
    numbers = [records[name].start + index for name, index in seen]
    assert {name for name, _ in seen} == set(objectives.OBJECTIVES) - {"text_infilling"}
    assert len(set(numbers)) == len(numbers) == 60 * 8
    images = {records[name][index]["image"] for name, index in seen[:80]}
    assert len(images) == 80
    # Nor one of those on disk, and each task reads its own from the first on.
    assert min(numbers) > 10**9
    for name in records:
        indices = [index for task, index in seen if task == name]
        assert indices == list(range(len(indices)))


def test_every_number_of_hosts_and_workers_trains_on_the_same_scenes(settings, absl_flags):
    whole = take(settings, 3)
    parts = [
        take(settings, 3, num_data_shards=2, data_shards=(host,), num_workers=host)
        for host in (0, 1)
    ]
    for step, batches in enumerate(whole):
        for stream, batch in batches.items():
            for name, values in batch.items():
                together = np.concatenate([part[step][stream][name] for part in parts])
                np.testing.assert_array_equal(together, values, err_msg=name)
    (resumed,) = take(settings, 1, start=2)
    assert all(equal(resumed[stream], whole[2][stream]) for stream in whole[2])


def test_codes_for_infilling_are_computed_on_demand_or_refused(settings, streamed):
    record = streamed.records("images", "train")[7]
    example = objectives.image_infilling(
        record, np.random.default_rng(0), settings.objective_config
    )
    array = np.asarray(objectives.fields.decode_image(record))[16:48, 16:48]
    expected = streamed.image_tokenizer().encode(array[None])
    codes = settings.vocabulary.decode_codes(example["targets"][:-1])
    np.testing.assert_array_equal(codes, expected.ravel())
    without = PretrainingSettings(streamed, settings.vocabulary, options=settings.options)
    assert without.records("captions", "train", training=True)[0]["captions"]
    with pytest.raises(ValueError, match="needs image codes, which StreamedScenes does not have"):
        without.records("images", "train", training=True)


def test_a_number_of_scenes_makes_an_ordinary_data_set(streamed, settings):
    few = dataclasses.replace(streamed, num_scenes=12)
    records = few.records("captions", "train")
    assert len(records) == 12
    assert equal(records[5], streamed.records("captions", "train")[5])
    own = loader(dataclasses.replace(settings, data_set=few))
    rows = [row for step in range(60) for row in own.record_ids(step)["pairs"]]
    for name in ("visual_grounding", "grounded_captioning"):
        indices = [index for task, index in rows if task == name]
        assert sorted(indices[:12]) == list(range(12)) and indices[:12] != list(range(12))


def test_nouns_and_seed_may_differ_from_the_build_within_its_vocabulary(streamed):
    seven = dataclasses.replace(streamed, nouns=7).records("objects", "train")
    known = {noun.name for noun in nouns.first_nouns(7)}
    assert {label for index in range(20) for label in seven[index]["object_labels"]} == known
    with pytest.raises(ValueError, match="more nouns than objects"):
        dataclasses.replace(streamed, nouns=6).records("objects", "train")
    other = dataclasses.replace(streamed, seed=9).records("objects", "train")
    assert not equal(other[0], streamed.records("objects", "train")[0])
    with pytest.raises(ValueError, match=r"nouns is 41, but .* was built with 40"):
        dataclasses.replace(streamed, nouns=41).records("objects", "train")
    with pytest.raises(ValueError, match="no kind of record 'object'"):
        streamed.records("object", "train")


def test_everything_but_the_training_images_is_that_of_the_build(streamed, small_scenes):
    stored = Scenes(str(small_scenes))
    for kind, split in (("captions", "validation"), ("regions", "test_shifted"), ("text", "train")):
        assert streamed.records(kind, split) == stored.records(kind, split)
    assert streamed.negatives() == stored.negatives()


def test_one_setting_in_gin_trains_on_the_stream(small_scenes, monkeypatch):
    monkeypatch.setenv("OFA_DATA_DIR", str(small_scenes))
    gin.clear_config()
    gin_registry.register({})
    gin.parse_config(
        "scenes_settings.image_size = 64\nscenes_settings.code_image_size = 32\n"
        "scenes_settings.data_set = @StreamedScenes()"
    )
    made = gin.get_configurable("scenes_settings")()
    gin.clear_config()
    assert made.data_set == StreamedScenes()
    assert take(made, 1)[0].keys() == {"pairs", "images"}


def test_what_reads_to_the_end_refuses_an_endless_stream(settings, streamed):
    task = seqio_bridge.find("image_captioning")
    with default_settings(settings):
        with pytest.raises(ValueError, match="cannot be cached: set StreamedScenes.num_scenes"):
            task.source.list_shards("train")
        elements = task.get_dataset(None, "train", shuffle=True, seed=0).take(2)
        assert len(list(elements)) == 2
    with pytest.raises(ValueError, match="cannot be converted"):
        convert.open_sources(streamed, ("captions",), "train")
    (sample,) = mixture.sample_mixture("image_captioning", "train", 2, 0, settings)
    assert sample.num_records is None and len(sample.examples) == 2


def test_the_stream_mixes_with_other_data(streamed, small_scenes):
    sources = {
        "stream": streamed.records("captions", "train"),
        "disk": Scenes(str(small_scenes)).records("captions", "train"),
    }
    mixed = MixedRecords.at_rates(sources, {"stream": 1.0, "disk": 3.0})
    assert mixed.counts[1] == 3 * mixed.counts[0]
    assert mixed[mixed.counts[0] + 151]["id"] == "disk/train-0000001"
