"""The downstream tasks with images: functions from a record to an example.

Wang et al. 2022, section 4 and appendix A. Like the objectives, each is a plain function `(record,
rng, config) -> example`. Images are resized to a square, whatever their aspect ratio: nothing is
cropped, and a box is scaled by the ratios of the sides.
"""

import dataclasses
import functools
import math
import string
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
from jaxtyping import UInt8

from ofa_jax.preprocessing import boxes as box_ops
from ofa_jax.preprocessing import images, prompts, record_questions, record_regions
from ofa_jax.preprocessing import record_fields as fields
from ofa_jax.preprocessing.examples import Example, make_example
from ofa_jax.preprocessing.records import Record
from ofa_jax.preprocessing.text import clean_caption, clean_question
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.utils import options
from ofa_jax.utils.decode_options import AS_SEEN, AS_STORED, DecodeOptions
from ofa_jax.utils.option_checks import checked

DECODER_PROMPTS = ("none", "source", "previous_output")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@checked
@dataclasses.dataclass(frozen=True)
class DownstreamConfig:
    """Sizes of the downstream tasks; the defaults are the published ones.

    Attributes:
      vocabulary: encodes text, boxes and image codes.
      image_size: the side of images in pixels, except in grounding.
      grounding_image_size: the side of images in grounding.
      max_image_size: the coordinate in pixels that the last location bin stands for.
      code_image_size: the side of generated images; each 8 x 8 pixels are one code.
      max_source_words: the maximum length of questions, phrases, premises and hypotheses.
      max_caption_words: the maximum length of captions in the target.
      max_prompt_words: the maximum length of captions that an image is generated from.
      max_sentence_words: the maximum length of each sentence in GLUE.
      max_article_tokens: the maximum number of words of an article, and then of tokens of the
        instruction with the article in it.
      max_summary_words: the maximum length of summaries.
      max_objects: the maximum number of detected objects in the instruction.
      detected_objects: whether the names of detected objects follow a question, where a record has
        them.
      decoder_prompt: what the decoder reads before the target, without a loss: "none", "source"
        (the whole instruction) or "previous_output" (the instruction without eos). Applies to VQA,
        SNLI-VE and GLUE.
      max_prompt_tokens: the maximum length of an instruction that is a decoder prompt, bos and eos
        included; set it to the length of the stream's inputs.
      caption_dropout: the share of training examples of text-to-image generation whose caption is
        left out, which `DecodingConfig.guidance_scale` needs (Ho and Salimans 2022: 0.1 to 0.2).
      target_noise: the share of a summary's tokens that the decoder reads as random ones in
        training.
      decode_options: how images are decoded, and how large they may be. The default is what the
        reference implementation does; `DownstreamSettings` takes `AS_SEEN` where no data is in the
        official files.
      augment: whether classification augments its training images.
      training: False for evaluation: no noise, no augmentation, and targets may be missing.
    """

    vocabulary: OFAVocabulary
    image_size: options.Pixels = 480
    grounding_image_size: options.Pixels = 512
    max_image_size: options.Pixels = 512
    code_image_size: options.Pixels = 256
    max_source_words: options.Count = 80
    max_caption_words: options.Count = 20
    max_prompt_words: options.Count = 64
    max_sentence_words: options.Count = 512
    max_article_tokens: options.Count = 512
    max_summary_words: options.Count = 64
    max_objects: options.Natural = 30
    detected_objects: bool = False
    decoder_prompt: Annotated[str, options.OneOf(DECODER_PROMPTS)] = "none"
    max_prompt_tokens: options.Count = 512
    caption_dropout: options.Rate = 0.0
    target_noise: options.Rate = 0.2
    decode_options: DecodeOptions = AS_STORED
    augment: bool = True
    training: bool = True

    def __post_init__(self) -> None:
        if self.grounding_image_size > self.max_image_size:
            raise ValueError(
                f"max_image_size {self.max_image_size} is smaller than grounding_image_size "
                f"{self.grounding_image_size}: boxes would not fit into the bins; raise it."
            )

    @property
    def num_codes(self) -> int:
        """The number of codes of a generated image."""
        return (self.code_image_size // 8) ** 2


def captioning(record: Record, rng: np.random.Generator, config: DownstreamConfig) -> Example:
    """Returns `what does the image describe?` -> a caption without its punctuation."""
    caption = ""
    if config.training or fields.has_entries(record, "captions"):
        captions = fields.usable_texts(
            record, "captions", _without_punctuation, may_be_none=not config.training
        )
        caption = captions[int(rng.integers(len(captions)))] if captions else ""
    words = _without_punctuation(caption).split()[: config.max_caption_words]
    return make_example(
        config.vocabulary,
        prompts.IMAGE_CAPTIONING,
        f" {' '.join(words)}" if words else "",
        load_square_image(record, config.image_size, config.decode_options),
    )


def _without_punctuation(caption: str) -> str:
    return caption.lower().translate(_PUNCTUATION)


def question_answering(
    record: Record, rng: np.random.Generator, config: DownstreamConfig
) -> Example:
    """Returns the question, with a question mark -> its answer, weighted by its confidence."""
    del rng
    question, answer, weight = _first_question(record, config)
    if not question.endswith("?"):
        question += "?"
    instruction = [f" {question}"]
    if config.detected_objects and (objects := fields.optional_texts(record, "object_labels")):
        names = " ".join(objects[: config.max_objects])
        instruction.append(prompts.DETECTED_OBJECTS.format(objects=names))
    example = make_example(
        config.vocabulary,
        instruction,
        f" {answer}" if answer else "",
        load_square_image(record, config.image_size, config.decode_options),
        weight,
    )
    return add_decoder_prompt(example, config)


def _first_question(record: Record, config: DownstreamConfig) -> tuple[str, str, float]:
    """Returns the first usable question, its answer and the answer's confidence.

    In evaluation it is the first one whatever its answer, which may be missing.
    """
    if config.training:
        first = record_questions.usable_questions(record, config.max_source_words)[0]
        return first.question, first.answer, first.confidence
    single = {**record, "questions": fields.get_texts(record, "questions")[:1]}
    clean = functools.partial(clean_question, max_words=config.max_source_words)
    question = clean(fields.usable_texts(single, "questions", clean)[0])
    answers = fields.optional_texts(record, "answers")
    confidence = record_questions.get_confidences(record, "answer_confidences")[0]
    confidence = 1.0 if math.isnan(confidence) else confidence
    return question, answers[0] if answers else "", confidence


def grounding(record: Record, rng: np.random.Generator, config: DownstreamConfig) -> Example:
    """Returns `which region does the text " {phrase} " describe?` -> its box."""
    del rng
    size = config.grounding_image_size
    image = fields.decode_image(record, config.decode_options)
    targets: Sequence[np.ndarray] = ()
    if config.training or fields.has_entries(record, "phrase_boxes"):
        phrases, boxes = record_regions.usable_regions(
            record, image.size, "phrases", "phrase_boxes", clean_caption, not config.training
        )
        box = box_ops.scale(boxes[:1], size / image.width, size / image.height)
        # Boxes of the data sets reach a fraction of a pixel beyond their images.
        box = box_ops.crop(box, 0, 0, size, size)
        targets = [config.vocabulary.encode_box(box[0], config.max_image_size)]
    else:
        phrases = fields.usable_texts(record, "phrases", clean_caption)
    phrase = clean_caption(phrases[0], config.max_source_words)
    instruction = prompts.VISUAL_GROUNDING.format(phrase=phrase)
    example = make_example(
        config.vocabulary, instruction, targets, images.resize_to_square(image, size)
    )
    if not config.training:
        example["view"] = np.array([0, 0, *image.size], np.float32)
    return example


def entailment(record: Record, rng: np.random.Generator, config: DownstreamConfig) -> Example:
    """Returns `can image and text1 " {premise} " imply text2 " {hypothesis} "?` -> the label."""
    del rng
    return _classify_texts(record, config, prompts.ENTAILMENT, ("premise", "hypothesis"))


def entailment_without_premise(
    record: Record, rng: np.random.Generator, config: DownstreamConfig
) -> Example:
    """Returns `does the image describe " {hypothesis} "?` -> the label: yes, maybe or no."""
    del rng
    return _classify_texts(record, config, prompts.ENTAILMENT_WITHOUT_PREMISE, ("hypothesis",))


def _classify_texts(
    record: Record, config: DownstreamConfig, prompt: str, text_fields: tuple[str, ...]
) -> Example:
    """Returns an example about the image and some texts, whose target is the label."""
    clean = functools.partial(clean_caption, max_words=config.max_source_words)
    texts = {field: fields.get_cleaned(record, field, clean) for field in text_fields}
    label = get_target_text(record, "label", config)
    example = make_example(
        config.vocabulary,
        prompt.format(**texts),
        f" {label}" if label else "",
        load_square_image(record, config.image_size, config.decode_options),
    )
    return add_decoder_prompt(example, config)


def text_to_image(record: Record, rng: np.random.Generator, config: DownstreamConfig) -> Example:
    """Returns `what is the complete image? caption: {caption}` -> the codes of the whole image.

    In training, the rate `caption_dropout` of the examples has no caption.
    """
    words = fields.usable_texts(record, "captions")[0].split()[: config.max_prompt_words]
    targets: Sequence[np.ndarray] = ()
    if len(get_target(record, "codes", config)):
        codes = record_regions.get_codes(record, config.num_codes, config.vocabulary.num_codes)
        targets = [config.vocabulary.encode_codes(codes)]
    instruction = prompts.TEXT_TO_IMAGE.format(caption=" ".join(words))
    # Without dropout nothing is drawn.
    if config.training and config.caption_dropout and rng.random() < config.caption_dropout:
        instruction = prompts.UNCONDITIONAL_IMAGE
    return make_example(
        config.vocabulary,
        instruction,
        targets,
        code_mask=np.bool_(True),
    )


# -------------------------------------------------------------------------------- shared functions


def add_decoder_prompt(example: Example, config: DownstreamConfig) -> Example:
    """Puts the instruction in front of the target as well, without a loss on it.

        inputs              <s> is it ? </s>
        targets             yes </s>
        "source"            is it ? </s> yes </s>        the decoder reads <s> is it ? </s> yes
        "previous_output"   is it ? yes </s>             the decoder reads <s> is it ? yes

    Returns:
      The example, with the prompt also as `target_prefix`, from which decoding starts.
    """
    if config.decoder_prompt == "none":
        return example
    inputs = example["inputs"]
    if len(inputs) > config.max_prompt_tokens:
        inputs = np.append(inputs[: config.max_prompt_tokens - 1], inputs[-1])
    prompt = inputs[1:] if config.decoder_prompt == "source" else inputs[1:-1]
    return example | {
        "inputs": inputs,
        "targets": np.concatenate([prompt, example["targets"]]),
        "unscored_targets": np.int32(len(prompt)),
        "target_prefix": prompt,
    }


def get_target(record: Record, field: str, config: DownstreamConfig) -> Any:
    """Returns a field that a target is made of; it may be missing or empty in evaluation.

    Raises:
      InvalidRecordError: it is missing in training.
    """
    if config.training or fields.has_entries(record, field):
        return fields.get_required(record, field)
    return ()


def get_target_text(record: Record, field: str, config: DownstreamConfig) -> str:
    """Returns a text that is the target; in evaluation "" if it is missing or empty.

    Raises:
      InvalidRecordError: it is missing or empty in training, or it is not a text.
    """
    if config.training or fields.has_entries(record, field):
        return fields.get_text(record, field)
    return ""


def load_square_image(
    record: Record, size: int, options: DecodeOptions = AS_SEEN
) -> UInt8[np.ndarray, "size size 3"]:
    """Decodes the whole image of a record and resizes it to a square."""
    return images.resize_to_square(fields.decode_image(record, options), size)


DownstreamTask = Callable[[Record, np.random.Generator, DownstreamConfig], Example]
