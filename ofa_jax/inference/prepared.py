"""Requests that are ready to be decoded, and the batches that they are put into."""

import dataclasses
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from ofa_jax.data.features import Example, Stream, empty_features, stack, to_features
from ofa_jax.decoding import DecodingConfig
from ofa_jax.evaluation.batch_decoder import DecodedBatch
from ofa_jax.evaluation.postprocess import BoxTransform
from ofa_jax.inference.image_generation import ImageGeneration
from ofa_jax.inference.predictions import Prediction, parse_prediction
from ofa_jax.inference.presets import DecodePreset
from ofa_jax.tokenizers.processor import Processor


class CallOptions(NamedTuple):
    """How requests are decoded, see `Predictor.predict`; the candidates are formatted."""

    task: str | None
    candidates: tuple[str, ...] | None
    score_all: bool
    decoding: DecodingConfig | None
    image_generation: ImageGeneration | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedRequest:
    """A request whose image is resized and whose instruction is encoded.

    Attributes:
      example: see `data.features`.
      transform: from the model's image to the given one; None without an image.
      preset: how it is decoded.
      call: the options of the call that made it.
      length: tokens to which the instruction is padded.
      instruction: as text.
    """

    example: Example
    transform: BoxTransform | None
    preset: DecodePreset
    call: CallOptions
    length: int
    instruction: str = ""

    @property
    def num_tokens(self) -> int:
        """The tokens of the instruction; it is truncated if they are more than `length`."""
        return len(self.example["inputs"])

    @property
    def has_image(self) -> bool:
        """Whether there is an image."""
        return "image" in self.example

    @property
    def group(self) -> Hashable:
        """Equal for requests that one batch can hold."""
        call = self.call
        options = call.candidates, call.score_all, call.image_generation
        return self.preset, self.length, self.has_image, options


def make_batch(batch: Sequence[PreparedRequest], num_rows: int) -> dict[str, np.ndarray]:
    """Returns the features of requests of one group; empty rows fill up the batch."""
    first = batch[0]
    stream = Stream(
        "requests",
        "predict",
        num_rows,
        {"inputs": first.length, "targets": 1},
        image_size=first.preset.image_size if first.has_image else None,
        code_targets=first.preset.code_grid > 0,
    )
    rng = np.random.default_rng(0)  # inference samples no patches, so nothing is drawn
    rows = [to_features(request.example, stream, 0, rng) for request in batch]
    rows += [empty_features(stream, 0)] * (num_rows - len(rows))
    return stack(rows)


def read_row(
    decoded: DecodedBatch, row: int, processor: Processor, transform: BoxTransform | None
) -> Prediction:
    """Converts the hypotheses of a row: the best one, with the others as its alternatives.

    Raises:
      ValueError: the decoder has found nothing.
    """
    ids, score = decoded.best(row)
    _check_score(score, decoded.scores[row])
    best = parse_prediction(ids, score, processor, transform)
    if decoded.scores.shape[1] == 1:
        return best
    order = np.argsort(-decoded.scores[row], kind="stable").tolist()
    order.remove(int(decoded.scores[row].argmax()))
    alternatives = [
        parse_prediction(
            decoded.tokens[row, i],
            float(decoded.scores[row, i]),
            processor,
            transform,
            with_image=False,
        )
        for i in order
        if np.isfinite(decoded.scores[row, i])
    ]
    return dataclasses.replace(best, alternatives=tuple(alternatives))


def _check_score(score: float, scores: np.ndarray) -> None:
    """Raises ValueError if a decoder has found no output."""
    if np.isnan(scores).any():
        raise ValueError(
            "The scores of the model are not finite numbers: its parameters are damaged, or "
            "training has failed."
        )
    if not np.isfinite(score):
        raise ValueError(
            "The decoder found no output that the constraints allow: change decoding or the "
            "candidates."
        )
