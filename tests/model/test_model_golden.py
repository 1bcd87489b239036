"""Logits, encoder output and batch statistics against the reference implementation.

The tolerance is 1e-4 on logits of size 15. Sums of a few hundred float32 terms in another order
differ by about 2^-23 * sqrt(300) * 15 = 3e-5 in the worst of many thousand entries.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ofa_jax.interop import to_fairseq
from ofa_jax.model import OFA

LOGITS = dict(rtol=0, atol=1e-4)


def train(model, variables, batch):
    """Returns logits and new batch statistics of a forward pass in training mode."""
    return jax.jit(
        lambda v, b: model.apply(
            v, b, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
        )
    )(variables, batch)


@pytest.fixture(scope="module")
def scored(official):
    """Returns a function: name of a case -> (golden case, logits, encoder output)."""
    both = jax.jit(
        lambda v, b: (official.model.apply(v, b), official.model.apply(v, b, method="encode"))
    )

    @functools.cache
    def scored(name):
        case, batch = official.case(name)
        return case, *both(official.variables, batch)

    return scored


@pytest.mark.parametrize("name", ["a", "a_sampled20", "b1", "b2", "c", "d"])
def test_logits_match_the_reference(scored, name):
    case, logits, _ = scored(name)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, case["logits"], **LOGITS)


@pytest.mark.parametrize("name", ["a", "a_sampled20", "b1", "d"])
def test_encoder_output_matches_the_reference(scored, name):
    case, _, encoded = scored(name)
    not_padding = ~case["encoder_padding_mask"]
    np.testing.assert_array_equal(encoded.mask, not_padding)
    np.testing.assert_allclose(
        encoded.hidden[not_padding], case["encoder_out"][not_padding], **LOGITS
    )
    np.testing.assert_allclose(
        encoded.positions_per_example(), case["position_embeddings"], rtol=0, atol=1e-5
    )


def test_encode_then_decode_equals_calling_the_model(official, scored):
    case, _, encoded = scored("d")
    _, batch = official.case("d")
    decode = jax.jit(functools.partial(official.model.apply, method="decode"))
    logits = decode(
        official.variables, encoded, batch["decoder_input_tokens"], batch["decoder_code_mask"]
    )
    np.testing.assert_allclose(logits, case["logits"], **LOGITS)


def test_training_mode_and_running_statistics_match_the_reference(official, golden):
    case = dict(np.load(golden / "model_tiny" / "case_a_trainmode.npz"))
    _, batch = official.case("a")
    logits, updates = train(official.model, official.variables, batch)
    np.testing.assert_allclose(logits, case["logits"], **LOGITS)
    ours = to_fairseq({"params": official.variables["params"], **updates}, official.config)
    checked = 0
    for key in case:
        if key.startswith("bn_after_1_step/") and "num_batches" not in key:
            # These are means of thousands of float32 values of order 1 to 10.
            np.testing.assert_allclose(
                ours[key.split("/")[1]], case[key], rtol=1e-5, atol=1e-5, err_msg=key
            )
            checked += 1
    assert checked == sum("running_" in key for key in ours)


def test_frozen_batch_norm_uses_and_keeps_the_running_statistics(official):
    case, batch = official.case("a")
    frozen = OFA(official.config.replace(freeze_batch_norm=True))
    logits, updates = train(frozen, official.variables, batch)
    np.testing.assert_allclose(logits, case["logits"], **LOGITS)
    jax.tree.map(
        np.testing.assert_array_equal, updates["batch_stats"], official.variables["batch_stats"]
    )


@pytest.mark.parametrize(
    ("interpolate", "name"), [(True, "interp_logits"), (False, "interp_off_logits")]
)
def test_logits_with_interpolated_positions_match_the_reference(
    official, golden, interpolate, name
):
    case = dict(np.load(golden / "positions" / "positions.npz"))
    batch = {
        "encoder_input_tokens": case["interp_src"].astype(np.int32),
        "decoder_input_tokens": case["interp_prev"].astype(np.int32),
        "encoder_images": case["interp_in_images_f32"].transpose(0, 2, 3, 1),
    }
    model = OFA(official.config.replace(interpolate_positions=interpolate))
    logits = jax.jit(model.apply)(official.variables, batch)
    np.testing.assert_allclose(logits, case[name], **LOGITS)


def test_bfloat16_stays_close_to_float32_and_returns_float32_logits(official):
    """The RMS error is below four times the 1.5 % that 60 roundings to 8 bits add up to."""
    case, batch = official.case("d")
    model = OFA(official.config.replace(dtype="bfloat16"))
    logits = jax.jit(model.apply)(official.variables, batch)
    assert logits.dtype == jnp.float32
    error = np.sqrt(np.mean((logits - case["logits"]) ** 2) / np.mean(case["logits"] ** 2))
    assert error < 0.06
