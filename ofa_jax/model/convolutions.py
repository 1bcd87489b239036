"""The ResNet's convolutions and pooling, with gradients that are fast on a CPU too.

XLA's native convolution gradients are right for TPUs and GPUs. On its CPU backend the gradient
towards a kernel and that of max-pooling take most of a training step, so there they are computed
as matrix products over shifted slices and as comparisons. `jax.lax.platform_dependent` chooses when
the program is lowered, so that a program compiled ahead of time for a TPU gets the TPU's.

All arrays are NHWC, kernels HWIO.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def pointwise(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """1x1 convolution as a matrix product: [N, H, W, I], [I, O] to [N, H/stride, W/stride, O]."""
    if stride > 1:
        x = x[:, ::stride, ::stride]
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


def _native(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    padding = [(size // 2, size // 2) for size in kernel.shape[:2]]
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=_LAYOUT)


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


def _convolution_forward(x, kernel, stride):
    return _native(x, kernel, stride), (x, kernel)


def _convolution_backward(stride, residuals, dy):
    x, kernel = residuals
    dx, = jax.linear_transpose(lambda x: _native(x, kernel, stride), x)(dy)
    dkernel = jax.lax.platform_dependent(
        x, dy, cpu=functools.partial(_kernel_gradient, size=kernel.shape[0], stride=stride),
        default=lambda x, dy: jax.linear_transpose(
            lambda k: _native(x, k, stride), kernel)(dy)[0])
    return dx, dkernel


convolution.defvjp(_convolution_forward, _convolution_backward)


def _shifted(x: jax.Array, i: int, j: int, rows: int, columns: int, stride: int) -> jax.Array:
    """What tap (i, j) of a kernel sees: [N, rows, columns, C] of the padded x."""
    return jax.lax.slice(
        x, (0, i, j, 0),
        (x.shape[0], i + (rows - 1) * stride + 1, j + (columns - 1) * stride + 1, x.shape[3]),
        (1, stride, stride, 1))


def _kernel_gradient(x: jax.Array, dy: jax.Array, *, size: int, stride: int) -> jax.Array:
    """d kernel as one matrix product: (all that each output saw)^T (its gradient)."""
    half = size // 2
    padded = jnp.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
    seen = jnp.concatenate([
        _shifted(padded, i, j, dy.shape[1], dy.shape[2], stride)
        for i in range(size) for j in range(size)], axis=-1)
    flat = jax.lax.dot_general(
        seen.reshape(-1, seen.shape[-1]), dy.reshape(-1, dy.shape[-1]), (((0,), (0,)), ((), ())))
    return flat.reshape(size, size, x.shape[-1], dy.shape[-1])


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
    """3x3 maximum, stride 2, padded by 1: [N, H, W, C] to [N, ceil(H/2), ceil(W/2), C]."""
    return jax.lax.platform_dependent(x, cpu=_max_of_slices, default=_max_window)


def _max_window(x: jax.Array) -> jax.Array:
    # The initial value must be a constant of x's type for JAX to know the gradient.
    return jax.lax.reduce_window(x, np.array(-np.inf, x.dtype), jax.lax.max, (1, 3, 3, 1),
                                 (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))


def _pool_slices(x: jax.Array) -> list[jax.Array]:
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    rows, columns = -(-x.shape[1] // 2), -(-x.shape[2] // 2)
    return [_shifted(padded, i, j, rows, columns, 2) for i in range(3) for j in range(3)]


def _max_of_slices(x: jax.Array) -> jax.Array:
    return functools.reduce(jnp.maximum, _pool_slices(x))


def _max_pool_forward(x):
    y = max_pool(x)
    return y, (x, y)


def _max_pool_backward(residuals, dy):
    def by_comparison(x, y, dy):
        # The first of equal maxima takes the gradient, as torch and XLA have it.
        rows, columns = dy.shape[1:3]
        height, width = 2 * rows + 1, 2 * columns + 1
        free, total = dy, 0.0
        for tap, piece in enumerate(_pool_slices(x)):
            hit = piece == y
            i, j = divmod(tap, 3)
            total += jax.lax.pad(
                jnp.where(hit, free, 0), np.array(0, dy.dtype),
                ((0, 0, 0), (i, height - i - 2 * rows + 1, 1),
                 (j, width - j - 2 * columns + 1, 1), (0, 0, 0)))
            free = jnp.where(hit, 0, free)
        return total[:, 1:1 + x.shape[1], 1:1 + x.shape[2]]

    x, y = residuals
    return (jax.lax.platform_dependent(
        x, y, dy, cpu=by_comparison,
        default=lambda x, y, dy: jax.vjp(_max_window, x)[1](dy)[0]),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)
