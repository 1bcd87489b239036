"""Typed calls of the model's methods for decoding; `OFA.apply` itself has no result type."""

from typing import Any, cast

from jaxtyping import Array, Bool, Float, Int

from ofa_jax.model import OFA, DecoderCache, EncoderOutput, ModelInputs


def encode(model: OFA, variables: Any, batch: ModelInputs) -> EncoderOutput:
    """Calls `OFA.encode`."""
    return cast(EncoderOutput, model.apply(variables, batch, method="encode"))


def start_cache(
    model: OFA,
    variables: Any,
    encoded: EncoderOutput,
    length: int,
    beams: int,
    is_image_code: Bool[Array, " batch"] | None,
) -> DecoderCache:
    """Calls `OFA.start_cache`."""
    cache = model.apply(variables, encoded, length, beams, is_image_code, method="start_cache")
    return cast(DecoderCache, cache)


def decode_step(
    model: OFA,
    variables: Any,
    tokens: Int[Array, "batch beams"],
    cache: DecoderCache,
    position: Int[Array, ""],
) -> tuple[Float[Array, "batch beams vocab"], DecoderCache]:
    """Calls `OFA.decode_step`."""
    result = model.apply(variables, tokens, cache, position, method="decode_step")
    return cast(tuple[Array, DecoderCache], result)
