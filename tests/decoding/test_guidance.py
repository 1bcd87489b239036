"""Classifier-free guidance, and samples that follow from their example alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from official_model import random_variables
from small_model import SMALL, random_batch

from ofa_jax.decoding import DecodingConfig, make_decoder
from ofa_jax.model import OFA

SAME = dict(rtol=1e-5, atol=2e-5)
MODEL = OFA(SMALL)


@pytest.fixture(scope="module")
def variables():
    variables = random_variables(SMALL)
    embedding = variables["params"]["token_embedding"]["embedding"]
    variables["params"]["token_embedding"]["embedding"] = 0.3 * embedding  # no token is certain
    return variables


@pytest.fixture(scope="module")
def batch():
    batch = random_batch(pixels=0, codes=False)
    del batch["decoder_input_tokens"]
    without = np.full_like(batch["encoder_input_tokens"], 1)
    without[:, :3] = [0, 9, 2]
    codes = {"decoder_code_mask": np.array([True, False, True])}
    return batch | codes | {"guidance_input_tokens": without}


def run(variables, batch, seed=0, **options):
    decode = make_decoder(MODEL, DecodingConfig(**options))
    return jax.tree.map(np.asarray, decode(variables, batch, jax.random.key(seed)))


@jax.jit
def guided_log_probs(variables, batch, tokens, scale):
    """Returns the log-probability of each token [B, G, T] under guidance, in full passes."""
    size, count, length = tokens.shape
    rows = np.repeat(np.arange(size), count)
    inputs = jnp.pad(tokens.reshape(-1, length), ((0, 0), (1, 0)))[:, :-1]
    logits = [
        MODEL.apply(
            variables,
            {
                "encoder_input_tokens": batch[name][rows],
                "decoder_code_mask": batch["decoder_code_mask"][rows],
                "decoder_input_tokens": inputs,
            },
        )
        for name in ("encoder_input_tokens", "guidance_input_tokens")
    ]
    mixed = jax.nn.log_softmax(logits[1] + scale * (logits[0] - logits[1]))
    picked = jnp.take_along_axis(mixed, tokens.reshape(-1, length)[..., None], -1)[..., 0]
    return jnp.where(tokens.reshape(-1, length) != 1, picked, 0).reshape(tokens.shape)


@pytest.mark.parametrize("method", ["beam", "sample"])
def test_token_scores_are_those_of_the_guided_distribution(variables, batch, method):
    found = run(variables, batch, method=method, beam_size=4, max_length=8, guidance_scale=8.0)
    assert (found.lengths > 0).all()
    expected = guided_log_probs(variables, batch, found.tokens, 8.0)
    np.testing.assert_allclose(found.token_scores, expected, **SAME)
    plain = run(variables, batch, method=method, beam_size=4, max_length=8)
    assert (plain.token_scores != found.token_scores).any()


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_a_scale_of_one_is_no_guidance_and_zero_has_no_caption(variables, batch, scale):
    options = dict(method="sample", beam_size=3, max_length=8)
    found = run(variables, batch, guidance_scale=scale, **options)
    alone = {name: array for name, array in batch.items() if name != "guidance_input_tokens"}
    if not scale:
        alone["encoder_input_tokens"] = batch["guidance_input_tokens"]
    expected = run(variables, alone, **options)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.scores, expected.scores, **SAME)


def test_more_guidance_follows_the_caption_more_closely(variables, batch):
    """Samples become more probable with the caption, relative to without it."""

    def pull(scale):
        found = run(
            variables, batch, method="sample", beam_size=64, max_length=8, guidance_scale=scale
        )
        with_caption = guided_log_probs(variables, batch, found.tokens, 1.0)
        return float((with_caption - guided_log_probs(variables, batch, found.tokens, 0.0)).sum())

    assert pull(0.0) < pull(1.0) < pull(4.0)


def test_samples_follow_from_the_seed_of_their_example(variables, batch):
    seeded = batch | {"decoder_seeds": np.array([7, 8, 7], np.uint32)}
    seeded["encoder_input_tokens"] = batch["encoder_input_tokens"][[0, 0, 0]]
    seeded["decoder_code_mask"] = np.array([False, False, False])
    options = dict(method="sample", beam_size=5, max_length=8, guidance_scale=2.0)
    together = run(variables, seeded, **options)
    np.testing.assert_array_equal(together.tokens[0], together.tokens[2])
    assert (together.tokens[0] != together.tokens[1]).any()
    assert len({tuple(tokens) for tokens in together.tokens[0].tolist()}) > 1
    for row in range(3):
        alone = run(variables, {name: x[row : row + 1] for name, x in seeded.items()}, **options)
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])
    assert (run(variables, seeded, seed=1, **options).tokens != together.tokens).any()


def test_guidance_without_its_instruction_is_refused(variables, batch):
    alone = {name: array for name, array in batch.items() if name != "guidance_input_tokens"}
    with pytest.raises(ValueError, match="guidance_scale is 2.0, but the batch has no"):
        run(variables, alone, guidance_scale=2.0)
    short = batch | {"guidance_input_tokens": batch["guidance_input_tokens"][:, :4]}
    with pytest.raises(ValueError, match=r"guidance_input_tokens is \[3, 4\]; give \[3, 7\]"):
        run(variables, short, guidance_scale=2.0)


def test_configurations_of_earlier_versions_are_recorded_as_before():
    assert "guidance_scale" not in DecodingConfig().to_json()
    assert DecodingConfig(guidance_scale=2.0).to_json()["guidance_scale"] == 2.0
    one, two = (DecodingConfig(guidance_scale=s).static_config for s in (2.0, 3.0))
    assert one == two != DecodingConfig().static_config
