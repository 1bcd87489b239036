"""A call of an attention kernel: which block of each array a program of its grid gets."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from ofa_jax.model.attention_program import STATISTICS, KernelSpec, Program

if TYPE_CHECKING:
    from ofa_jax.model.attention_kernel import Integers, Terms

Shape = tuple[int, ...]


class KernelCall:
    """Collects arguments, results and scratch of a `pallas_call`, each with its block."""

    def __init__(self, spec: KernelSpec, terms: Terms, integers: Integers, by_key: bool):
        """Adds the arguments of the forward pass.

        Args:
          spec: of the kernel.
          terms: with queries and keys of whole blocks.
          integers: likewise.
          by_key: whether blocks of keys are the outer axis of the grid, see `Program`.
        """
        self.spec, self.by_key = spec, by_key
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
        self.shared: dict[str, str] = {}
        self.scratch: dict[str, Any] = {}
        for name in ("query", "key", "value", "position_query", "position_key"):
            x = getattr(terms, name)
            self.arguments[name] = x, self.block(x.shape, name.endswith("query"))
        if terms.relative is not None:
            self.arguments["relative"] = terms.relative, self.relative_block(terms.relative.shape)
        mask = integers.mask.astype(jnp.int32)[:, None]
        self.arguments["mask"] = mask, self.codes_block(False)
        for image, bands in enumerate(terms.bands):
            self.arguments[f"bands{image}"] = bands, self.bands_block(bands.shape)
            for name in ("query_rows", "query_columns", "key_codes"):
                codes = getattr(integers, name)[image][:, None]
                self.arguments[f"{name}{image}"] = codes, self.codes_block(name != "key_codes")
        self.arguments["head_scale"] = terms.head_scale, pl.BlockSpec(memory_space=pltpu.SMEM)

    def _spec(self, shape: tuple[int | None, ...], index: Callable[..., Any]) -> Any:
        """Returns a block.

        Args:
          shape: of the block.
          index: returns its number along each axis for (head, example, block of queries, block of
            keys).
        """
        if self.by_key:
            return pl.BlockSpec(shape, lambda h, k, b, q, *_: index(h, b, q, k))
        return pl.BlockSpec(shape, lambda h, q, b, k, *_: index(h, b, q, k))

    def block(self, shape: Shape, by_query: bool) -> Any:
        """Returns the block of [#batch, heads, length, head_dim]: of queries, or of keys."""
        length = self.spec.block if by_query else self.spec.key_block
        shared = shape[0] == 1
        return self._spec(
            (None, None, length, shape[3]),
            lambda h, b, q, k: (0 if shared else b, h, q if by_query else k, 0),
        )

    def all_queries_block(self, shape: Shape) -> Any:
        """Returns the block of [1, heads, queries, head_dim]: everything of a head."""
        return self._spec((None, None, *shape[2:]), lambda h, b, q, k: (0, h, 0, 0))

    def relative_block(self, shape: Shape) -> Any:
        """Returns the block of [kinds, heads, queries, keys]: all pairs of the outer block."""
        kinds, _, queries, keys = shape
        if self.by_key:
            size = (kinds, None, queries, self.spec.key_block)
            return self._spec(size, lambda h, b, q, k: (0, h, 0, k))
        size = (kinds, None, self.spec.block, keys)
        return self._spec(size, lambda h, b, q, k: (0, h, q, 0))

    def codes_block(self, by_query: bool) -> Any:
        """Returns the block of [batch, 1, length]."""
        length = self.spec.block if by_query else self.spec.key_block
        return self._spec((None, 1, length), lambda h, b, q, k: (b, 0, q if by_query else k))

    def statistics_block(self) -> Any:
        """Returns the block of [batch, heads, rows, queries]."""
        size = (None, None, STATISTICS, self.spec.block)
        return self._spec(size, lambda h, b, q, k: (b, h, 0, q))

    def bands_block(self, shape: Shape) -> Any:
        """Returns the block of [heads, rows, columns]: everything of a head."""
        return self._spec((None, *shape[1:]), lambda h, b, q, k: (h, 0, 0))

    def add_result(
        self, name: str, shape: Shape, dtype: Any, block: Any, shared: str | None = None
    ) -> None:
        """Adds a result; `shared` is the scope of a sum over examples, see `Program`."""
        self.results[name] = jax.ShapeDtypeStruct(shape, dtype), block
        if shared:
            self.shared[name] = shared

    def run(self, method: Callable[[Program], None], flops: int) -> dict[str, Array]:
        """Runs the kernel and returns its results by name."""
        names = [*self.scalars, *self.arguments, *self.results, *self.scratch]

        def kernel(*refs: Any) -> None:
            named = dict(zip(names, refs, strict=True))
            method(Program(self.spec, named, self.shared, self.by_key))

        arrays: list[Any] = [x for x, _ in self.arguments.values()]
        shapes = [shape for shape, _ in self.results.values()]
        queries, keys = self.queries // self.spec.block, self.keys // self.spec.key_block
        outer, inner = (keys, queries) if self.by_key else (queries, keys)
        results = pl.pallas_call(
            kernel,
            out_shape=shapes,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=len(self.scalars),
                grid=(self.heads, outer, self.batch, inner),
                in_specs=[block for _, block in self.arguments.values()],
                out_specs=[block for _, block in self.results.values()],
                scratch_shapes=list(self.scratch.values()),
            ),
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "arbitrary", "arbitrary", "arbitrary")
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
