"""Sizes and resources that the pretraining objectives share."""

import dataclasses
import math
from collections.abc import Mapping

from ofa_jax.preprocessing import masking
from ofa_jax.preprocessing.negatives import NegativePool
from ofa_jax.tokenizers import ImageTokenizer
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.utils.suggestions import refuse_unknown


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """Sizes and resources of the objectives; the defaults are the published ones.

    Attributes:
      vocabulary: makes ids.
      negatives: for image-text matching.
      image_tokenizer: for image infilling, where records have no codes.
      image_size: of images in pairs, in pixels a side.
      resize_range: the shorter side of pairs is drawn from it (both ends included).
      resize_max_size: the longer side is cut to it.
      max_image_size: pixels that the last location bin stands for.
      infill_image_size: of images to infill.
      code_image_size: of their middle, which is blanked and predicted as codes.
      detection_image_size: of images with objects.
      max_source_words, max_target_words: of captions and questions.
      text_length, text_window: text infilling reads so many tokens and keeps the last so many.
      mask_ratio: share of the words that text infilling masks.
      distant_negatives: share of the wrong captions of matching that say something else entirely,
        for records whose own `negative_captions` are all close to the truth. In training alone.
      matching_answers: share of matching that asks about an answer and not about a caption, for
        records that have both. In training alone: one half otherwise.
      question_weights: answer type -> how often a question of it is drawn from those of a record,
        beside 1 for types that are not named. In training alone.
      randaugment: whether captioning, questions and matching use it.
      training: False for validation: the smallest size, central crops, no flips, no RandAugment.
    """

    vocabulary: OFAVocabulary
    negatives: NegativePool | None = None
    image_tokenizer: ImageTokenizer | None = None
    image_size: int = 384
    resize_range: tuple[int, int] = (384, 480)
    resize_max_size: int = 672
    max_image_size: int = 512
    infill_image_size: int = 256
    code_image_size: int = 128
    detection_image_size: int = 256
    max_source_words: int = 80
    max_target_words: int = 30
    text_length: int = 512
    text_window: int = 256
    mask_ratio: float = masking.MASK_RATIO
    distant_negatives: float = 0.0
    matching_answers: float = 0.5
    question_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    randaugment: bool = True
    training: bool = True

    def __post_init__(self) -> None:
        low, high = self.resize_range
        if not self.image_size <= low <= high <= self.resize_max_size:
            raise ValueError(
                f"resize_range {self.resize_range} must lie between image_size {self.image_size} "
                f"and resize_max_size {self.resize_max_size}."
            )
        largest = max(self.image_size, self.detection_image_size)
        if largest > self.max_image_size:
            raise ValueError(
                f"max_image_size {self.max_image_size} is smaller than the images ({largest} "
                "pixels): boxes would not fit into the bins; raise it."
            )
        if self.code_image_size > self.infill_image_size:
            raise ValueError(
                f"code_image_size {self.code_image_size} is larger than infill_image_size "
                f"{self.infill_image_size}: the middle must lie inside."
            )
        for name in ("distant_negatives", "matching_answers"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(
                    f"{name} {getattr(self, name)} must lie between 0 and 1: it is a share."
                )
        if self.negatives is not None:
            refuse_unknown(
                "question_weights", self.question_weights, self.negatives.answers_by_type
            )
        for kind, weight in self.question_weights.items():
            if not 0.0 <= weight < math.inf:
                raise ValueError(
                    f"question_weights[{kind!r}] is {weight}: a weight is a finite number that is "
                    "not negative."
                )
