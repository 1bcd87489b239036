"""The ResNet learns the nouns in images, and OFA can be initialised from it."""

import itertools

import jax
import numpy as np
import pytest
from shown_progress import assert_shown, every_line
from small_model import SMALL

from ofa_jax.checkpoints.warm_start import ResNetWarmStart
from ofa_jax.model import OFAConfig
from tools import pretrain_resnet


def test_the_resnet_overfits_eight_images(small_scenes):
    """Overfits eight images, with a head on patches: without the ResNet they are noise."""
    from ofa_jax.data.sources.scenes import Scenes

    data = Scenes(str(small_scenes))
    records, names = data.records("objects", "train"), data.negatives().object_names
    images, shown = next(pretrain_resnet.batches(records, names, 8, seed=0))
    assert images.shape == (8, 64, 64, 3) and images.dtype == np.uint8
    assert shown.shape == (8, len(names)) and shown.any(axis=1).all()
    model = pretrain_resnet.NamedImages(SMALL, len(names))
    seen = []
    variables = pretrain_resnet.learn(
        model,
        itertools.repeat((images, shown)),
        60,
        1e-2,
        0,
        lambda part, done, count: seen.append(done),
    )
    assert seen[-1] == 60
    assert jax.tree.all(jax.tree.map(lambda x: np.isfinite(x).all(), variables))
    assert pretrain_resnet.noun_f1(model, variables, iter([(images, shown)])) > 0.9
    # Names of other images: no better than these are alike.
    swapped = np.roll(shown, 1, axis=0)
    assert pretrain_resnet.noun_f1(model, variables, iter([(images, swapped)])) < 0.7


def test_the_command_writes_an_initial_checkpoint_and_keeps_it(small_scenes, tmp_path, capsys):
    output = tmp_path / "folder" / "resnet.pt"
    arguments = [f"--data_dir={small_scenes}", f"--output={output}", "--steps=1", "--batch_size=2"]
    with every_line() as shown:
        assert pretrain_resnet.main(arguments) == 0
    assert_shown(shown, "learning what images show", "1 steps")
    assert_shown(shown, "naming validation images", "8 images")
    assert "are named with an F1 of" in capsys.readouterr().out
    kernel = ResNetWarmStart.open(str(output), OFAConfig.scenes()).variables["params"]["encoder"][
        "resnet"
    ]["conv_stem"]["kernel"]
    assert kernel.shape == (7, 7, 3, 16) and kernel.any()
    written = output.stat()
    assert pretrain_resnet.main(arguments) == 0
    assert "is there already" in capsys.readouterr().out
    assert output.stat() == written


def test_without_scenes_the_error_explains_how_to_build_them(tmp_path, capsys):
    with pytest.raises(SystemExit):
        pretrain_resnet.main(["--size=enormous"])
    assert pretrain_resnet.main([f"--data_dir={tmp_path}"]) == 2
    assert "tools.build_scenes" in capsys.readouterr().err
