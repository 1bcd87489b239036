"""The image encoder's first part: a ResNet (v1.5) cut after its third stage, and its batch norm.

He et al. 2016; the stride sits in the 3x3 convolution. Kernels are initialised as He et al. 2015,
mode fan_out. Sixteen pixels square become one feature of `16 * resnet_width` channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ofa_jax.model.config import OFAConfig
from ofa_jax.model.convolutions import convolution, max_pool, pointwise
from ofa_jax.model.layers import (
    DropPath,
    dtype_of,
    linear_rates,
    remat,
    remat_norm,
    with_image_sharding,
)

BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.1
"""Weight of the new batch in the running statistics."""

_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Convolution(nn.Module):
    """A convolution without bias.

    Attributes:
      in_channels, channels: its width on both sides.
      size: kernel size; a 1x1 kernel is stored as a matrix [in, out], others as HWIO.
      stride: of both axes.
      dtype: what to compute in.
    """

    in_channels: int
    channels: int
    size: int
    stride: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, in] to [N, ceil(H / stride), ceil(W / stride), channels]."""
        shape, axes = (self.in_channels, self.channels), ("conv_in", "conv_out")
        if self.size > 1:
            shape = (self.size, self.size, *shape)
            axes = ("conv_height", "conv_width", *axes)
        kernel = self.param("kernel", nn.with_logical_partitioning(_fan_out, axes), shape).astype(
            self.dtype
        )
        if self.size == 1:
            return pointwise(x, kernel, self.stride)
        return convolution(x, kernel, self.stride)


class BatchNorm(nn.Module):
    """Batch normalisation over examples and places.

    Under jit the mean over the batch is a mean over all devices: statistics are synchronised.

    Attributes:
      channels: width of the last axis.
      frozen: normalise with the running statistics in training too.
    """

    channels: int
    frozen: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[N, H, W, C] to the same; in training also updates `batch_stats`."""

        def parameter(name, init):
            return self.param(
                name, nn.with_logical_partitioning(init, ("conv_out",)), (self.channels,)
            )

        scale = parameter("scale", nn.initializers.ones)
        bias = parameter("bias", nn.initializers.zeros)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (self.channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (self.channels,))
        mean, var = running_mean.value, running_var.value
        normalise = remat_norm(_normalise if train and not self.frozen else _normalise_by, x.dtype)
        result, mean, var = normalise(x, scale, bias, mean, var)
        if train and not self.frozen and not self.is_initializing():
            count = x.size // self.channels
            unbiased = var * (count / max(count - 1, 1))
            keep = 1.0 - BATCH_NORM_MOMENTUM
            running_mean.value = keep * running_mean.value + BATCH_NORM_MOMENTUM * mean
            running_var.value = keep * running_var.value + BATCH_NORM_MOMENTUM * unbiased
        return result


def _normalise(x, scale, bias, running_mean, running_var):
    """By the moments of the batch, which it returns too: [..., C], [C], [C]."""
    del running_var
    values = x.astype(jnp.float32).reshape(-1, x.shape[-1])
    # Both moments in one pass; about the running mean, so that nothing cancels.
    values = values - jax.lax.stop_gradient(running_mean)
    shift, square = values.mean(axis=0), jnp.square(values).mean(axis=0)
    mean, var = running_mean + shift, jnp.maximum(square - jnp.square(shift), 0.0)
    return _normalise_by(x, scale, bias, mean, var)


def _normalise_by(x, scale, bias, mean, var):
    """By given moments, which it hands on."""
    factor = scale * jax.lax.rsqrt(var + BATCH_NORM_EPSILON)
    # One multiplication and one addition per value, whichever statistics are used.
    return (x * factor + (bias - mean * factor)).astype(x.dtype), mean, var


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 to four times the channels, plus the shortcut.

    Attributes:
      in_channels, channels: input width; width inside. The output is `4 * channels` wide.
      stride: of the 3x3 convolution.
    """

    config: OFAConfig
    in_channels: int
    channels: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, drop_path_rate: float | jax.Array, train: bool) -> jax.Array:
        """[N, H, W, in_channels] to [N, H/stride, W/stride, 4 * channels].

        `drop_path_rate` is the stochastic depth of this block.
        """
        c, dtype, out = self.config, dtype_of(self.config), 4 * self.channels

        def conv_norm(x, name, width, size, stride):
            x = Convolution(x.shape[-1], width, size, stride, dtype, name=f"conv_{name}")(x)
            return BatchNorm(width, c.freeze_batch_norm, name=f"norm_{name}")(x, train)

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
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """float [N, H, W, 3] in [-1, 1] to [N, ceil(H/16), ceil(W/16), 16 * resnet_width]."""
        c = self.config
        x = with_image_sharding(images.astype(dtype_of(c)))
        x = Convolution(3, c.resnet_width, 7, 2, dtype_of(c), name="conv_stem")(x)
        x = nn.relu(BatchNorm(c.resnet_width, c.freeze_batch_norm, name="norm_stem")(x, train))
        x = max_pool(x)
        for stage, blocks in enumerate(c.resnet_layers):
            channels = c.resnet_width * 2**stage
            rates = linear_rates(c.resnet_drop_path_rate, blocks)
            for block in range(1 if c.scan_layers else blocks):
                x = remat(Bottleneck, c, ("drop_path_rate", "train"))(
                    c,
                    x.shape[-1],
                    channels,
                    2 if stage and not block else 1,
                    name=f"stage_{stage + 1}_block_{block}",
                )(x, rates[block], train)
            if c.scan_layers and blocks > 1:
                x = self._scanned(x, channels, rates[1:], f"stage_{stage + 1}_blocks", train)
        return x

    def _scanned(self, x, channels, rates, name, train) -> jax.Array:
        """All blocks of a stage but its first: they are alike."""
        dropped = any(rates)
        block = remat(
            Bottleneck, self.config, ("train",) if dropped else ("drop_path_rate", "train")
        )(self.config, x.shape[-1], channels, 1, name=name)

        def step(module: nn.Module, x: jax.Array, rate: jax.Array | None):
            return module(x, 0.0 if rate is None else rate, train), None

        scan = nn.scan(
            step,
            variable_axes={"params": 0, "batch_stats": 0},
            length=len(rates),
            split_rngs={"params": True, "dropout": True},
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return scan(block, x, jnp.asarray(rates, jnp.float32) if dropped else None)[0]


def normalise_images(images: jax.Array, blank_boxes: jax.Array | None = None) -> jax.Array:
    """Pixels to [-1, 1], and blanked regions to exactly 0.

    Args:
      images: uint8 [B, H, W, 3], or float already in [-1, 1].
      blank_boxes: int32 [B, 4], rows y0 to y1 and columns x0 to x1 (ends excluded) of the region
        that is blank; all zeros for none.

    Returns:
      float32 [B, H, W, 3].
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
