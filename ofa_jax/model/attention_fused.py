"""Chooses how attention with position terms is computed: a TPU kernel, cuDNN, or products.

`attend` takes what `attention_terms.attend` takes and computes the same.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from absl import logging
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from ofa_jax.model import attention_cudnn, attention_terms, position_biases
from ofa_jax.model.attention_devices import mesh_axes, parts, per_device, sum_over_devices
from ofa_jax.model.attention_terms import AttentionMask, ScoreTerms, WeightDropout
from ofa_jax.model.layers import ATTENDED

if TYPE_CHECKING:  # importing Pallas takes half a second
    from ofa_jax.model.attention_blocks import Blocks
    from ofa_jax.model.attention_kernel import Integers, Terms
    from ofa_jax.model.attention_program import KernelSpec

Arguments = tuple[
    Array, Array, Array, ScoreTerms, AttentionMask, WeightDropout | None, Array | None
]
"""Arguments of `attention_terms.attend`."""


def attend(
    query: Float[Array, "batch queries heads head_dim"],
    key: Float[Array, "batch keys heads head_dim"],
    value: Float[Array, "batch keys heads head_dim"],
    terms: ScoreTerms,
    mask: AttentionMask,
    dropout: WeightDropout | None = None,
    head_scale: Float[Array, " heads"] | None = None,
) -> Float[Array, "batch queries heads head_dim"]:
    """Attends by the fastest method of the platform that takes these shapes.

    The arguments and the result are those of `attention_terms.attend`.
    """
    arguments = (query, key, value, terms, mask, dropout, head_scale)
    platform = jax.default_backend()
    if platform == "gpu":
        refusal = attention_cudnn.gpu_refusal(jax.devices()[0]) or (
            attention_cudnn.refusal(*arguments)
        )
        if refusal is None:
            return checkpoint_name(attention_cudnn.attend(*arguments), ATTENDED)
        _log_fallback("cuDNN", refusal)
        return checkpoint_name(attention_terms.attend(*arguments), ATTENDED)
    refusal = kernel_refusal(*arguments)
    if refusal is not None:
        if platform == "tpu":
            _log_fallback("the TPU kernel", refusal)
        return checkpoint_name(attention_terms.attend(*arguments), ATTENDED)
    return attend_by_kernel(kernel_spec(*arguments), *arguments)


@functools.cache
def _log_fallback(method: str, refusal: str) -> None:
    """Logs once for each reason that attention is computed with arrays in memory."""
    logging.warning(
        "OFAConfig.attention_implementation is 'fused', but %s does not take %s: these layers "
        "compute as 'columns' does, which needs more memory and time (docs/attention.md).",
        method,
        refusal,
    )


def kernel_refusal(query: Array, key: Array, *others: Any) -> str | None:
    """Returns what keeps the TPU kernel from computing this attention, in words; None for nothing.

    Args:
      query: of `attention_terms.attend`.
      key: likewise.
      *others: its other arguments.
    """
    dropout = others[3]
    (batch, _, heads, _), (batch_axes, head_axes) = query.shape, mesh_axes()
    for number, axes, name in ((batch, batch_axes, "examples"), (heads, head_axes, "heads")):
        if number % parts(axes):
            return f"{number} {name} on {parts(axes)} devices of the axes {', '.join(axes)}"
    if dropout is not None and not (
        jax.config.jax_threefry_partitionable  # type: ignore[attr-defined]
        and _is_threefry(dropout.key)
    ):
        return "dropout with other random numbers than JAX's default (threefry, partitionable)"
    if _blocks(query, key, *others) is None:
        return f"{query.shape[1]} queries and {key.shape[1]} keys (more than fit VMEM)"
    return None


def _blocks(query: Array, key: Array, *others: Any) -> "Blocks | None":
    """Returns how many queries and keys a program takes; None if nothing fits VMEM."""
    from ofa_jax.model import attention_blocks

    terms = others[1]
    return attention_blocks.choose_blocks(
        query.shape[1],
        key.shape[1],
        0 if terms.relative is None else terms.relative.shape[0],
        [image.grid for image in terms.patches],
    )


def kernel_spec(
    query: Array,
    key: Array,
    value: Array,
    terms: ScoreTerms,
    mask: AttentionMask,
    dropout: WeightDropout | None,
    head_scale: Array | None,
) -> "KernelSpec":
    """Returns what the kernel is specialised for; it must take these arguments."""
    from ofa_jax.model import attention_blocks, attention_program

    queries, keys = query.shape[1], key.shape[1]
    blocks = _blocks(query, key, value, terms, mask, dropout, head_scale)
    assert blocks is not None
    images = [
        attention_blocks.patch_spec(image.grid, image.end, terms.prefix, blocks, queries, keys)
        for image in terms.patches
    ]
    return attention_program.KernelSpec(
        causal=mask.causal,
        prefix=terms.prefix,
        images=tuple(images),
        dropout_rate=0.0 if dropout is None else dropout.rate,
        num_heads=query.shape[2],
        queries=queries,
        keys=keys,
        block=blocks.queries,
        key_block=blocks.keys,
    )


def attend_by_kernel(
    spec: "KernelSpec", *arguments: Any
) -> Float[Array, "batch queries heads head_dim"]:
    """Attends with the TPU kernel; other platforms compute `attention_terms.attend`.

    Args:
      spec: of the kernel; with `interpret` it runs on every platform.
      *arguments: of `attention_terms.attend`.
    """
    leaves, tree = jax.tree.flatten(arguments)
    floating = tuple(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves)
    floats = [leaf for leaf, is_float in zip(leaves, floating, strict=True) if is_float]
    others = [leaf for leaf, is_float in zip(leaves, floating, strict=True) if not is_float]
    return _attend(spec, _Layout(tree, floating), floats, others)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Where the floating and the other leaves of some arguments belong."""

    tree: Any
    floating: tuple[bool, ...]

    def join(self, floats: Sequence[Array], others: Sequence[Array]) -> Arguments:
        """Returns the arguments."""
        rest = {True: iter(floats), False: iter(others)}
        return self.tree.unflatten([next(rest[is_float]) for is_float in self.floating])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(spec: "KernelSpec", layout: _Layout, floats: list[Array], others: list[Array]) -> Array:
    """Attends by the method of the platform."""
    return _attend_with_statistics(spec, layout, floats, others)[0]


def _attend_with_statistics(
    spec: "KernelSpec", layout: _Layout, floats: list[Array], others: list[Array]
) -> tuple[Array, list[Array]]:
    """Returns the mixed values, and statistics if the kernel's backward pass needs them."""

    def by_products(floats: list[Array], others: list[Array]) -> tuple[Array, list[Array]]:
        mixed = attention_terms.attend(*layout.join(floats, others))
        batch, queries, heads, _ = mixed.shape
        unused = jnp.zeros((batch, heads, 2, queries), jnp.float32)
        return mixed, [] if spec.one_pass else [unused]

    def by_kernel(floats: list[Array], others: list[Array]) -> tuple[Array, list[Array]]:
        from ofa_jax.model import attention_kernel

        def run(terms: "Terms", integers: "Integers") -> tuple[Array, list[Array]]:
            mixed, statistics = attention_kernel.forward(spec, terms, integers)
            return mixed, [] if statistics is None else [statistics]

        terms, integers = _to_kernel(layout.join(floats, others))
        mixed, statistics = per_device(
            run,
            (terms, integers),
            lambda terms, integers: (terms.query, [] if spec.one_pass else [terms.query]),
        )
        return mixed.transpose(0, 2, 1, 3), statistics

    return _choose(spec, by_kernel, by_products)(floats, others)


def _attend_forward(
    spec: "KernelSpec", layout: _Layout, floats: list[Array], others: list[Array]
) -> tuple[Array, tuple[list[Array], list[Array], list[Array]]]:
    """Attends, and saves what the backward pass reads."""
    mixed, statistics = _attend_with_statistics(spec, layout, floats, others)
    # Rematerialised layers save the arrays of this name, so that their backward pass does not run
    # the forward kernel again. All that the backward pass reads is named here, where it is made.
    mixed = checkpoint_name(mixed, ATTENDED)
    saved = [checkpoint_name(x, ATTENDED) for x in statistics]
    return mixed, (floats, others, [mixed, *saved] if saved else [])


def _attend_backward(
    spec: "KernelSpec",
    layout: _Layout,
    saved: tuple[list[Array], list[Array], list[Array]],
    gradient: Array,
) -> tuple[list[Array], None]:
    """Computes the gradients of the floating leaves by the method of the platform."""

    def by_products(
        floats: list[Array], others: list[Array], results: list[Array], gradient: Array
    ) -> list[Array]:
        del results

        def run(floats: list[Array]) -> Array:
            return attention_terms.attend(*layout.join(floats, others))

        return jax.vjp(run, floats)[1](gradient)[0]

    def by_kernel(
        floats: list[Array], others: list[Array], results: list[Array], gradient: Array
    ) -> list[Array]:
        from ofa_jax.model import attention_kernel

        def convert(floats: list[Array]) -> tuple["Terms", "Integers"]:
            return _to_kernel(layout.join(floats, others))

        terms, pull, integers = jax.vjp(convert, floats, has_aux=True)

        positions = ("position_query", "position_key")
        shared = ["head_scale", "relative", "bands"]
        shared += [name for name in positions if getattr(terms, name).shape[0] == 1]

        def run(terms: "Terms", integers: "Integers", *arrays: Array) -> "Terms":
            slopes = attention_kernel.backward(spec, terms, integers, *arrays)
            return sum_over_devices(slopes, shared)

        mixed = [x.transpose(0, 2, 1, 3) for x in (gradient, *results[:1])]
        slopes = per_device(run, (terms, integers, *mixed, *results[1:]), lambda terms, *_: terms)
        return pull(slopes)[0]

    return _choose(spec, by_kernel, by_products)(*saved, gradient), None


_attend.defvjp(_attend_forward, _attend_backward)


def _choose(
    spec: "KernelSpec", by_kernel: Callable[..., Any], by_products: Callable[..., Any]
) -> Callable[..., Any]:
    """Returns the function for the platform that a program is lowered for."""
    if spec.interpret:
        return by_kernel
    return functools.partial(jax.lax.platform_dependent, tpu=by_kernel, default=by_products)


def _to_kernel(arguments: Arguments) -> tuple["Terms", "Integers"]:
    """Converts arguments of `attend` to those of the kernel."""
    from ofa_jax.model import attention_kernel

    query, key, value, terms, mask, dropout, head_scale = arguments
    batch, queries, heads, _ = query.shape
    keys, prefix = key.shape[1], terms.prefix
    position_query, position_key = terms.positions.query, terms.position_key()
    if head_scale is None:
        head_scale = jnp.ones(heads)
    seed = jnp.zeros(2, jnp.uint32) if dropout is None else _key_data(dropout.key)
    places = [image.places(queries) for image in terms.patches]
    kernel_terms = attention_kernel.Terms(
        query=query.transpose(0, 2, 1, 3),
        key=key.transpose(0, 2, 1, 3),
        value=value.transpose(0, 2, 1, 3),
        position_query=position_query.astype(query.dtype).transpose(0, 2, 1, 3),
        position_key=position_key.astype(key.dtype).transpose(0, 2, 1, 3),
        head_scale=head_scale.astype(jnp.float32),
        relative=terms.padded_relative(),
        bands=tuple(
            position_biases.grid_bands(image.table, *image.grid, image.bucket_size)
            for image in terms.patches
        ),
    )
    integers = attention_kernel.Integers(
        kinds=jnp.zeros(batch, jnp.int32) if terms.kinds is None else terms.kinds,
        mask=jnp.pad(mask.keys, ((0, 0), (prefix, 0)), constant_values=True),
        query_rows=tuple(rows for rows, _ in places),
        query_columns=tuple(columns for _, columns in places),
        key_codes=tuple(image.codes(keys, prefix) for image in terms.patches),
        seed=seed,
        examples=jnp.arange(batch, dtype=jnp.int32),
        heads=jnp.arange(heads, dtype=jnp.int32),
    )
    return kernel_terms, integers


def _key_data(key: Array) -> Array:
    """Returns the two words of a random key, typed or not."""
    return jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key


def _is_threefry(key: Array) -> bool:
    """Returns whether a random key is one of threefry, JAX's default."""
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return str(jax.random.key_impl(key)) == "threefry2x32"
    return key.shape == (2,)
