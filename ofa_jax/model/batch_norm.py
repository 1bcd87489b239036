"""Batch normalisation by the moments of the batch, with a backward pass of its own.

On a CPU these operations are bound by memory, and what XLA makes of the plain formulas writes
arrays that it reads once. Here the forward pass reads its input twice for the moments and once to
normalise it, and the backward pass, which keeps nothing but the input and vectors, does the same.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EPSILON = 1e-5
"""Added to variances."""

_LARGEST_RATIO = 32.0
"""Of the mean square to the variance, up to which their difference is accurate: at most five of
float32's 24 bits are lost."""


def factor_of(
    scale: Float[Array, " channels"], var: Float[Array, " channels"]
) -> Float[Array, " channels"]:
    """Returns what a norm multiplies its input by."""
    return scale * jax.lax.rsqrt(var + EPSILON)


def normalise(
    x: Float[Array, "*n channels"],
    scale: Float[Array, " channels"],
    bias: Float[Array, " channels"],
    mean: Float[Array, " channels"],
    var: Float[Array, " channels"],
) -> Float[Array, "*n channels"]:
    """Normalises by given moments, with one multiplication and one addition per value."""
    factor = factor_of(scale, var)
    return (x * factor + (bias - mean * factor)).astype(x.dtype)


@jax.custom_vjp
def normalise_by_batch(
    x: Float[Array, "*n channels"],
    scale: Float[Array, " channels"],
    bias: Float[Array, " channels"],
    running_mean: Float[Array, " channels"],
) -> tuple[Float[Array, "*n channels"], Float[Array, " channels"], Float[Array, " channels"]]:
    """Normalises by the moments of the batch, and returns these moments too.

    Args:
      x: values; moments are over all axes but the last, in float32.
      scale: of the normalised values.
      bias: added to them.
      running_mean: a guess at the mean, which keeps sums accurate; the result does not depend on
        it otherwise, and it has no gradient.

    Returns:
      Normalised x, and the batch's mean and (biased) variance.
    """
    mean, var = jax.lax.platform_dependent(
        x, running_mean, cpu=_moments_of_sums, default=_moments_about
    )
    return normalise(x, scale, bias, mean, var), mean, var


def _moments_about(x: Array, guess: Array) -> tuple[Array, Array]:
    """Computes both moments in one pass, about a guess to avoid cancellation."""
    values = x.astype(jnp.float32).reshape(-1, x.shape[-1]) - guess
    shift, square = values.mean(axis=0), jnp.square(values).mean(axis=0)
    return guess + shift, jnp.maximum(square - jnp.square(shift), 0.0)


def _moments_of_sums(x: Array, guess: Array) -> tuple[Array, Array]:
    """Computes the moments from sums of values and squares, which libraries of CPUs do fast.

    Where a mean is so far from zero that their difference is inaccurate, the variances are computed
    about the means.
    """
    del guess
    values = x.astype(jnp.float32).reshape(-1, x.shape[-1])
    mean, square = values.mean(axis=0), jnp.square(values).mean(axis=0)
    var = jnp.maximum(square - jnp.square(mean), 0.0)
    return mean, jax.lax.cond(
        jnp.any(square > _LARGEST_RATIO * var),
        lambda x, mean, _: jnp.square(x.astype(jnp.float32) - mean).mean(tuple(range(x.ndim - 1))),
        lambda x, mean, var: var,
        x,
        mean,
        var,
    )


def _forward(
    x: Array, scale: Array, bias: Array, running_mean: Array
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    result = normalise_by_batch(x, scale, bias, running_mean)
    return result, (x, scale, *result[1:])


def _backward(
    residuals: tuple[Array, ...], gradients: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array, None]:
    """Computes the gradients (Ioffe and Szegedy 2015, section 3), and those through the moments."""
    x, scale, mean, var = residuals
    dy, dmean, dvar = gradients
    count = x.size // x.shape[-1]
    total = functools.partial(jnp.sum, axis=tuple(range(x.ndim - 1)), dtype=jnp.float32)
    inverse = jax.lax.rsqrt(var + EPSILON)
    dbias = total(dy)
    dscale = (total(dy.astype(jnp.float32) * x) - mean * dbias) * inverse
    # dx is dy * factor, and x and 1 times what the moments add to it.
    of_x = (2.0 * dvar - scale * jnp.square(inverse) * dscale) / count
    of_one = (dmean - scale * inverse * dbias) / count - of_x * mean
    dx = (dy * (scale * inverse) + (x * of_x + of_one)).astype(x.dtype)
    return dx, dscale, dbias, None


normalise_by_batch.defvjp(_forward, _backward)
