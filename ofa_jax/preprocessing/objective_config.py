"""The sizes and resources that the pretraining objectives share."""

import dataclasses

import numpy as np

from ofa_jax.preprocessing import masking
from ofa_jax.preprocessing.negatives import NegativePool
from ofa_jax.preprocessing.wordings import Wordings, check_wordings, sample_wording
from ofa_jax.tokenizers import ImageTokenizer
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.utils import options
from ofa_jax.utils.decode_options import AS_STORED, DecodeOptions
from ofa_jax.utils.option_checks import checked
from ofa_jax.utils.suggestions import refuse_unknown


@checked
@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """Sizes and resources of the objectives; the defaults are the published ones.

    Attributes:
      vocabulary: encodes text, boxes and image codes.
      negatives: where image-text matching samples false captions and answers from.
      image_tokenizer: computes the codes for image infilling where records have none.
      image_size: the side of images in image-text pairs, in pixels.
      resize_range: the range that the shorter side of such images is sampled from, both ends
        included.
      resize_max_size: the maximum length of the longer side; it alone is reduced to this, which
        changes the aspect ratio, as in the reference implementation.
      max_image_size: the coordinate in pixels that the last location bin stands for.
      infill_image_size: the side of images in image infilling.
      code_image_size: the side of their centre, which is blanked and predicted as codes.
      detection_image_size: the side of images in object detection.
      max_source_words: the maximum length of captions and questions in the instruction.
      max_target_words: the maximum length of captions in the target.
      text_length: the maximum number of tokens that text infilling encodes of a text.
      text_window: the number of these tokens that it keeps, the last ones.
      mask_ratio: the share of the words that text infilling masks.
      distant_negatives: the share of the false captions in matching that are about something else
        entirely, for records whose own `negative_captions` are all close to the truth. Only in
        training.
      matching_answers: the share of matching examples about an answer rather than a caption, for
        records that have both. Only in training; it is one half otherwise.
      question_weights: answer type -> relative probability that a question of this type is sampled
        among those of a record; 1 for types that are not listed. Only in training.
      prompts: instruction -> wording -> relative probability, see `wordings`; an instruction that
        is not listed has the published wording.
      decode_options: how images are decoded, and how large they may be. The default is what the
        reference implementation does; `PretrainingSettings` takes `AS_SEEN` for data of one's own.
      randaugment: whether captioning, questions and matching apply RandAugment.
      reduced_jpegs: whether captioning, questions and matching may decode JPEGs at 1/2, 1/4 or 1/8
        of their size, where that is no smaller than what they are resized to. This is faster for
        photographs of more than twice the size, and gives other pixels than the reference
        implementation. Only in training.
      training: False for evaluation: the smallest size, central crops, no flips, no RandAugment.
    """

    vocabulary: OFAVocabulary
    negatives: NegativePool | None = None
    image_tokenizer: ImageTokenizer | None = None
    image_size: options.Pixels = 384
    resize_range: tuple[options.Pixels, options.Pixels] = (384, 480)
    resize_max_size: options.Pixels = 672
    max_image_size: options.Pixels = 512
    infill_image_size: options.Pixels = 256
    code_image_size: options.Pixels = 128
    detection_image_size: options.Pixels = 256
    max_source_words: options.Count = 80
    max_target_words: options.Count = 30
    text_length: options.Count = 512
    text_window: options.Count = 256
    mask_ratio: options.Share = masking.MASK_RATIO
    distant_negatives: options.Share = 0.0
    matching_answers: options.Share = 0.5
    question_weights: options.Weights = dataclasses.field(default_factory=dict)
    prompts: Wordings = dataclasses.field(default_factory=dict)
    decode_options: DecodeOptions = AS_STORED
    randaugment: bool = True
    reduced_jpegs: bool = False
    training: bool = True

    def __post_init__(self) -> None:
        self._check_sizes()
        check_wordings("prompts", self.prompts)
        if self.negatives is not None:
            refuse_unknown(
                "question_weights", self.question_weights, self.negatives.answers_by_type
            )

    def wording(self, instruction: str, rng: np.random.Generator) -> str:
        """Returns the template of an instruction; samples it where there are several wordings."""
        return sample_wording(instruction, self.prompts, rng)

    def _check_sizes(self) -> None:
        """Raises ValueError if the image sizes do not fit each other."""
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
