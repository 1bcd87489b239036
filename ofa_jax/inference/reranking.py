"""Ranks generated images by a model's own image-text matching.

`ofa_jax.evaluation.image_ranking` has the rest: what a ranker is, and how candidates are ordered.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from ofa_jax.evaluation.image_ranking import ImageRanker, caption_of, rerank
from ofa_jax.preprocessing import prompts
from ofa_jax.preprocessing.text import clean_caption

__all__ = ["ImageRanker", "MatchingRanker", "caption_of", "rerank"]

_MAX_WORDS = 80


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
