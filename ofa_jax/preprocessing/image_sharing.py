"""Lets two examples of one record share its image: decoded, resized, cropped and augmented once.

The reference implementation makes two examples of every pair, with one image. Within `drawn_from`
the image of an example depends on the record and on a seed alone, not on the example's own
generator; two examples with one seed have equal images, and within `kept_images` the second one
takes the first one's instead of computing it again. Without `drawn_from` nothing is shared.
"""

import contextlib
import contextvars
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

__all__ = ["drawn_from", "kept_images", "shared"]

_Result = TypeVar("_Result")

_seed: contextvars.ContextVar[tuple[int, ...] | None] = contextvars.ContextVar("seed", default=None)
_kept: contextvars.ContextVar[dict[Hashable, Any] | None] = contextvars.ContextVar(
    "kept", default=None
)


@contextlib.contextmanager
def drawn_from(seed: Sequence[int]) -> Iterator[None]:
    """Draws what concerns the image from a generator of this seed, within a block.

    Args:
      seed: of one record's draws; the same for the examples that share the image.
    """
    token = _seed.set(tuple(seed))
    try:
        yield
    finally:
        _seed.reset(token)


@contextlib.contextmanager
def kept_images() -> Iterator[None]:
    """Keeps the newest image within a block, for the example that follows."""
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def shared(
    name: Hashable, rng: np.random.Generator, make: Callable[[np.random.Generator], _Result]
) -> _Result:
    """Returns what `make` does, perhaps for an earlier example of the same seed.

    Args:
      name: of what is made, with all that it depends on besides record and draws.
      rng: of the example, which is used outside of `drawn_from`.
      make: draws from the generator that it is given; callers do not change its result.
    """
    seed, kept = _seed.get(), _kept.get()
    if seed is None:
        return make(rng)
    if kept is None:
        return make(np.random.default_rng(seed))
    key = (seed, name)
    if key not in kept:
        result = make(np.random.default_rng(seed))
        kept.clear()
        kept[key] = result
    return kept[key]
