"""OFA ("One For All", Wang et al. 2022) pretrained at TPU scale in JAX.

The rooms: `vocabulary` <- `data` <- the top-level package `tasks`; `model` <- `training`; `model`,
`vocabulary` <- `decoding` <- `evaluation` <- `inference`. Importing this package imports none of
them, so that a user with an own loader pays only for the model; `ofa_jax.Predictor` is imported
when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ofa_jax.inference.predictor import Predictor

__all__ = ["Predictor"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from ofa_jax.inference import predictor

        return getattr(predictor, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
