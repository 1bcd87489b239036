"""Convolutions and pooling of the ResNet, with gradients that are also fast on CPUs.

Measured on two cores at 384 pixels and a batch of 4, native XLA against this module, in
milliseconds: gradient of the stem's 7x7 kernel 700 and 175, of 3x3 kernels 170 and 90 (64
channels), 57 and 38 (128), 64 and 28 (256). The native gradient of max-pooling
(select_and_scatter) takes several times as long as comparing slices; 1x1 convolutions are a third
faster as matrix products. `platform_dependent` chooses the implementation when the program is
lowered, so that programs compiled ahead of time for a TPU use the TPU's own operations.

Arrays are NHWC, kernels HWIO.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_FEW_CHANNELS = 16
"""Below this many input channels, one wide matrix product replaces a product per kernel tap."""


def pointwise_convolution(
    x: Float[Array, "n height width inputs"],
    kernel: Float[Array, "inputs outputs"],
    stride: int = 1,
) -> Float[Array, "n height/stride width/stride outputs"]:
    """Computes a 1x1 convolution as a matrix product."""
    if stride > 1:
        x = x[:, ::stride, ::stride]
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolution(
    x: Float[Array, "n height width inputs"],
    kernel: Float[Array, "size size inputs outputs"],
    stride: int = 1,
) -> Float[Array, "n height/stride width/stride outputs"]:
    """Convolves with an odd square kernel, padded by half of its size.

    Args:
      x: input.
      kernel: weights.
      stride: stride of both axes.

    Returns:
      [n, ceil(height / stride), ceil(width / stride), outputs].
    """
    return _native_convolution(x, kernel, stride)


def _native_convolution(x: Array, kernel: Array, stride: int) -> Array:
    """Computes `convolution` with XLA's operation."""
    padding = [(size // 2, size // 2) for size in kernel.shape[:2]]
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _convolution_forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return convolution(x, kernel, stride), (x, kernel)


def _convolution_backward(
    stride: int, residuals: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
    """Computes the gradients of x and, by the method of the platform, of the kernel."""
    x, kernel = residuals
    (dx,) = jax.vjp(lambda x: _native_convolution(x, kernel, stride), x)[1](dy)
    dkernel = jax.lax.platform_dependent(
        x,
        kernel,
        dy,
        cpu=functools.partial(_kernel_gradient_by_matmul, stride=stride),
        default=functools.partial(_native_kernel_gradient, stride=stride),
    )
    return dx, dkernel


convolution.defvjp(_convolution_forward, _convolution_backward)


def _native_kernel_gradient(x: Array, kernel: Array, dy: Array, stride: int) -> Array:
    """Computes the gradient of the kernel with XLA's operation."""
    return jax.vjp(lambda kernel: _native_convolution(x, kernel, stride), kernel)[1](dy)[0]


def _kernel_gradient_by_matmul(x: Array, kernel: Array, dy: Array, stride: int) -> Array:
    """Multiplies the inputs of each kernel tap with the gradient of the outputs."""
    size, channels = kernel.shape[0], kernel.shape[2]
    taps = [
        tap.reshape(-1, channels)
        for tap in _window_taps(x, size, stride, size // 2, dy.shape[1:3], fill=0)
    ]
    if channels < _FEW_CHANNELS:
        # Thin products are slow: make a single one for all taps.
        taps = [jnp.concatenate(taps, axis=1)]
    # The barrier prevents fusion, which would copy a tap again for each block of the product.
    products = [jax.lax.optimization_barrier(tap).T @ dy.reshape(-1, dy.shape[-1]) for tap in taps]
    return jnp.concatenate(products).reshape(kernel.shape)


def _window_taps(
    x: Array, size: int, stride: int, pad: int, shape: Sequence[int], fill: float
) -> list[Array]:
    """Returns the inputs at each tap of a sliding window.

    Args:
      x: [N, H, W, C].
      size: side of the window.
      stride: stride of both axes.
      pad: padding on each side.
      shape: height and width of the output.
      fill: value of the padding.

    Returns:
      size * size arrays [N, *shape, C], row by row.
    """
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=fill)
    rows, columns = (stride * (n - 1) + 1 for n in shape)
    return [
        padded[:, i : i + rows : stride, j : j + columns : stride]
        for i in range(size)
        for j in range(size)
    ]


@jax.custom_vjp
def max_pool(
    x: Float[Array, "n height width channels"],
) -> Float[Array, "n height/2 width/2 channels"]:
    """Computes the 3x3 maximum with stride 2 and padding 1; odd sizes are rounded up."""
    return jax.lax.platform_dependent(x, cpu=_max_pool_by_slices, default=_native_max_pool)


def _native_max_pool(x: Array) -> Array:
    """Computes `max_pool` with XLA's window operation."""
    # The initial value must be a constant of x's type for JAX to know the gradient.
    return jax.lax.reduce_window(
        x,
        np.array(-np.inf, x.dtype),
        jax.lax.max,
        (1, 3, 3, 1),
        (1, 2, 2, 1),
        ((0, 0), (1, 1), (1, 1), (0, 0)),
    )


def _max_pool_taps(x: Array) -> list[Array]:
    """Returns the inputs at each of the nine taps, arrays of the output's shape."""
    return _window_taps(x, 3, 2, 1, (-(-x.shape[1] // 2), -(-x.shape[2] // 2)), fill=-np.inf)


def _max_pool_by_slices(x: Array) -> Array:
    return functools.reduce(jnp.maximum, _max_pool_taps(x))


def _max_pool_forward(x: Array) -> tuple[Array, tuple[Array, Array]]:
    y = max_pool(x)
    return y, (x, y)


def _max_pool_backward(residuals: tuple[Array, Array], dy: Array) -> tuple[Array]:
    """Computes the gradient of x by the method of the platform."""
    x, y = residuals
    return (
        jax.lax.platform_dependent(
            x,
            y,
            dy,
            cpu=_max_pool_gradient_by_comparison,
            default=lambda x, y, dy: jax.vjp(_native_max_pool, x)[1](dy)[0],
        ),
    )


def _max_pool_gradient_by_comparison(x: Array, y: Array, dy: Array) -> Array:
    """Gives the gradient to the first of equal maxima, as torch and XLA do."""
    winner = jnp.full(y.shape, 9, jnp.int8)
    for tap, inputs in reversed(list(enumerate(_max_pool_taps(x)))):
        winner = jnp.where(inputs == y, jnp.int8(tap), winner)

    columns = [
        _interleave_taps([jnp.where(winner == 3 * i + j, dy, 0) for j in range(3)], axis=2)
        for i in range(3)
    ]
    return _interleave_taps(columns, axis=1)[:, : x.shape[1], : x.shape[2]]


def _interleave_taps(taps: Sequence[Array], axis: int) -> Array:
    """Adds the gradients of three taps of a window of stride 2 along one axis.

    Even inputs belong to the middle tap only; odd ones to the last tap of the output before them
    and to the first tap of the output after them.
    """
    first, middle, last = taps
    after = jnp.pad(
        jax.lax.slice_in_dim(first, 1, None, axis=axis), [(0, int(a == axis)) for a in range(4)]
    )
    shape = [size * (1 + (a == axis)) for a, size in enumerate(middle.shape)]
    return jnp.stack([middle, after + last], axis + 1).reshape(shape)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)
