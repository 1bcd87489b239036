"""The eight pretraining objectives: from a record to an instruction and its answer.

Section 4 of the spec. Each is a plain function `(record, rng, config) -> example` (see `features`
for an example's fields, `records` for a record's). Where a record offers several captions,
questions or phrases, one is drawn. All randomness comes from `rng`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ofa_jax.preprocessing import boxes as box_ops
from ofa_jax.preprocessing import images, masking, negatives, prompts
from ofa_jax.preprocessing import record_fields as fields
from ofa_jax.preprocessing.objective_config import ObjectiveConfig
from ofa_jax.preprocessing.randaugment import randaugment
from ofa_jax.preprocessing.records import InvalidRecordError, Record
from ofa_jax.preprocessing.text import clean_caption
from ofa_jax.tokenizers.vocabulary import OFAVocabulary

# The published weight of text, image and detection examples; a pair weighs 1.
_GROUP_WEIGHT = 2.0
# The captions of CC12M are noisy at their start: their first two tokens are not scored.
_UNSCORED = {"cc12m": 2}


def make_example(
    vocabulary: OFAVocabulary,
    inputs: str | Sequence[str | np.ndarray],
    targets: str | Sequence[str | np.ndarray],
    image: np.ndarray | None = None,
    loss_weight: float = 1.0,
    **others: Any,
) -> dict[str, Any]:
    """Puts an example together: frames the instruction by bos and eos, ends the answer with eos.

    Args:
      vocabulary: makes ids of strings.
      inputs: the instruction: a string, or strings and ids (such as boxes) one after the other.
      targets: the answer, likewise.
      image: uint8 [H, W, 3].
      loss_weight: the example's confidence.
      **others: further fields of an example.

    >>> make_example(v, "  what is in the region? region:", ...)  # doctest: +SKIP
    """
    source, target = _ids(vocabulary, inputs), _ids(vocabulary, targets)
    example = {
        "inputs": np.concatenate([[vocabulary.bos_id], source, [vocabulary.eos_id]]).astype(
            np.int32
        ),
        "targets": np.append(target, vocabulary.eos_id).astype(np.int32),
        "loss_weight": np.float32(loss_weight),
        "code_mask": np.bool_(False),
    }
    if image is not None:
        example["image"] = image
    return example | others


def _ids(vocabulary: OFAVocabulary, parts: str | Sequence[str | np.ndarray]) -> np.ndarray:
    if isinstance(parts, str):
        parts = [parts]
    encoded = [vocabulary.encode(part) if isinstance(part, str) else part for part in parts]
    return np.concatenate(encoded) if encoded else np.zeros(0, np.int32)


# ------------------------------------------------------------------------------- image-text pairs


def image_captioning(
    record: Record, rng: np.random.Generator, config: ObjectiveConfig
) -> dict[str, Any]:
    """`what does the image describe?` -> a caption."""
    caption = clean_caption(fields.pick(record, "captions", rng), config.max_target_words)
    example = make_example(
        config.vocabulary,
        prompts.IMAGE_CAPTIONING,
        f" {caption}",
        _pair_image(record, rng, config),
    )
    if unscored := _UNSCORED.get(record.get("data_set", ""), 0):
        example["unscored_targets"] = np.int32(unscored)
    return example


def visual_question_answering(
    record: Record, rng: np.random.Generator, config: ObjectiveConfig
) -> dict[str, Any]:
    """The question -> the answer, weighted by its confidence."""
    question, answer, confidence, _ = fields.question(record, rng, config)
    return make_example(
        config.vocabulary,
        f" {question}",
        f" {answer}",
        _pair_image(record, rng, config),
        confidence,
    )


def image_text_matching(
    record: Record, rng: np.random.Generator, config: ObjectiveConfig
) -> dict[str, Any]:
    """Does this caption, or this answer, fit the image? -> yes or no, each half of the time.

    A record with captions and questions is asked about either. Its own `negative_captions`, where
    it has some, are known to be wrong and are preferred to drawn ones. A record with the label
    "yes" or "no" asks for that.
    """
    about_question = bool(record.get("questions"))
    if about_question and record.get("captions"):
        about_question = rng.random() < (config.matching_answers if config.training else 0.5)
    positive = bool(rng.random() >= 0.5)
    if label := record.get("label"):
        positive = label == "yes"
    make = _match_answer if about_question else _match_caption
    instruction, confidence = make(record, positive, rng, config)
    return make_example(
        config.vocabulary,
        instruction,
        prompts.YES if positive else prompts.NO,
        _pair_image(record, rng, config),
        confidence,
    )


def _match_caption(
    record: Record, positive: bool, rng: np.random.Generator, config: ObjectiveConfig
) -> tuple[str, float]:
    caption = fields.pick(record, "captions", rng)
    if not positive:
        own, objects = record.get("negative_captions"), record.get("object_labels", ())
        distant = None
        wanted = config.distant_negatives if own and config.training else 0.0
        if wanted and rng.random() < wanted:
            distant = negatives.distant_caption(objects, _pool(config), rng)
        if distant is not None:
            caption = distant
        elif own:
            caption = own[int(rng.integers(len(own)))]
        else:
            caption = negatives.negative_caption(caption, objects, _pool(config), rng)
            if caption is None:
                raise InvalidRecordError(
                    fields.at(record, "there is no other caption to tell it from")
                )
    cleaned = clean_caption(caption, config.max_source_words)
    return prompts.MATCHING_CAPTION.format(caption=cleaned), 1.0


def _match_answer(
    record: Record, positive: bool, rng: np.random.Generator, config: ObjectiveConfig
) -> tuple[str, float]:
    question, answer, confidence, kind = fields.question(record, rng, config)
    if not positive:
        answer = negatives.negative_answer(answer, confidence, kind, _pool(config), rng)
        if answer is None:
            raise InvalidRecordError(fields.at(record, "there is no other answer to tell it from"))
    return prompts.MATCHING_ANSWER.format(question=question, answer=answer), confidence


def visual_grounding(
    record: Record, rng: np.random.Generator, config: ObjectiveConfig
) -> dict[str, Any]:
    """`which region does the text " {phrase} " describe?` -> its box."""
    phrase, bins, image, view = _region(record, rng, config)
    instruction = prompts.VISUAL_GROUNDING.format(
        phrase=clean_caption(phrase, config.max_source_words)
    )
    return make_example(config.vocabulary, instruction, [bins], image, view=view)


def grounded_captioning(
    record: Record, rng: np.random.Generator, config: ObjectiveConfig
) -> dict[str, Any]:
    """`what does the region describe? region: {box}` -> its phrase."""
    phrase, bins, image, view = _region(record, rng, config)
    answer = clean_caption(phrase, config.max_target_words)
    return make_example(
        config.vocabulary, [prompts.GROUNDED_CAPTIONING, bins], f" {answer}", image, view=view
    )


def _pair_image(record: Record, rng: np.random.Generator, config: ObjectiveConfig) -> np.ndarray:
    """Resizes, crops the middle, augments: uint8 [image_size, image_size, 3]."""
    image, _ = images.resize(
        fields.image(record), images.NO_BOXES, _resize_draw(rng, config), config.resize_max_size
    )
    image, _ = images.center_crop(image, images.NO_BOXES, config.image_size)
    array = images.pixels(image)
    return randaugment(array, rng) if config.training and config.randaugment else array


def _region(
    record: Record, rng: np.random.Generator, config: ObjectiveConfig
) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    """A phrase, the ids of its box, the image cropped around the object, and what it shows."""
    phrases = fields.require(record, "phrases")
    index = int(rng.integers(len(phrases)))
    box = box_ops.as_boxes(fields.require(record, "phrase_boxes"))[index : index + 1]
    image = fields.image(record)
    fields.check_box(record, box[0], image)
    stored = image.size
    image, box = images.resize(image, box, _resize_draw(rng, config), config.resize_max_size)
    window = images.object_window(box[0], image.size, config.image_size)
    view = _view(stored, image.size, window, config.image_size)
    image, box = images.object_center_crop(image, box, config.image_size)
    bins = config.vocabulary.encode_box(box[0], config.max_image_size)
    return phrases[index], bins, images.pixels(image), view


def _view(
    stored: tuple[int, int], resized: tuple[int, int], window: tuple[float, float], size: int
) -> np.ndarray:
    """x0 y0 x1 y1 of a window of a resized image in pixels of the stored one, float32 [4]."""
    left, top = window
    corners = np.array([left, top, left + size, top + size])
    return (corners * np.array(stored * 2) / np.array(resized * 2)).astype(np.float32)


def _resize_draw(rng: np.random.Generator, config: ObjectiveConfig) -> int:
    low, high = config.resize_range
    return int(rng.integers(low, high + 1)) if config.training else low


# ------------------------------------------------------------------------ images, objects and text


def object_detection(
    record: Record, rng: np.random.Generator, config: ObjectiveConfig
) -> dict[str, Any]:
    """`what are the objects in the image?` -> for each object its box and name, in their order."""
    labels = np.array(fields.require(record, "object_labels"), object)
    boxes = box_ops.as_boxes(fields.require(record, "object_boxes"))
    if len(labels) != len(boxes):
        raise InvalidRecordError(fields.at(record, f"{len(labels)} names for {len(boxes)} boxes"))
    image = fields.image(record)
    for box in boxes:
        fields.check_box(record, box, image)
    if config.training:
        if rng.random() < 0.5:
            image, boxes = images.horizontal_flip(image, boxes)
        scale, vertical, horizontal = rng.random(3)
    else:
        scale, vertical, horizontal = 0.0, 0.5, 0.5
    draws = scale, (vertical, horizontal)
    size, stored = config.detection_image_size, image.size
    image, boxes = images.large_scale_jitter(image, boxes, size, *draws)
    example = detection_example(images.pixels(image), boxes, labels, config)
    if not config.training:
        resized, start = images.jitter_window(stored, size, *draws)
        example["view"] = _view(stored, tuple(resized[::-1]), tuple(start[::-1]), size)
    return example


def detection_example(
    image: np.ndarray, boxes: np.ndarray, labels: Sequence[str], config: ObjectiveConfig
) -> dict[str, Any]:
    """The example of a transformed image; boxes without area are left out."""
    vocabulary = config.vocabulary
    targets: list[str | np.ndarray] = []
    for box, label, seen in zip(boxes, labels, box_ops.nonempty(boxes), strict=True):
        if seen:
            targets += [vocabulary.encode_box(box, config.max_image_size), f" {label}"]
    return make_example(vocabulary, prompts.OBJECT_DETECTION, targets, image, _GROUP_WEIGHT)


def image_infilling(
    record: Record, rng: np.random.Generator, config: ObjectiveConfig
) -> dict[str, Any]:
    """`what is the image in the middle part?` -> the codes of the middle, which is blanked."""
    del rng
    size, side = config.infill_image_size, config.code_image_size
    place = images.middle(size, side)
    array = images.pixels(images.square(fields.image(record), size))
    codes = record.get("codes")
    if codes is None or not len(codes):
        if config.image_tokenizer is None:
            raise ValueError(
                "Image infilling needs codes in the records, or an image_tokenizer in the settings "
                "that makes them."
            )
        codes = config.image_tokenizer.encode(array[None, place, place])
    else:
        expected = (side // 8) ** 2
        if len(codes) != expected:
            raise InvalidRecordError(
                fields.at(record, f"{len(codes)} image codes instead of {expected}")
            )
    array, blank_box = images.blank_middle(array, side)
    return make_example(
        config.vocabulary,
        prompts.IMAGE_INFILLING,
        [config.vocabulary.encode_codes(codes)],
        array,
        _GROUP_WEIGHT,
        blank_box=blank_box,
        code_mask=np.bool_(True),
    )


def text_infilling(
    record: Record, rng: np.random.Generator, config: ObjectiveConfig
) -> dict[str, Any]:
    """`what is the complete text of " {text with masked spans} "?` -> the text."""
    text = fields.require(record, "text").strip().lower()
    vocabulary = config.vocabulary
    ids = vocabulary.encode(f" {text}", max_length=config.text_length)[-config.text_window :]
    framed = np.concatenate([[vocabulary.bos_id], ids, [vocabulary.eos_id]])
    masked = masking.mask_spans(
        framed, vocabulary.whole_word_starts, vocabulary.mask_id, rng, config.mask_ratio
    )
    before, after = prompts.TEXT_INFILLING
    return make_example(vocabulary, [before, masked[1:-1], after], [ids], loss_weight=_GROUP_WEIGHT)


def _pool(config: ObjectiveConfig) -> negatives.NegativePool:
    if config.negatives is None:
        raise ValueError(
            "Image-text matching needs a NegativePool (settings.negatives) for records without "
            "negative_captions."
        )
    return config.negatives


Objective = Callable[[Record, np.random.Generator, ObjectiveConfig], dict[str, Any]]

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
"""Name -> objective."""

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
"""Which records an objective reads (a key of `records.RECORD_FIELDS`)."""
