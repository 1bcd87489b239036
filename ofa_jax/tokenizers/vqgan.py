"""The image tokenizer of OFA: a VQGAN whose codes stand for 8 x 8 pixels (paper, section 3.1).

Esser et al. 2021 (arXiv 2012.09841), with the quantiser of Gumbel-softmax: an image goes through a
convolutional encoder; at every place of the grid a linear layer scores all codes, and the best one
is the code. Back, the code's vector goes through a convolutional decoder.

Codes are the best ones: the original adds Gumbel noise even when it encodes for training, so that
the same image has other codes whenever it is asked.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from ofa_jax.tokenizers.patch_codebook import check_sizes

_GROUPS, _EPSILON = 32, 1e-6
_CONFIG = "config"


@dataclasses.dataclass(frozen=True)
class VQGANConfig:
    """Shape of a VQGAN; the defaults are those of OFA's (Gumbel, f8, 8,192 codes).

    Attributes:
      width: channels of the first level.
      multipliers: channels of each level, in widths; each level but the first has half the pixels
        a side of the one before.
      num_blocks: residual blocks of a level of the encoder; the decoder's have one more.
      attention_levels: which levels attend, 0 the first; the middle always does.
      latent_width: channels between encoder and quantiser.
      code_width: of a code's vector.
      num_codes: how many there are.
    """

    width: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 4)
    num_blocks: int = 2
    attention_levels: tuple[int, ...] = (3,)
    latent_width: int = 256
    code_width: int = 256
    num_codes: int = 8192

    @property
    def pixels_per_code(self) -> int:
        """Pixels a side that a code stands for."""
        return 2 ** (len(self.multipliers) - 1)


def _conv(channels: int, size: int, name: str, **options: Any) -> nn.Conv:
    # The best code wins by little: where products are made in bfloat16, as on TPUs, another would.
    return nn.Conv(channels, (size, size), name=name, precision="highest", **options)


def _norm(name: str) -> nn.GroupNorm:
    return nn.GroupNorm(_GROUPS, epsilon=_EPSILON, name=name)


class ResidualBlock(nn.Module):
    """Twice: normalise, swish, convolve; added to the input."""

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] to [B, H, W, channels]."""
        y = _conv(self.channels, 3, "conv1")(nn.swish(_norm("norm1")(x)))
        y = _conv(self.channels, 3, "conv2")(nn.swish(_norm("norm2")(y)))
        if x.shape[-1] != self.channels:
            x = _conv(self.channels, 1, "nin_shortcut")(x)
        return x + y


class SelfAttention(nn.Module):
    """Every place attends to all places, with one head; added to the input."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] to the same."""
        batch, height, width, channels = x.shape
        normal = _norm("norm")(x)
        query, key, value = (
            _conv(channels, 1, name)(normal).reshape(batch, -1, channels) for name in "qkv"
        )
        scores = jnp.einsum("bic,bjc->bij", query, key, precision="highest") * channels**-0.5
        mixed = jnp.einsum("bij,bjc->bic", nn.softmax(scores), value, precision="highest")
        return x + _conv(channels, 1, "proj_out")(mixed.reshape(batch, height, width, channels))


class Level(nn.Module):
    """Residual blocks, each with attention where the level has it; then half or twice the size."""

    channels: int
    num_blocks: int
    attends: bool
    resize: str | None  # "downsample", "upsample"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] to [B, H', W', channels]."""
        for block in range(self.num_blocks):
            x = ResidualBlock(self.channels, name=f"block_{block}")(x)
            if self.attends:
                x = SelfAttention(name=f"attn_{block}")(x)
        if self.resize is not None:
            x = Resize(self.resize == "upsample", name=self.resize)(x)
        return x


class Resize(nn.Module):
    """Twice the size, by repeating pixels, and a convolution; or one that skips every other."""

    larger: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] to [B, 2 H, 2 W, C] or [B, H / 2, W / 2, C]."""
        if self.larger:
            return _conv(x.shape[-1], 3, "conv")(x.repeat(2, axis=1).repeat(2, axis=2))
        # Padded behind alone, as in the original.
        return _conv(x.shape[-1], 3, "conv", strides=2, padding=((0, 1), (0, 1)))(x)


class Middle(nn.Module):
    """Residual block, attention, residual block."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] to the same."""
        x = ResidualBlock(x.shape[-1], name="block_1")(x)
        x = SelfAttention(name="attn_1")(x)
        return ResidualBlock(x.shape[-1], name="block_2")(x)


class Encoder(nn.Module):
    """From an image to a grid of latent vectors."""

    config: VQGANConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float [B, H, W, 3] in [-1, 1] to [B, H / p, W / p, latent_width]."""
        c = self.config
        x = _conv(c.width, 3, "conv_in")(x)
        last = len(c.multipliers) - 1
        for level, multiplier in enumerate(c.multipliers):
            x = Level(
                c.width * multiplier,
                c.num_blocks,
                level in c.attention_levels,
                "downsample" if level < last else None,
                name=f"down_{level}",
            )(x)
        x = Middle(name="mid")(x)
        return _conv(c.latent_width, 3, "conv_out")(nn.swish(_norm("norm_out")(x)))


class Decoder(nn.Module):
    """From a grid of latent vectors to an image."""

    config: VQGANConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, latent_width] to float [B, p h, p w, 3], about [-1, 1]."""
        c = self.config
        x = _conv(c.width * c.multipliers[-1], 3, "conv_in")(x)
        x = Middle(name="mid")(x)
        for level in reversed(range(len(c.multipliers))):
            x = Level(
                c.width * c.multipliers[level],
                c.num_blocks + 1,
                level in c.attention_levels,
                "upsample" if level else None,
                name=f"up_{level}",
            )(x)
        return _conv(3, 3, "conv_out")(nn.swish(_norm("norm_out")(x)))


class Quantizer(nn.Module):
    """Scores of codes, and vectors of codes."""

    config: VQGANConfig

    def setup(self) -> None:
        c = self.config
        self.proj = _conv(c.num_codes, 1, "proj")
        self.embed = nn.Embed(c.num_codes, c.code_width, name="embed")

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, latent_width] to the scores of all codes, [B, h, w, num_codes]."""
        return self.proj(x)

    def vectors(self, codes: jax.Array) -> jax.Array:
        """int32 [B, h, w] to [B, h, w, code_width]."""
        return self.embed(codes)


class Network(nn.Module):
    """Encoder, quantiser and decoder, with the names that the original's checkpoints have."""

    config: VQGANConfig

    def setup(self) -> None:
        c = self.config
        self.encoder, self.decoder = Encoder(c), Decoder(c)
        self.quantize = Quantizer(c)
        self.quant_conv = _conv(c.code_width, 1, "quant_conv")
        self.post_quant_conv = _conv(c.latent_width, 1, "post_quant_conv")

    def logits(self, pixels: jax.Array) -> jax.Array:
        """float [B, H, W, 3] in [-1, 1] to the scores of all codes, [B, h, w, num_codes]."""
        return self.quantize(self.quant_conv(self.encoder(pixels)))

    def reconstruct(self, codes: jax.Array) -> jax.Array:
        """int32 [B, h, w] to float [B, H, W, 3], about [-1, 1]."""
        return self.decoder(self.post_quant_conv(self.quantize.vectors(codes)))

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """There and back."""
        return self.reconstruct(self.logits(pixels).argmax(-1))


@functools.partial(jax.jit, static_argnums=0)
def _encode(config: VQGANConfig, params: Any, images: jax.Array) -> jax.Array:
    pixels = images.astype(jnp.float32) / 255 * 2 - 1
    logits = Network(config).apply({"params": params}, pixels, method="logits")
    return logits.argmax(-1).astype(jnp.int32)


@functools.partial(jax.jit, static_argnums=0)
def _decode(config: VQGANConfig, params: Any, codes: jax.Array) -> jax.Array:
    pixels = Network(config).apply({"params": params}, codes, method="reconstruct")
    # Cut off, not rounded, as the original makes an image of it.
    return ((jnp.clip(pixels, -1, 1) + 1) / 2 * 255).astype(jnp.uint8)


@dataclasses.dataclass(frozen=True, eq=False)
class VQGAN:
    """An `ImageTokenizer`; every size of batch and image is compiled once.

    The original's file is read by `interop.vqgan_file`.

    Attributes:
      config: its shape.
      params: of `Network`, a tree of float32 numpy arrays.
    """

    config: VQGANConfig
    params: Mapping[str, Any]

    @property
    def num_codes(self) -> int:
        """Number of codes."""
        return self.config.num_codes

    @property
    def pixels_per_code(self) -> int:
        """Pixels a side that a code stands for."""
        return self.config.pixels_per_code

    def encode(self, images: np.ndarray) -> np.ndarray:
        """The best code at each place.

        Args:
          images: uint8 [B, H, W, 3], H and W multiples of `pixels_per_code`.

        Returns:
          int32 [B, H / pixels_per_code, W / pixels_per_code].

        Raises:
          ValueError: sizes that are no multiples.
        """
        check_sizes(images, self.pixels_per_code)
        return np.asarray(_encode(self.config, self._on_device, images))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """The image that the codes stand for.

        Args:
          codes: int32 [B, h, w].

        Returns:
          uint8 [B, h * pixels_per_code, w * pixels_per_code, 3].
        """
        return np.asarray(_decode(self.config, self._on_device, np.asarray(codes, np.int32)))

    @functools.cached_property
    def _on_device(self) -> Any:
        return jax.device_put(self.params)

    def __getstate__(self) -> dict[str, Any]:
        # Data workers carry numpy arrays.
        return {"config": self.config, "params": self.params}

    def save(self, path: str | pathlib.Path) -> None:
        """Writes an .npz file."""
        flat = flax.traverse_util.flatten_dict(dict(self.params), sep="/")
        config = np.array(json.dumps(dataclasses.asdict(self.config)))
        with epath.Path(path).open("wb") as file:
            np.savez(file, **flat, **{_CONFIG: config})

    @classmethod
    def load(cls, path: str | pathlib.Path) -> "VQGAN":
        """Reads what `save` wrote.

        Raises:
          FileNotFoundError: there is none.
        """
        path = epath.Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"There is no VQGAN at {path}.")
        with path.open("rb") as file, np.load(file) as arrays:
            flat = {name: arrays[name] for name in arrays.files}
        config = json.loads(str(flat.pop(_CONFIG)))
        lists = {name: tuple(x) if isinstance(x, list) else x for name, x in config.items()}
        return cls(VQGANConfig(**lists), flax.traverse_util.unflatten_dict(flat, sep="/"))
