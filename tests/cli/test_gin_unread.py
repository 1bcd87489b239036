"""Options that gin accepts and nothing reads are named before anything runs."""

import logging

import gin
import pytest

from ofa_jax.cli import common, gin_registry, gin_unread
from ofa_jax.data.features import Stream
from ofa_jax.data.pretraining_settings import default_scenes, scenes_settings
from ofa_jax.data.sources.scenes import Scenes
from ofa_jax.model.named_config import model_config
from ofa_jax.training.build import build_run


@pytest.fixture(autouse=True)
def gin_state():
    gin.clear_config()
    yield
    gin.clear_config()
    gin_unread.remember([])


@pytest.fixture
def parse(tmp_path):
    def run(text, *arguments):
        path = tmp_path / "run.gin"
        path.write_text(text)
        gin_registry.register({"train": build_run, "model_config": model_config})
        common.parse_arguments("test", "", [f"--gin_file={path}", *arguments])

    return run


def test_what_nothing_reads_is_named(parse, caplog):
    parse("Stream.name = 's'\n", "--gin.Scenes.data_dir='elsewhere'")
    with caplog.at_level(logging.WARNING):
        gin_unread.warn_of_unread()
    sentence = "Scenes.data_dir is set (the command line), but nothing reads it. Give @Scenes()"
    assert sentence in caplog.text
    assert gin_unread.describe_unread(["Scenes"]) == []
    gin.get_configurable("Scenes")()
    assert gin_unread.describe_unread() == []


def test_an_override_of_a_stream_that_is_left_out_is_no_mistake(parse):
    parse("images/Stream.batch_size = 2\n", "--gin.images/Stream.batch_size=8")
    assert gin_unread.describe_unread() == []


def test_a_scope_that_nothing_has_is_named_with_the_nearest(parse):
    parse(
        """
pairs/Stream.name = 'pairs'
pairs/Stream.mixture_or_task_name = 'a'
pairs/Stream.batch_size = 2
pairs/Stream.task_feature_lengths = {'inputs': 4, 'targets': 4}
train.streams = [@pairs/Stream()]
""",
        "--gin.pair/Stream.batch_size=8",
        "--gin.pairs/Stream.loss_group='x'",
    )
    (stream,) = gin_registry.bound_value("train.streams")
    assert isinstance(stream, Stream) and stream.batch_size == 2 and stream.loss_group == "x"
    (sentence,) = gin_unread.describe_unread()
    assert sentence.startswith("pair/Stream.batch_size is set (the command line), but nothing")
    assert sentence.endswith("Did you mean pairs?")


def test_the_folder_of_scenes_is_obeyed(parse, small_scenes, monkeypatch):
    monkeypatch.setenv("OFA_DATA_DIR", "nowhere")
    parse("train.settings = @scenes_settings()\n", f"--gin.Scenes.data_dir='{small_scenes}'")
    settings = gin_registry.bound_value("train.settings")
    assert settings.data_set == Scenes(str(small_scenes))
    assert default_scenes().data_set.directory == small_scenes / "scenes"
    assert gin_unread.describe_unread() == []
    gin.clear_config()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        scenes_settings()
