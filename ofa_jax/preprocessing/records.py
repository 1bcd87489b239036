"""Records: the input of every objective and downstream task, and the fields they may have.

A record is a dict of plain values. Every field is optional; an objective raises InvalidRecordError
where one that it needs is missing.

    id                str
    image             bytes, any format that Pillow opens
    captions          list[str]                        negative_captions  list[str], false ones
    questions         list[str]   answers list[str]    answer_confidences list[float]
                                                       answer_types       list[str]      parallel
    phrases           list[str]                        phrase_boxes       float32[P, 4]  parallel
    true_phrases      list[str]                        true_phrase_boxes  float32[Q, 4]  parallel
                      (all phrases that are right, where a data set knows them: to judge answers)
    object_labels     list[str]                        object_boxes       float32[K, 4]  parallel
    codes             int32[n], image codes of the image's middle, when computed beforehand (of
                      the whole image where an image is to be generated)
    text              str                              summary            str
    data_set          str, where the record is from (the captions of "cc12m" are treated specially)
    label             str, the answer of a classification (in `pairs`: whether to ask for what is
                      true, "yes" or "no"); its sentences have the names of TFDS (sentence,
                      sentence1, premise, hypothesis, question, question1 ...)
    reference_answers list[str]                        reference_confidences list[float], parallel

Boxes are x0, y0, x1, y1 in pixels of the stored image.
"""

from collections.abc import Mapping
from typing import Any

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
"""The kinds of record that objectives ask for, and the fields that each may have.

`pairs` are what matching asks about: images with captions, with questions, or with both."""

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
"""The kinds of record that only downstream tasks ask for, and their fields."""


class InvalidRecordError(ValueError):
    """A record that cannot be used: it is skipped, counted and logged, and training goes on."""
