"""Chooses how attention with position terms is computed: a TPU kernel, cuDNN, or products.

`attend` takes what `attention_terms.attend` takes and computes the same.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from ofa_jax.model import attention_terms, position_biases
from ofa_jax.model.attention_devices import mesh_axes, parts, per_device, sum_over_devices
from ofa_jax.model.attention_terms import AttentionMask, ScoreTerms, WeightDropout
from ofa_jax.model.layers import ATTENDED

if TYPE_CHECKING:  # importing Pallas takes half a second
    from ofa_jax.model.attention_kernel import Integers, Terms
    from ofa_jax.model.attention_program import KernelSpec

Arguments = tuple[
    Array, Array, Array, ScoreTerms, AttentionMask, WeightDropout | None, Array | None
]
"""Arguments of `attention_terms.attend`."""

_CUDNN_WIDTHS = (8, 128)
"""cuDNN's flash attention takes columns that are a multiple of 8 and at most 128."""


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
    if jax.default_backend() == "gpu" and cudnn_takes(*arguments):
        return checkpoint_name(attend_by_library(*arguments), ATTENDED)
    spec = kernel_spec(*arguments)
    if spec is None:
        return checkpoint_name(attention_terms.attend(*arguments), ATTENDED)
    return attend_by_kernel(spec, *arguments)


# ------------------------------------------------------------------------------------------ GPU


def cudnn_takes(query: Array, key: Array, *others: Any) -> bool:
    """Returns whether cuDNN can compute this attention, its gradients included."""
    dropout = others[3]
    multiple, most = _CUDNN_WIDTHS
    columns = 2 * query.shape[-1]
    even = query.shape[1] % 2 == 0 and key.shape[1] % 2 == 0
    return (
        query.dtype == jnp.bfloat16
        and dropout is None
        and even
        and columns % multiple == 0
        and columns <= most
    )


def attend_by_library(
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


# ------------------------------------------------------------------------------------------ TPU


def kernel_spec(
    query: Array,
    key: Array,
    value: Array,
    terms: ScoreTerms,
    mask: AttentionMask,
    dropout: WeightDropout | None,
    head_scale: Array | None,
) -> "KernelSpec | None":
    """Returns what the kernel is specialised for, or None if it does not take these arguments."""
    from ofa_jax.model import attention_blocks, attention_program

    batch, queries, heads, _ = query.shape
    batch_axes, head_axes = mesh_axes()
    if batch % parts(batch_axes) or heads % parts(head_axes):
        return None
    if dropout is not None and not (
        jax.config.jax_threefry_partitionable  # type: ignore[attr-defined]
        and _is_threefry(dropout.key)
    ):
        return None
    kinds = 0 if terms.relative is None else terms.relative.shape[0]
    keys, grids = key.shape[1], [image.grid for image in terms.patches]
    blocks = attention_blocks.choose_blocks(queries, keys, kinds, grids)
    if blocks is None:
        return None
    images = [
        attention_blocks.patch_spec(image.grid, image.end, terms.prefix, blocks, queries, keys)
        for image in terms.patches
    ]
    return attention_program.KernelSpec(
        causal=mask.causal,
        prefix=terms.prefix,
        images=tuple(images),
        dropout_rate=0.0 if dropout is None else dropout.rate,
        num_heads=heads,
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
    # A layer that is rematerialised saves these: its backward pass does not need the forward
    # kernel again. What it reads must have the name here, where it is made.
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
