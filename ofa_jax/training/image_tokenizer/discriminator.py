"""A discriminator that tells true from reconstructed patches, and its losses.

It is that of Isola et al. 2017 (pix2pix), as the VQGAN's code has it.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_EPSILON = 1e-5
_SLOPE = 0.2
_MAX_MULTIPLIER = 8
_normal = nn.initializers.normal(0.02)


class _BatchNorm(nn.Module):
    """Normalises by the moments of the batch; there is nothing but training."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to the same shape."""
        channels = x.shape[-1]
        scale = self.param("scale", lambda key, shape: 1 + _normal(key, shape), (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        mean = x.mean((0, 1, 2))
        var = jnp.square(x - mean).mean((0, 1, 2))
        return (x - mean) * jax.lax.rsqrt(var + _EPSILON) * scale + bias


class Discriminator(nn.Module):
    """Scores overlapping patches; high for true ones.

    Attributes:
      layers: convolutions with stride 2.
      width: channels of the first one.
    """

    layers: int = 3
    width: int = 64

    @nn.compact
    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b rows columns"]:
        """Scores images in [-1, 1]."""

        def convolution(x: jax.Array, channels: int, stride: int, name: str) -> jax.Array:
            with_bias = name in ("conv_0", "conv_out")  # the others are followed by a norm
            return nn.Conv(
                channels,
                (4, 4),
                stride,
                padding=1,
                use_bias=with_bias,
                kernel_init=_normal,
                name=name,
            )(x)

        x = nn.leaky_relu(convolution(pixels, self.width, 2, "conv_0"), _SLOPE)
        for layer in range(1, self.layers + 1):
            channels = self.width * min(2**layer, _MAX_MULTIPLIER)
            x = convolution(x, channels, 2 if layer < self.layers else 1, f"conv_{layer}")
            x = nn.leaky_relu(_BatchNorm(name=f"norm_{layer}")(x), _SLOPE)
        return convolution(x, 1, 1, "conv_out")[..., 0]


def smallest_image(layers: int) -> int:
    """Returns the side in pixels of the smallest image that a discriminator can score."""
    # The last two convolutions take away a pixel each.
    return 3 * 2**layers


def discriminator_loss(true: Float[Array, "..."], made: Float[Array, "..."]) -> Float[Array, ""]:
    """Computes the hinge loss of the scores of true and reconstructed patches."""
    return 0.5 * (nn.relu(1.0 - true).mean() + nn.relu(1.0 + made).mean())


def generator_loss(made: Float[Array, "..."]) -> Float[Array, ""]:
    """Computes the loss of the network whose patches are scored."""
    return -made.mean()


def adaptive_weight(
    reconstruction: Float[Array, "..."], adversarial: Float[Array, "..."]
) -> Float[Array, ""]:
    """Computes the weight of the adversarial loss (Esser et al. 2021, equation 7).

    Args:
      reconstruction: gradient of the reconstruction loss at the last layer.
      adversarial: that of the adversarial loss.
    """
    ratio = jnp.linalg.norm(reconstruction) / (jnp.linalg.norm(adversarial) + 1e-4)
    return jax.lax.stop_gradient(jnp.clip(ratio, 0.0, 1e4))
