"""TFDS's examples as records, on examples with the features that TFDS documents."""

import pickle

import downstream_files
import numpy as np
import pytest

from ofa_jax.data.sources.tfds import FORMS, ClassifiedImage, captioned_image
from ofa_jax.preprocessing.records import InvalidRecordError

IMAGE = downstream_files.make_image()
GLUE = {
    "cola": ({"sentence": b"It rains."}, ["no", "yes"]),
    "sst2": ({"sentence": b"so bad"}, ["negative", "positive"]),
    "mrpc": ({"sentence1": b"one", "sentence2": b"two"}, ["no", "yes"]),
    "qqp": ({"question1": b"Why?", "question2": b"How?"}, ["no", "yes"]),
    # TFDS: entailment, neutral, contradiction; entailment, not_entailment.
    "mnli": ({"premise": b"one", "hypothesis": b"two"}, ["yes", "maybe", "no"]),
    "qnli": ({"question": b"Who?", "sentence": b"Ann."}, ["yes", "no"]),
    "rte": ({"sentence1": b"one", "sentence2": b"two"}, ["yes", "no"]),
}


@pytest.mark.parametrize("name", GLUE)
def test_sentences_of_glue_and_their_labels(name):
    sentences, answers = GLUE[name]
    to_record = pickle.loads(pickle.dumps(FORMS[name].to_record))
    assert FORMS[name].name == f"glue/{name}"
    for label, answer in enumerate(answers):
        example = sentences | {"idx": np.int32(5), "label": np.int64(label)}
        assert to_record(example) == {
            "id": "5",
            "label": answer,
            **{k: v.decode() for k, v in sentences.items()},
        }
    test = to_record(sentences | {"idx": np.int32(5), "label": np.int64(-1)})
    assert "label" not in test and set(test) == {"id", *sentences}


def test_the_two_validation_sets_of_mnli():
    form = FORMS["mnli"]
    assert form.open("train").split == "train"
    assert form.open("validation").split == "validation_matched"
    assert form.open("validation_mismatched").split == "validation_mismatched"
    opened = FORMS["rte"].open("validation", "glue/rte:2.0.0", "somewhere")
    assert (opened.name, opened.split, opened.data_dir) == (
        "glue/rte:2.0.0",
        "validation",
        "somewhere",
    )


def test_an_image_with_all_its_captions():
    example = {
        "image": IMAGE,
        "image/filename": b"COCO_7.jpg",
        "image/id": np.int64(7),
        "captions": {"id": np.array([1, 2]), "text": [b"A dog.", "caf\xe9".encode()]},
        "objects": {"bbox": np.zeros((0, 4))},
    }
    assert captioned_image(example) == {
        "id": "7",
        "image": IMAGE,
        "captions": ["A dog.", "caf\xe9"],
    }
    with pytest.raises(ValueError, match="SkipDecoding"):
        captioned_image(example | {"image": np.zeros((2, 2, 3), np.uint8)})


def test_an_image_with_the_name_of_its_class():
    to_record = ClassifiedImage(("tench", "shark"))
    example = {"image": IMAGE, "file_name": b"n01.JPEG", "label": np.int64(1)}
    assert to_record(example) == {"id": "n01.JPEG", "image": IMAGE, "label": "shark"}
    assert "label" not in to_record(example | {"label": -1})
    with pytest.raises(InvalidRecordError, match="its label is 2, but there are 2 class names"):
        to_record(example | {"label": 2})


def test_an_article_with_its_summary():
    example = {"document": b"the nikkei rose", "summary": b"nikkei up"}
    assert FORMS["gigaword"].to_record(example) == {
        "text": "the nikkei rose",
        "summary": "nikkei up",
    }
