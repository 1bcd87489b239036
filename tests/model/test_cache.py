"""Decoding token by token gives the logits of decoding all tokens at once.

Float32 sums in different orders differ by rounding; logits here are of order 1 to 10, so 1e-5 is at
least ten units in the last place.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from official_model import random_variables
from small_model import SMALL, random_batch

from ofa_jax.model import OFA

# Each decoder layer has its own cache, so two layers are needed.
CONFIG = SMALL.replace(decoder_layers=2)

SAME = dict(rtol=1e-5, atol=1e-5)
LENGTH = 8  # more than the 1 + 4 positions of the 2x2 codes: some rows reach the fillers


@functools.partial(jax.jit, static_argnums=0)
def decode(config, variables, batch, tokens, swaps):
    """Returns logits [T, B, G, V] of tokens [B, G, T], see `step_by_step`."""
    model = OFA(config)
    encoded = model.apply(variables, batch, method="encode")
    cache = model.apply(
        variables,
        encoded,
        LENGTH,
        tokens.shape[1],
        batch.get("decoder_code_mask"),
        method="start_cache",
    )

    def step(cache, inputs):
        position, tokens, parents = inputs
        logits, cache = model.apply(variables, tokens, cache, position, method="decode_step")
        return cache.reorder(parents), logits

    steps = jnp.arange(tokens.shape[2])
    return jax.lax.scan(step, cache, (steps, jnp.moveaxis(tokens, 2, 0), swaps))[1]


@functools.partial(jax.jit, static_argnums=0)
def full_pass(config, variables, batch):
    """Returns logits [B, T, V]; tests of the same shapes share a program."""
    return OFA(config).apply(variables, batch)


def step_by_step(config, variables, batch, tokens, swaps=None):
    """Returns logits [B, G, T, V] of tokens [B, G, T]; `swaps` [T, B, G] reorders beams."""
    if swaps is None:
        swaps = np.broadcast_to(np.arange(tokens.shape[1]), (tokens.shape[2], *tokens.shape[:2]))
    return np.moveaxis(decode(config, variables, batch, tokens, swaps), 0, 2)


def all_at_once(config, variables, batch, tokens):
    """Returns the same logits from a full pass with each beam as a row."""
    size, beams, length = tokens.shape
    rows = np.repeat(np.arange(size), beams)
    wide = {name: array[rows] for name, array in batch.items()}
    wide["decoder_input_tokens"] = tokens.reshape(size * beams, length)
    return np.asarray(full_pass(config, variables, wide)).reshape(size, beams, length, -1)


def random_tokens(beams, length=LENGTH):
    return np.random.default_rng(7).integers(4, 60, (3, beams, length), np.int32)


@pytest.fixture(scope="module")
def variables():
    return random_variables(CONFIG)


INPUTS = {
    "text rows without an image": {"decoder_code_mask": None, "encoder_images": None},
    "mixed rows": {},
    "mixed rows of sampled patches": {
        "encoder_patch_indices": np.array([[0, 4, 8, 2], [7, 1, 3, 5], [2, 6, 0, 1]], np.int32)
    },
    "text rows of sampled patches": {
        "decoder_code_mask": None,
        "encoder_image_mask": np.array([True, False, True]),
        "encoder_patch_indices": np.array([[0, 4], [7, 1], [2, 6]], np.int32),
    },
}


@pytest.mark.parametrize("name", INPUTS)
def test_steps_agree_with_the_full_pass(variables, name):
    batch = {k: v for k, v in (random_batch() | INPUTS[name]).items() if v is not None}
    del batch["decoder_input_tokens"]
    tokens = random_tokens(beams=2)
    expected = all_at_once(CONFIG, variables, batch, tokens)
    np.testing.assert_allclose(step_by_step(CONFIG, variables, batch, tokens), expected, **SAME)


@pytest.mark.parametrize(
    "options",
    [
        {"prefix_length": 3, "adapter_width": 4, "entangle_decoder_positions": True},
        {"scale_attn": False, "scale_heads": False, "scale_fc": False, "scale_resids": True},
    ],
)
def test_steps_agree_with_the_full_pass_for_options(options):
    config = CONFIG.replace(**options)
    batch = random_batch()
    del batch["decoder_input_tokens"]
    variables, tokens = random_variables(config), random_tokens(beams=2)
    expected = all_at_once(config, variables, batch, tokens)
    np.testing.assert_allclose(step_by_step(config, variables, batch, tokens), expected, **SAME)


def test_bfloat16_steps_stay_close_to_the_float32_pass(variables):
    """The RMS error is below four times the 1.2 % that 40 roundings to 8 bits add up to."""
    batch = random_batch()
    del batch["decoder_input_tokens"]
    for extra in ({}, INPUTS["mixed rows of sampled patches"]):
        tokens = random_tokens(beams=2)
        expected = all_at_once(CONFIG, variables, batch | extra, tokens)
        steps = step_by_step(CONFIG.replace(dtype="bfloat16"), variables, batch | extra, tokens)
        assert steps.dtype == np.float32
        error = np.sqrt(np.mean((steps - expected) ** 2) / np.mean(expected**2))
        assert error < 0.05


def test_reordered_beams_continue_from_the_past_of_their_parents(variables):
    """After three tokens beam 0 continues beam 2, 1 and 2 both continue beam 0."""
    batch = random_batch()
    del batch["decoder_input_tokens"]
    tokens = random_tokens(beams=3)
    parents = np.array([2, 0, 0])
    swaps = np.broadcast_to(np.arange(3), (LENGTH, 3, 3)).copy()
    swaps[2] = parents
    continued = np.concatenate([tokens[:, parents, :3], tokens[:, :, 3:]], axis=2)
    expected = all_at_once(CONFIG, variables, batch, continued)
    logits = step_by_step(CONFIG, variables, batch, tokens, swaps)
    np.testing.assert_allclose(logits[:, :, 3:], expected[:, :, 3:], **SAME)
    unchanged = all_at_once(CONFIG, variables, batch, tokens)
    assert np.abs(logits[:, :, 3:] - unchanged[:, :, 3:]).max() > 1e-2


def test_steps_project_neither_the_encoder_output_nor_past_positions_again():
    """No array in a step has the shape of such a projection."""
    model, batch = OFA(CONFIG), random_batch(source=13)
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch)
    encoded = jax.eval_shape(lambda v: model.apply(v, batch, method="encode"), shapes)
    cache = jax.eval_shape(
        lambda v, e: model.apply(v, e, LENGTH, 5, method="start_cache"), shapes, encoded
    )
    assert all(layer.encoded.key.shape == (3, 2, 8, 9 + 13) for layer in cache.layers)
    assert all(layer.past.key.shape == (3, 5, 2, 8, LENGTH) for layer in cache.layers)
    step = str(
        jax.make_jaxpr(
            lambda v, c: model.apply(v, jnp.zeros((3, 5), jnp.int32), c, 3, method="decode_step")
        )(shapes, cache)
    )
    for absent in ("f32[3,22,16]", f"f32[1,{LENGTH},16]", f"f32[2,{LENGTH},{LENGTH}]"):
        assert absent not in step


def test_a_cache_longer_than_the_position_table_raises(variables):
    model = OFA(CONFIG)
    encoded = jax.eval_shape(lambda v: model.apply(v, random_batch(), method="encode"), variables)
    with pytest.raises(ValueError, match="decoder's cache is 41 .* 40 positions"):
        jax.eval_shape(lambda v, e: model.apply(v, e, 41, method="start_cache"), variables, encoded)
