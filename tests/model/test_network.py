"""Properties of the model that hold for any weights.

Float32 sums in different orders differ by rounding; logits here are of order 1 to 10, so 1e-5 is at
least ten units in the last place. Results that must differ do so by a thousand times that.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import SMALL, random_batch

from ofa_jax.model import OFA
from ofa_jax.model.pack_streams import pack_streams, unpack_streams

SAME = dict(rtol=1e-5, atol=1e-5)
DIFFERENT = 1e-2


def without(batch, *names):
    return {name: array for name, array in batch.items() if name not in names}


def test_masked_images_equal_no_images(small):
    apply, variables = small
    batch = random_batch()
    masked = apply(variables, batch | {"encoder_image_mask": np.zeros(3, bool)})
    np.testing.assert_allclose(masked, apply(variables, without(batch, "encoder_images")), **SAME)
    assert np.abs(masked - apply(variables, batch)).max() > DIFFERENT


def test_image_mask_applies_per_example(small):
    apply, variables = small
    batch = random_batch()
    mixed = apply(variables, batch | {"encoder_image_mask": np.array([True, False, True])})
    np.testing.assert_allclose(mixed[::2], apply(variables, batch)[::2], **SAME)
    np.testing.assert_allclose(
        mixed[1], apply(variables, without(batch, "encoder_images"))[1], **SAME
    )


def test_code_rows_and_text_rows_are_independent(small):
    apply, variables = small
    batch = random_batch()
    mixed = apply(variables, batch)
    code = apply(variables, batch | {"decoder_code_mask": np.ones(3, bool)})
    text = apply(variables, without(batch, "decoder_code_mask"))
    np.testing.assert_allclose(mixed[::2], code[::2], **SAME)
    np.testing.assert_allclose(mixed[1], text[1], **SAME)
    assert np.abs(code - text).max() > DIFFERENT


def test_sampling_all_patches_in_any_order_equals_no_sampling(small):
    apply, variables = small
    batch = random_batch()
    whole = apply(variables, batch)
    rng = np.random.default_rng(0)
    orders = np.stack([rng.permutation(9) for _ in range(3)]).astype(np.int32)
    np.testing.assert_allclose(
        apply(variables, batch | {"encoder_patch_indices": orders}), whole, **SAME
    )
    some = apply(variables, batch | {"encoder_patch_indices": orders[:, :4]})
    assert np.abs(some - whole).max() > DIFFERENT


@pytest.mark.parametrize(
    "options",
    [
        {"entangle_encoder_positions": True, "entangle_decoder_positions": True},
        {"interpolate_positions": True, "interpolation_image_size": 32},
        {"scale_embedding": True, "activation": "relu"},
    ],
)
def test_options_change_the_result_and_keep_sampling_consistent(small, options):
    """Positions are interpolated from a 2x2 grid here, so that the 9 patches use interpolation."""
    plain, variables = small
    apply = jax.jit(OFA(SMALL.replace(**options)).apply)
    batch = random_batch()
    whole = apply(variables, batch)
    assert np.abs(whole - plain(variables, batch)).max() > DIFFERENT
    orders = np.stack([np.roll(np.arange(9), k) for k in range(3)]).astype(np.int32)
    np.testing.assert_allclose(
        apply(variables, batch | {"encoder_patch_indices": orders}), whole, **SAME
    )


def test_uint8_pixels_are_scaled_to_minus_one_to_one(small):
    apply, variables = small
    batch = random_batch()
    floats = batch["encoder_images"].astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(
        apply(variables, batch), apply(variables, batch | {"encoder_images": floats}), **SAME
    )


def test_blank_boxes_are_zero_after_scaling(small):
    apply, variables = small
    batch = random_batch()
    boxes = np.array([[8, 16, 24, 40], [0, 0, 0, 0], [0, 0, 48, 48]], np.int32)
    floats = batch["encoder_images"].astype(np.float32) / 127.5 - 1
    floats[0, 8:24, 16:40] = 0
    floats[2] = 0
    np.testing.assert_allclose(
        apply(variables, batch | {"encoder_image_blank_boxes": boxes}),
        apply(variables, batch | {"encoder_images": floats}),
        **SAME,
    )


def test_padding_the_instruction_changes_nothing(small):
    apply, variables = small
    batch = random_batch()
    padded = np.pad(batch["encoder_input_tokens"], ((0, 0), (0, 3)), constant_values=SMALL.pad_id)
    np.testing.assert_allclose(
        apply(variables, batch | {"encoder_input_tokens": padded}), apply(variables, batch), **SAME
    )


def test_decoder_is_causal(small):
    apply, variables = small
    batch = random_batch()
    changed = batch["decoder_input_tokens"].copy()
    changed[:, 4:] = 4 + (changed[:, 4:] - 3) % 56
    before = apply(variables, batch)
    after = apply(variables, batch | {"decoder_input_tokens": changed})
    np.testing.assert_allclose(after[:, :4], before[:, :4], **SAME)
    assert (np.abs(after[:, 4:] - before[:, 4:]).max(axis=(1, 2)) > DIFFERENT).all()


def test_empty_examples_give_finite_gradients(small):
    """An invalid record becomes an example of padding without an image."""
    apply, variables = small
    batch = random_batch() | {"encoder_image_mask": np.array([True, False, True])}
    for name in ("encoder_input_tokens", "decoder_input_tokens"):
        batch[name][1] = SMALL.pad_id

    def loss(params):
        logits = apply({**variables, "params": params}, batch)
        return jnp.square(logits).mean()

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_select_repeats_and_reorders_encoded_examples(small):
    apply, variables = small
    encode = jax.jit(functools.partial(OFA(SMALL).apply, method="encode"))
    decode = jax.jit(functools.partial(OFA(SMALL).apply, method="decode"))
    orders = np.stack([np.roll(np.arange(9), k)[:5] for k in range(3)]).astype(np.int32)
    for extra in ({}, {"encoder_patch_indices": orders}):
        batch = random_batch() | extra
        rows = np.array([2, 2, 0])
        encoded = encode(variables, batch).select(rows)
        logits = decode(
            variables,
            encoded,
            batch["decoder_input_tokens"][rows],
            batch["decoder_code_mask"][rows],
        )
        np.testing.assert_allclose(logits, apply(variables, batch)[rows], **SAME)


def test_several_targets_per_example_score_as_each_alone(small):
    apply, variables = small
    orders = np.stack([np.roll(np.arange(9), k)[:5] for k in range(3)]).astype(np.int32)
    for extra in ({}, {"encoder_patch_indices": orders}):
        batch = random_batch() | extra
        targets = np.stack([np.roll(batch["decoder_input_tokens"], k, axis=1) for k in range(2)], 1)
        logits = apply(variables, batch | {"decoder_input_tokens": targets})
        for k in range(2):
            alone = apply(variables, batch | {"decoder_input_tokens": targets[:, k]})
            np.testing.assert_allclose(logits[:, k], alone, **SAME)


def test_score_streams_equals_scoring_each_stream_alone(small):
    _, variables = small
    text = random_batch(1, size=6, source=5, pixels=0, codes=False)
    multiple = random_batch(2, size=3, target=4)
    multiple["decoder_input_tokens"] = np.stack([multiple["decoder_input_tokens"]] * 2, axis=1)
    streams = {"pairs": random_batch(0, size=4), "text": text, "several targets": multiple}
    model = OFA(SMALL)
    # jit would sort the names of its arguments, but streams are scored in their own order.
    together = jax.jit(lambda variables: model.apply(variables, streams, method="score_streams"))(
        variables
    )
    shapes = [batch["decoder_input_tokens"].shape for batch in streams.values()]
    for (name, batch), logits in zip(
        streams.items(), unpack_streams(together, shapes), strict=True
    ):
        np.testing.assert_allclose(
            logits, jax.jit(model.apply)(variables, batch), err_msg=name, **SAME
        )


def test_score_streams_uses_the_embedding_once_and_separate_dropout():
    model, batch = OFA(SMALL.replace(dropout_rate=0.3)), random_batch(pixels=0, codes=False)
    variables = {"params": jax.jit(model.init)(jax.random.key(0), batch)["params"]}
    score = functools.partial(
        model.apply, train=True, rngs={"dropout": jax.random.key(1)}, method="score_streams"
    )
    batches = {"one": batch, "other": batch}
    one, other = unpack_streams(
        jax.jit(score)(variables, batches), [batch["decoder_input_tokens"].shape] * 2
    )
    assert np.abs(one - other).max() > DIFFERENT

    program = (
        jax.jit(jax.grad(lambda variables: score(variables, batches).sum()))
        .lower(nn.meta.unbox(variables))
        .as_text()
    )
    table = f"-> tensor<{SMALL.vocab_size}x{SMALL.width}xf32>"
    lines = [line.strip() for line in program.splitlines() if line.endswith(table)]
    # These are the gradients of the look-up and of the logits.
    assert sum(line.startswith("}) :") for line in lines) == 1
    assert sum("dot_general" in line for line in lines) == 1


def test_unpack_streams_inverts_pack_streams():
    shapes = [(6, 4), (2, 3), (4, 2, 5)]
    parts = [np.arange(np.prod(shape) * 3).reshape(*shape, 3) for shape in shapes]
    packed = pack_streams([jnp.asarray(part) for part in parts], shapes)
    assert packed.shape == (2, 12 + 3 + 20, 3)
    # The first half of the rows is the first half of every batch.
    np.testing.assert_array_equal(packed[0, :12].reshape(3, 4, 3), parts[0][:3])
    for unpacked, part in zip(unpack_streams(packed, shapes), parts, strict=True):
        np.testing.assert_array_equal(unpacked, part)


def test_boxed_and_plain_variables_give_the_same_logits():
    model = OFA(SMALL)
    boxed = jax.jit(model.init)(jax.random.key(0), random_batch())
    apply = jax.jit(model.apply)
    np.testing.assert_array_equal(
        apply(boxed, random_batch()), apply(nn.meta.unbox(boxed), random_batch())
    )


def test_init_creates_every_parameter_for_any_batch():
    model = OFA(SMALL)
    shapes = [
        jax.eval_shape(model.init, jax.random.key(0), batch)
        for batch in (random_batch(), random_batch(pixels=0, codes=False))
    ]
    assert jax.tree.structure(shapes[0]) == jax.tree.structure(shapes[1])
    assert jax.tree.leaves(shapes[0]) == jax.tree.leaves(shapes[1])


def test_text_batches_do_not_run_the_resnet():
    model = OFA(SMALL)
    batch = random_batch(pixels=0, codes=False)
    variables = jax.eval_shape(model.init, jax.random.key(0), batch)
    program = str(jax.make_jaxpr(model.apply)(nn.meta.unbox(variables), batch))
    assert "conv_general_dilated" not in program
    with_image = str(jax.make_jaxpr(model.apply)(nn.meta.unbox(variables), random_batch()))
    assert "conv_general_dilated" in with_image


def test_every_parameter_has_documented_logical_axes():
    import ofa_jax.model

    model = OFA(SMALL.replace(scale_resids=True))
    variables = jax.eval_shape(model.init, jax.random.key(0), random_batch())
    names = set()
    for leaf in jax.tree.leaves(
        variables["params"], is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
    ):
        assert isinstance(leaf, nn.LogicallyPartitioned)
        assert len(leaf.names) == leaf.value.ndim and None not in leaf.names
        names |= set(leaf.names)
    documented = (
        ofa_jax.model.__doc__.split("Logical axes of parameters:")[1]
        .split("Logical axes of activations:")[0]
        .replace(",", " ")
        .split()
    )
    assert names <= set(documented)
    assert {"vocab", "embed", "mlp", "heads", "kv", "conv_in", "conv_out", "relpos"} <= names


def test_dropout_and_stochastic_depth_are_off_at_inference(small):
    _, variables = small
    model = OFA(
        SMALL.replace(
            dropout_rate=0.1,
            attention_dropout_rate=0.1,
            activation_dropout_rate=0.1,
            encoder_drop_path_rate=0.5,
            decoder_drop_path_rate=0.5,
            resnet_drop_path_rate=0.5,
            freeze_batch_norm=True,
        )
    )
    batch = random_batch()
    deterministic = small[0](variables, batch)
    np.testing.assert_array_equal(jax.jit(model.apply)(variables, batch), deterministic)

    @jax.jit
    def trained(key):
        return model.apply(variables, batch, train=True, rngs={"dropout": key})

    first, again, other = (trained(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - deterministic).max() > DIFFERENT
    assert np.abs(first - other).max() > DIFFERENT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_input_tokens": np.full((3, 7), 60, np.int32)}, "vocab_size"),
        ({"decoder_input_tokens": np.full((3, 7), -1, np.int32)}, "vocab_size"),
        ({"encoder_input_tokens": np.zeros((3, 41), np.int32)}, "40 positions"),
        ({"decoder_input_tokens": np.zeros((3, 41), np.int32)}, "40 positions"),
        ({"encoder_input_tokens": np.zeros((3, 7), np.float32)}, "integer token ids"),
        ({"encoder_images": np.zeros((2, 48, 48, 3), np.uint8)}, "encoder_images"),
        ({"encoder_images": np.zeros((3, 3, 48, 48), np.uint8)}, "encoder_images"),
        ({"encoder_images": np.zeros((3, 48, 48, 3), np.int32)}, "uint8"),
        ({"encoder_images": np.zeros((3, 112, 48, 3), np.uint8)}, "image_bucket_size"),
        ({"encoder_image_mask": np.ones((3, 9), bool)}, "encoder_image_mask"),
        ({"encoder_image_blank_boxes": np.ones((4,), np.int32)}, "encoder_image_blank_boxes"),
        ({"encoder_patch_indices": np.zeros((3, 10), np.int32)}, "9 patches"),
        ({"encoder_patch_indices": np.full((3, 4), 9, np.int32)}, "patches 0 to 8"),
    ],
)
def test_invalid_batches_raise_clear_errors(small, change, message):
    """Ids are checked outside jit, where their values are known; shapes also under jit."""
    _, variables = small
    with pytest.raises(ValueError, match=message):
        OFA(SMALL).apply(variables, random_batch() | change)


def test_image_inputs_without_images_raise(small):
    apply, variables = small
    batch = random_batch(pixels=0) | {"encoder_image_mask": np.ones(3, bool)}
    with pytest.raises(ValueError, match="encoder_image_mask but no encoder_images"):
        apply(variables, batch)
