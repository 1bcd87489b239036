"""Chooses how many queries and keys a program of the attention kernel takes, by what fits VMEM."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ofa_jax.model.attention_patches import LANES, PatchSpec, round_up

VMEM_BUDGET = 12 * 2**20
"""Bytes that the arrays of a program may take by `vmem_bytes`, which leaves out what the compiler
adds. A core of a v4 has 16 MiB of VMEM, and the compiler uses as much of a larger one."""

_SIZES = (512, 384, 256, 128)
_START = 2**16
"""Pairs of a query and a key that a program computes in the time that starting one takes."""


class Blocks(NamedTuple):
    """Queries and keys of a program."""

    queries: int
    keys: int


def choose_blocks(
    queries: int, keys: int, kinds: int, images: Sequence[tuple[int, int]] = ()
) -> Blocks | None:
    """Returns how many queries and keys a program takes; None if not even the fewest fit VMEM.

    All keys at once where that fits, because then one kernel computes all gradients.

    Args:
      queries: of an example.
      keys: of an example, those of a prefix included.
      kinds: number of relative biases.
      images: rows and columns of the patch grid of each image with sampled patches.
    """

    def fits(blocks: Blocks) -> bool:
        """Returns whether a program of these sizes fits VMEM."""
        return vmem_bytes(blocks, queries, keys, kinds, images) <= VMEM_BUDGET

    def cost(blocks: Blocks) -> int:
        """Returns about the time of all programs, in pairs of a query and a key."""
        programs = -(-queries // blocks.queries) * -(-keys // blocks.keys)
        return programs * (_START + blocks.queries * blocks.keys)

    whole = [Blocks(n, keys) for n in _choices(queries) if fits(Blocks(n, keys))]
    if whole:
        return whole[0]
    parts = [Blocks(n, m) for n in _choices(queries) for m in _choices(keys) if m < keys]
    return min(filter(fits, parts), key=cost, default=None)


def _choices(length: int) -> Iterator[int]:
    """Yields sizes of a block, the largest first; those of several blocks are whole registers."""
    yield length
    yield from (size for size in _SIZES if size < length)


def vmem_bytes(
    blocks: Blocks,
    queries: int,
    keys: int,
    kinds: int,
    images: Sequence[tuple[int, int]] = (),
) -> int:
    """Returns about how many bytes the arrays of the largest program take, a backward one.

    Args:
      blocks: queries and keys of a program.
      queries: see `choose_blocks`.
      keys: see `choose_blocks`.
      kinds: see `choose_blocks`.
      images: see `choose_blocks`.
    """
    block, width = blocks.queries, round_up(blocks.keys)
    scores = 6 * block * width
    # Arguments and results have two buffers each, because the next ones are fetched meanwhile. A
    # program holds the bias of all queries with its block of keys, and the gradient of this bias;
    # or the bias of its block of queries with all keys, without a gradient.
    pairs = 2 * round_up(queries, block) * width
    if blocks.keys < keys:
        pairs = max(pairs, block * round_up(keys, width))
    relative = 2 * kinds * pairs
    factors = (2 * (5 * block + 6 * blocks.keys) // 2 + 2 * blocks.keys) * LANES
    patches = 0
    for grid in images:
        spec = PatchSpec(*grid, block, blocks.keys)
        patches += 2 * 2 * spec.columns * spec.width + 2 * block * spec.width
        patches += spec.patches * width
    return 4 * (scores + relative + factors + patches)


def patch_spec(
    grid: tuple[int, int], end: int, prefix: int, blocks: Blocks, queries: int, keys: int
) -> PatchSpec:
    """Returns the sizes of an image with sampled patches.

    Args:
      grid: rows and columns of its patches.
      end: position after its last patch, among the queries.
      prefix: number of keys before the first position.
      blocks: queries and keys of a program.
      queries: of an example.
      keys: of an example.
    """
    all_queries, all_keys = blocks.queries >= queries, blocks.keys >= keys
    return PatchSpec(
        *grid,
        queries=min(blocks.queries, round_up(end, 8)) if all_queries else blocks.queries,
        keys=min(keys, round_up(prefix + end)) if all_keys else blocks.keys,
    )
