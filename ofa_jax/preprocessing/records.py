"""Records: the input of every objective and downstream task, and the fields that they may have.

A record is a mapping of plain values. Every field is optional; an objective raises
InvalidRecordError if a field that it needs is missing.

    id                str
    image             bytes of a file in one of `image_files.FORMATS`
    captions          list[str]                        negative_captions  list[str], false captions
    questions         list[str]   answers list[str]    answer_confidences list[float]
                                                       answer_types       list[str]      parallel
    phrases           list[str]                        phrase_boxes       float32[P, 4]  parallel
    true_phrases      list[str]                        true_phrase_boxes  float32[Q, 4]  parallel
                      (all correct phrases, where a data set knows them: references for evaluation)
    object_labels     list[str]                        object_boxes       float32[K, 4]  parallel
    codes             int32[n], precomputed image codes: of the image's centre for infilling, of
                      the whole image for text-to-image generation
    text              str                              summary            str
    data_set          str, the data set that the record is from (of a caption of "cc12m" the first
                      two tokens get no loss)
    label             str, the target of a classification; in `pairs` "yes" or "no": whether
                      matching uses a true or a false text
    sentence, sentence1, sentence2, premise, hypothesis, question, question1, question2
                      str, the sentences of a language task, named as in TFDS
    reference_answers list[str]                        reference_confidences list[float], parallel

Boxes are x0, y0, x1, y1 in pixels of the image as `DecodeOptions` decodes it: as stored for the
official data, rotated as its EXIF data says for others. Entries that belong together have the same
position in parallel fields; entries that are malformed or empty are dropped (`record_fields`).
"""

from collections.abc import Mapping
from typing import Any

from ofa_jax.utils.bad_input import InvalidRecordError

__all__ = ["DOWNSTREAM_FIELDS", "RECORD_FIELDS", "InvalidRecordError", "Record"]

Record = Mapping[str, Any]

RECORD_FIELDS: Mapping[str, tuple[str, ...]] = {
    "captions": ("id", "image", "data_set", "captions", "object_labels"),
    "pairs": (
        "id",
        "image",
        "data_set",
        "captions",
        "negative_captions",
        "object_labels",
        "questions",
        "answers",
        "answer_confidences",
        "answer_types",
        "label",
    ),
    "questions": ("id", "image", "questions", "answers", "answer_confidences", "answer_types"),
    "regions": (
        "id",
        "image",
        "phrases",
        "phrase_boxes",
        "true_phrases",
        "true_phrase_boxes",
    ),
    "objects": ("id", "image", "object_labels", "object_boxes"),
    "images": ("id", "image", "codes"),
    "text": ("id", "text"),
}
"""The kinds of records that the pretraining objectives read, and the fields that each may have.

`pairs` are the records of image-text matching: images with captions, questions, or both."""

DOWNSTREAM_FIELDS: Mapping[str, tuple[str, ...]] = {
    "answered_questions": (
        "id",
        "image",
        "questions",
        "answers",
        "answer_confidences",
        "object_labels",
        "reference_answers",
        "reference_confidences",
    ),
    "region_questions": (
        "id",
        "image",
        "questions",
        "answer_types",
        "phrases",
        "phrase_boxes",
    ),
    "entailment": ("id", "image", "premise", "hypothesis", "label"),
    "classes": ("id", "image", "label"),
    "coded_captions": ("id", "captions", "codes"),
    "sentences": (
        "id",
        "sentence",
        "sentence1",
        "sentence2",
        "question",
        "question1",
        "question2",
        "premise",
        "hypothesis",
        "label",
    ),
    "articles": ("id", "text", "summary"),
}
"""The kinds of records that only downstream tasks read, and their fields."""
