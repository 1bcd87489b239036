"""Attention with OFA's position terms as one Pallas kernel for TPUs, forward and backward.

Scores, softmax and weights of a block of queries stay in VMEM: nothing of the size [batch, heads,
queries, keys] is written to HBM. A program of the grid (heads, examples, blocks of queries) sees
all keys of its example, so the softmax needs no second pass. The backward kernel computes scores
and weights again (Dao et al. 2022, FlashAttention, section 3.1, without its running maximum).

What depends on the head but not on the example (the relative bias of text, the 2-D table, position
factors of unsampled positions) is fetched once for all examples, and its gradient is summed over
them in VMEM.

The bias between sampled patches comes from the 2-D table inside the kernel (`attention_patches`).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int, UInt

from ofa_jax.model.attention_patches import LANES, PatchSpec, round_up
from ofa_jax.model.attention_program import KernelSpec, Program

_VMEM_BUDGET = 12 * 2**20
"""Bytes that the arrays of a program may take by `block_of`, which leaves out what the compiler
adds. A core of a v4 has 16 MiB of VMEM, and the compiler uses as much of a larger one."""


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
    scores, weights, values, queries, keys = 2, 1, 1, 2, 2
    return 2 * _count(spec, terms, scores + weights + values + queries + keys, 2)


def _count(spec: KernelSpec, terms: Terms, products: int, images: int) -> int:
    """Counts multiply-adds.

    Args:
      spec: of the kernel.
      terms: with the queries of whole blocks.
      products: of each pair of a query and a key, as many times the width of a head.
      images: how often the bias of patches, or its gradient, is computed.
    """
    batch, heads, queries, head_dim = terms.query.shape
    pairs = queries * terms.key.shape[2] * head_dim * products
    digits = sum(image.digits_multiply_adds for image in spec.images)
    patches = images * sum(image.multiply_adds for image in spec.images) + digits
    return batch * heads * (pairs + queries // spec.block * patches)


def block_of(
    queries: int, keys: int, kinds: int, images: Sequence[tuple[int, int]] = ()
) -> int | None:
    """Returns how many queries a program takes; None if not even the fewest fit VMEM.

    Args:
      queries: of an example.
      keys: of an example.
      kinds: number of relative biases.
      images: rows and columns of the patch grid of each image with sampled patches.
    """

    def vmem_bytes(block: int) -> int:
        """Returns about how many bytes the arrays of a backward program take, in float32."""
        width = round_up(keys)
        scores = 6 * block * width
        # Arguments and results have two buffers each: what comes next is fetched meanwhile.
        relative = 2 * 2 * kinds * round_up(queries, block) * width
        factors = (2 * (5 * block + 6 * keys) // 2 + 2 * keys) * LANES
        patches = 0
        for grid in images:
            spec = PatchSpec(*grid, block, keys)
            patches += 2 * 2 * spec.columns * spec.width + 2 * block * spec.width
            patches += spec.patches * width
        return 4 * (scores + relative + factors + patches)

    blocks = (queries, *(n for n in (512, 256, 128) if n < queries))
    return next((n for n in blocks if vmem_bytes(n) <= _VMEM_BUDGET), None)


def patch_spec(
    grid: tuple[int, int], end: int, prefix: int, block: int, queries: int, keys: int
) -> PatchSpec:
    """Returns the sizes of an image with sampled patches.

    Args:
      grid: rows and columns of its patches.
      end: position after its last patch, among the queries.
      prefix: number of keys before the first position.
      block: queries of a program.
      queries: of an example.
      keys: of an example.
    """
    whole = block >= queries
    return PatchSpec(
        *grid,
        queries=min(block, round_up(end, 8)) if whole else block,
        keys=min(keys, round_up(prefix + end)),
    )


# ------------------------------------------------------------------------------------- calls

_Shape = tuple[int, ...]


class _Call:
    """Collects arguments, results and scratch of a `pallas_call`, each with its block."""

    def __init__(self, spec: KernelSpec, terms: Terms, integers: Integers):
        """Adds the arguments of the forward pass."""
        self.spec = spec
        self.batch, self.heads, self.queries, self.head_dim = terms.query.shape
        self.keys = terms.key.shape[2]
        self.scalars = {
            "kinds": integers.kinds,
            "examples": integers.examples,
            "heads": integers.heads,
            "seed": integers.seed,
        }
        self.arguments: dict[str, tuple[Array, Any]] = {}
        self.results: dict[str, tuple[jax.ShapeDtypeStruct, Any]] = {}
        self.scratch: dict[str, Any] = {}
        for name in ("query", "key", "value", "position_query", "position_key"):
            x = getattr(terms, name)
            self.arguments[name] = x, self.block(x.shape, name.endswith("query"))
        if terms.relative is not None:
            self.arguments["relative"] = terms.relative, self.relative_block(terms.relative.shape)
        mask = integers.mask.astype(jnp.int32)[:, None]
        self.arguments["mask"] = mask, self.codes_block(mask.shape, False)
        for image, bands in enumerate(terms.bands):
            self.arguments[f"bands{image}"] = bands, self.bands_block(bands.shape)
            for name in ("query_rows", "query_columns", "key_codes"):
                codes = getattr(integers, name)[image][:, None]
                block = self.codes_block(codes.shape, name != "key_codes")
                self.arguments[f"{name}{image}"] = codes, block
        self.arguments["head_scale"] = terms.head_scale, pl.BlockSpec(memory_space=pltpu.SMEM)

    def block(self, shape: _Shape, by_query: bool) -> Any:
        """Returns the block of [#batch, heads, length, head_dim]: of the queries, or all keys."""
        length = self.spec.block if by_query else shape[2]
        shared = shape[0] == 1
        return pl.BlockSpec(
            (None, None, length, shape[3]),
            lambda h, b, i, *_: (0 if shared else b, h, i if by_query else 0, 0),
        )

    def relative_block(self, shape: _Shape) -> Any:
        """Returns the block of [kinds, heads, queries, keys]: everything of a head."""
        return pl.BlockSpec((shape[0], None, *shape[2:]), lambda h, b, i, *_: (0, h, 0, 0))

    def codes_block(self, shape: _Shape, by_query: bool) -> Any:
        """Returns the block of [batch, 1, length]."""
        length = self.spec.block if by_query else shape[2]
        return pl.BlockSpec((None, 1, length), lambda h, b, i, *_: (b, 0, i if by_query else 0))

    def bands_block(self, shape: _Shape) -> Any:
        """Returns the block of [heads, rows, columns]: everything of a head."""
        return pl.BlockSpec((None, *shape[1:]), lambda h, b, i, *_: (h, 0, 0))

    def add_result(self, name: str, shape: _Shape, dtype: Any, block: Any) -> None:
        """Adds a result."""
        self.results[name] = jax.ShapeDtypeStruct(shape, dtype), block

    def run(
        self, method: Callable[[Program], None], flops: int, shared: frozenset[str] = frozenset()
    ) -> dict[str, Array]:
        """Runs the kernel and returns its results by name."""
        names = [*self.scalars, *self.arguments, *self.results, *self.scratch]

        def kernel(*refs: Any) -> None:
            method(Program(self.spec, dict(zip(names, refs, strict=True)), shared))

        arrays: list[Any] = [x for x, _ in self.arguments.values()]
        shapes = [shape for shape, _ in self.results.values()]
        results = pl.pallas_call(
            kernel,
            out_shape=shapes,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=len(self.scalars),
                grid=(self.heads, self.batch, self.queries // self.spec.block),
                in_specs=[block for _, block in self.arguments.values()],
                out_specs=[block for _, block in self.results.values()],
                scratch_shapes=list(self.scratch.values()),
            ),
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "arbitrary", "arbitrary")
            ),
            cost_estimate=pl.CostEstimate(
                flops=flops,
                transcendentals=self.batch * self.heads * self.queries * self.keys,
                bytes_accessed=sum(
                    math.prod(x.shape) * x.dtype.itemsize for x in [*arrays, *shapes]
                ),
            ),
            interpret=self.spec.interpret,
            name=f"attention_{method.__name__}",
        )(*self.scalars.values(), *arrays)
        return dict(zip(self.results, results, strict=True))


def _pad_queries(x: Array, axis: int, spec: KernelSpec, value: int = 0) -> Array:
    """Pads an axis of queries to whole blocks."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -spec.queries % spec.block)
    return jnp.pad(x, widths, constant_values=value)


def _padded(spec: KernelSpec, terms: Terms, integers: Integers) -> tuple[Terms, Integers]:
    """Pads queries to whole blocks; what is added attends, and takes part in no gradient."""
    relative = terms.relative
    terms = terms.replace(
        query=_pad_queries(terms.query, 2, spec),
        position_query=_pad_queries(terms.position_query, 2, spec),
        relative=None if relative is None else _pad_queries(relative, 2, spec),
        bands=tuple(
            jnp.pad(bands, ((0, 0), (0, 0), (0, image.width - bands.shape[2])))
            for image, bands in zip(spec.images, terms.bands, strict=True)
        ),
    )
    rows, columns = (
        tuple(_pad_queries(x, 1, spec, -1) for x in codes)
        for codes in (integers.query_rows, integers.query_columns)
    )
    return terms, integers.replace(query_rows=rows, query_columns=columns)


def forward(
    spec: KernelSpec, terms: Terms, integers: Integers
) -> Float[Array, "batch heads queries head_dim"]:
    """Computes attention; the arguments are described where they are defined."""
    queries = terms.query.shape[2]
    padded, integers = _padded(spec, terms, integers)
    call = _Call(spec, padded, integers)
    shape = padded.query.shape
    call.add_result("mixed", shape, terms.query.dtype, call.block(shape, True))
    return call.run(Program.forward, forward_flops(spec, padded))["mixed"][:, :, :queries]


def backward(
    spec: KernelSpec,
    terms: Terms,
    integers: Integers,
    gradient: Float[Array, "batch heads queries head_dim"],
) -> Terms:
    """Computes the gradients of all terms from that of the mixed values."""
    _, heads, queries, head_dim = terms.query.shape
    padded, integers = _padded(spec, terms, integers)
    call = _Call(spec, padded, integers)
    mixed = _pad_queries(gradient.astype(terms.query.dtype), 2, spec)
    call.arguments["mixed"] = mixed, call.block(mixed.shape, True)
    dtype, shared = terms.query.dtype, {"d_head_scale"}
    for name in ("query", "key", "value", "position_query", "position_key"):
        shape = getattr(padded, name).shape
        block, of_block = call.block(shape, name.endswith("query")), dtype
        if name.startswith("position_") and shape[0] == 1:
            shared.add(f"d_{name}")
            block, of_block = call.block(shape, False), jnp.float32
        call.add_result(f"d_{name}", shape, of_block, block)
    scale_shape = (heads, 1, LANES)
    call.add_result("d_head_scale", scale_shape, jnp.float32, call.bands_block(scale_shape))
    if padded.relative is not None:
        shared.add("d_relative")
        shape = padded.relative.shape
        call.add_result("d_relative", shape, jnp.float32, call.relative_block(shape))
    for image, bands in enumerate(padded.bands):
        shared.add(f"d_bands{image}")
        call.add_result(f"d_bands{image}", bands.shape, jnp.float32, call.bands_block(bands.shape))
    call.scratch["sum_key"] = pltpu.VMEM((call.keys, 2 * head_dim), jnp.float32)
    call.scratch["sum_value"] = pltpu.VMEM((call.keys, head_dim), jnp.float32)
    found = call.run(Program.backward, backward_flops(spec, padded), frozenset(shared))
    relative = found.get("d_relative")
    return Terms(
        query=found["d_query"][:, :, :queries],
        key=found["d_key"],
        value=found["d_value"],
        position_query=found["d_position_query"][:, :, :queries].astype(dtype),
        position_key=found["d_position_key"].astype(dtype),
        head_scale=found["d_head_scale"][:, 0, 0],
        relative=None if relative is None else relative[:, :, :queries],
        bands=tuple(
            found[f"d_bands{image}"][:, :, : bands.shape[2]]
            for image, bands in enumerate(terms.bands)
        ),
    )
