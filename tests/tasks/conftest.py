"""What the tests of several tasks share."""

import pytest

from ofa_jax.data.sources.scenes import Scenes
from tasks import pretraining


@pytest.fixture(scope="module")
def scenes_settings(small_scenes):
    """The pretraining tasks over a few small scenes, for a module."""
    settings = pretraining.scenes_settings(
        Scenes(str(small_scenes)), image_size=64, code_image_size=32, text_window=32
    )
    pretraining.configure(settings)
    yield settings
    pretraining.configure(None)
