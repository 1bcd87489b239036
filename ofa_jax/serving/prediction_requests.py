"""What the queue takes and answers: a request, its refusals, and counts of them all."""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ofa_jax.decoding import DecodingConfig
from ofa_jax.inference.predictions import Prediction
from ofa_jax.inference.requests import Box
from ofa_jax.serving import limits as serving_limits
from ofa_jax.serving.limits import Limits


@dataclasses.dataclass(frozen=True, eq=False)
class PredictionRequest:
    """What a client wants to know; see `Predictor.predict`.

    Attributes:
      instruction: what the model should do.
      image: the content of an image file, a PIL image, an array uint8 [H, W, 3], or None. Paths
        are refused.
      region: x0, y0, x1, y1 in pixels of the image, or None.
      task: selects the decode preset; that of the instruction when None.
      candidates: the only outputs allowed; None for all.
      score_all: whether to score every candidate instead of searching among them.
      decoding: settings of the decoder; those of the preset when None.
    """

    instruction: str
    image: bytes | Image.Image | np.ndarray | None = None
    region: Box | None = None
    task: str | None = None
    candidates: Sequence[str] | None = None
    score_all: bool = False
    decoding: DecodingConfig | None = None


class Prepared(Protocol):
    """A request that is ready to be decoded."""

    @property
    def group(self) -> Hashable:
        """Equal for requests that one batch can hold."""
        ...


class BatchPredictor(Protocol):
    """What the queue needs of a `Predictor`."""

    @property
    def batch_size(self) -> int:
        """The requests that are decoded at once."""
        ...

    @property
    def prepare(self) -> Callable[..., Any]:
        """Makes a `Prepared`, see `Predictor.prepare`; many threads call it."""
        ...

    def decode(self, batch: Sequence[Any]) -> list[Prediction | ValueError]:
        """Decodes requests of one group, see `Predictor.decode`; one thread calls it."""
        ...


class RefusedError(RuntimeError):
    """A request was not accepted; the sentence says why.

    Attributes:
      retry_after: seconds after which it is worth trying again.
    """

    def __init__(self, sentence: str, retry_after: int):
        super().__init__(sentence)
        self.retry_after = retry_after


class QueueFullError(RefusedError):
    """Too many requests wait."""


class DrainingError(RefusedError):
    """The queue accepts nothing more."""


class UnexpectedError(ValueError):
    """Decoding has failed for a reason that is not about the request."""


@dataclasses.dataclass(frozen=True)
class Counts:
    """What became of the requests so far.

    Attributes:
      accepted: came into the queue.
      answered: have a prediction.
      failed: accepted, but the model or its decoder had no output for them.
      cancelled: accepted, but the client went away.
      refused: not accepted, because the queue was full or draining.
      invalid: not accepted, because something was wrong with them.
      waiting: accepted, and neither answered nor failed nor cancelled yet.
      batches: decoded batches.
    """

    accepted: int = 0
    answered: int = 0
    failed: int = 0
    cancelled: int = 0
    refused: int = 0
    invalid: int = 0
    waiting: int = 0
    batches: int = 0


def check_limits(request: PredictionRequest, limits: Limits) -> None:
    """Raises ValueError if the texts of a request are no texts or too long."""
    if isinstance(request.instruction, str):
        serving_limits.check_text("instruction", request.instruction, limits)
    candidates = request.candidates
    if isinstance(candidates, list | tuple):
        if len(candidates) > limits.max_candidates:
            raise serving_limits.TooLargeError(
                f"There are {len(candidates):,} candidates; the limit is "
                f"{limits.max_candidates:,}: leave some out."
            )
        longest = max((len(text) for text in candidates if isinstance(text, str)), default=0)
        if longest > limits.max_candidate_length:
            raise serving_limits.TooLargeError(
                f"A candidate has {longest:,} characters; the limit is "
                f"{limits.max_candidate_length:,}: shorten it."
            )
