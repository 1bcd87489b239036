"""The ResNet's convolutions and pooling, with gradients that are fast on a CPU too.

Measured on two cores at 384 pixels and a batch of 4, in milliseconds of native XLA and of what is
here: gradient towards the stem's 7x7 kernel 700 and 175, towards 3x3 kernels 170 and 90 (64
channels), 57 and 38 (128), 64 and 28 (256). The native gradient of max-pooling (select_and_scatter)
takes several times as long as comparing; 1x1 convolutions are a third faster as matrix products.
`platform_dependent` chooses when the program is lowered, so that what is compiled ahead of time for
a TPU gets the TPU's own.

All arrays are NHWC, kernels HWIO.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def pointwise(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """1x1 convolution as a matrix product: [N, H, W, I], [I, O] to [N, H/stride, W/stride, O]."""
    if stride > 1:
        x = x[:, ::stride, ::stride]
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolution(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Convolution with an odd square kernel, padded by half of it.

    Args:
      x: [N, H, W, I].
      kernel: [k, k, I, O].
      stride: of both axes.

    Returns:
      [N, ceil(H / stride), ceil(W / stride), O].
    """
    return _native(x, kernel, stride)


def _native(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    padding = [(size // 2, size // 2) for size in kernel.shape[:2]]
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _convolution_forward(x, kernel, stride):
    return convolution(x, kernel, stride), (x, kernel)


def _convolution_backward(stride, residuals, dy):
    x, kernel = residuals
    (dx,) = jax.vjp(lambda x: _native(x, kernel, stride), x)[1](dy)
    dkernel = jax.lax.platform_dependent(
        x,
        kernel,
        dy,
        cpu=functools.partial(_kernel_gradient_by_products, stride=stride),
        default=lambda x, kernel, dy: jax.vjp(lambda kernel: _native(x, kernel, stride), kernel)[1](
            dy
        )[0],
    )
    return dx, dkernel


convolution.defvjp(_convolution_forward, _convolution_backward)


def _kernel_gradient_by_products(x, kernel, dy, stride):
    """For every place of the kernel, what it saw times what came of it, as matrix products."""
    size, channels = kernel.shape[0], kernel.shape[2]
    taps = [
        tap.reshape(-1, channels)
        for tap in _taps(x, size, stride, size // 2, dy.shape[1:3], fill=0)
    ]
    if channels < _FEW_CHANNELS:
        # Thin products are slow: one for all places.
        taps = [jnp.concatenate(taps, axis=1)]
    # Kept apart: fused into the product, a tap would be copied again for each of its blocks.
    products = [jax.lax.optimization_barrier(tap).T @ dy.reshape(-1, dy.shape[-1]) for tap in taps]
    return jnp.concatenate(products).reshape(kernel.shape)


_FEW_CHANNELS = 16


def _taps(x, size, stride, pad, shape, fill) -> list[jax.Array]:
    """What each place of a window sees: size * size arrays [N, *shape, C], row by row."""
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=fill)
    rows, columns = (stride * (n - 1) + 1 for n in shape)
    return [
        padded[:, i : i + rows : stride, j : j + columns : stride]
        for i in range(size)
        for j in range(size)
    ]


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
    """3x3 maximum, stride 2, padded by 1: [N, H, W, C] to [N, ceil(H/2), ceil(W/2), C]."""
    return jax.lax.platform_dependent(x, cpu=_max_of_slices, default=_max_window)


def _max_window(x: jax.Array) -> jax.Array:
    # The initial value must be a constant of x's type for JAX to know the gradient.
    return jax.lax.reduce_window(
        x,
        np.array(-np.inf, x.dtype),
        jax.lax.max,
        (1, 3, 3, 1),
        (1, 2, 2, 1),
        ((0, 0), (1, 1), (1, 1), (0, 0)),
    )


def _pool_slices(x: jax.Array) -> list[jax.Array]:
    """What each of the nine taps sees, nine arrays of the output's shape."""
    return _taps(x, 3, 2, 1, (-(-x.shape[1] // 2), -(-x.shape[2] // 2)), fill=-np.inf)


def _max_of_slices(x: jax.Array) -> jax.Array:
    return functools.reduce(jnp.maximum, _pool_slices(x))


def _max_pool_forward(x):
    y = max_pool(x)
    return y, (x, y)


def _max_pool_backward(residuals, dy):
    x, y = residuals
    return (
        jax.lax.platform_dependent(
            x,
            y,
            dy,
            cpu=_pool_gradient_by_comparison,
            default=lambda x, y, dy: jax.vjp(_max_window, x)[1](dy)[0],
        ),
    )


def _pool_gradient_by_comparison(x, y, dy):
    """The gradient goes to the first of equal maxima, as torch and XLA have it."""
    winner = jnp.full(y.shape, 9, jnp.int8)
    for tap, piece in reversed(list(enumerate(_pool_slices(x)))):
        winner = jnp.where(piece == y, jnp.int8(tap), winner)

    def spread(taps, axis):
        # Even places are seen by the middle tap alone; odd ones by the last tap of the output
        # before them and the first tap of the output after.
        first, middle, last = taps
        after = jnp.pad(
            jax.lax.slice_in_dim(first, 1, None, axis=axis), [(0, int(a == axis)) for a in range(4)]
        )
        shape = [size * (1 + (a == axis)) for a, size in enumerate(middle.shape)]
        return jnp.stack([middle, after + last], axis + 1).reshape(shape)

    columns = [
        spread([jnp.where(winner == 3 * i + j, dy, 0) for j in range(3)], axis=2) for i in range(3)
    ]
    return spread(columns, axis=1)[:, : x.shape[1], : x.shape[2]]


max_pool.defvjp(_max_pool_forward, _max_pool_backward)
