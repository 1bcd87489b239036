"""Tests the conversion of TFDS examples to records, with the features that TFDS documents."""

import pickle

import downstream_files
import numpy as np
import pytest

from ofa_jax.data.sources.tfds import (
    TFDS_DATA_SETS,
    ClassifiedImageRecord,
    captioned_image_record,
    decode_text,
)
from ofa_jax.preprocessing.records import InvalidRecordError
from ofa_jax.utils.bad_input import collect

IMAGE = downstream_files.make_image()
GLUE_EXAMPLES = {
    "cola": ({"sentence": b"It rains."}, ["no", "yes"]),
    "sst2": ({"sentence": b"so bad"}, ["negative", "positive"]),
    "mrpc": ({"sentence1": b"one", "sentence2": b"two"}, ["no", "yes"]),
    "qqp": ({"question1": b"Why?", "question2": b"How?"}, ["no", "yes"]),
    # TFDS: entailment, neutral, contradiction; entailment, not_entailment.
    "mnli": ({"premise": b"one", "hypothesis": b"two"}, ["yes", "maybe", "no"]),
    "qnli": ({"question": b"Who?", "sentence": b"Ann."}, ["yes", "no"]),
    "rte": ({"sentence1": b"one", "sentence2": b"two"}, ["yes", "no"]),
}


@pytest.mark.parametrize("name", GLUE_EXAMPLES)
def test_glue_sentences_and_labels_become_records(name):
    sentences, targets = GLUE_EXAMPLES[name]
    to_record = pickle.loads(pickle.dumps(TFDS_DATA_SETS[name].to_record))
    assert TFDS_DATA_SETS[name].name == f"glue/{name}"
    for label, target in enumerate(targets):
        example = sentences | {"idx": np.int32(5), "label": np.int64(label)}
        assert to_record(example) == {
            "id": "5",
            "label": target,
            **{k: v.decode() for k, v in sentences.items()},
        }
    test = to_record(sentences | {"idx": np.int32(5), "label": np.int64(-1)})
    assert "label" not in test and set(test) == {"id", *sentences}


def test_mnli_has_two_validation_splits():
    data_set = TFDS_DATA_SETS["mnli"]
    assert data_set.open("train").split == "train"
    assert data_set.open("validation").split == "validation_matched"
    assert data_set.open("validation_mismatched").split == "validation_mismatched"
    opened = TFDS_DATA_SETS["rte"].open("validation", "glue/rte:2.0.0", "somewhere")
    assert (opened.name, opened.split, opened.data_dir) == (
        "glue/rte:2.0.0",
        "validation",
        "somewhere",
    )


def test_an_image_has_all_its_captions():
    example = {
        "image": IMAGE,
        "image/filename": b"COCO_7.jpg",
        "image/id": np.int64(7),
        "captions": {"id": np.array([1, 2]), "text": [b"A dog.", "caf\xe9".encode()]},
        "objects": {"bbox": np.zeros((0, 4))},
    }
    assert captioned_image_record(example) == {
        "id": "7",
        "image": IMAGE,
        "captions": ["A dog.", "caf\xe9"],
    }
    with pytest.raises(ValueError, match="SkipDecoding"):
        captioned_image_record(example | {"image": np.zeros((2, 2, 3), np.uint8)})


def test_a_label_becomes_the_name_of_the_class():
    to_record = ClassifiedImageRecord(("tench", "shark"))
    example = {"image": IMAGE, "file_name": b"n01.JPEG", "label": np.int64(1)}
    assert to_record(example) == {"id": "n01.JPEG", "image": IMAGE, "label": "shark"}
    assert "label" not in to_record(example | {"label": -1})
    with pytest.raises(InvalidRecordError, match="its label is 2, but there are 2 class names"):
        to_record(example | {"label": 2})
    with pytest.raises(ValueError, match="imagenet2012 needs the names of its classes"):
        TFDS_DATA_SETS["imagenet"].open("train")


def test_an_article_has_its_summary():
    example = {"document": b"the nikkei rose", "summary": b"nikkei up"}
    assert TFDS_DATA_SETS["gigaword"].to_record(example) == {
        "text": "the nikkei rose",
        "summary": "nikkei up",
    }


def test_text_that_is_not_utf8_is_replaced_and_reported():
    with collect() as findings:
        assert decode_text(b"caf\xe9 \xff") == "caf\ufffd \ufffd"
        assert decode_text("café".encode()) == "café"
    assert [finding.reason.name for finding in findings] == ["text is not UTF-8"]
