"""The downstream tasks with images: from a record to an instruction and its answer.

Sections 6 and 7 of the spec. As in `objectives`, each is a plain function `(record, rng, config) ->
example`. Images are seen whole, squeezed into a square: nothing of them is cut off, and a box in
pixels of the square is a box of the stored image times the ratio of their sides.
"""

import dataclasses
import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ofa_jax.preprocessing import boxes as box_ops
from ofa_jax.preprocessing import images, prompts
from ofa_jax.preprocessing.objectives import make_example
from ofa_jax.preprocessing.records import InvalidRecordError, Record
from ofa_jax.preprocessing.text import clean_caption, clean_question
from ofa_jax.tokenizers.vocabulary import OFAVocabulary

DECODER_PROMPTS = ("none", "source", "previous_output")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclasses.dataclass(frozen=True)
class DownstreamConfig:
    """Sizes of the downstream tasks; the defaults are the published ones.

    Attributes:
      vocabulary: makes ids.
      image_size: of images, in pixels a side.
      grounding_image_size: the same in grounding.
      max_image_size: pixels that the last location bin stands for.
      code_image_size: of images to be generated; 8 x 8 pixels are a code.
      max_source_words: of questions, phrases, premises and hypotheses.
      max_caption_words: of captions to be learned.
      max_prompt_words: of captions that ask for an image.
      max_sentence_words: of each sentence in GLUE.
      max_article_tokens: of an article with its instruction; as many words of it are read.
      max_summary_words: of summaries.
      max_objects: names of detected objects behind a question.
      detected_objects: whether a question is followed by the names of objects that a detector saw,
        where a record has them.
      decoder_prompt: what is put in front of the decoder's answer, not scored: "none", "source"
        (the whole instruction) or "previous_output" (all of it but the eos); in VQA, SNLI-VE and
        GLUE.
      max_prompt_tokens: with a decoder's prompt, an instruction has at most so many tokens, bos and
        eos included; give what the stream has for inputs.
      target_noise: share of the tokens of a summary that the decoder reads wrong in training.
      augment: whether classification augments its training images.
      training: False for evaluation: no noise and no augmentation, and an answer may be missing.
    """

    vocabulary: OFAVocabulary
    image_size: int = 480
    grounding_image_size: int = 512
    max_image_size: int = 512
    code_image_size: int = 256
    max_source_words: int = 80
    max_caption_words: int = 20
    max_prompt_words: int = 64
    max_sentence_words: int = 512
    max_article_tokens: int = 512
    max_summary_words: int = 64
    max_objects: int = 30
    detected_objects: bool = False
    decoder_prompt: str = "none"
    max_prompt_tokens: int = 512
    target_noise: float = 0.2
    augment: bool = True
    training: bool = True

    def __post_init__(self) -> None:
        if self.decoder_prompt not in DECODER_PROMPTS:
            raise ValueError(
                f"decoder_prompt is {self.decoder_prompt!r}; choose from "
                f"{', '.join(DECODER_PROMPTS)}."
            )
        if self.grounding_image_size > self.max_image_size:
            raise ValueError(
                f"max_image_size {self.max_image_size} is smaller than grounding_image_size "
                f"{self.grounding_image_size}: boxes would not fit into the bins; raise it."
            )
        if not 0 <= self.target_noise < 1:
            raise ValueError(f"target_noise is {self.target_noise}; give 0 <= x < 1.")

    @property
    def num_codes(self) -> int:
        """Codes of an image to be generated."""
        return (self.code_image_size // 8) ** 2


def captioning(
    record: Record, rng: np.random.Generator, config: DownstreamConfig
) -> dict[str, Any]:
    """`what does the image describe?` -> a caption without its punctuation."""
    captions = require(record, "captions", config)
    caption = captions[int(rng.integers(len(captions)))] if captions else ""
    words = caption.lower().translate(_PUNCTUATION).split()[: config.max_caption_words]
    return make_example(
        config.vocabulary,
        prompts.IMAGE_CAPTIONING,
        f" {' '.join(words)}" if words else "",
        squeezed(record, config.image_size),
    )


def question_answering(
    record: Record, rng: np.random.Generator, config: DownstreamConfig
) -> dict[str, Any]:
    """The question, with a question mark, -> the answer, weighted by its confidence."""
    del rng
    question = clean_question(require(record, "questions")[0], config.max_source_words)
    if not question.endswith("?"):
        question += "?"
    instruction = f" {question}"
    objects = record.get("object_labels")
    if config.detected_objects and objects:
        names = " ".join(objects[: config.max_objects])
        instruction = [instruction, prompts.DETECTED_OBJECTS.format(objects=names)]
    answers = require(record, "answers", config)
    confidences = record.get("answer_confidences")
    weight = 1.0 if confidences is None or not len(confidences) else float(confidences[0])
    example = make_example(
        config.vocabulary,
        instruction,
        f" {answers[0]}" if answers else "",
        squeezed(record, config.image_size),
        weight,
    )
    return prompted(example, config)


def grounding(record: Record, rng: np.random.Generator, config: DownstreamConfig) -> dict[str, Any]:
    """`which region does the text " {phrase} " describe?` -> its box."""
    del rng
    size = config.grounding_image_size
    phrase = clean_caption(require(record, "phrases")[0], config.max_source_words)
    image = decoded(record)
    targets: Sequence[np.ndarray] = ()
    if len(require(record, "phrase_boxes", config)):
        box = box_ops.as_boxes(record["phrase_boxes"])[:1]
        box = box_ops.scale(box, size / image.width, size / image.height)
        # Boxes of the data sets reach a fraction of a pixel beyond their images.
        box = box_ops.crop(box, 0, 0, size, size)
        if not box_ops.nonempty(box)[0]:
            raise InvalidRecordError(
                f"record {record.get('id', '?')}: box {box[0].tolist()} has no area within its "
                "image"
            )
        targets = [config.vocabulary.encode_box(box[0], config.max_image_size)]
    instruction = prompts.VISUAL_GROUNDING.format(phrase=phrase)
    return make_example(config.vocabulary, instruction, targets, _square(image, size))


def entailment(
    record: Record, rng: np.random.Generator, config: DownstreamConfig
) -> dict[str, Any]:
    """`can image and text1 " {premise} " imply text2 " {hypothesis} "?` -> yes, maybe or no."""
    del rng
    return _entailment(
        record,
        config,
        prompts.ENTAILMENT.format(
            premise=clean_caption(require(record, "premise"), config.max_source_words),
            hypothesis=clean_caption(require(record, "hypothesis"), config.max_source_words),
        ),
    )


def entailment_without_premise(
    record: Record, rng: np.random.Generator, config: DownstreamConfig
) -> dict[str, Any]:
    """`does the image describe " {hypothesis} "?` -> yes, maybe or no."""
    del rng
    return _entailment(
        record,
        config,
        prompts.ENTAILMENT_WITHOUT_PREMISE.format(
            hypothesis=clean_caption(require(record, "hypothesis"), config.max_source_words)
        ),
    )


def _entailment(record: Record, config: DownstreamConfig, instruction: str) -> dict[str, Any]:
    label = require(record, "label", config)
    example = make_example(
        config.vocabulary,
        instruction,
        f" {label}" if label else "",
        squeezed(record, config.image_size),
    )
    return prompted(example, config)


def text_to_image(
    record: Record, rng: np.random.Generator, config: DownstreamConfig
) -> dict[str, Any]:
    """`what is the complete image? caption: {caption}` -> the codes of the whole image."""
    del rng
    words = require(record, "captions")[0].split()[: config.max_prompt_words]
    codes = require(record, "codes", config)
    if len(codes) not in (0, config.num_codes):
        raise InvalidRecordError(
            f"record {record.get('id', '?')}: {len(codes)} image codes instead of "
            f"{config.num_codes}"
        )
    return make_example(
        config.vocabulary,
        prompts.TEXT_TO_IMAGE.format(caption=" ".join(words)),
        [config.vocabulary.encode_codes(codes)] if len(codes) else (),
        code_mask=np.bool_(True),
    )


# ---------------------------------------------------------------------------- what tasks share


def prompted(example: dict[str, Any], config: DownstreamConfig) -> dict[str, Any]:
    """Puts the instruction also in front of the answer, read by the decoder and not scored.

        inputs              <s> is it ? </s>
        targets             yes </s>
        "source"            is it ? </s> yes </s>        the decoder reads <s> is it ? </s> yes
        "previous_output"   is it ? yes </s>             the decoder reads <s> is it ? yes

    Returns:
      The example, with the prompt also as `answer_prefix`: what an answer is made to begin with.
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
        "answer_prefix": prompt,
    }


def require(record: Record, field: str, config: DownstreamConfig | None = None) -> Any:
    """A field of a record. An answer, for which `config` is given, may be missing in evaluation.

    Raises:
      InvalidRecordError: it is missing.
    """
    value = record.get(field)
    if value is not None and len(value):
        return value
    if config is None or config.training:
        raise InvalidRecordError(f"record {record.get('id', '?')}: it has no {field}")
    return () if value is None else value


def decoded(record: Record) -> Image.Image:
    """The image of a record. Raises InvalidRecordError if there is none."""
    try:
        return images.decode(require(record, "image"))
    except InvalidRecordError as error:
        raise InvalidRecordError(f"record {record.get('id', '?')}: {error}") from error


def squeezed(record: Record, size: int) -> np.ndarray:
    """The whole image of a record: uint8 [size, size, 3]."""
    return _square(decoded(record), size)


def _square(image: Image.Image, size: int) -> np.ndarray:
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return images.pixels(image)


DownstreamTask = Callable[[Record, np.random.Generator, DownstreamConfig], dict[str, Any]]
