"""Scanning, rematerialising and padding the vocabulary do not change results.

Float32 sums in another order agree to 1e-5 of an array's largest value; gradients pass through all
layers twice and agree to 5e-5.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import DEEP, random_batch

from ofa_jax.interop import from_fairseq, to_fairseq
from ofa_jax.model import OFA, OFAConfig, layout

BLOCKS = DEEP.replace(resnet_layers=(1, 3, 2))
BATCH = random_batch(pixels=32)
TEXT = random_batch(pixels=0, codes=False)
# The ResNet compiles slowly, and only remat changes it.
OPTIONS = [
    ("text", dict(scan_layers=True)),
    ("text", dict(scan_layers=True, remat="weight_dots", vocab_multiple=64)),
    ("text", dict(remat="full")),
    pytest.param("images", dict(remat="dots", vocab_multiple=8), marks=pytest.mark.slow),
    pytest.param("images", dict(remat="full", scan_layers=True), marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def plain_variables():
    from official_model import random_variables

    return random_variables(BLOCKS)


@functools.cache
def scored(config, kind):
    """Returns a jitted function: variables -> (logits, batch statistics, gradient of the NLL)."""

    batch = TEXT if kind == "text" else BATCH

    def loss(params, batch_stats):
        logits, updates = OFA(config).apply(
            {"params": params, "batch_stats": batch_stats},
            batch,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        ids = batch["decoder_input_tokens"][..., None]
        log_probs = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(log_probs, ids, -1).mean(), (logits, updates)

    def run(variables):
        (_, aux), gradient = jax.value_and_grad(loss, has_aux=True)(
            variables["params"], variables["batch_stats"]
        )
        return *aux, gradient

    return jax.jit(run)


def assert_close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(
        actual, expected, rtol=0, atol=tolerance * max(np.abs(expected).max(), 1e-3)
    )


@pytest.mark.parametrize(("kind", "options"), OPTIONS, ids=str)
def test_layout_options_do_not_change_logits_statistics_or_gradients(
    kind, options, plain_variables
):
    config = BLOCKS.replace(**options)
    variables = layout.from_plain(plain_variables, config)
    logits, stats, gradient = scored(config, kind)(variables)
    expected_logits, expected_stats, expected_gradient = scored(BLOCKS, kind)(plain_variables)
    assert logits.shape[-1] == config.padded_vocab_size
    assert_close(logits[..., : BLOCKS.vocab_size], expected_logits)
    assert (np.asarray(logits[..., BLOCKS.vocab_size :]) < -1e29).all()
    plain = layout.to_plain({"params": gradient} | dict(stats), config)
    jax.tree.map(assert_close, plain["batch_stats"], expected_stats["batch_stats"])
    # The gradient of the stem's bias is 0 where no ReLU is active, since the following batch norms
    # remove shifts. Cancelling sums have the rounding error of their terms, which are as large as
    # the largest gradient; 4 units in the last place of it are allowed.
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected_gradient))
    rounding = 4 * np.finfo(np.float32).eps * largest
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, rtol=0, atol=max(5e-5 * np.abs(b).max(), rounding)
        ),
        plain["params"],
        expected_gradient,
    )
    padding_rows = gradient["token_embedding"]["embedding"][BLOCKS.vocab_size :]
    assert not np.asarray(padding_rows).any()


def test_init_has_the_layout_and_names_the_axis_of_stacked_layers():
    config = BLOCKS.replace(
        dropout_rate=0.1, encoder_drop_path_rate=0.2, scan_layers=True, vocab_multiple=64
    )
    boxed = jax.eval_shape(OFA(config).init, jax.random.key(0), BATCH)
    kernel = boxed["params"]["encoder"]["layers"]["feed_forward"]["expand"]["kernel"]
    assert kernel.names == ("layers", "embed", "mlp") and kernel.value.shape == (2, 16, 32)
    plain = nn.meta.unbox(jax.eval_shape(OFA(BLOCKS).init, jax.random.key(0), BATCH))
    assert nn.meta.unbox(boxed) == layout.convert_shapes(plain, BLOCKS, config)


def test_dropout_in_a_scan_is_determined_by_its_key(plain_variables):
    config = BLOCKS.replace(scan_layers=True, dropout_rate=0.3, encoder_drop_path_rate=0.5)
    variables = layout.from_plain(plain_variables, config)
    apply = jax.jit(
        lambda key: OFA(config).apply(
            variables, TEXT, train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )[0]
    )
    once, again, other = (
        apply(jax.random.key(0)),
        apply(jax.random.key(0)),
        apply(jax.random.key(1)),
    )
    np.testing.assert_array_equal(once, again)
    assert np.abs(once - other).max() > 1e-2


def test_official_checkpoints_convert_to_every_layout(plain_variables):
    official = to_fairseq(plain_variables, BLOCKS)
    config = BLOCKS.replace(scan_layers=True, vocab_multiple=64)
    variables = from_fairseq(official, config)
    assert variables["params"]["token_embedding"]["embedding"].shape == (64, 16)
    assert variables["params"]["decoder"]["layers"]["self_attention"]["query"]["kernel"].shape == (
        2,
        16,
        2,
        8,
    )
    back = to_fairseq(variables, config)
    assert back.keys() == official.keys()
    for name, array in official.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)


def test_converting_layouts_back_and_forth_changes_nothing(plain_variables):
    one = BLOCKS.replace(scan_layers=True, vocab_multiple=7)
    other = BLOCKS.replace(vocab_multiple=128)
    first = layout.from_plain(plain_variables, one)
    second = layout.convert(first, one, other)
    jax.tree.map(np.testing.assert_array_equal, layout.convert(second, other, one), first)
    assert not layout.same_layout(one, other)
    assert layout.same_layout(BLOCKS, BLOCKS.replace(remat="full", vocab_multiple=4))


def test_vocab_multiple_pads_the_published_vocabulary():
    assert OFAConfig.base(vocab_multiple=128).padded_vocab_size == 59520
    with pytest.raises(ValueError, match="none, full, dots, weight_dots"):
        OFAConfig(remat="everything")
