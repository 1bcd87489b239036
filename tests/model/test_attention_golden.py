"""The golden numbers of the reference implementation on every path of attention.

The tolerances are those of test_model_golden.py and test_inside_golden.py, which follow from
float32 sums in another order, as is what the paths differ in.
"""

import dataclasses
import types

import jax
import numpy as np
import pytest
from test_inside_golden import check_gradients, loss_of

from ofa_jax.model import OFA, attention_fused


@pytest.fixture(params=["columns", "fused", "fused, blocks of keys"])
def path(request, official, monkeypatch):
    """Returns the official model on a path; the fused kernel runs in interpret mode."""
    implementation, _, in_blocks = request.param.partition(", ")
    if implementation == "fused":
        choose = attention_fused.kernel_spec

        def interpreted(*arguments):
            spec = dataclasses.replace(choose(*arguments), interpret=True)
            if not in_blocks:
                return spec
            images = [dataclasses.replace(x, keys=16) for x in spec.images]
            return dataclasses.replace(spec, key_block=16, images=tuple(images))

        monkeypatch.setattr(attention_fused, "kernel_spec", interpreted)
    config = official.config.replace(attention_implementation=implementation)
    return types.SimpleNamespace(
        model=OFA(config), variables=official.variables, config=official.config
    )


@pytest.mark.parametrize("name", ["a_sampled20", "d"])
def test_logits_match_the_reference(path, official, name):
    case, batch = official.case(name)
    logits = jax.jit(path.model.apply)(path.variables, batch)
    np.testing.assert_allclose(logits, case["logits"], rtol=0, atol=1e-4)


@pytest.mark.slow  # the other paths' gradients are compared with theirs on small models
def test_all_gradient_entries_match_the_reference(path, official, golden):
    case, batch = official.case("d")
    theirs = dict(np.load(golden / "model_tiny" / "grads_case_d_eps0.1_conf.npz"))
    assert len(theirs) > 150
    _, gradients = loss_of(path, case, batch)(path.variables["params"])
    check_gradients(gradients, theirs, path)
