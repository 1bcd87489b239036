"""Convolutions, pooling, batch norm, and the ResNet against the original's activations."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ofa_jax.model import convolutions
from ofa_jax.model.layers import layer_norm
from ofa_jax.model.resnet import BatchNorm, ResNet


def test_resnet_output_is_the_originals(official):
    """Float32 sums over up to 2,304 terms through 19 convolutions, on values up to about 30."""
    case, batch = official.case("a")
    variables = {name: tree["encoder"]["resnet"] for name, tree in official.variables.items()}
    output = jax.jit(lambda v, x: ResNet(official.config).apply(v, x, False))(
        variables, batch["encoder_images"]
    )
    np.testing.assert_allclose(
        output.transpose(0, 3, 1, 2), case["resnet_out"], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_a_pointwise_convolution_is_a_convolution(stride):
    x = jax.random.normal(jax.random.key(0), (2, 7, 6, 5))
    kernel = jax.random.normal(jax.random.key(1), (5, 3))
    expected = convolutions.convolution(x, kernel[None, None], stride)
    np.testing.assert_allclose(
        convolutions.pointwise(x, kernel, stride), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("kernel_size", "channels"), [(7, 3), (3, 16), (3, 5)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(9, 6), (8, 8), (2, 3)])
def test_gradients_of_a_convolution_are_xlas(size, stride, kernel_size, channels):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, *size, channels))
    kernel = jax.random.normal(keys[1], (kernel_size, kernel_size, channels, 4))
    weights = jax.random.normal(keys[2], convolutions.convolution(x, kernel, stride).shape)

    def gradients(convolution):
        return jax.jit(
            jax.grad(lambda x, kernel: (convolution(x, kernel, stride) * weights).sum(), (0, 1))
        )(x, kernel)

    for ours, native in zip(
        gradients(convolutions.convolution), gradients(convolutions._native), strict=True
    ):
        # Sums of up to 150 products of size 1.
        np.testing.assert_allclose(ours, native, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("size", [(8, 8), (9, 6), (7, 7), (1, 1)])
def test_pooling_and_its_gradient_are_xlas_with_ties_as_well(size):
    """Rounded to one decimal, so that equal maxima occur: the first takes the gradient."""
    x = jax.random.normal(jax.random.key(0), (2, *size, 3)).round(1)
    weights = jax.random.normal(jax.random.key(1), (2, -(-size[0] // 2), -(-size[1] // 2), 3))

    def gradient(pool):
        return jax.grad(lambda x: (pool(x) * weights).sum())(x)

    np.testing.assert_array_equal(convolutions.max_pool(x), convolutions._max_window(x))
    # Up to four outputs share a pixel: their sum may be taken in another order.
    np.testing.assert_allclose(
        gradient(convolutions.max_pool), gradient(convolutions._max_window), rtol=1e-6, atol=1e-6
    )


def test_batch_norm_far_from_zero_keeps_its_digits():
    """Mean 1,000, deviation 1, known to the running mean: the one-pass variance must not cancel.

    The inputs are float32 near 1,000, spaced 2^-14 = 6e-5: so much can the output be off.
    """
    x = 1000 + jax.random.normal(jax.random.key(0), (4, 5, 5, 2))
    variables = {
        "params": {"scale": jnp.ones(2), "bias": jnp.zeros(2)},
        "batch_stats": {"mean": jnp.full(2, 999.0), "var": jnp.ones(2)},
    }
    y, updates = BatchNorm(2, frozen=False).apply(variables, x, True, mutable=["batch_stats"])
    exact = np.asarray(x, np.float64)
    centred = exact - exact.mean((0, 1, 2))
    expected = centred / np.sqrt(np.square(centred).mean((0, 1, 2)) + 1e-5)
    np.testing.assert_allclose(y, expected, atol=4 * 2**-14)
    np.testing.assert_allclose(
        updates["batch_stats"]["var"], 0.9 + 0.1 * exact.reshape(-1, 2).var(0, ddof=1), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("module", "wide", "arguments"),
    [
        (BatchNorm(4, frozen=False), BatchNorm(4, frozen=False), (True,)),
        (layer_norm(jnp.bfloat16), layer_norm(jnp.float32), ()),
    ],
    ids=["batch", "layer"],
)
def test_a_norm_of_bfloat16_keeps_its_input_alone_for_its_gradient(module, wide, arguments):
    x = jax.random.normal(jax.random.key(0), (8, 5, 5, 4)).astype(jnp.bfloat16)
    variables = nn.meta.unbox(module.init(jax.random.key(1), x, *arguments))

    def differentiated(module, x):
        y, gradient_of = jax.vjp(
            lambda x: module.apply(variables, x, *arguments, mutable=["batch_stats"])[0], x
        )
        kept = [a.dtype for a in jax.tree.leaves(gradient_of) if a.size >= x.size]
        (gradient,) = gradient_of(jnp.cos(jnp.arange(y.size).reshape(y.shape)).astype(y.dtype))
        return y, gradient, kept

    y, gradient, kept = differentiated(module, x)
    assert kept == [jnp.bfloat16]
    wide_y, wide_gradient, wide_kept = differentiated(wide, x.astype(jnp.float32))
    assert len(wide_kept) > 1
    # bfloat16 has eight bits: 2^-7 of values up to 4, and of sums of a few such roundings.
    np.testing.assert_allclose(y.astype(jnp.float32), wide_y, atol=2**-6)
    np.testing.assert_allclose(gradient.astype(jnp.float32), wide_gradient, atol=2**-5)
