"""What a run may begin from."""

import jax
import jax.numpy as jnp
import numpy as np
from official_model import random_variables
from small_model import SMALL
from small_run import make_parts

from ofa_jax import initial_checkpoint
from ofa_jax.model import layout
from ofa_jax.training import checkpoints


def test_training_begins_from_a_checkpoint_of_another_layout(tmp_path):
    plain_variables = random_variables()
    checkpoints.save_variables(tmp_path, plain_variables)
    checkpoints.write_model(tmp_path, SMALL)
    config = SMALL.replace(scan_layers=True, vocab_multiple=64, adapter_width=2)
    abstract = make_parts(config)[0]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract)
    state = initial_checkpoint.take(zeros, str(tmp_path), abstract, config)
    plain = layout.to_plain(state.variables, config)
    adapter = plain["params"]["encoder"]["layer_1"].pop("adapter")
    assert not np.asarray(adapter["up"]["kernel"]).any()
    for side in ("encoder", "decoder"):
        for layer in plain["params"][side].values():
            layer.pop("adapter", None)
    jax.tree.map(np.testing.assert_array_equal, plain, plain_variables)
