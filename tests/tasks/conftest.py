"""What the tests of several tasks share."""

import pytest

import tasks.pretraining  # noqa: F401  registers the tasks
from ofa_jax.data import pretraining_settings
from ofa_jax.data.sources.scenes import Scenes
from ofa_jax.data.task_settings import default_settings


@pytest.fixture(scope="module")
def scenes_settings(small_scenes):
    """Sets the pretraining tasks of a module to a few small scenes; returns the settings."""
    settings = pretraining_settings.scenes_settings(
        Scenes(str(small_scenes)), image_size=64, code_image_size=32, text_window=32
    )
    with default_settings(settings):
        yield settings
