"""Training of a VQGAN: gradients, quantisers, discriminator, revival, resuming, export."""

import dataclasses
import io
import json

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from small_tokenizer import (
    SIZE,
    TINY,
    FewImages,
    flat_images,
    make_program,
    make_tokenizer_run,
)

from ofa_jax.checkpoints.manager import Checkpoints
from ofa_jax.interop import image_tokenizer_file, vqgan_file
from ofa_jax.model import OFAConfig
from ofa_jax.model.resnet import ResNet
from ofa_jax.sharding import Partitioner
from ofa_jax.tokenizers import PatchCodebook
from ofa_jax.tokenizers.vqgan import VQGAN, Network, VQGANConfig
from ofa_jax.training import loop
from ofa_jax.training.image_tokenizer import discriminator, quantizers
from ofa_jax.training.image_tokenizer.batches import ImageBatches, ImageLoader, evaluation_images
from ofa_jax.training.image_tokenizer.build import export
from ofa_jax.training.image_tokenizer.config import ImageTokenizerLoss, QuantizerConfig
from ofa_jax.training.image_tokenizer.evaluation import evaluate_tokenizer
from ofa_jax.training.image_tokenizer.features import FeatureDistance
from ofa_jax.training.image_tokenizer.step import to_pixels
from ofa_jax.training.optimizer import OptimizerConfig

TABLE = jnp.asarray([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
WITH_DISCRIMINATOR = dict(size=8, perceptual=0.0, discriminator_layers=1, discriminator_width=8)


def start(program, features=None):
    """Returns the state of step 0 and the jitted step."""
    features = features or {}
    state = program.new_state(features, program.abstract_state(features, Partitioner()))
    return state, jax.jit(program.make_train_step())


def batch(images):
    return {"images": {"encoder_images": images}}


# ---------------------------------------------------------------------------------- quantisers


def test_nearest_codes_pass_gradients_straight_through():
    """Two latents near the codes 1 and 2: values and gradients as computed by hand."""
    latents = jnp.asarray([[[[0.75, 0.25], [0.0, 1.5]]]])
    config = QuantizerConfig("nearest", commitment=0.5)
    found = quantizers.nearest(latents, TABLE, config)
    np.testing.assert_array_equal(found.codes, [[[1, 2]]])
    np.testing.assert_allclose(found.vectors, [[[[1, 0], [0, 2]]]], atol=1e-6)
    # Differences (0.25, -0.25) and (0, 0.5): squares 0.0625, 0.0625, 0, 0.25 over 4 numbers.
    assert found.loss == pytest.approx((1 + 0.5) * 0.375 / 4)
    weights = jnp.asarray([[[[1.0, 2.0], [3.0, 4.0]]]])

    def loss_of(latents, table):
        found = quantizers.nearest(latents, table, config)
        return (found.vectors * weights).sum(), found.loss

    through, _ = jax.jacrev(loss_of, (0, 1))(latents, TABLE)
    np.testing.assert_allclose(through[0], weights)
    np.testing.assert_array_equal(through[1], np.zeros_like(TABLE))
    _, own = jax.jacrev(loss_of, (0, 1))(latents, TABLE)
    # d/de (e - z)^2 / 4 = (e - z) / 2, and the commitment draws z by half as much to e.
    np.testing.assert_allclose(own[1], [[0, 0], [0.125, -0.125], [0, 0.25]], atol=1e-6)
    np.testing.assert_allclose(own[0], [[[[-0.0625, 0.0625], [0, -0.125]]]], atol=1e-6)


def test_gumbel_codes_are_vectors_of_the_table_with_the_soft_gradient():
    scores = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 3, 3)), jnp.float32)
    key, tau = jax.random.key(1), jnp.float32(0.7)
    hard, soft = (
        QuantizerConfig("gumbel", straight_through=through, kl_weight=2.0)
        for through in (True, False)
    )
    found = quantizers.gumbel(scores, TABLE, key, tau, hard)
    np.testing.assert_allclose(found.vectors, TABLE[found.codes], atol=1e-5)
    noisy = (scores + jax.random.gumbel(key, scores.shape)) / tau
    np.testing.assert_array_equal(found.codes, noisy.argmax(-1))
    shares = np.asarray(jax.nn.softmax(scores))
    expected = 2 * (shares * np.log(3 * shares)).sum(-1).mean()
    assert found.loss == pytest.approx(expected, rel=1e-4)

    def gradient(config):
        return jax.grad(lambda x: quantizers.gumbel(x, TABLE, key, tau, config).vectors.sum())

    np.testing.assert_allclose(gradient(hard)(scores), gradient(soft)(scores), atol=1e-6)
    mixed = jnp.einsum("bhwn,nd->bhwd", jax.nn.softmax(noisy), TABLE)
    soft_vectors = quantizers.gumbel(scores, TABLE, key, tau, soft).vectors
    np.testing.assert_allclose(soft_vectors, mixed, atol=1e-5)


def test_the_temperature_falls_exponentially():
    config = QuantizerConfig(temperature=2.0, end_temperature=0.5, anneal_steps=10)
    values = [float(quantizers.temperature(config, jnp.int32(step))) for step in (0, 5, 10, 99)]
    np.testing.assert_allclose(values, [2.0, 1.0, 0.5, 0.5], rtol=1e-5)


@pytest.mark.parametrize("kind", ["nearest", "gumbel"])
def test_unused_codes_are_replaced_and_used_ones_stay(kind):
    config = QuantizerConfig(kind, revive_period=10, revive_below=0.5, use_decay=0.5)
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.normal(size=(4, 2)), jnp.float32)
    network = {"quantize": {"embed": {"embedding": table}}}
    network["quantize"]["proj"] = {
        "kernel": jnp.asarray(rng.normal(size=(1, 1, 2, 4)), jnp.float32),
        "bias": jnp.asarray([0.0, 1.0, 2.0, 3.0]),
    }
    network = quantizers.with_tied_scores(network, config)
    codes = jnp.asarray([[[0, 1], [1, 0]]])
    use = quantizers.updated_use(jnp.asarray([0.0, 0.0, 1.0, 0.1]), codes, config)
    np.testing.assert_allclose(use, [0.25, 0.25, 0.5, 0.05])
    dead = quantizers.unused(use, jnp.int32(20), config)
    np.testing.assert_array_equal(dead, [False, False, False, True])
    assert not quantizers.unused(use, jnp.int32(21), config).any()
    latents = jnp.asarray(rng.normal(size=(1, 2, 2, 2)), jnp.float32)
    new = quantizers.revive(network, dead, latents, codes, jax.random.key(0), config)
    found, old = (x["quantize"]["embed"]["embedding"] for x in (new, network))
    np.testing.assert_array_equal(found[:3], old[:3])
    if kind == "nearest":
        assert (found[3] == latents.reshape(-1, 2)).all(-1).any()
        scores = latents.reshape(-1, 2) @ new["quantize"]["proj"]["kernel"][0, 0]
        scores += new["quantize"]["proj"]["bias"]
        distances = np.square(latents.reshape(-1, 1, 2) - found).sum(-1)
        np.testing.assert_array_equal(scores.argmax(-1), distances.argmin(-1))
    else:
        assert (found[3] == old[:2]).all(-1).any()
        assert new["quantize"]["proj"]["bias"][3] in (0.0, 1.0)
        before, after = (x["quantize"]["proj"]["kernel"][0, 0] for x in (network, new))
        np.testing.assert_array_equal(after[:, :3], before[:, :3])
        assert np.abs(after[:, 3, None] - before[:, :2]).max(0).min() < 0.1


# ------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("kind", ["nearest", pytest.param("gumbel", marks=pytest.mark.slow)])
def test_a_few_images_are_learned(kind):
    """Plain colours of 16 places: far nearer to the images than their mean is."""
    images = flat_images(2, 8)
    squares = {"absolute": 0.0, "squared": 1.0, "perceptual": 0.0}
    program = make_program(
        kind,
        size=8,
        ema_decay=0.5,
        learning_rate=1e-2,
        temperature=0.5,
        revive_period=10,
        **squares,
    )
    state, step = start(program)
    first = state.params["network"]
    for number in range(60):
        state, metrics = step(state, batch(images))
        if kind == "nearest" and not number:
            # All codes were unused at first: they become latent vectors of the batch.
            table, old = (
                x["quantize"]["embed"]["embedding"] for x in (state.params["network"], first)
            )
            moved = np.abs(table - old).max(-1) > 0.02
            assert moved.sum() >= TINY.num_codes - 4 and state.batch_stats["code_use"].sum() > 0.5
    assert state.skipped_steps == 0 and np.isfinite(metrics.loss)
    vqgan = VQGAN(TINY, jax.tree.map(np.asarray, state.eval_variables["params"]["network"]))
    found = evaluate_tokenizer(vqgan, [images.repeat(2, 1).repeat(2, 2)])
    assert set(found) == {"loss", "psnr", "ssim", "feature_distance", "codes_used", "perplexity"}
    error = np.square(vqgan.decode(vqgan.encode(images)) / 255.0 - images / 255.0).mean()
    assert error < 0.25 * (images / 255.0).var()
    flat = flax.traverse_util.flatten_dict(
        jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), first, state.params["network"])
    )
    assert min(flat.values()) > 0, "every parameter moves: gradients flow through the codes"


def test_the_discriminator_starts_at_its_step():
    program = make_program(discriminator_start=2, **WITH_DISCRIMINATOR)
    state, step = start(program)
    before = jax.tree.map(np.asarray, state.params["discriminator"])
    seen = []
    for _ in range(3):
        state, metrics = step(state, batch(flat_images(2, 8)))
        tokens = dict(zip(range(5), np.asarray(metrics.tasks.tokens), strict=True))
        same = jax.tree.map(
            lambda a, b: bool((a == b).all()), before, state.params["discriminator"]
        )
        seen.append((tokens[3] > 0, tokens[4] > 0, all(jax.tree.leaves(same))))
        np.testing.assert_allclose(sum(tokens.values()), 2 * 16, rtol=1e-6)
    assert seen == [(False, False, True), (False, False, True), (True, True, False)]


def test_losses_of_the_discriminator_are_hinges():
    true, made = jnp.asarray([2.0, 0.5]), jnp.asarray([-3.0, 1.0])
    # (0 + 0.5) / 2 and (0 + 2) / 2, halved.
    assert discriminator.discriminator_loss(true, made) == pytest.approx(0.625)
    assert discriminator.generator_loss(made) == pytest.approx(1.0)
    assert discriminator.adaptive_weight(jnp.ones(4), 4 * jnp.ones(4)) == pytest.approx(
        2 / (8 + 1e-4)
    )


@pytest.mark.parametrize("layers", [1, 2])
def test_the_smallest_image_has_one_score(layers):
    side = discriminator.smallest_image(layers)
    network = discriminator.Discriminator(layers, 4)
    shape = jax.eval_shape(
        network.init_with_output, jax.random.key(0), jnp.zeros((1, side, side, 3))
    )
    assert shape[0].shape == (1, 1, 1)


def test_the_adversarial_gradient_is_that_of_the_formula():
    """The gradients at the last layer, by differentiating the whole network."""
    program = make_program(discriminator_start=0, adversarial=0.5, **WITH_DISCRIMINATOR)
    state, _ = start(program)
    pixels = to_pixels(flat_images(2, 8))
    key = jax.random.key(0)

    @jax.jit
    def both(state):
        made, _, inner = program.forward(state.params["network"], pixels, key, state.step)
        gradient = jax.grad(lambda x: program.compare(x, pixels, {})[0])(made)
        own = program.adversarial(state, made, inner["last"], gradient)[1]

        def of_kernel(kernel, loss_of):
            decoder = state.params["network"]["decoder"]
            decoder = {**decoder, "conv_out": {**decoder["conv_out"], "kernel": kernel}}
            network = {**state.params["network"], "decoder": decoder}
            return loss_of(program.forward(network, pixels, key, state.step)[0])

        def against(images):
            params = {"params": state.params["discriminator"]}
            return discriminator.generator_loss(program.discriminator.apply(params, images))

        kernel = state.params["network"]["decoder"]["conv_out"]["kernel"]
        losses = (lambda x: program.compare(x, pixels, {})[0], against)
        norms = [jnp.linalg.norm(jax.grad(of_kernel)(kernel, one)) for one in losses]
        return own, jax.grad(against)(made), norms

    own, plain, (reconstruction, adversarial) = both(state)
    weight = 0.5 * reconstruction / (adversarial + 1e-4)
    np.testing.assert_allclose(own, weight * plain, rtol=1e-3, atol=1e-9)


def test_a_step_that_is_not_finite_changes_nothing():
    program = make_program(size=8, perceptual=0.0, learning_rate=1e30, clip_norm=None)
    state, step = start(program)
    images = flat_images(2, 8)
    for _ in range(3):
        before, (state, _) = state, step(state, batch(images))
    assert state.step == 3 and state.skipped_steps >= 1
    jax.tree.map(np.testing.assert_array_equal, before.params, state.params)


# ------------------------------------------------------------------------------------- features


@pytest.fixture(scope="module")
def resnet():
    """Returns a small ResNet: (configuration, variables)."""
    config = OFAConfig.scenes(resnet_width=4)
    import flax.linen as nn

    variables = nn.meta.unbox(
        jax.jit(lambda key: ResNet(config).init(key, jnp.zeros((1, 16, 16, 3)), False))(
            jax.random.key(0)
        )
    )
    return config, variables


def test_the_distance_of_features_is_that_of_unit_vectors(resnet):
    config, variables = resnet
    distance = FeatureDistance(config)
    rng = np.random.default_rng(0)
    one, other = (jnp.asarray(rng.uniform(-1, 1, (2, 16, 16, 3)), jnp.float32) for _ in "ab")
    features, pairs = (
        jax.jit(distance.features)(variables, one),
        jax.jit(distance)(variables, one, other),
    )
    assert [x.shape[1:] for x in features] == [(8, 8, 4), (4, 4, 16), (2, 2, 32), (1, 1, 64)]
    # The last stage is what the model computes of the image.
    np.testing.assert_allclose(
        features[-1],
        jax.jit(lambda v, x: ResNet(config).apply(v, x, False))(variables, one),
        rtol=1e-4,
    )
    expected = np.zeros(2)
    for x, y in zip(features, jax.jit(distance.features)(variables, other), strict=True):
        x, y = (
            np.asarray(v) / np.sqrt(np.square(v).sum(-1, keepdims=True) + 1e-10) for v in (x, y)
        )
        expected += np.square(x - y).sum(-1).mean((1, 2))
    np.testing.assert_allclose(pairs, expected, rtol=1e-3)
    assert float(jax.jit(distance)(variables, one, one).max()) == 0.0
    gradient = jax.jit(jax.grad(lambda x: distance(variables, x, other).sum()))(one)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


# ------------------------------------------------------------------------------ runs of the loop


def final_state(run):
    manager = Checkpoints(run.model_dir)
    state, _ = manager.restore(run.config.total_steps, run.abstract_state)
    manager.close()
    return state


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns a run of four steps without a stop, with its results."""
    rng = np.random.default_rng(0)
    baseline = PatchCodebook(rng.integers(0, 256, (8, 192)).astype(np.float32))
    run = make_tokenizer_run(tmp_path_factory.mktemp("whole"), baseline=baseline)
    return run, loop.train(run)


def test_resuming_gives_the_same_state_as_not_stopping(whole, tmp_path):
    run, _ = whole
    loop.train(make_tokenizer_run(tmp_path, total_steps=2, validation_split=None))
    resumed = make_tokenizer_run(tmp_path, validation_split=None)
    loop.train(resumed)
    assert "Resuming from step 2 of 4" in resumed.console.file.getvalue()
    jax.tree.map(np.testing.assert_array_equal, final_state(run), final_state(resumed))


def test_results_are_those_of_the_exported_tokenizer(whole):
    run, results = whole
    assert json.loads((run.model_dir / "validation.json").read_text()) == results
    assert set(results) == {"vqgan", "baseline"}
    assert list(results["vqgan"]) == ["loss", "psnr", "ssim", "codes_used", "perplexity"]
    assert run.writer.scalars[4]["validation/psnr/vqgan"] == results["vqgan"]["psnr"]
    assert {"train/loss/reconstruction", "train/loss/quantizer"} <= set(run.writer.scalars[3])
    assert "train/loss/adversarial" not in run.writer.scalars[3]
    shown = run.writer.images[4]["validation/reconstructions"]
    assert shown.shape == (1, 3 * SIZE, 4 * SIZE, 3)
    assert (run.model_dir / "reconstructions" / "4.png").is_file()
    own, official = export(run, TINY)
    vqgan = image_tokenizer_file.read(run.model_dir)
    images = flat_images()
    found = evaluate_tokenizer(vqgan, [images])
    assert {name: found[name] for name in results["vqgan"]} == results["vqgan"]
    averaged = final_state(run).ema_params["network"]
    for tokenizer in (vqgan, vqgan_file.read(official), image_tokenizer_file.read(own)):
        assert tokenizer.config == TINY
        jax.tree.map(np.testing.assert_array_equal, dict(tokenizer.params), averaged)


def test_a_complete_run_is_not_run_again(whole):
    run, results = whole
    again = make_tokenizer_run(run.model_dir)
    assert loop.train(again) == results
    assert "already complete" in again.console.file.getvalue() and not again.writer.scalars
    assert "perplexity" in again.console.file.getvalue()


def test_a_run_of_other_sizes_is_not_continued(whole):
    run, _ = whole
    other = make_tokenizer_run(run.model_dir, model=dataclasses.replace(TINY, num_codes=8))
    with pytest.raises(loop.RunError, match="was started with vqgan"):
        loop.train(other)


def test_a_new_run_starts_from_a_tokenizer(whole, tmp_path):
    run, _ = whole
    export(run, TINY)
    begun = make_tokenizer_run(tmp_path, initial_image_tokenizer_path=str(run.model_dir))
    params = begun.new_state().params["network"]
    jax.tree.map(np.testing.assert_array_equal, params, final_state(run).ema_params["network"])
    with pytest.raises(ValueError, match="initial_image_tokenizer_path .* give the run the same"):
        make_tokenizer_run(
            tmp_path,
            initial_image_tokenizer_path=str(run.model_dir),
            model=dataclasses.replace(TINY, num_codes=8),
        )


def test_the_official_file_is_written_bit_for_bit(vqgan, vqgan_state, tmp_path):
    vqgan_file.write(tmp_path / "again.ckpt", vqgan)
    again = vqgan_file.read(tmp_path / "again.ckpt")
    assert again.config == vqgan.config
    jax.tree.map(np.testing.assert_array_equal, dict(again.params), dict(vqgan.params))
    arrays = vqgan_file.to_state_dict(vqgan)
    assert set(arrays) == set(vqgan_state)
    for name, array in arrays.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, vqgan_state[name], err_msg=name)


def test_the_training_pass_equals_the_official_encoder_and_decoder(vqgan, golden):
    """Codes of the golden images, drawn without noise, are decoded to the golden images."""
    program = make_program("nearest", config=vqgan.config, size=16)
    with np.load(golden / "vqgan" / "golden.npz") as numbers:
        pixels = np.moveaxis(numbers["sq_image"], 1, -1)
        latents = np.moveaxis(numbers["sq_prequant"], 1, -1)
    forward = jax.jit(lambda p, x: program.forward(p, x, jax.random.key(0), jnp.int32(0)))
    made, quantized, inner = forward(vqgan.params, pixels)
    np.testing.assert_allclose(inner["latents"], latents, rtol=0, atol=1e-5 * np.abs(latents).max())
    decode = jax.jit(
        lambda p, c: Network(vqgan.config).apply({"params": p}, c, method="reconstruct")
    )
    np.testing.assert_allclose(made, decode(vqgan.params, quantized.codes), rtol=0, atol=1e-3)
    distances = np.square(
        latents[..., None, :] - vqgan.params["quantize"]["embed"]["embedding"]
    ).sum(-1)
    np.testing.assert_array_equal(quantized.codes, distances.argmin(-1))


# ---------------------------------------------------------------------------------------- images


def test_batches_follow_from_seed_and_step_alone():
    source = ImageBatches(FewImages(), 2, SIZE, crop_size=8)

    def images(seed, first, count):
        batches = ImageLoader(source, "train", seed, num_threads=1).batches(first)
        return [next(batches)["images"]["encoder_images"] for _ in range(count)]

    all_of_them = images(3, 0, 4)
    assert all_of_them[0].shape == (2, 8, 8, 3) and all_of_them[0].dtype == np.uint8
    np.testing.assert_array_equal(images(3, 2, 2), all_of_them[2:])
    assert not np.array_equal(images(4, 0, 4), all_of_them)


def test_images_are_cropped_from_several_sizes():
    """A pixel of colour in each corner: a crop of the smallest size shows all of the image."""
    corners = np.zeros((16, 16, 3), np.uint8)
    corners[::15, ::15] = 255
    encoded = io.BytesIO()
    Image.fromarray(corners).save(encoded, "PNG")
    prepare = ImageBatches(FewImages(), 2, 16, crop_size=8, smallest_size=8).preprocessor
    rng, bright = np.random.default_rng(0), []
    for _ in range(60):
        (image,) = prepare({"image": encoded.getvalue()}, rng).values()
        assert image.shape == (8, 8, 3)
        bright.append(sum(bool(image[y, x].any()) for y in (0, 7) for x in (0, 7)))
    assert max(bright) == 4 and min(bright) == 0
    whole = ImageBatches(FewImages(), 2, 16, crop_size=8).preprocessor
    assert max(whole({"image": encoded.getvalue()}, rng)["encoder_images"].any(2).sum() for _ in
               range(20)) <= 1  # fmt: skip


def test_an_image_that_cannot_be_used_is_replaced_and_counted():
    loader = ImageLoader(
        ImageBatches(FewImages(), 4, SIZE, flip=False), "damaged", 0, num_threads=1
    )
    array = next(loader.batches())["images"]["encoder_images"]
    good = flat_images()[:3]
    assert all((image == good).all((1, 2, 3)).any() for image in array)
    assert loader.skipped_records.total() >= 1
    (found,) = evaluation_images(ImageBatches(FewImages(), 4, SIZE), "damaged", 9)
    np.testing.assert_array_equal(found, good)
    with pytest.raises(ValueError, match="Not one of the first 1 images of the split 'damaged'"):
        list(evaluation_images(ImageBatches(FewImages(1), 4, SIZE), "damaged", 1))


# --------------------------------------------------------------------------------------- metrics


def test_a_codebook_that_knows_all_patches_is_perfect():
    images = flat_images(4, 16)
    patches = np.unique(
        images.reshape(4, 2, 8, 2, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(16, 192), axis=0
    )
    found = evaluate_tokenizer(PatchCodebook(patches.astype(np.float32)), [images[:3], images[3:]])
    assert found["loss"] == 0 and found["ssim"] == pytest.approx(1) and found["codes_used"] == 1
    assert found["perplexity"] == pytest.approx(len(patches))
    half = evaluate_tokenizer(
        PatchCodebook(np.concatenate([patches, 0 * patches + 1]).astype(np.float32)), [images]
    )
    assert half["codes_used"] == 0.5 and half["psnr"] == found["psnr"]


# --------------------------------------------------------------------------------- bad options


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(images=ImageBatches(FewImages(), 4, 15)), "image_size is 15, which is no multiple"),
        (dict(images=ImageBatches(FewImages(), 4, 16, 9)), "crop_size is 9, which is no multiple"),
        (dict(loss=ImageTokenizerLoss(absolute=0.0)), "features is None: give a ResNet"),
        (dict(loss=ImageTokenizerLoss(discriminator_start=0)), "16 pixels a side.* needs 24"),
        (
            dict(optimizer=OptimizerConfig(1e-3, 9, frozen=("resnet",))),
            "frozen and trainable_groups name parts of OFA",
        ),
        (
            dict(
                images=ImageBatches(FewImages(), 4, 12),
                baseline=PatchCodebook(np.zeros((2, 192), np.float32)),
            ),
            "no multiple of the 8 pixels per code of train_image_tokenizer.baseline",
        ),
        (dict(initial_image_tokenizer_path="nowhere.npz"), "no image tokenizer at nowhere.npz"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, sentence, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        make_tokenizer_run(tmp_path, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: VQGANConfig(width=48), "width 48 times 1 does not divide into the 32 groups"),
        (lambda: VQGANConfig(attention_levels=(4,)), "the levels are 0 to 3"),
        (lambda: VQGANConfig(multipliers=()), "multipliers is .*non-empty"),
        (lambda: QuantizerConfig("nearst"), "kind is 'nearst'.*one of gumbel, nearest"),
        (lambda: QuantizerConfig(use_decay=1.0), "use_decay is 1.0"),
        (
            lambda: ImageTokenizerLoss(absolute=0.0, perceptual=0.0),
            "so that nothing is reconstructed",
        ),
        (lambda: ImageBatches(FewImages(), 4, 16, 32), "crop_size is 32, which is more than"),
        (lambda: ImageBatches(FewImages(), 4, 16, 8, 4), "smallest_size is 4: give a size between"),
    ],
)
def test_values_that_are_impossible_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_a_folder_without_a_tokenizer_is_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no image_tokenizer\.npz in"):
        image_tokenizer_file.read(tmp_path)
    codebook = PatchCodebook(np.eye(192, dtype=np.float32))
    codebook.save(tmp_path / "image_tokenizer.npz")
    np.testing.assert_array_equal(image_tokenizer_file.read(tmp_path).codebook, codebook.codebook)
