"""Chooses among generated images: a ranker scores each candidate with its caption.

    samples [R, G] ─▶ image tokenizer: images ─▶ ranker: scores ─▶ the best one first

The reference implementation ranks by CLIP. A model that was pretrained with image-text matching
ranks by itself (`MatchingRanker`).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

from ofa_jax.evaluation import postprocess
from ofa_jax.evaluation.batch_decoder import DecodedBatch
from ofa_jax.inference.predictions import decode_images
from ofa_jax.preprocessing import prompts
from ofa_jax.preprocessing.text import clean_caption
from ofa_jax.tokenizers.processor import Processor

_MAX_WORDS = 80


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


class MatchingRanker:
    """Scores by log P(yes) of `does the image describe "caption"?`, of yes and no.

    The model may be the one that has generated the images. Fine-tuning for text-to-image alone
    forgets the task: rank with the pretrained model then.
    """

    def __init__(self, predictor: Any, name: str = "matching"):
        """Compiles nothing yet.

        Args:
          predictor: a `Predictor`; its batch size is how many images are scored at once.
          name: what identifies the ranker in the record of a job.
        """
        self._predictor = predictor
        self._name = name

    @property
    def name(self) -> str:
        """What identifies the ranker in the record of a job."""
        return self._name

    def score(
        self, captions: Sequence[str], images: UInt8[np.ndarray, "n h w 3"]
    ) -> Float[np.ndarray, " n"]:
        """Returns log P(yes) of each image; 0 where nothing of a caption is left once cleaned."""
        scores = np.zeros(len(captions))
        # Quotes would end the text of the question.
        texts = [clean_caption(caption.replace('"', " "), _MAX_WORDS) for caption in captions]
        rows = [row for row, text in enumerate(texts) if text.strip()]
        answers = self._predictor.predict_batch(
            [images[row] for row in rows],
            [prompts.MATCHING_CAPTION.format(caption=texts[row]).strip() for row in rows],
            task="image_text_matching",
            candidates=[prompts.YES.strip(), prompts.NO.strip()],
            score_all=True,
        )
        for row, answer in zip(rows, answers, strict=True):
            found = {one.text: one.score for one in (answer, *answer.alternatives)}
            scores[row] = found[prompts.YES.strip()]
        return scores


def caption_of(instruction: str) -> str:
    """Returns the caption in an instruction of text-to-image; any other instruction as it is.

    >>> caption_of("What is the complete image? caption: a red apple")
    'a red apple'
    """
    text, begin = instruction.strip(), prompts.UNCONDITIONAL_IMAGE.strip()
    return text[len(begin) :].strip() if text.lower().startswith(begin) else text


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
    scores = np.asarray(
        ranker.score([captions[row] for (row, _), _ in found], np.stack([own for _, own in found]))
    )
    if scores.shape != (len(found),) or not np.isfinite(scores).all():
        raise ValueError(
            f"The ranker {ranker.name} did not give each of {len(found)} images a finite number: "
            "its weights are damaged, or it is not made for these images."
        )
    ranked = np.array(decoded.scores, np.float32)
    for row in {row for (row, _), _ in found}:
        ranked[row] = -np.inf  # what is no image is not chosen
    for (place, _), score in zip(found, scores.tolist(), strict=True):
        ranked[place] = score
    return dataclasses.replace(decoded, scores=ranked)
