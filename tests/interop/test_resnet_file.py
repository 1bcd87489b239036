"""A ResNet by itself, in torchvision's form."""

import jax
import numpy as np
import pytest
from official_model import random_variables
from small_model import SMALL

from ofa_jax.interop import resnet_file, torch_file

CONFIG = SMALL.replace(resnet_layers=(1, 3, 1))


def _resnet(variables):
    return {
        collection: {"encoder": {"resnet": tree["encoder"]["resnet"]}}
        for collection, tree in variables.items()
    }


def test_a_resnet_is_written_with_torchvision_names_and_read_back(tmp_path):
    variables = random_variables(CONFIG)
    resnet_file.write(tmp_path / "resnet.pt", variables, CONFIG)
    held = torch_file.load(tmp_path / "resnet.pt")
    assert {
        "conv1.weight",
        "bn1.running_var",
        "layer1.0.downsample.0.weight",
        "layer2.2.conv3.weight",
        "layer3.0.bn2.bias",
    } <= held.keys()
    assert held["layer2.0.conv2.weight"].shape == (8, 8, 3, 3)
    read = resnet_file.read(tmp_path / "resnet.pt", CONFIG)
    jax.tree.map(np.testing.assert_array_equal, read, _resnet(variables))


def test_other_tensors_of_a_classifier_are_ignored_and_wrappers_are_opened(tmp_path):
    variables = random_variables(CONFIG)
    resnet_file.write(tmp_path / "resnet.pt", variables, CONFIG)
    held = dict(torch_file.load(tmp_path / "resnet.pt"))
    held |= {
        "fc.weight": np.zeros((3, 4), np.float32),
        "layer4.0.bn1.bias": np.zeros(2, np.float32),
        "bn1.num_batches_tracked": np.array(7, np.int64),
    }
    torch_file.save(tmp_path / "whole.pt", {"state_dict": held, "epoch": 3})
    read = resnet_file.read(tmp_path / "whole.pt", CONFIG)
    jax.tree.map(np.testing.assert_array_equal, read, _resnet(variables))


def test_a_resnet_of_another_shape_is_refused_with_an_error(tmp_path):
    resnet_file.write(tmp_path / "resnet.pt", random_variables(CONFIG), CONFIG)
    with pytest.raises(
        ValueError,
        match=r"resnet_layers are \(1, 3, 2\).*layer3\.1\.conv1\.weight "
        r"is missing \(and \d+ more\)",
    ):
        resnet_file.read(tmp_path / "resnet.pt", CONFIG.replace(resnet_layers=(1, 3, 2)))
    shapes = r"conv1\.weight is \[4, 3, 7, 7\] in the file, and must be \[8, 3, 7, 7\]"
    with pytest.raises(ValueError, match=shapes):
        resnet_file.read(tmp_path / "resnet.pt", CONFIG.replace(resnet_width=8))
