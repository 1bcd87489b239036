"""Tests data sets of TFDS by their names, with the features that TFDS declares."""

import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from table_files import make_image, write_images, write_lines

from ofa_jax.data.sources import tfds as tfds_source
from ofa_jax.data.sources.image_paths import ImageFolder
from ofa_jax.data.sources.json_lines import JsonData
from ofa_jax.data.sources.mixed import MixedData
from ofa_jax.data.sources.tfds_data import TFDS_FIELDS, TfdsData, plain_row

KINDS = {
    "ref_coco/refcoco_unc": "regions",
    "coco/2017": "objects",
    "lvis": "objects",
    "open_images_v4": "objects",
    "coco_captions/2014": "captions",
    "wikipedia/20230601.en": "text",
    "c4/en": "text",
    "lm1b": "text",
}
NO_NAMES = ("coco", "coco_captions", "open_images_v4")  # without the files of a built data set
NAMES = tuple(f"class {number}" for number in range(700))


def make_value(feature):
    """Returns a value that a feature of TFDS can hold; sequences have two."""
    kinds = tfds.features
    if isinstance(feature, kinds.FeaturesDict):
        return {name: make_value(own) for name, own in feature.items()}
    if isinstance(feature, kinds.Sequence):
        return [make_value(feature.feature)] * 2
    if isinstance(feature, kinds.Image):
        return np.zeros((40, 60, feature.shape[-1] or 3), np.uint8)
    if isinstance(feature, kinds.BBoxFeature):
        return kinds.BBox(ymin=0.25, xmin=0.5, ymax=0.5, xmax=1.0)
    if isinstance(feature, kinds.Text) or feature.np_dtype in (object, np.str_):
        return "some words"
    return np.ones((), feature.np_dtype) if feature.np_dtype == np.bool_ else 1


class Stored:
    """Examples as TFDS stores and reads them."""

    def __init__(self, features, decoders):
        self._features, self._decoders = features, decoders
        self._stored = features.serialize_example(make_value(features))

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return self._features.deserialize_example_np(self._stored, decoders=self._decoders)


@pytest.fixture
def mocked(monkeypatch):
    """Stores made up examples with the features of a data set, where TFDS would open files."""

    def open_mocked(self):
        return Stored(tfds.builder(self.name).info.features, self.decoders)

    monkeypatch.setattr(tfds_source.TfdsRecords, "_open", open_mocked)
    with tfds.testing.mock_data():  # no connections
        yield


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_a_known_data_set_has_records(name, kind, mocked):
    assert name.split("/")[0] in TFDS_FIELDS
    class_names = NAMES if name.split("/")[0] in NO_NAMES else None
    data = TfdsData(name, class_names=class_names)
    records = pickle.loads(pickle.dumps(data)).records(kind, "train")
    assert len(records) == 3
    record = records[0]
    assert isinstance(record["id"], str)
    if kind == "text":
        assert record["text"] == "some words" and "image" not in record
        return
    assert isinstance(record["image"], bytes)
    if kind == "captions":
        assert record["captions"] == ["some words"] * 2
        return
    label = data.object_names()[1] if kind == "objects" else "some words"
    texts, boxes = {
        "objects": ("object_labels", "object_boxes"),
        "regions": ("phrases", "phrase_boxes"),
    }[kind]
    count = 4 if kind == "regions" else 2  # two expressions for each of two objects
    assert record[texts] == [label] * count
    np.testing.assert_allclose(record[boxes], [[30, 10, 60, 20]] * count)


@pytest.mark.parametrize("name", ["coco/2017", "open_images_v4"])
def test_classes_without_names_in_words_are_refused_for_objects_alone(name, mocked):
    with pytest.raises(ValueError, match="give the names in order, as TfdsData.class_names"):
        TfdsData(name).records("objects", "train")
    assert TfdsData(name).object_names() == ()
    captions = TfdsData("coco_captions/2014")
    assert len(captions.records("captions", "train")) == 3
    assert captions.negatives().captions[0] == "some words"


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


def test_nothing_is_downloaded(tmp_path, monkeypatch):
    def download(*arguments, **options):
        raise AssertionError("it downloads")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", download)
    records = TfdsData("lm1b", data_dir=str(tmp_path))
    with pytest.raises(ValueError, match="TFDS cannot open lm1b, split train, in .*: build it"):
        records.records("text", "train")


def test_an_unknown_data_set_is_one_sentence():
    with pytest.raises(ValueError, match="TFDS has no data set no_such_set") as raised:
        TfdsData("no_such_set").records("text", "train")
    assert "\n" not in str(raised.value)


def test_an_image_of_another_name_stays_encoded(monkeypatch):
    features = tfds.features.FeaturesDict(
        {"photo": tfds.features.Image(), "caption": tfds.features.Text()}
    )
    stored = Stored(features, {"photo": tfds.decode.SkipDecoding()})
    asked = []

    def open_mocked(self):
        asked.append(self.decoders)
        return stored

    monkeypatch.setattr(tfds_source.TfdsRecords, "_open", open_mocked)
    monkeypatch.setattr(TfdsData, "_features", features)
    data = TfdsData("mine", fields={"image": "photo", "captions": "caption"})
    record = pickle.loads(pickle.dumps(data.records("captions", "train")))[0]
    assert isinstance(record["image"], bytes) and record["captions"] == ["some words"]
    assert all(set(decoders) == {"photo"} for decoders in asked)


def test_a_mixture_does_not_leave_out_a_data_set_that_is_not_built(tmp_path):
    write_images(tmp_path, 1)
    path = write_lines(tmp_path / "a.jsonl", [{"text": "words"}])
    data = MixedData(
        {"mine": JsonData(str(path)), "tfds": TfdsData("lm1b", data_dir=str(tmp_path))}
    )
    with pytest.raises(ValueError, match="TFDS cannot open lm1b"):
        data.records("text", "train")
