"""The eight pretraining objectives: functions from a record to an example.

Wang et al. 2022, section 3.2 and appendix A. Each is a plain function `(record, rng, config) ->
example`; see `records` for the fields of a record and `examples` for those of an example. If a
record has several captions, questions or phrases, one is sampled. All randomness comes from `rng`.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float32, UInt8

from ofa_jax.preprocessing import boxes as box_ops
from ofa_jax.preprocessing import (
    images,
    masking,
    negatives,
    pair_images,
    prompts,
    record_questions,
    record_regions,
)
from ofa_jax.preprocessing import record_fields as fields
from ofa_jax.preprocessing.examples import Example, make_example
from ofa_jax.preprocessing.objective_config import ObjectiveConfig
from ofa_jax.preprocessing.records import Record
from ofa_jax.preprocessing.text import clean_caption, has_no_words, is_blank
from ofa_jax.preprocessing.wordings import fill

# The published weight of text, image and detection examples; that of a pair is 1.
_GROUP_WEIGHT = 2.0
# The captions of CC12M are noisy at their start: their first two tokens get no loss.
_UNSCORED_TOKENS = {"cc12m": 2}


# ------------------------------------------------------------------------------- image-text pairs


def image_captioning(record: Record, rng: np.random.Generator, config: ObjectiveConfig) -> Example:
    """Returns `what does the image describe?` -> a caption."""
    caption = fields.sample_value(record, "captions", rng, clean_caption)
    caption = clean_caption(caption, config.max_target_words)
    example = make_example(
        config.vocabulary,
        config.wording("image_captioning", rng),
        f" {caption}",
        pair_images.load_image(record, rng, config),
    )
    if unscored := _UNSCORED_TOKENS.get(record.get("data_set", ""), 0):
        example["unscored_targets"] = np.int32(unscored)
    return example


def visual_question_answering(
    record: Record, rng: np.random.Generator, config: ObjectiveConfig
) -> Example:
    """Returns the question -> its answer, weighted by its confidence."""
    question, answer, confidence, _ = record_questions.sample_question(record, rng, config)
    return make_example(
        config.vocabulary,
        config.wording("visual_question_answering", rng).format(question=question),
        f" {answer}",
        pair_images.load_image(record, rng, config),
        confidence,
    )


def image_text_matching(
    record: Record, rng: np.random.Generator, config: ObjectiveConfig
) -> Example:
    """Returns the question whether a caption or an answer fits the image -> yes or no.

    Both targets have the same probability. If a record has captions and questions, one of the two
    is sampled. False captions come from the record's own `negative_captions` if it has some, and
    otherwise from the pool. A label "yes" or "no" in the record determines the target.
    """
    captions, questions = _matching_texts(record, config)
    about_question = bool(questions)
    if captions and questions:
        about_question = rng.random() < (config.matching_answers if config.training else 0.5)
    positive = bool(rng.random() >= 0.5)
    if record.get("label"):
        positive = fields.get_text(record, "label") == "yes"
    if about_question:
        instruction, confidence = _match_answer(record, questions, positive, rng, config)
    else:
        instruction, confidence = _match_caption(record, captions, positive, rng, config), 1.0
    return make_example(
        config.vocabulary,
        instruction,
        prompts.YES if positive else prompts.NO,
        pair_images.load_image(record, rng, config),
        confidence,
    )


def _matching_texts(
    record: Record, config: ObjectiveConfig
) -> tuple[list[str], list[record_questions.QuestionAnswer]]:
    """Returns the captions and the questions that matching may use; one may be empty.

    Raises:
      InvalidRecordError: there is neither a usable caption nor a usable question.
    """
    has_questions = fields.has_entries(record, "questions")
    if not has_questions:
        return fields.usable_texts(record, "captions", clean_caption), []
    if not fields.has_entries(record, "captions"):
        return [], record_questions.usable_questions(record, config.max_source_words)
    captions = fields.usable_texts(record, "captions", clean_caption, may_be_none=True)
    may_be_none = bool(captions)
    return captions, record_questions.usable_questions(record, config.max_source_words, may_be_none)


def _match_caption(
    record: Record,
    captions: Sequence[str],
    positive: bool,
    rng: np.random.Generator,
    config: ObjectiveConfig,
) -> str:
    """Returns the instruction about a true or false caption."""
    caption = captions[int(rng.integers(len(captions)))]
    if not positive:
        caption = _false_caption(record, caption, rng, config)
    cleaned = clean_caption(caption, config.max_source_words)
    if has_no_words(cleaned):
        raise fields.record_error(record, "its false caption is empty", fields.EMPTY)
    return config.wording("matching_caption", rng).format(caption=cleaned)


def _false_caption(
    record: Record, caption: str, rng: np.random.Generator, config: ObjectiveConfig
) -> str:
    """Samples a false caption: a distant one, one of the record's own, or one from the pool."""
    own = fields.optional_texts(record, "negative_captions", clean_caption)
    objects = fields.optional_texts(record, "object_labels")
    share = config.distant_negatives if own and config.training else 0.0
    if share and rng.random() < share:
        distant = negatives.sample_distant_caption(objects, _pool(record, config), rng)
        if distant is not None:
            return distant
    if own:
        return own[int(rng.integers(len(own)))]
    sampled = negatives.sample_negative_caption(caption, objects, _pool(record, config), rng)
    if sampled is None:
        raise fields.record_error(record, "there is no other caption to use as a negative")
    return sampled


def _match_answer(
    record: Record,
    questions: Sequence[record_questions.QuestionAnswer],
    positive: bool,
    rng: np.random.Generator,
    config: ObjectiveConfig,
) -> tuple[str, float]:
    """Returns the instruction about a correct or wrong answer, and the answer's confidence."""
    question, answer, confidence, kind = record_questions.choose_question(questions, rng, config)
    if not positive:
        sampled = negatives.sample_negative_answer(
            answer, confidence, kind, _pool(record, config), rng
        )
        if sampled is None:
            raise fields.record_error(record, "there is no other answer to use as a negative")
        if is_blank(sampled):
            raise fields.record_error(record, "its wrong answer is empty", fields.EMPTY)
        answer = sampled
    wording = config.wording("matching_answer", rng)
    return wording.format(question=question, answer=answer), confidence


def visual_grounding(record: Record, rng: np.random.Generator, config: ObjectiveConfig) -> Example:
    """Returns `which region does the text " {phrase} " describe?` -> its box."""
    phrase, bins, image, view = pair_images.sample_region(record, rng, config)
    instruction = config.wording("visual_grounding", rng).format(
        phrase=clean_caption(phrase, config.max_source_words)
    )
    return make_example(config.vocabulary, instruction, [bins], image, view=view)


def grounded_captioning(
    record: Record, rng: np.random.Generator, config: ObjectiveConfig
) -> Example:
    """Returns `what does the region describe? region: {box}` -> its phrase."""
    phrase, bins, image, view = pair_images.sample_region(record, rng, config)
    caption = clean_caption(phrase, config.max_target_words)
    instruction = fill(config.wording("grounded_captioning", rng), "region", bins)
    return make_example(config.vocabulary, instruction, f" {caption}", image, view=view)


# ------------------------------------------------------------------------ images, objects and text


def object_detection(record: Record, rng: np.random.Generator, config: ObjectiveConfig) -> Example:
    """Returns `what are the objects in the image?` -> the box and name of each object in order."""
    image = fields.decode_image(record, config.decode_options)
    labels, boxes = record_regions.usable_regions(
        record, image.size, "object_labels", "object_boxes"
    )
    if config.training:
        if rng.random() < 0.5:
            image, boxes = images.horizontal_flip(image, boxes)
        scale, vertical, horizontal = rng.random(3)
    else:
        scale, vertical, horizontal = 0.0, 0.5, 0.5
    draws = scale, (vertical, horizontal)
    size, stored = config.detection_image_size, image.size
    cropped, boxes = images.large_scale_jitter(
        image, boxes, size, *draws, config.decode_options.max_resized_pixels
    )
    instruction = config.wording("object_detection", rng)
    example = detection_example(images.to_array(cropped), boxes, labels, config, instruction)
    if not config.training:
        (height, width), (top, left) = images.jitter_window(stored, size, *draws)
        example["view"] = pair_images.view_of(stored, (width, height), (left, top), size)
    return example


def detection_example(
    image: UInt8[np.ndarray, "size size 3"],
    boxes: Float32[np.ndarray, "n 4"],
    labels: Sequence[str],
    config: ObjectiveConfig,
    instruction: str = prompts.OBJECT_DETECTION,
) -> Example:
    """Returns the example of a transformed image; boxes without area are left out."""
    vocabulary = config.vocabulary
    targets: list[str | np.ndarray] = []
    for box, label, visible in zip(boxes, labels, box_ops.nonempty(boxes), strict=True):
        if visible:
            targets += [vocabulary.encode_box(box, config.max_image_size), f" {label}"]
    return make_example(vocabulary, instruction, targets, image, _GROUP_WEIGHT)


def image_infilling(record: Record, rng: np.random.Generator, config: ObjectiveConfig) -> Example:
    """Returns `what is the image in the middle part?` -> the codes of the blanked centre."""
    size, side = config.infill_image_size, config.code_image_size
    center = images.center_slice(size, side)
    image = images.resize_and_center_crop(
        fields.decode_image(record, config.decode_options),
        size,
        config.decode_options.max_resized_pixels,
    )
    array = images.to_array(image)
    if not fields.has_entries(record, "codes"):
        if config.image_tokenizer is None:
            raise fields.record_error(
                record,
                "Image infilling needs codes in the records, or an image_tokenizer in the settings "
                "that makes them",
                fields.MISSING,
            )
        codes = config.image_tokenizer.encode(array[None, center, center])
    else:
        codes = record_regions.get_codes(record, (side // 8) ** 2, config.vocabulary.num_codes)
    array, blank_box = images.blank_center(array, side)
    return make_example(
        config.vocabulary,
        config.wording("image_infilling", rng),
        [config.vocabulary.encode_codes(codes)],
        array,
        _GROUP_WEIGHT,
        blank_box=blank_box,
        code_mask=np.bool_(True),
    )


def text_infilling(record: Record, rng: np.random.Generator, config: ObjectiveConfig) -> Example:
    """Returns `what is the complete text of " {text with masked spans} "?` -> the text."""
    text = fields.get_text(record, "text").strip().lower()
    vocabulary = config.vocabulary
    ids = vocabulary.encode(f" {text}", max_length=config.text_length)[-config.text_window :]
    framed = np.concatenate([[vocabulary.bos_id], ids, [vocabulary.eos_id]])
    masked = masking.mask_spans(
        framed, vocabulary.whole_word_starts, vocabulary.mask_id, rng, config.mask_ratio
    )
    instruction = fill(config.wording("text_infilling", rng), "text", masked[1:-1])
    return make_example(vocabulary, instruction, [ids], loss_weight=_GROUP_WEIGHT)


def _pool(record: Record, config: ObjectiveConfig) -> negatives.NegativePool:
    """Returns the configured pool of negatives. Raises InvalidRecordError if there is none."""
    if config.negatives is None:
        raise fields.record_error(
            record,
            "Image-text matching needs a NegativePool (settings.negatives) for records without "
            "negative_captions",
            fields.MISSING,
        )
    return config.negatives


Objective = Callable[[Record, np.random.Generator, ObjectiveConfig], Example]

OBJECTIVES: Mapping[str, Objective] = {
    function.__name__: function
    for function in (
        image_captioning,
        visual_question_answering,
        image_text_matching,
        visual_grounding,
        grounded_captioning,
        object_detection,
        image_infilling,
        text_infilling,
    )
}
"""The name of each objective -> its function."""

# The reference implementation makes two examples of each record of this stream. The second one of a
# caption or a question asks whether it matches the image; that of a region asks for its caption in
# place of its box. So matching is as frequent as captions and questions together, and grounding as
# frequent as grounded captioning.
PAIR_RATES: Mapping[str, float] = {
    "image_captioning": 1.0,
    "visual_question_answering": 1.0,
    "image_text_matching": 2.0,
    "visual_grounding": 1.0,
    "grounded_captioning": 1.0,
}
COUNTERPARTS: Mapping[str, str] = {
    "image_captioning": "image_text_matching",
    "visual_question_answering": "image_text_matching",
    "visual_grounding": "grounded_captioning",
}
"""The first example that the reference implementation makes of a record -> the second one."""
IMAGE_RATES: Mapping[str, float] = {"image_infilling": 1.0, "object_detection": 1.0}
TEXT_RATES: Mapping[str, float] = {"text_infilling": 1.0}
"""The rates of the objectives in each stream of the published pretraining."""

RECORD_KIND: Mapping[str, str] = {
    "image_captioning": "captions",
    "visual_question_answering": "questions",
    "image_text_matching": "pairs",
    "visual_grounding": "regions",
    "grounded_captioning": "regions",
    "object_detection": "objects",
    "image_infilling": "images",
    "text_infilling": "text",
}
"""The name of each objective -> the kind of records that it reads, a key of `RECORD_FIELDS`."""
