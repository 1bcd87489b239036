"""Attention of cuDNN on GPUs, `jax.nn.dot_product_attention`."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ofa_jax.model.attention_terms import AttentionMask, ScoreTerms, WeightDropout
from ofa_jax.model.config import CUDNN_COLUMNS

_MULTIPLE = 8
"""cuDNN's flash attention takes columns that are a multiple of it."""

_AMPERE = (8, 0)
"""Compute capability of the oldest GPUs that have cuDNN's flash attention."""


def gpu_refusal(device: Any) -> str | None:
    """Returns why a GPU has no cuDNN attention, in words; None if it has."""
    if "cuda" not in device.client.platform_version:
        return "a GPU without CUDA"
    major, minor = (int(number) for number in device.compute_capability.split("."))
    if (major, minor) < _AMPERE:
        return f"a GPU of compute capability {major}.{minor} (at least {_AMPERE[0]}.{_AMPERE[1]})"
    return None


def refusal(query: Array, key: Array, *others: Any) -> str | None:
    """Returns what keeps cuDNN from computing this attention, in words; None for nothing.

    Its gradients are included.

    Args:
      query: of `attention_terms.attend`.
      key: likewise.
      *others: its other arguments.
    """
    dropout = others[3]
    if query.dtype != jnp.bfloat16:
        return f"the dtype {query.dtype} (it takes bfloat16)"
    if dropout is not None:
        return "dropout of attention weights (it draws other random numbers than JAX)"
    columns = 2 * query.shape[-1]
    if columns % _MULTIPLE or columns > CUDNN_COLUMNS:
        return (
            f"heads of {columns} columns with those of positions (it takes multiples of "
            f"{_MULTIPLE} up to {CUDNN_COLUMNS})"
        )
    lengths = query.shape[1], key.shape[1]
    if any(length % 2 for length in lengths):
        return f"odd lengths ({lengths[0]} queries, {lengths[1]} keys)"
    return None


def attend(
    query: Array,
    key: Array,
    value: Array,
    terms: ScoreTerms,
    mask: AttentionMask,
    dropout: WeightDropout | None,
    head_scale: Array | None,
    implementation: Any = "cudnn",
) -> Float[Array, "batch queries heads head_dim"]:
    """Attends with `jax.nn.dot_product_attention`, which takes the bias in the compute dtype.

    Args:
      query: as those below, of `attention_terms.attend`.
      key: see query.
      value: see query.
      terms: see query.
      mask: see query.
      dropout: None, because the library draws other random bits.
      head_scale: see query.
      implementation: of `jax.nn.dot_product_attention`.
    """
    del dropout
    head_dim = query.shape[-1]
    bias = terms.relative_bias(query.dtype)
    position_query = jnp.broadcast_to(terms.positions.query, query.shape)
    position_key = jnp.broadcast_to(terms.position_key(), key.shape)
    # Values are as wide as keys there.
    mixed = jax.nn.dot_product_attention(
        jnp.concatenate([query, position_query.astype(query.dtype)], axis=-1),
        jnp.concatenate([key, position_key.astype(key.dtype)], axis=-1),
        jnp.pad(value, ((0, 0),) * 3 + ((0, head_dim),)),
        bias=None if bias is None else bias.astype(query.dtype),
        mask=mask.dense(query.shape[1], terms.prefix),
        scale=1.0,
        implementation=implementation,
    )[..., :head_dim]
    return mixed if head_scale is None else mixed * head_scale.astype(mixed.dtype)[:, None]
