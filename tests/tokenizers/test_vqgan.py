"""The VQGAN against numbers of the official one, read from a file in the official format."""

import dataclasses
import json
import pickle

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_tokenizer import TINY

from ofa_jax.interop import torch_file, vqgan_file
from ofa_jax.tokenizers import ImageTokenizer
from ofa_jax.tokenizers.vqgan import VQGAN, Network, VQGANConfig, fold_blocks, unfold_blocks


@pytest.fixture(scope="module")
def numbers(golden):
    with np.load(golden / "vqgan" / "golden.npz") as arrays:
        return dict(arrays)


def channels_last(array):
    return np.moveaxis(array, 1, -1)


def test_the_shape_follows_from_the_arrays(vqgan):
    assert isinstance(vqgan, ImageTokenizer)
    assert vqgan.config == VQGANConfig(
        width=32,
        multipliers=(1, 1, 2),
        num_blocks=2,
        attention_levels=(2,),
        latent_width=32,
        code_width=32,
        num_codes=64,
    )
    assert (vqgan.num_codes, vqgan.pixels_per_code) == (64, 4)


def test_the_default_is_the_published_model(golden):
    full = json.loads((golden / "vqgan" / "configs.json").read_text())["full"]
    params = jax.eval_shape(
        Network(VQGANConfig()).init, jax.random.key(0), jnp.zeros((1, 16, 16, 3))
    )["params"]
    shapes = {}
    for path, like in flax.traverse_util.flatten_dict(params).items():
        shape = list(like.shape)
        if len(shape) == 4:
            shape = [shape[3], shape[2], *shape[:2]]
        shapes[vqgan_file.official_name(path)] = shape
    assert shapes == full["state_dict"]
    assert sum(x.size for x in jax.tree.leaves(params)) == full["total_params"]
    arrays = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    assert vqgan_file.config_of(arrays) == VQGANConfig()


@pytest.mark.parametrize("case", ["sq", "rect"])
def test_encoder_codes_and_decoder_match_the_official_code(vqgan, numbers, case):
    """float32 through some twenty convolutions: 1e-5 of the largest value."""
    network = Network(vqgan.config)

    @jax.jit
    def run(params, pixels, codes):
        module = network.bind({"params": params})
        latent = module.encoder(pixels)
        before = module.quant_conv(latent)
        return latent, before, module.quantize(before), module.reconstruct(codes)

    known = {
        name: numbers[f"{case}_{name}"]
        for name in ("image", "encoder_out", "prequant", "code_logits", "argmax_codes", "recon")
    }
    found = run(vqgan.params, channels_last(known["image"]), known["argmax_codes"].astype(np.int32))
    for name, values in zip(
        ("encoder_out", "prequant", "code_logits", "recon"), found, strict=True
    ):
        expected = channels_last(known[name])
        np.testing.assert_allclose(
            values, expected, rtol=0, atol=1e-5 * np.abs(expected).max(), err_msg=name
        )
    np.testing.assert_array_equal(found[2].argmax(-1), known["argmax_codes"])


def test_images_of_codes_match_the_official_code(vqgan, numbers):
    pixels = vqgan.decode(numbers["random_codes"])
    expected = numbers["random_codes_recon_u8_custom_to_pil"]
    # Where a value is cut off just beside a whole number, rounding decides: by 1.
    recon = channels_last(numbers["random_codes_recon"])
    exact = (np.clip(recon, -1, 1) + 1) / 2 * 255
    near = (np.abs(exact - np.rint(exact)) < 255 * 1e-5) & (np.abs(recon) < 1 + 1e-5)
    np.testing.assert_array_equal(pixels[~near], expected[~near])
    assert np.abs(pixels.astype(int) - expected).max() <= 1 and near.mean() < 0.01


def test_an_image_is_encoded_alike_in_any_batch_and_by_a_worker(vqgan):
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), np.uint8)
    codes = vqgan.encode(images)
    assert codes.shape == (3, 4, 6) and codes.dtype == np.int32
    again = pickle.loads(pickle.dumps(vqgan))
    assert "_on_device" not in vars(again)
    np.testing.assert_array_equal(again.encode(images[1:2]), codes[1:2])
    pixels = vqgan.decode(codes)
    assert pixels.shape == images.shape and pixels.dtype == np.uint8


def test_it_is_the_same_after_it_was_saved(vqgan, tmp_path):
    vqgan.save(tmp_path / "vqgan.npz")
    again = VQGAN.load(tmp_path / "vqgan.npz")
    assert again.config == vqgan.config
    jax.tree.map(np.testing.assert_array_equal, dict(again.params), dict(vqgan.params))
    with pytest.raises(FileNotFoundError, match="no VQGAN at .*missing.npz"):
        VQGAN.load(tmp_path / "missing.npz")


def test_a_file_of_another_model_is_reported(vqgan, vqgan_state, tmp_path):
    with pytest.raises(ValueError, match="30x32 pixels cannot be cut into codes of 4x4"):
        vqgan.encode(np.zeros((1, 30, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="quantize.embed.weight is missing"):
        vqgan_file.from_state_dict(
            {k: v for k, v in vqgan_state.items() if k != "quantize.embed.weight"}
        )
    with pytest.raises(ValueError, match="decoder.conv_in.bias is missing"):
        vqgan_file.from_state_dict(
            {k: v for k, v in vqgan_state.items() if k != "decoder.conv_in.bias"}
        )
    with pytest.raises(ValueError, match="conv_in.bias has the shape .3,., which does not fit"):
        vqgan_file.from_state_dict(vqgan_state | {"decoder.conv_in.bias": np.zeros(3)})
    torch_file.save(tmp_path / "other.pt", {"weight": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match="other.pt is not an official VQGAN: encoder.conv_in"):
        vqgan_file.read(tmp_path / "other.pt")


def test_blocks_of_pixels_are_channels_of_the_first_level(tmp_path):
    """The same codes as a VQGAN of single pixels whose images are folded before; and back."""
    config = dataclasses.replace(TINY, block_size=4)
    assert config.pixels_per_code == 8
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), np.uint8)
    params = Network(config).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    kernel = params["encoder"]["conv_in"]["kernel"]
    assert kernel.shape == (3, 3, 48, 32)
    own = VQGAN(config, jax.tree.map(np.asarray, params))
    codes = own.encode(images)
    assert codes.shape == (2, 2, 3) and len(np.unique(codes)) > 1
    assert own.decode(codes).shape == images.shape
    blocks = fold_blocks(jnp.asarray(images), 4)
    # A channel is a pixel of the block: row, column, colour.
    np.testing.assert_array_equal(blocks[1, 2, 3].reshape(4, 4, 3), images[1, 8:12, 12:16])
    np.testing.assert_array_equal(unfold_blocks(blocks, 4), images)
    vqgan_file.write(tmp_path / "own.ckpt", own)
    again = vqgan_file.read(tmp_path / "own.ckpt")
    assert again.config == config
    np.testing.assert_array_equal(again.encode(images), codes)
    own.save(tmp_path / "own.npz")
    np.testing.assert_array_equal(VQGAN.load(tmp_path / "own.npz").decode(codes), own.decode(codes))
    held = vqgan_file.to_state_dict(own)
    held["encoder.conv_in.weight"] = held["encoder.conv_in.weight"][:, :40]
    with pytest.raises(ValueError, match="takes 40 channels, which are no colours"):
        vqgan_file.from_state_dict(held)
