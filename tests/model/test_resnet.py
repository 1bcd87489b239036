"""Convolutions, pooling, batch norm, and the ResNet against the reference's activations."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ofa_jax.model import convolutions
from ofa_jax.model.layers import layer_norm
from ofa_jax.model.resnet import BatchNorm, Convolution, ResNet, _convolve_and_normalise


def test_resnet_output_matches_the_reference(official):
    """Covers 19 convolutions with float32 sums of up to 2,304 terms, on values up to about 30."""
    case, batch = official.case("a")
    variables = {name: tree["encoder"]["resnet"] for name, tree in official.variables.items()}
    output = jax.jit(lambda v, x: ResNet(official.config).apply(v, x, False))(
        variables, batch["encoder_images"]
    )
    np.testing.assert_allclose(
        output.transpose(0, 3, 1, 2), case["resnet_out"], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_pointwise_convolution_equals_a_1x1_convolution(stride):
    x = jax.random.normal(jax.random.key(0), (2, 7, 6, 5))
    kernel = jax.random.normal(jax.random.key(1), (5, 3))
    expected = convolutions.convolution(x, kernel[None, None], stride)
    np.testing.assert_allclose(
        convolutions.pointwise_convolution(x, kernel, stride), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("kernel_size", "channels"), [(7, 3), (3, 16), (3, 5)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(9, 6), (8, 8), (2, 3)])
def test_convolution_gradients_equal_native_gradients(size, stride, kernel_size, channels):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, *size, channels))
    kernel = jax.random.normal(keys[1], (kernel_size, kernel_size, channels, 4))
    weights = jax.random.normal(keys[2], convolutions.convolution(x, kernel, stride).shape)

    def gradients(convolution):
        return jax.jit(
            jax.grad(lambda x, kernel: (convolution(x, kernel, stride) * weights).sum(), (0, 1))
        )(x, kernel)

    for ours, native in zip(
        gradients(convolutions.convolution),
        gradients(convolutions._native_convolution),
        strict=True,
    ):
        # These are sums of up to 150 products of size 1.
        np.testing.assert_allclose(ours, native, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("size", [(8, 8), (9, 6), (7, 7), (1, 1)])
def test_max_pool_and_its_gradient_equal_native_pooling_with_ties(size):
    """Inputs have one decimal, so that equal maxima occur; the first gets the gradient."""
    x = jax.random.normal(jax.random.key(0), (2, *size, 3)).round(1)
    weights = jax.random.normal(jax.random.key(1), (2, -(-size[0] // 2), -(-size[1] // 2), 3))

    def gradient(pool):
        return jax.grad(lambda x: (pool(x) * weights).sum())(x)

    np.testing.assert_array_equal(convolutions.max_pool(x), convolutions._native_max_pool(x))
    # Up to four outputs share a pixel, and their gradients are summed in another order.
    np.testing.assert_allclose(
        gradient(convolutions.max_pool),
        gradient(convolutions._native_max_pool),
        rtol=1e-6,
        atol=1e-6,
    )


class _ConvolutionAndNorm(nn.Module):
    """A convolution, its norm and ReLU, folded as in the ResNet or one after the other."""

    size: int
    stride: int
    frozen: bool
    folded: bool

    @nn.compact
    def __call__(self, x, train):
        conv = Convolution(x.shape[-1], 6, self.size, self.stride, x.dtype, name="conv")
        norm = BatchNorm(6, self.frozen, name="norm")
        if self.folded:
            return nn.relu(_convolve_and_normalise(x, conv, norm, train))
        return nn.relu(norm(conv(x), train))


def _draw(tree, positive=("var", "scale")):
    """Returns random values for a tree of parameters or statistics."""
    leaves = jax.tree_util.tree_leaves_with_path(nn.meta.unbox(tree))
    rng = np.random.default_rng(0)
    drawn = [
        jnp.asarray(
            rng.uniform(0.5, 2, leaf.shape)
            if path[-1].key in positive
            else rng.standard_normal(leaf.shape),
            jnp.float32,
        )
        for path, leaf in leaves
    ]
    return jax.tree.unflatten(jax.tree.structure(nn.meta.unbox(tree)), drawn)


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
def test_norms_folded_into_kernels_equal_norms_after_convolutions(size, stride):
    """Values and all gradients, with frozen statistics; in evaluation nothing is folded."""
    x = jax.random.normal(jax.random.key(0), (2, 7, 6, 5))
    modules = [_ConvolutionAndNorm(size, stride, True, folded) for folded in (True, False)]
    variables = _draw(modules[0].init(jax.random.key(1), x, True))
    evaluated = [module.apply(variables, x, False) for module in modules]
    np.testing.assert_array_equal(*evaluated)

    def value_and_gradients(module):
        def function(params, x):
            variables_ = variables | {"params": params}
            y, updates = module.apply(variables_, x, True, mutable=["batch_stats"])
            return y, updates

        y, gradients_of, updates = jax.vjp(function, variables["params"], x, has_aux=True)
        jax.tree.map(
            np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"]
        )
        return y, *gradients_of(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))

    folded, unfolded = (value_and_gradients(module) for module in modules)
    assert float(jnp.abs(folded[0]).max()) > 1
    assert float(jnp.abs(folded[0] - evaluated[0]).max()) < 1e-3
    # Weights are rounded once more, and sums of up to 245 terms of size 1 to 10 differ by a few
    # roundings of a partial sum of size 50.
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=5e-5),
        folded,
        unfolded,
    )


def test_folded_norms_keep_no_output_of_a_convolution():
    """For gradients; what ReLU keeps is the same in both."""
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 5))
    kept = {}
    for folded in (True, False):
        module = _ConvolutionAndNorm(3, 1, True, folded)
        variables = _draw(module.init(jax.random.key(1), x, True))
        _, gradients_of = jax.vjp(
            lambda params, module=module, variables=variables: module.apply(
                variables | {"params": params}, x, True, mutable=["batch_stats"]
            )[0],
            variables["params"],
        )
        kept[folded] = sum(leaf.shape == (2, 8, 8, 6) for leaf in jax.tree.leaves(gradients_of))
    assert kept[True] == kept[False] - 1


def test_batch_norm_is_accurate_far_from_zero():
    """With mean 1,000 and deviation 1, the one-pass variance must not cancel.

    Float32 inputs near 1,000 are spaced by 2^-14 = 6e-5, which limits the accuracy of the output.
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
    ("module", "float32_module", "arguments"),
    [
        (BatchNorm(4, frozen=False), BatchNorm(4, frozen=False), (True,)),
        (layer_norm(jnp.bfloat16), layer_norm(jnp.float32), ()),
    ],
    ids=["batch", "layer"],
)
def test_bfloat16_norms_save_only_their_input(module, float32_module, arguments):
    x = jax.random.normal(jax.random.key(0), (8, 5, 5, 4)).astype(jnp.bfloat16)
    variables = nn.meta.unbox(module.init(jax.random.key(1), x, *arguments))

    def value_and_gradient(module, x):
        y, gradient_of = jax.vjp(
            lambda x: module.apply(variables, x, *arguments, mutable=["batch_stats"])[0], x
        )
        saved = [a.dtype for a in jax.tree.leaves(gradient_of) if a.size >= x.size]
        (gradient,) = gradient_of(jnp.cos(jnp.arange(y.size).reshape(y.shape)).astype(y.dtype))
        return y, gradient, saved

    y, gradient, saved = value_and_gradient(module, x)
    assert saved == [jnp.bfloat16]
    exact_y, exact_gradient, exact_saved = value_and_gradient(float32_module, x.astype(jnp.float32))
    if isinstance(module, BatchNorm):  # whose backward pass needs nothing else in float32 either
        assert exact_saved == [jnp.float32]
    else:
        assert len(exact_saved) > 1
    # bfloat16 has eight bits: errors are up to 2^-7 for values up to 4, and a few of them add up.
    np.testing.assert_allclose(y.astype(jnp.float32), exact_y, atol=2**-6)
    np.testing.assert_allclose(gradient.astype(jnp.float32), exact_gradient, atol=2**-5)
