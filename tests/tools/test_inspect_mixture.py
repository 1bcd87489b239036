"""What `python -m tools.inspect_mixture` shows."""

import pytest

from ofa_jax.data.scenes import Scenes
from tasks import pretraining
from tools import inspect_mixture


@pytest.fixture(autouse=True)
def scenes(small_scenes):
    pretraining.configure(pretraining.scenes_settings(
        Scenes(str(small_scenes)), picture_size=64, code_image_size=32))
    yield
    pretraining.configure(None)


def test_it_shows_shares_sizes_lengths_and_examples(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    inspect_mixture.main(["ofa_pretrain_images", "--examples=1", "--sample=5"])
    text = capsys.readouterr().out
    assert "image_infilling" in text and "50.0%" in text and "150" in text and "exact" in text
    assert "what are the objects in the image?" in text and "<bin_" in text
    assert "64 x 64 pixels" in text
    # 16 codes and the end.
    assert "17 / 17 / 17" in text


def test_what_is_not_there_is_one_sentence(capsys):
    for arguments, sentence in (
        (["ofa_pretrain_image"], "Did you mean ofa_pretrain_images?"),
        (["ofa_pretrain_images", "--split=tset"], "There is no split 'tset'"),
        (["x", "--module=no_such_module"], "No module named 'no_such_module'"),
    ):
        with pytest.raises(SystemExit) as ended:
            inspect_mixture.main(arguments)
        error = capsys.readouterr().err.strip()
        assert ended.value.code == 2 and sentence in error and "\n" not in error
