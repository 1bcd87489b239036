"""Chooses among generated images: a ranker scores each candidate with its caption.

    samples [R, G] ─▶ image tokenizer: images ─▶ ranker: scores ─▶ the best one first

The reference implementation ranks by CLIP (`ofa_jax.model.clip`); a model that was pretrained with
image-text matching ranks by itself (`ofa_jax.inference.reranking`).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int32, UInt8
from PIL import Image

from ofa_jax.evaluation import postprocess
from ofa_jax.evaluation.batch_decoder import DecodedBatch
from ofa_jax.preprocessing import prompts
from ofa_jax.tokenizers.processor import Processor


@runtime_checkable
class ImageRanker(Protocol):
    """Scores how well images fit their captions; higher is better."""

    @property
    def name(self) -> str:
        """What identifies the ranker in the record of a job."""
        ...

    def score(
        self, captions: Sequence[str], images: UInt8[np.ndarray, "n h w 3"]
    ) -> Float[np.ndarray, " n"]:
        """Returns the score of each image with the caption at its place."""
        ...


@dataclasses.dataclass(frozen=True)
class ImageRanking:
    """Orders the images of captions by one ranker, and scores those that are chosen.

    Attributes:
      processor: has the image tokenizer.
      ranker: scores the images.
    """

    processor: Processor
    ranker: ImageRanker

    def __call__(self, decoded: DecodedBatch, instructions: Sequence[str]) -> DecodedBatch:
        """Returns the hypotheses with the ranker's scores, see `rerank`.

        Args:
          decoded: hypotheses that are image codes.
          instructions: of the first rows, with their captions; empty for rows without an example.
        """
        captions = [caption_of(instruction) for instruction in instructions]
        return rerank(decoded, captions, self.processor, self.ranker)

    def mean_score(
        self,
        references: Sequence[str],
        predictions: Sequence[Int32[np.ndarray, " n"] | None],
    ) -> dict[str, float]:
        """Computes "image_score", the mean score of images with their captions; a metric.

        With a CLIP it is the published CLIP score. What is no image is left out.

        Args:
          references: captions.
          predictions: image codes.
        """
        images = decode_images(predictions, self.processor)
        pairs = [(text, image) for text, image in zip(references, images, strict=True) if image]
        if not pairs:
            return {}
        texts, pixels = zip(*((text, np.asarray(image)) for text, image in pairs), strict=True)
        return {"image_score": float(score_images(self.ranker, texts, pixels).mean())}


def decode_images(
    codes: Sequence[Int32[np.ndarray, " n"] | None], processor: Processor, batch_size: int = 32
) -> list[Image.Image | None]:
    """Decodes the codes of many images.

    Args:
      codes: of each image.
      processor: has the image tokenizer.
      batch_size: images that are decoded at once.

    Returns:
      For each its image; None where the codes do not fill a square, or without an image tokenizer.
    """
    images: list[Image.Image | None] = [None] * len(codes)
    tokenizer = processor.image_tokenizer
    if tokenizer is None:
        return images
    by_side: dict[int, list[tuple[int, np.ndarray]]] = {}
    for index, own in enumerate(codes):
        if own is None or not len(own) or (own < 0).any():
            continue
        side = math.isqrt(len(own))
        if side * side == len(own):
            by_side.setdefault(side, []).append((index, own.reshape(side, side)))
    for found in by_side.values():
        for start in range(0, len(found), batch_size):
            chunk = found[start : start + batch_size]
            pixels = tokenizer.decode(np.stack([grid for _, grid in chunk]))
            for (index, _), own in zip(chunk, pixels, strict=True):
                images[index] = Image.fromarray(np.asarray(own))
    return images


def caption_of(instruction: str) -> str:
    """Returns the caption in an instruction of text-to-image; any other instruction as it is.

    >>> caption_of("What is the complete image? caption: a red apple")
    'a red apple'
    """
    text, begin = instruction.strip(), prompts.UNCONDITIONAL_IMAGE.strip()
    return text[len(begin) :].strip() if text.lower().startswith(begin) else text


def score_images(
    ranker: ImageRanker, captions: Sequence[str], images: Sequence[UInt8[np.ndarray, "h w 3"]]
) -> Float[np.ndarray, " n"]:
    """Returns the ranker's score of each image with the caption at its place.

    Raises:
      ValueError: it does not give each image a finite number.
    """
    scores = np.asarray(ranker.score(captions, np.stack(images)))
    if scores.shape != (len(images),) or not np.isfinite(scores).all():
        raise ValueError(
            f"The ranker {ranker.name} did not give each of {len(images)} images a finite number: "
            "its weights are damaged, or it is not made for these images."
        )
    return scores


def rerank(
    decoded: DecodedBatch, captions: Sequence[str], processor: Processor, ranker: ImageRanker
) -> DecodedBatch:
    """Returns the hypotheses with the scores of a ranker in place of the model's.

    Args:
      decoded: hypotheses that are image codes.
      captions: of the first rows; those behind them are padding. A row whose caption is blank keeps
        its scores.
      processor: has the image tokenizer.
      ranker: scores the images.

    Raises:
      ValueError: the model has no image tokenizer, or the ranker gives no finite numbers.
    """
    if processor.image_tokenizer is None:
        raise ValueError(
            "Images are ranked as pixels, but the model has no image tokenizer: give "
            "image_tokenizer."
        )
    places = [
        (row, index)
        for row, caption in enumerate(captions)
        if caption.strip()
        for index in np.flatnonzero(np.isfinite(decoded.scores[row])).tolist()
    ]
    codes = [
        postprocess.parse("codes", decoded.tokens[place], processor.vocabulary) for place in places
    ]
    found = [
        (place, np.asarray(image))
        for place, image in zip(places, decode_images(codes, processor), strict=True)
        if image is not None
    ]
    if not found:
        return decoded
    scores = score_images(
        ranker, [captions[row] for (row, _), _ in found], [own for _, own in found]
    )
    ranked = np.array(decoded.scores, np.float32)
    for row in {row for (row, _), _ in found}:
        ranked[row] = -np.inf  # what is no image is not chosen
    for (place, _), score in zip(found, scores.tolist(), strict=True):
        ranked[place] = score
    return dataclasses.replace(decoded, scores=ranked)
