"""The image encoder: a ResNet v1.5 without its last stage (He et al. 2016), and its batch norm.

The stride is in the 3x3 convolution of a block. Kernels are initialised as in He et al. 2015, mode
fan_out. A square of 16x16 pixels becomes one feature of `16 * resnet_width` channels.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from ofa_jax.model.batch_norm import factor_of, normalise, normalise_by_batch
from ofa_jax.model.config import OFAConfig
from ofa_jax.model.convolutions import convolution, max_pool, pointwise_convolution
from ofa_jax.model.layers import (
    DropPath,
    dtype_of,
    linear_drop_path_rates,
    remat,
    remat_norm,
    with_image_sharding,
    with_logical_axes,
)

BATCH_NORM_MOMENTUM = 0.1
"""Weight of the new batch in the running statistics."""

_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Convolution(nn.Module):
    """A convolution without bias.

    Attributes:
      in_channels, channels: input and output channels.
      size: kernel size; a 1x1 kernel is stored as a matrix [in, out], others as HWIO.
      stride: stride of both axes.
      dtype: compute dtype.
    """

    in_channels: int
    channels: int
    size: int
    stride: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n height width in_channels"],
        factor: Float[Array, " channels"] | None = None,
    ) -> Float[Array, "n height/stride width/stride channels"]:
        """Convolves, with the kernel times a factor; the output size is rounded up."""
        shape: tuple[int, ...] = (self.in_channels, self.channels)
        axes: tuple[str, ...] = ("conv_in", "conv_out")
        if self.size > 1:
            shape = (self.size, self.size, *shape)
            axes = ("conv_height", "conv_width", *axes)
        kernel = self.param("kernel", with_logical_axes(_fan_out, axes), shape)
        if factor is not None:
            kernel = kernel * factor
        kernel = kernel.astype(self.dtype)
        if self.size == 1:
            return pointwise_convolution(x, kernel, self.stride)
        return convolution(x, kernel, self.stride)


class BatchNorm(nn.Module):
    """Batch normalisation over examples and pixels.

    Under jit the moments are those of the batch on all devices: statistics are synchronised.

    Attributes:
      channels: size of the last axis.
      frozen: whether to normalise with the running statistics in training too.
    """

    channels: int
    frozen: bool

    def setup(self) -> None:
        """Creates parameters and running statistics."""

        def parameter(name: str, init: nn.initializers.Initializer) -> Array:
            return self.param(name, with_logical_axes(init, ("conv_out",)), (self.channels,))

        self.scale = parameter("scale", nn.initializers.ones)
        self.bias = parameter("bias", nn.initializers.zeros)
        self.mean = self.variable("batch_stats", "mean", jnp.zeros, (self.channels,))
        self.var = self.variable("batch_stats", "var", jnp.ones, (self.channels,))

    def folded_factor(self, train: bool) -> Float[Array, " channels"] | None:
        """Returns the factor for the kernel before this norm if it folds, that is, if it is frozen.

        In evaluation it does not: XLA applies it in the pass of ReLU, and folding gains nothing.
        """
        return factor_of(self.scale, self.var.value) if train and self.frozen else None

    def __call__(
        self, x: Float[Array, "n height width channels"], train: bool, folded: bool = False
    ) -> Float[Array, "n height width channels"]:
        """Normalises x; in training also updates `batch_stats`.

        Args:
          x: output of a convolution.
          train: use the moments of the batch, unless `frozen`.
          folded: the kernel of the convolution was multiplied by `folded_factor`.
        """
        mean, var = self.mean.value, self.var.value
        if folded:
            return (x + (self.bias - mean * factor_of(self.scale, var))).astype(x.dtype)
        if not train or self.frozen:
            norm = remat_norm(normalise, x.dtype)
            return norm(x, self.scale, self.bias, mean, var)
        result, mean, var = normalise_by_batch(x, self.scale, self.bias, mean)
        if not self.is_initializing():
            count = x.size // self.channels
            unbiased = var * (count / max(count - 1, 1))
            keep = 1.0 - BATCH_NORM_MOMENTUM
            self.mean.value = keep * self.mean.value + BATCH_NORM_MOMENTUM * mean
            self.var.value = keep * self.var.value + BATCH_NORM_MOMENTUM * unbiased
        return result


def _convolve_and_normalise(
    x: Float[Array, "n height width in_channels"],
    conv: Convolution,
    norm: BatchNorm,
    train: bool,
) -> Float[Array, "n height/stride width/stride channels"]:
    """Applies a convolution and its norm, folded into its kernel in training with frozen norms.

    Folded, the norm adds one vector: in a backward pass the gradient of its scale follows from that
    of the kernel, and the convolution's output is neither kept nor read again. Results differ from
    those of a norm after the convolution by the rounding of each weight, a relative 2^-24.
    """
    factor = norm.folded_factor(train)
    return norm(conv(x, factor), train, folded=factor is not None)


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 (with the stride) and a 1x1 convolution, plus the shortcut.

    Attributes:
      config: sizes and options.
      in_channels, channels: channels of the input and within the block; the output has
        `4 * channels`.
      stride: stride of the 3x3 convolution.
    """

    config: OFAConfig
    in_channels: int
    channels: int
    stride: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n height width in_channels"],
        drop_path_rate: float | Float[Array, ""],
        train: bool,
    ) -> Float[Array, "n height/stride width/stride 4*channels"]:
        """Applies the block with its rate of stochastic depth."""
        c, dtype, out = self.config, dtype_of(self.config), 4 * self.channels

        def conv_norm(x: Array, name: str, width: int, size: int, stride: int) -> Array:
            conv = Convolution(x.shape[-1], width, size, stride, dtype, name=f"conv_{name}")
            norm = BatchNorm(width, c.freeze_batch_norm, name=f"norm_{name}")
            return _convolve_and_normalise(x, conv, norm, train)

        y = nn.relu(conv_norm(x, "1", self.channels, 1, 1))
        y = nn.relu(conv_norm(y, "2", self.channels, 3, self.stride))
        y = conv_norm(y, "3", out, 1, 1)
        if self.stride != 1 or self.in_channels != out:
            x = conv_norm(x, "shortcut", out, 1, self.stride)
        y = DropPath()(y, drop_path_rate, train)
        return with_image_sharding(nn.relu(x + y))


class ResNet(nn.Module):
    """Stem, pooling and three stages of bottlenecks."""

    config: OFAConfig

    @nn.compact
    def __call__(
        self, images: Float[Array, "n height width 3"], train: bool
    ) -> Float[Array, "n height/16 width/16 16*resnet_width"]:
        """Computes patch features of images in [-1, 1]; sizes are rounded up."""
        c = self.config
        x = with_image_sharding(images.astype(dtype_of(c)))
        stem = Convolution(3, c.resnet_width, 7, 2, dtype_of(c), name="conv_stem")
        norm = BatchNorm(c.resnet_width, c.freeze_batch_norm, name="norm_stem")
        x = max_pool(nn.relu(_convolve_and_normalise(x, stem, norm, train)))
        for stage, blocks in enumerate(c.resnet_layers):
            channels = c.resnet_width * 2**stage
            rates = linear_drop_path_rates(c.resnet_drop_path_rate, blocks)
            for block in range(1 if c.scan_layers else blocks):
                x = remat(Bottleneck, c, ("drop_path_rate", "train"))(
                    c,
                    x.shape[-1],
                    channels,
                    2 if stage and not block else 1,
                    name=f"stage_{stage + 1}_block_{block}",
                )(x, rates[block], train)
            if c.scan_layers and blocks > 1:
                x = self._scan_blocks(x, channels, rates[1:], f"stage_{stage + 1}_blocks", train)
        return x

    def _scan_blocks(
        self, x: Array, channels: int, rates: Sequence[float], name: str, train: bool
    ) -> Array:
        """Runs all blocks of a stage but the first, which have equal shapes, as a scan."""
        dropped = any(rates)
        block = remat(
            Bottleneck, self.config, ("train",) if dropped else ("drop_path_rate", "train")
        )(self.config, x.shape[-1], channels, 1, name=name)

        def step(module: Any, x: Array, rate: Array | None) -> tuple[Array, None]:
            return module(x, 0.0 if rate is None else rate, train), None

        scan = nn.scan(
            step,
            variable_axes={"params": 0, "batch_stats": 0},
            length=len(rates),
            split_rngs={"params": True, "dropout": True},
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return scan(block, x, jnp.asarray(rates, jnp.float32) if dropped else None)[0]


def normalise_images(
    images: UInt8[Array, "n height width 3"] | Float[Array, "n height width 3"],
    blank_boxes: Int[Array, "n 4"] | None = None,
) -> Float[Array, "n height width 3"]:
    """Scales pixels to [-1, 1] and sets blank regions to exactly 0.

    Args:
      images: uint8 pixels, or floats already in [-1, 1].
      blank_boxes: rows y0 to y1 and columns x0 to x1 (ends excluded) of the blank region of each
        image; all zeros for none.

    Returns:
      float32 images.
    """
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) / 127.5 - 1.0
    images = images.astype(jnp.float32)
    if blank_boxes is None:
        return images
    y0, x0, y1, x1 = (blank_boxes[:, k, None] for k in range(4))
    y, x = jnp.arange(images.shape[1]), jnp.arange(images.shape[2])
    inside = ((y >= y0) & (y < y1))[:, :, None] & ((x >= x0) & (x < x1))[:, None, :]
    return jnp.where(inside[..., None], 0.0, images)
