"""The checkpoints that a run may start from."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from official_model import random_variables
from small_model import DEEP
from small_run import make_parts

from ofa_jax.checkpoints import storage
from ofa_jax.checkpoints.warm_start import ResNetWarmStart, WarmStart
from ofa_jax.interop import files, resnet_file, torch_file
from ofa_jax.model import layout


def test_training_begins_from_a_checkpoint_of_another_layout(tmp_path):
    plain_variables = random_variables(DEEP)
    storage.save_variables(tmp_path, plain_variables)
    storage.write_model_config(tmp_path, DEEP)
    config = DEEP.replace(scan_layers=True, vocab_multiple=64, adapter_width=2)
    abstract = make_parts(config)[0]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract)
    state = WarmStart.open(str(tmp_path), config).initialize(zeros, abstract, config)
    plain = layout.to_plain(state.variables, config)
    adapter = plain["params"]["encoder"]["layer_1"].pop("adapter")
    assert not np.asarray(adapter["up"]["kernel"]).any()
    for side in ("encoder", "decoder"):
        for layer in plain["params"][side].values():
            layer.pop("adapter", None)
    jax.tree.map(np.testing.assert_array_equal, plain, plain_variables)


def test_an_official_checkpoint_is_read_once_and_initializes_the_run(
    official, tmp_path, monkeypatch
):
    path, config = tmp_path / "model.pt", official.config
    files.write(path, official.variables, config)
    with pytest.raises(ValueError, match=r"is of another model: decoder_layers is \d there and 9"):
        WarmStart.open(str(path), config.replace(decoder_layers=9))
    opened, load = [], torch_file.open_file
    monkeypatch.setattr(torch_file, "open_file", lambda path: opened.append(path) or load(path))
    initial = WarmStart.open(str(path), config)
    path.unlink()
    abstract = make_parts(config)[0]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract)
    state = initial.initialize(zeros, abstract, config)
    jax.tree.map(np.testing.assert_array_equal, state.variables, official.variables)
    assert opened == [path]


@pytest.mark.parametrize("scan_layers", [False, True])
def test_a_resnet_initializes_only_the_resnet(tmp_path, scan_layers):
    with_blocks = DEEP.replace(resnet_layers=(1, 3, 1))
    variables = random_variables(with_blocks)
    resnet_file.write(tmp_path / "resnet.pt", variables, with_blocks)
    config = with_blocks.replace(scan_layers=scan_layers)
    abstract = make_parts(config)[0]
    new = jax.tree.map(lambda x: np.full(x.shape, 7, x.dtype), abstract)
    state = ResNetWarmStart.open(str(tmp_path / "resnet.pt"), config).initialize(new, abstract)
    plain = layout.to_plain(state.variables, config)
    given = flax.traverse_util.flatten_dict(variables)
    for path, x in flax.traverse_util.flatten_dict(plain).items():
        own = given[path] if path[1:3] == ("encoder", "resnet") else 7
        np.testing.assert_array_equal(x, np.broadcast_to(own, x.shape), err_msg="/".join(path))
