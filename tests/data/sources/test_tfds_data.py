"""Tests data sets of TFDS by their names, with the features that TFDS declares."""

import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from table_files import make_image

from ofa_jax.data.sources import tfds as tfds_source
from ofa_jax.data.sources.image_paths import ImageFolder
from ofa_jax.data.sources.tfds_data import TfdsData, plain_row

DATA_SETS = {
    "ref_coco/refcoco_unc": "regions",
    "coco/2017": "objects",
    "open_images_v4": "objects",
    "wikipedia/20230601.en": "text",
    "c4/en": "text",
    "coco_captions/2014": "captions",
}


@pytest.fixture
def mocked(monkeypatch):
    """Lets TFDS make examples up; the check that its files are there is left out."""

    def open_mocked(self):
        return tfds.data_source(self.name, split=self.split, decoders=self.decoders)

    monkeypatch.setattr(tfds_source.TfdsRecords, "_open", open_mocked)
    with tfds.testing.mock_data(num_examples=3, num_sub_examples=2):
        yield


@pytest.mark.parametrize(("name", "kind"), DATA_SETS.items())
def test_a_known_data_set_has_records(name, kind, mocked):
    records = pickle.loads(pickle.dumps(TfdsData(name))).records(kind, "train")
    assert len(records) == 3
    record = records[0]
    assert isinstance(record["id"], str)
    if kind == "text":
        assert isinstance(record["text"], str)
        return
    assert isinstance(record["image"], bytes)
    if kind == "captions":
        assert record["captions"] and all(isinstance(text, str) for text in record["captions"])
        return
    labels, boxes = {
        "objects": ("object_labels", "object_boxes"),
        "regions": ("phrases", "phrase_boxes"),
    }[kind]
    assert record[boxes].shape == (len(record[labels]), 4)


def test_regions_of_refcoco_have_the_box_of_their_object_in_pixels():
    example = {
        "image": make_image(size=(60, 40)),
        "image/id": np.int64(7),
        "objects": {
            "bbox": np.array([[0.25, 0.5, 0.5, 1.0], [0, 0, 1, 1]], np.float32),
            "refexp": {"raw": [[b"left", b"the left"], [b"all"]], "refexp_id": [[1, 2], [3]]},
        },
    }
    data = TfdsData("ref_coco/refcoco_unc")
    row = plain_row(example)
    record = data.table.record(row, "regions", ImageFolder(""), 0)
    assert record["id"] == "7" and record["phrases"] == ["left", "the left", "all"]
    np.testing.assert_allclose(
        record["phrase_boxes"], [[30, 10, 60, 20], [30, 10, 60, 20], [0, 0, 60, 40]]
    )


def test_an_unknown_data_set_is_one_sentence():
    with pytest.raises(ValueError, match="TFDS has no data set no_such_set") as raised:
        TfdsData("no_such_set").records("text", "train")
    assert "\n" not in str(raised.value)
