"""Scores and softmax of attention, and the layout of keys and values."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

MASKED_SCORE = -1e30
"""Score of masked pairs: vanishes in a float32 softmax, yet fully masked rows stay finite."""


def to_key_layout(
    x: Float[Array, "*batch keys heads head_dim"],
) -> Float[Array, "*batch heads head_dim keys"]:
    """Moves the key axis last, the layout in which attention multiplies keys and values.

    Caches store this layout, so that no decoding step has to transpose them.
    """
    return jnp.moveaxis(x, -3, -1)


def from_key_layout(
    x: Float[Array, "*batch heads head_dim keys"],
) -> Float[Array, "*batch keys heads head_dim"]:
    """Inverts `to_key_layout`."""
    return jnp.moveaxis(x, -1, -3)


def attention_scores(
    query: Float[Array, "*batch queries heads head_dim"],
    key: Float[Array, "*batch heads head_dim keys"],
) -> Float[Array, "*batch heads queries keys"]:
    """Computes the dot products of queries and keys per head, in float32.

    Leading axes broadcast: positions are often the same for all examples.
    """
    batch = jnp.broadcast_shapes(query.shape[:-3], key.shape[:-3])
    # Broadcast explicitly: the CPU backend has no bfloat16 product that broadcasts.
    query, key = (jnp.broadcast_to(x, (*batch, *x.shape[-3:])) for x in (query, key))
    return jnp.einsum("...qhd,...hdk->...hqk", query, key, preferred_element_type=jnp.float32)


def softmax(scores: Float[Array, "*batch keys"], dtype: jnp.dtype) -> Float[Array, "*batch keys"]:
    """Computes a softmax over the last axis in float32 and returns it as `dtype`.

    With a lower-precision `dtype` the backward pass reuses the cast weights; the float32 ones, the
    largest arrays of a layer, are not saved.
    """
    if dtype == jnp.float32:
        return jax.nn.softmax(scores, axis=-1)
    return _low_precision_softmax(scores, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _low_precision_softmax(scores: Array, dtype: jnp.dtype) -> Array:
    return jax.nn.softmax(scores, axis=-1).astype(dtype)


def _low_precision_softmax_forward(scores: Array, dtype: jnp.dtype) -> tuple[Array, Array]:
    weights = _low_precision_softmax(scores, dtype)
    return weights, weights


def _low_precision_softmax_backward(
    dtype: jnp.dtype, weights: Array, gradient: Array
) -> tuple[Array]:
    """Computes the gradient of the scores from the low-precision weights."""
    weights, gradient = weights.astype(jnp.float32), gradient.astype(jnp.float32)
    inner = (weights * gradient).sum(axis=-1, keepdims=True)
    return (weights * (gradient - inner),)


_low_precision_softmax.defvjp(_low_precision_softmax_forward, _low_precision_softmax_backward)
