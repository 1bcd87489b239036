"""`python -m ofa_jax.jobs cache_tasks`: a cache that seqio and our loader both read."""

import numpy as np
import pytest
import seqio
from beam_jobs import assert_checksums

import tasks.pretraining  # noqa: F401  registers the tasks
from ofa_jax.data import pretraining_settings
from ofa_jax.data.sources.cached_tasks import CachedTasks
from ofa_jax.data.sources.scenes import Scenes
from ofa_jax.data.task_settings import default_settings
from ofa_jax.jobs import command
from ofa_jax.utils.text_files import DamagedFileError

pytest.importorskip("apache_beam", reason="needs the extra 'beam'")

TASKS = {"image_captioning": "captions", "visual_grounding": "regions", "image_infilling": "images"}


@pytest.fixture(scope="module")
def settings(small_scenes):
    settings = pretraining_settings.scenes_settings(
        Scenes(str(small_scenes)), image_size=64, code_image_size=32, text_window=32
    )
    with default_settings(settings):
        yield settings


def cache(name, output, *options):
    return command.main(
        [
            "cache_tasks",
            f"--task={name}",
            f"--output_dir={output}",
            "--shard_size=5",
            "--splits",
            "validation",
            "test",
            *options,
        ]
    )


@pytest.fixture(scope="module")
def cached(settings, tmp_path_factory):
    output = tmp_path_factory.mktemp("cache")
    for name in TASKS:
        assert cache(name, output) == 0
    return output


@pytest.mark.parametrize("name", TASKS)
def test_seqio_reads_the_same_examples(name, settings, cached):
    folder = cached / name
    assert (folder / "COMPLETED").is_file()
    assert_checksums(folder)
    seqio.set_global_cache_dirs([str(cached)])
    task = seqio.TaskRegistry.get(name)
    options = {"split": "validation", "shuffle": False, "seed": 3, "sequence_length": None}
    plain, read = (
        list(task.get_dataset(use_cached=use_cached, **options).as_numpy_iterator())
        for use_cached in (False, True)
    )
    seqio.set_global_cache_dirs([])
    assert len(plain) == len(read) == task.source.num_input_examples("validation") > 5

    def key(example):
        return (example["targets"].tolist(), example["image"].tobytes())

    for one, other in zip(sorted(plain, key=key), sorted(read, key=key), strict=True):
        assert one.keys() == other.keys()
        if name != "image_infilling":
            for field in one:
                np.testing.assert_array_equal(one[field], other[field], err_msg=field)


@pytest.mark.parametrize(("name", "kind"), TASKS.items())
def test_our_loader_reads_the_same_records(name, kind, settings, cached):
    data_set = CachedTasks(str(cached))
    assert data_set.splits == ("test", "validation")
    for split in data_set.splits:
        records = data_set.records(kind, split)
        original = seqio.TaskRegistry.get(name).source.records(split)
        assert len(records) == len(original) > 0
        for number in range(len(original)):
            one, other = records[number], original[number]
            for field, value in other.items():
                if field in one:
                    np.testing.assert_array_equal(one[field], value, err_msg=field)
                    assert type(one[field]) is type(value), field
                else:
                    assert not np.size(value), field


def test_damage_and_mistakes_are_sentences(settings, cached, tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="no cached task with text"):
        CachedTasks(str(cached)).records("text", "validation")
    for name, sentence in (
        ("ofa_pretrain", "ofa_pretrain is a mixture: cache its tasks"),
        ("image_captionin", "Did you mean image_captioning?"),
    ):
        assert cache(name, tmp_path) == 2
        assert sentence in capsys.readouterr().err
    assert cache("image_captioning", tmp_path) == 0
    (shard, *_) = sorted((tmp_path / "image_captioning").glob("validation.tfrecord-*"))
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(DamagedFileError, match="is cut off or damaged"):
        len(CachedTasks(str(tmp_path)).records("captions", "validation"))
