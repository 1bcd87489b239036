"""The formula equals the operations that are counted in the program itself.

The forward program before any optimisation is read, so nothing is compiled.
"""

import jax
import numpy as np
import pytest
from small_model import DEEP

from ofa_jax.decoding import DecodingConfig, make_decoder
from ofa_jax.model import OFA, OFAConfig
from ofa_jax.model.parameter_groups import trainable_mask
from ofa_jax.planning.hlo import Program
from ofa_jax.training import flops


def shapes(size=3, source=7, target=6, pixels=48, sampled=0, codes=False):
    shape = jax.ShapeDtypeStruct
    batch = {
        "encoder_input_tokens": shape((size, source), np.int32),
        "decoder_input_tokens": shape((size, target), np.int32),
    }
    if pixels:
        batch["encoder_images"] = shape((size, pixels, pixels, 3), np.uint8)
    if sampled:
        batch["encoder_patch_indices"] = shape((size, sampled), np.int32)
    if codes:
        batch["decoder_code_mask"] = shape((size,), bool)
    return batch


def counted(config, batch):
    model = OFA(config)
    variables = jax.eval_shape(model.init, jax.random.key(0), shapes(1))
    lowered = jax.jit(model.apply).lower(variables, batch)
    return Program(lowered.as_text(dialect="hlo")).flops(), lowered


@pytest.mark.parametrize(
    ("options", "arrays"),
    [
        ({}, dict(pixels=0)),
        ({}, dict(codes=True)),
        ({}, dict(pixels=50, sampled=5)),
        (dict(scan_layers=True, encoder_layers=3), dict(pixels=0, size=5)),
        (dict(prefix_length=3, adapter_width=4), dict(pixels=64, sampled=4, codes=True)),
    ],
    ids=str,
)
def test_the_formula_equals_the_count_of_the_program(options, arrays):
    config, batch = DEEP.replace(**options), shapes(**arrays)
    assert sum(flops.forward_flops(batch, config).values()) == counted(config, batch)[0]


def test_the_published_base_model_at_the_published_shapes():
    """384 px, 196 sampled patches; and the compiler's own count agrees, which adds elementwise
    operations: within 3 %."""
    config, batch = OFAConfig.base(), shapes(2, 104, 32, 384, 196)
    total, lowered = counted(config, batch)
    parts = flops.forward_flops(batch, config)
    assert sum(parts.values()) == total
    assert parts["resnet"] > parts["encoder"] > parts["decoder"] > parts["positions"]
    assert total < lowered.cost_analysis()["flops"] < 1.03 * total


def test_a_step_is_three_forward_passes_of_every_stream():
    batch = shapes(pixels=0)
    one = sum(flops.forward_flops(batch, DEEP).values())
    assert flops.training_flops({"a": batch, "b": batch}, DEEP, passes=2) == 12 * one


def test_the_count_of_a_token_of_a_beam_equals_that_of_the_program():
    """The loop's body, of three beams less of one: what is done for every beam and token."""
    config, batch, length = DEEP, shapes(), 5  # with the eos
    batch = {name: array for name, array in batch.items() if name.startswith("encoder_")}
    variables = jax.eval_shape(OFA(config).init, jax.random.key(0), shapes(1))

    def body(beams):
        decode = make_decoder(OFA(config), DecodingConfig(beam_size=beams, max_length=length - 1))
        text = jax.jit(decode).lower(variables, batch).as_text(dialect="hlo")
        return Program(text, trip_count=2).flops() - Program(text, trip_count=1).flops()

    three, one = (flops.decoding_flops(batch, config, beams, length) for beams in (3, 1))
    assert three - one == length * (body(3) - body(1))
    forward = flops.forward_flops(
        batch | {"decoder_input_tokens": jax.ShapeDtypeStruct((3, length), np.int32)}, config
    )
    assert one == sum(forward.values())


@pytest.mark.parametrize(
    ("frozen", "trained", "expected"),
    [
        ((), None, dict(resnet=3, encoder=3, decoder=3, logits=3, positions=3)),
        (("resnet",), None, dict(resnet=1, encoder=3, decoder=3, logits=3, positions=3)),
        (("token_embedding",), None, dict(resnet=3, encoder=3, decoder=3, logits=2, positions=3)),
        (
            ("encoder", "token_embedding"),
            None,
            dict(resnet=1, encoder=1, decoder=3, logits=2, positions=3),
        ),
        ((), ("biases",), dict(resnet=2, encoder=2, decoder=2, logits=2, positions=2)),
    ],
)
def test_frozen_parts_have_no_weight_gradients_but_propagate_to_earlier_trained_ones(
    frozen, trained, expected
):
    params = jax.eval_shape(OFA(DEEP).init, jax.random.key(0), shapes(1))["params"]
    learns = trainable_mask(params, frozen, trained)
    factors = flops.training_factors(params, learns)
    assert factors == expected
    parts = flops.forward_flops(shapes(), DEEP)
    assert flops.training_flops({"a": shapes()}, DEEP, factors=factors) == sum(
        expected[part] * number for part, number in parts.items()
    )
