"""Attention with OFA's position terms as Pallas kernels for TPUs, forward and backward.

Scores, softmax and weights of a block of queries and keys stay in VMEM: nothing of the size [batch,
heads, queries, keys] is written to HBM. The backward pass computes scores and weights again (Dao et
al. 2022, FlashAttention, section 3.1).

Where all keys fit VMEM, a program sees all of them: the softmax needs one pass, and one kernel
computes all gradients. Longer sequences are computed block by block (`attention_program`), with one
kernel for the gradients of queries and another for those of keys, values and biases.

What depends on the head but not on the example (the relative bias of text, the 2-D table, position
factors of unsampled positions) is fetched once for all examples, and its gradient is summed over
them in VMEM.

The bias between sampled patches comes from the 2-D table inside the kernel (`attention_patches`).
"""

from collections.abc import Mapping

import flax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int, UInt

from ofa_jax.model.attention_call import KernelCall
from ofa_jax.model.attention_patches import LANES
from ofa_jax.model.attention_program import STATISTICS, KernelSpec, Program


class Terms(flax.struct.PyTreeNode):
    """The arguments that have gradients.

    Attributes:
      query: scaled.
      key, value: after those of the prefix.
      position_query, position_key: factors of the absolute bias; zeros for the prefix.
      head_scale: factor of each head.
      relative: relative bias of each kind of example; None for none.
      bands: the 2-D table of each image with sampled patches, see `position_biases.grid_bands`.
    """

    query: Float[Array, "batch heads queries head_dim"]
    key: Float[Array, "batch heads keys head_dim"]
    value: Float[Array, "batch heads keys head_dim"]
    position_query: Float[Array, "#batch heads queries head_dim"]
    position_key: Float[Array, "#batch heads keys head_dim"]
    head_scale: Float[Array, " heads"]
    relative: Float[Array, "kinds heads queries keys"] | None
    bands: tuple[Float[Array, "heads columns bands"], ...] = ()


class Integers(flax.struct.PyTreeNode):
    """The other arguments.

    Attributes:
      kinds: which relative bias belongs to an example.
      mask: False hides the key.
      query_rows, query_columns: row and column of the patch of each query, -1 for none; of each
        image.
      key_codes: patch of each key, counted row by row, -1 for none; of each image.
      seed: data of a threefry key.
      examples, heads: numbers of these examples and heads among those of all devices.
    """

    kinds: Int[Array, " batch"]
    mask: Bool[Array, "batch keys"]
    query_rows: tuple[Int[Array, "batch queries"], ...]
    query_columns: tuple[Int[Array, "batch queries"], ...]
    key_codes: tuple[Int[Array, "batch keys"], ...]
    seed: UInt[Array, "2"]
    examples: Int[Array, " batch"]
    heads: Int[Array, " heads"]


def forward_flops(spec: KernelSpec, terms: Terms) -> int:
    """Counts the operations of the products of `forward`, two per multiply-add."""
    scores, mixed = 2, 1  # in units of the width of a head
    return 2 * _count(spec, terms, scores + mixed, 1)


def backward_flops(spec: KernelSpec, terms: Terms) -> int:
    """Counts the operations of the products of `backward`, two per multiply-add."""
    if not spec.one_pass:
        return _queries_flops(spec, terms) + _keys_flops(spec, terms)
    scores, weights, values, queries, keys = 2, 1, 1, 2, 2
    return 2 * _count(spec, terms, scores + weights + values + queries + keys, 2)


def _queries_flops(spec: KernelSpec, terms: Terms) -> int:
    """Counts the operations of the gradients of queries alone."""
    scores, weights, queries = 2, 1, 2
    return 2 * _count(spec, terms, scores + weights + queries, 1)


def _keys_flops(spec: KernelSpec, terms: Terms) -> int:
    """Counts the operations of the other gradients alone."""
    scores, weights, values, keys = 2, 1, 1, 2
    return 2 * _count(spec, terms, scores + weights + values + keys, 2)


def _count(spec: KernelSpec, terms: Terms, products: int, images: int) -> int:
    """Counts multiply-adds.

    Args:
      spec: of the kernel.
      terms: with queries and keys of whole blocks.
      products: of each pair of a query and a key, as many times the width of a head.
      images: how often the bias of patches, or its gradient, is computed.
    """
    batch, heads, queries, head_dim = terms.query.shape
    keys = terms.key.shape[2]
    digits = sum(image.digits_multiply_adds for image in spec.images)
    patches = images * sum(image.multiply_adds for image in spec.images) + digits
    programs = queries // spec.block * (keys // spec.key_block)
    return batch * heads * (queries * keys * head_dim * products + programs * patches)


def _fill(x: Array, axis: int, missing: int, value: float = 0) -> Array:
    """Appends `missing` numbers along an axis."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, missing)
    return jnp.pad(x, widths, constant_values=value)


def _padded(spec: KernelSpec, terms: Terms, integers: Integers) -> tuple[Terms, Integers]:
    """Pads queries and keys to whole blocks.

    Queries that are added attend, and take part in no gradient; keys that are added are never seen.
    """
    queries, keys = -spec.queries % spec.block, -spec.keys % spec.key_block
    relative = terms.relative
    terms = terms.replace(
        query=_fill(terms.query, 2, queries),
        key=_fill(terms.key, 2, keys),
        value=_fill(terms.value, 2, keys),
        position_query=_fill(terms.position_query, 2, queries),
        position_key=_fill(terms.position_key, 2, keys),
        relative=None if relative is None else _fill(_fill(relative, 2, queries), 3, keys),
        bands=tuple(
            _fill(bands, 2, image.width - bands.shape[2])
            for image, bands in zip(spec.images, terms.bands, strict=True)
        ),
    )
    rows, columns = (
        tuple(_fill(x, 1, queries, -1) for x in codes)
        for codes in (integers.query_rows, integers.query_columns)
    )
    return terms, integers.replace(
        mask=_fill(integers.mask, 1, keys, False),
        query_rows=rows,
        query_columns=columns,
        key_codes=tuple(_fill(x, 1, keys, -1) for x in integers.key_codes),
    )


def forward(
    spec: KernelSpec, terms: Terms, integers: Integers
) -> tuple[
    Float[Array, "batch heads queries head_dim"], Float[Array, "batch heads 2 queries"] | None
]:
    """Computes attention; the arguments are described where they are defined.

    Returns:
      The mixed values, and what `backward` needs if the keys are several blocks: the largest score
      of each query and the sum of the powers of the differences from it. None if they are one.
    """
    batch, heads, queries, head_dim = terms.query.shape
    padded, integers = _padded(spec, terms, integers)
    call = KernelCall(spec, padded, integers, by_key=spec.one_pass)
    shape = padded.query.shape
    call.add_result("mixed", shape, terms.query.dtype, call.block(shape, True))
    flops = forward_flops(spec, padded)
    if spec.one_pass:
        return call.run(Program.forward, flops)["mixed"][:, :, :queries], None
    statistics = (batch, heads, STATISTICS, shape[2])
    call.add_result("statistics", statistics, jnp.float32, call.statistics_block())
    for name, columns in (("largest", 1), ("total", 1), ("sum_mixed", head_dim)):
        call.scratch[name] = pltpu.VMEM((spec.block, columns), jnp.float32)
    found = call.run(Program.forward_block, flops)
    return found["mixed"][:, :, :queries], found["statistics"][:, :, :2, :queries]


def backward(
    spec: KernelSpec,
    terms: Terms,
    integers: Integers,
    gradient: Float[Array, "batch heads queries head_dim"],
    mixed: Float[Array, "batch heads queries head_dim"] | None = None,
    statistics: Float[Array, "batch heads 2 queries"] | None = None,
) -> Terms:
    """Computes the gradients of all terms from that of the mixed values.

    Args:
      spec: of the kernel.
      terms: of `forward`.
      integers: of `forward`.
      gradient: of the mixed values.
      mixed: result of `forward`; only if the keys are several blocks.
      statistics: the other result of `forward`, likewise.
    """
    queries, keys = terms.query.shape[2], terms.key.shape[2]
    padded, integers = _padded(spec, terms, integers)
    gradient = gradient.astype(terms.query.dtype)
    missing = padded.query.shape[2] - queries
    filled = _fill(gradient, 2, missing)

    def start(by_key: bool) -> KernelCall:
        """Begins a kernel that reads the gradient."""
        call = KernelCall(spec, padded, integers, by_key)
        call.arguments["mixed"] = filled, call.block(filled.shape, True)
        return call

    call = start(by_key=True)
    _add_key_results(call, padded)
    if spec.one_pass:
        _add_query_results(call, padded)
        found = call.run(Program.backward, backward_flops(spec, padded))
    else:
        assert mixed is not None and statistics is not None
        rows = _statistics(mixed, gradient, statistics, missing)
        call.arguments["statistics"] = rows, call.statistics_block()
        found = call.run(Program.backward_keys, _keys_flops(spec, padded))
        call = start(by_key=False)
        call.arguments["statistics"] = rows, call.statistics_block()
        _add_query_results(call, padded)
        shape = (spec.block, 2 * call.head_dim)
        call.scratch["sum_query"] = pltpu.VMEM(shape, jnp.float32)
        found |= call.run(Program.backward_queries, _queries_flops(spec, padded))
    return _to_terms(found, terms, queries, keys)


def _statistics(
    mixed: Array, gradient: Array, statistics: Array, missing: int
) -> Float[Array, "batch heads rows queries"]:
    """Returns the rows of statistics that the backward kernels read.

    The sum of weights times their gradients, which the gradient of a softmax subtracts, is that of
    the mixed values times theirs.
    """
    inner = (mixed.astype(jnp.float32) * gradient.astype(jnp.float32)).sum(axis=-1)
    rows = jnp.concatenate([statistics, inner[:, :, None]], axis=2)
    rows = _fill(rows, 2, STATISTICS - rows.shape[2])
    return _fill(rows, 3, missing, 1)


def _add_query_results(call: KernelCall, padded: Terms) -> None:
    """Adds the gradients of queries and factors of heads to a kernel's results."""
    dtype = padded.query.dtype
    shape = padded.query.shape
    call.add_result("d_query", shape, dtype, call.block(shape, True))
    shape = padded.position_query.shape
    if shape[0] > 1:
        call.add_result("d_position_query", shape, dtype, call.block(shape, True))
    elif call.by_key:
        block = call.all_queries_block(shape)
        call.add_result("d_position_query", shape, jnp.float32, block, "head")
    else:
        block = call.block(shape, True)
        call.add_result("d_position_query", shape, jnp.float32, block, "outer")
    shape = (call.heads, 1, LANES)
    call.add_result("d_head_scale", shape, jnp.float32, call.bands_block(shape), "head")


def _add_key_results(call: KernelCall, padded: Terms) -> None:
    """Adds the gradients of keys, values and relative biases to a kernel's results."""
    dtype, spec = padded.query.dtype, call.spec
    for name in ("key", "value", "position_key"):
        shape = getattr(padded, name).shape
        shared = name == "position_key" and shape[0] == 1
        call.add_result(
            f"d_{name}",
            shape,
            jnp.float32 if shared else dtype,
            call.block(shape, False),
            "outer" if shared else None,
        )
    if padded.relative is not None:
        shape = padded.relative.shape
        call.add_result("d_relative", shape, jnp.float32, call.relative_block(shape), "outer")
    for image, bands in enumerate(padded.bands):
        block = call.bands_block(bands.shape)
        call.add_result(f"d_bands{image}", bands.shape, jnp.float32, block, "head")
    for name, columns in (("sum_key", 2 * call.head_dim), ("sum_value", call.head_dim)):
        call.scratch[name] = pltpu.VMEM((spec.key_block, columns), jnp.float32)


def _to_terms(found: Mapping[str, Array], terms: Terms, queries: int, keys: int) -> Terms:
    """Returns the results of backward kernels as gradients of `terms`, without padding."""
    dtype, relative = terms.query.dtype, found.get("d_relative")
    return Terms(
        query=found["d_query"][:, :, :queries],
        key=found["d_key"][:, :, :keys],
        value=found["d_value"][:, :, :keys],
        position_query=found["d_position_query"][:, :, :queries].astype(dtype),
        position_key=found["d_position_key"][:, :, :keys].astype(dtype),
        head_scale=found["d_head_scale"][:, 0, 0],
        relative=None if relative is None else relative[:, :, :queries, :keys],
        bands=tuple(
            found[f"d_bands{image}"][:, :, : bands.shape[2]]
            for image, bands in enumerate(terms.bands)
        ),
    )
