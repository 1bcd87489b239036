"""The image tokenizer of OFA: a VQGAN whose codes stand for 8 x 8 pixels (paper, section 3.1).

Esser et al. 2021 (arXiv 2012.09841), with a Gumbel-softmax quantiser: a convolutional encoder maps
the image to a grid, and a linear layer scores all codes at each position of the grid. A
convolutional decoder maps the vectors of the codes back to an image.

Each code is the argmax of its scores. The official code adds Gumbel noise when it encodes training
images, so that an image has different codes each time.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Annotated, Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float, Int, UInt8

from ofa_jax.tokenizers.patch_codebook import check_sizes
from ofa_jax.utils import files, options
from ofa_jax.utils.array_files import load_arrays
from ofa_jax.utils.option_checks import checked
from ofa_jax.utils.text_files import DamagedFileError

__all__ = ["VQGAN", "Network", "VQGANConfig", "fold_blocks", "unfold_blocks"]

_GROUPS, _EPSILON = 32, 1e-6
_CONFIG = "config"


@checked
@dataclasses.dataclass(frozen=True)
class VQGANConfig:
    """Sizes of a VQGAN; the defaults are those of OFA's (Gumbel, f8, 8,192 codes).

    Attributes:
      width: channels of the first level.
      multipliers: channels of each level, as multiples of `width`. Each level after the first has
        half the resolution of the one before.
      num_blocks: residual blocks per encoder level; decoder levels have one more.
      attention_levels: indices of the levels with self-attention; the middle block always has it.
      latent_width: channels between encoder and quantiser.
      code_width: size of a code's vector.
      num_codes: size of the codebook.
      block_size: side of the blocks of pixels that are folded into the channels of one place before
        the first level, and unfolded after the last one. 1 for single pixels, as in the official
        model; with 8, a VQGAN of one level has codes of 8 x 8 pixels at a tenth of the cost.
    """

    width: options.Count = 128
    multipliers: Annotated[tuple[options.Count, ...], options.NotEmpty()] = (1, 1, 2, 4)
    num_blocks: options.Layers = 2
    attention_levels: tuple[options.Natural, ...] = (3,)
    latent_width: options.Count = 256
    code_width: options.Count = 256
    num_codes: options.Count = 8192
    block_size: options.Count = 1

    def __post_init__(self) -> None:
        """Raises ValueError for widths that group norm cannot divide, and levels that are none."""
        # gin and json pass lists; a tuple keeps the config hashable.
        for name in ("multipliers", "attention_levels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if wrong := [m for m in self.multipliers if self.width * m % _GROUPS]:
            raise ValueError(
                f"VQGANConfig.width {self.width} times {wrong[0]} does not divide into the "
                f"{_GROUPS} groups of group norm: choose a multiple of {_GROUPS}."
            )
        if max(self.attention_levels, default=0) >= len(self.multipliers):
            raise ValueError(
                f"VQGANConfig.attention_levels is {self.attention_levels}, but the levels are 0 to "
                f"{len(self.multipliers) - 1}: name some of these."
            )

    @property
    def pixels_per_code(self) -> int:
        """Side length in pixels of what a code stands for."""
        return self.block_size * 2 ** (len(self.multipliers) - 1)


def _conv(channels: int, size: int, name: str, **options: Any) -> nn.Conv:
    # The best code's margin is small: bfloat16 products (a TPU's default) would change codes.
    return nn.Conv(channels, (size, size), name=name, precision="highest", **options)


def _norm(name: str) -> nn.GroupNorm:
    return nn.GroupNorm(_GROUPS, epsilon=_EPSILON, name=name)


class ResidualBlock(nn.Module):
    """Two times norm, swish and convolution, added to the input."""

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H, W, channels]."""
        y = _conv(self.channels, 3, "conv1")(nn.swish(_norm("norm1")(x)))
        y = _conv(self.channels, 3, "conv2")(nn.swish(_norm("norm2")(y)))
        if x.shape[-1] != self.channels:
            x = _conv(self.channels, 1, "nin_shortcut")(x)
        return x + y


class SelfAttention(nn.Module):
    """Single-head self-attention over all positions, added to the input."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to the same shape."""
        batch, height, width, channels = x.shape
        normal = _norm("norm")(x)
        query, key, value = (
            _conv(channels, 1, name)(normal).reshape(batch, -1, channels) for name in "qkv"
        )
        scores = jnp.einsum("bic,bjc->bij", query, key, precision="highest") * channels**-0.5
        mixed = jnp.einsum("bij,bjc->bic", nn.softmax(scores), value, precision="highest")
        return x + _conv(channels, 1, "proj_out")(mixed.reshape(batch, height, width, channels))


class Level(nn.Module):
    """Residual blocks, each followed by attention if `attends`; then resizing, if any."""

    channels: int
    num_blocks: int
    attends: bool
    resize: str | None  # "downsample", "upsample"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H', W', channels]."""
        for block in range(self.num_blocks):
            x = ResidualBlock(self.channels, name=f"block_{block}")(x)
            if self.attends:
                x = SelfAttention(name=f"attn_{block}")(x)
        if self.resize is not None:
            x = Resize(self.resize == "upsample", name=self.resize)(x)
        return x


class Resize(nn.Module):
    """Doubles the size (pixels repeated, then a convolution) or halves it (strided convolution)."""

    larger: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, 2 H, 2 W, C] or [B, H / 2, W / 2, C]."""
        if self.larger:
            return _conv(x.shape[-1], 3, "conv")(x.repeat(2, axis=1).repeat(2, axis=2))
        # Padded at the end only, as in the official code.
        return _conv(x.shape[-1], 3, "conv", strides=2, padding=((0, 1), (0, 1)))(x)


class Middle(nn.Module):
    """Residual block, attention, residual block."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to the same shape."""
        x = ResidualBlock(x.shape[-1], name="block_1")(x)
        x = SelfAttention(name="attn_1")(x)
        return ResidualBlock(x.shape[-1], name="block_2")(x)


class Encoder(nn.Module):
    """Maps an image to a grid of latent vectors."""

    config: VQGANConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps float [B, H, W, 3] in [-1, 1] to [B, H / p, W / p, latent_width]."""
        c = self.config
        x = _conv(c.width, 3, "conv_in")(fold_blocks(x, c.block_size))
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
    """Maps a grid of latent vectors to an image."""

    config: VQGANConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, h, w, latent_width] to float [B, p h, p w, 3], about in [-1, 1]."""
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
        x = _conv(3 * c.block_size**2, 3, "conv_out")(nn.swish(_norm("norm_out")(x)))
        return unfold_blocks(x, c.block_size)


def fold_blocks(x: Float[Array, "b h w c"], side: int) -> Float[Array, "b rows columns channels"]:
    """Returns blocks of pixels as channels: [B, H / side, W / side, side * side * C]."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // side, side, width // side, side, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // side, width // side, -1)


def unfold_blocks(x: Float[Array, "b rows columns channels"], side: int) -> Float[Array, "b h w c"]:
    """Inverts `fold_blocks`."""
    batch, rows, columns, channels = x.shape
    x = x.reshape(batch, rows, columns, side, side, channels // side**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * side, columns * side, -1)


class Quantizer(nn.Module):
    """Scores codes, and looks up their vectors."""

    config: VQGANConfig

    def setup(self) -> None:
        """Creates the layers."""
        c = self.config
        self.proj = _conv(c.num_codes, 1, "proj")
        self.embed = nn.Embed(c.num_codes, c.code_width, name="embed")

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, h, w, latent_width] to the scores of all codes, [B, h, w, num_codes]."""
        return self.proj(x)

    def vectors(self, codes: jax.Array) -> jax.Array:
        """Maps int32 [B, h, w] to [B, h, w, code_width]."""
        return self.embed(codes)


class Network(nn.Module):
    """Encoder, quantiser and decoder, with the names of the official checkpoints."""

    config: VQGANConfig

    def setup(self) -> None:
        """Creates the layers."""
        c = self.config
        self.encoder, self.decoder = Encoder(c), Decoder(c)
        self.quantize = Quantizer(c)
        self.quant_conv = _conv(c.code_width, 1, "quant_conv")
        self.post_quant_conv = _conv(c.latent_width, 1, "post_quant_conv")

    def logits(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b rows columns codes"]:
        """Maps float [B, H, W, 3] in [-1, 1] to the scores of all codes, [B, h, w, num_codes]."""
        return self.quantize(self.quant_conv(self.encoder(pixels)))

    def reconstruct(self, codes: Int[Array, "b rows columns"]) -> Float[Array, "b h w 3"]:
        """Maps int32 [B, h, w] to float [B, H, W, 3], about in [-1, 1]."""
        return self.decoder(self.post_quant_conv(self.quantize.vectors(codes)))

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Encodes and decodes images."""
        return self.reconstruct(self.logits(pixels).argmax(-1))


@functools.partial(jax.jit, static_argnums=0)
def _encode(config: VQGANConfig, params: Any, images: jax.Array) -> jax.Array:
    pixels = images.astype(jnp.float32) / 255 * 2 - 1
    logits = jnp.asarray(Network(config).apply({"params": params}, pixels, method="logits"))
    return logits.argmax(-1).astype(jnp.int32)


@functools.partial(jax.jit, static_argnums=0)
def _decode(config: VQGANConfig, params: Any, codes: jax.Array) -> jax.Array:
    pixels = jnp.asarray(Network(config).apply({"params": params}, codes, method="reconstruct"))
    # Truncated, not rounded, as in the official code.
    return ((jnp.clip(pixels, -1, 1) + 1) / 2 * 255).astype(jnp.uint8)


@dataclasses.dataclass(frozen=True, eq=False)
class VQGAN:
    """An `ImageTokenizer`, compiled once per shape of images or codes.

    `ofa_jax.interop.vqgan_file` reads the official file.

    Attributes:
      config: the sizes.
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
        """Side length in pixels of what a code stands for."""
        return self.config.pixels_per_code

    def encode(self, images: UInt8[np.ndarray, "b h w 3"]) -> Int[np.ndarray, "b rows columns"]:
        """Returns the best code at each position.

        Args:
          images: uint8 [B, H, W, 3], H and W multiples of `pixels_per_code`.

        Returns:
          int32 [B, H / pixels_per_code, W / pixels_per_code].

        Raises:
          ValueError: height or width is not a multiple.
        """
        check_sizes(images, self.pixels_per_code)
        return np.asarray(_encode(self.config, self._on_device, images))

    def decode(self, codes: Int[np.ndarray, "b rows columns"]) -> UInt8[np.ndarray, "b h w 3"]:
        """Returns the images of codes.

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
        # Without the copy on the device: data workers unpickle numpy arrays.
        return {"config": self.config, "params": self.params}

    def save(self, path: epath.PathLike) -> None:
        """Writes configuration and parameters to an .npz file."""
        flat = flax.traverse_util.flatten_dict(dict(self.params), sep="/")
        config = np.array(json.dumps(dataclasses.asdict(self.config)))
        with files.atomic_path(path) as temporary, temporary.open("wb") as file:
            # mypy takes the arrays for savez's own options.
            np.savez(file, **flat, **{_CONFIG: config})  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: epath.PathLike) -> "VQGAN":
        """Reads a VQGAN that `save` wrote.

        Raises:
          FileNotFoundError: there is no such file.
          DamagedFileError: it is damaged, or `save` did not write it.
        """
        path = epath.Path(path)
        if not path.exists():
            raise FileNotFoundError(f"There is no VQGAN at {path}.")
        flat = load_arrays(path)
        try:
            config = json.loads(str(flat.pop(_CONFIG)))
            fields: dict[str, Any] = {
                name: tuple(x) if isinstance(x, list) else x for name, x in config.items()
            }
            return cls(VQGANConfig(**fields), flax.traverse_util.unflatten_dict(flat, sep="/"))
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise DamagedFileError(
                f"{path} is not a VQGAN that this library saved: read the official one with "
                "ofa_jax.interop.vqgan_file."
            ) from error
