"""Tests JSON files in the format of COCO: joined annotations, and malformed ones."""

import json
import pickle

import numpy as np
import pytest
from table_files import make_image, plain, reasons, write_images

from ofa_jax.data.sources.coco_json import CocoData
from ofa_jax.utils.bad_input import collect
from ofa_jax.utils.text_files import DamagedFileError

IMAGES = [{"id": 10 + n, "file_name": f"images/{n}.png"} for n in range(4)]
CAPTIONS = {
    "images": IMAGES,
    "annotations": [
        {"id": 1, "image_id": 10, "caption": "a dog"},
        {"id": 2, "image_id": 11, "caption": "a cat"},
        {"id": 3, "image_id": 10, "caption": "an animal"},
    ],
}
INSTANCES = {
    "images": IMAGES,
    "categories": [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}],
    "annotations": [
        {"image_id": 10, "category_id": 18, "bbox": [1, 2, 10, 20], "iscrowd": 0},
        {"image_id": 12, "category_id": 17, "bbox": [0, 0, 5.5, 5], "iscrowd": 0},
        {"image_id": 12, "category_id": 17, "bbox": [0, 0, 60, 40], "iscrowd": 1},
        {"image_id": 13, "bbox": [1, 1, 2, 2], "sentences": [{"raw": "left one"}, "the left"]},
    ],
}


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path, 4)
    (tmp_path / "captions.json").write_text(json.dumps(CAPTIONS))
    (tmp_path / "instances.json").write_text(json.dumps(INSTANCES))
    return tmp_path


def test_captions_and_instances_of_the_same_images_are_joined(folder):
    data = CocoData(["captions.json", "instances.json"], ".", str(folder))
    data = pickle.loads(pickle.dumps(data))
    captions = pickle.loads(pickle.dumps(data.records("captions", "train")))
    assert [plain(captions[n]) for n in range(len(captions))] == [
        {"id": "10", "captions": ["a dog", "an animal"], "object_labels": ["dog"]},
        {"id": "11", "captions": ["a cat"]},
    ]
    assert captions[1]["image"] == make_image(1)
    objects = data.records("objects", "train")
    assert [record["object_labels"] for record in (objects[0], objects[1])] == [["dog"], ["cat"]]
    np.testing.assert_allclose(objects[0]["object_boxes"], [[1, 2, 11, 22]])
    np.testing.assert_allclose(objects[1]["object_boxes"], [[0, 0, 5.5, 5]])
    regions = data.records("regions", "train")
    assert len(regions) == 1 and regions[0]["phrases"] == ["left one", "the left"]
    np.testing.assert_allclose(regions[0]["phrase_boxes"], [[1, 1, 3, 3]] * 2)
    assert len(data.records("images", "train")) == 4
    assert objects.location(1) == f"{folder}/captions.json, image 12"
    pool = data.negatives()
    assert list(pool.captions) == ["a dog", "a cat"] and pool.object_names == ("cat", "dog")


def test_splits_have_folders_of_their_own(folder):
    data = CocoData(
        {"train": "captions.json", "validation": "instances.json"},
        {"train": ".", "validation": "elsewhere"},
        str(folder),
    )
    assert data.splits == ("train", "validation")
    assert reasons(data.records("captions", "train")) == [None, None]
    assert set(reasons(data.records("objects", "validation"))) == {"image file is not there"}
    with pytest.raises(ValueError, match="No record of .* has image and questions and answers"):
        data.records("questions", "train")
    with pytest.raises(ValueError, match="image_folder has no split 'train'"):
        CocoData("captions.json", {"test": "."}, str(folder)).records("captions", "train")


def test_malformed_annotations_are_dropped_and_counted(folder):
    bad = [
        7,
        {"image_id": 99, "caption": "no such image"},
        {"image_id": [], "caption": "x"},
        {"image_id": 10, "caption": 5},
        {"image_id": 10, "category_id": 99, "bbox": [1, 2, 3, 4]},
        {"image_id": 10, "category_id": 17, "bbox": [1, 2, "3", 4]},
    ]
    content = INSTANCES | {"annotations": INSTANCES["annotations"] + bad}
    (folder / "bad.json").write_text(json.dumps(content))
    with collect() as findings:
        records = CocoData("bad.json", ".", str(folder)).records("objects", "train")
    assert [len(records[n]["object_labels"]) for n in range(len(records))] == [1, 1]
    assert {finding.reason.name for finding in findings} == {"malformed annotation"}
    assert sum(int(finding.detail.split()[0]) for finding in findings) == len(bad)


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"images": 3}', '{"images": [1]}', '{"images": [], "annotations": 3}', '{"im', "9"],
)
def test_a_file_that_is_something_else_is_refused_in_one_sentence(folder, text):
    (folder / "other.json").write_text(text)
    with pytest.raises(DamagedFileError, match=r"other\.json") as raised:
        CocoData("other.json", ".", str(folder)).records("captions", "train")
    assert "\n" not in str(raised.value)


def test_categories_that_share_an_id_are_left_out_and_counted(folder):
    categories = [*INSTANCES["categories"], {"id": "18", "name": "dog"}, {"id": 17, "name": "cow"}]
    (folder / "shared.json").write_text(json.dumps(INSTANCES | {"categories": categories}))
    with collect() as findings:
        records = CocoData("shared.json", ".", str(folder)).records("objects", "train")
    assert [records[n]["object_labels"] for n in range(len(records))] == [["dog"]]
    assert [finding.detail.replace(f"{folder}/", "") for finding in findings] == [
        "1 categories of shared.json: share their id with another one",
        "1 annotations of shared.json: have a box of an unknown category",
    ]


def test_what_has_a_field_twice_is_left_out_and_counted(folder):
    text = json.dumps(INSTANCES)
    for old, new in (
        ('{"id": 12,', '{"id": 12, "file_name": "images/0.png",'),  # leaves out its annotations too
        ('"bbox": [1, 2, 10, 20]', '"bbox": [0, 0, 1, 1], "bbox": [1, 2, 10, 20]'),
        ('{"raw": "left one"}', '{"raw": "right one", "raw": "left one"}'),
        ('{"id": 17,', '{"id": 17, "name": "dog",'),
        ('{"images":', '{"info": 1, "info": 2, "images":'),
    ):
        assert old in text
        text = text.replace(old, new)
    text = text.replace('"annotations": [', '"annotations": [{"image_id": 11, "category_id": 18, '
                        '"bbox": [0, 0, 5, 5]}, ')  # fmt: skip
    (folder / "twice.json").write_text(text)
    with collect() as findings:
        records = CocoData("twice.json", ".", str(folder)).records("objects", "train")
    assert [records[n]["id"] for n in range(len(records))] == ["11"]
    assert sorted(finding.detail.replace(f"{folder}/", "") for finding in findings) == [
        "1 categories of twice.json: have a field twice",
        "1 images of twice.json: have a field twice",
        "2 annotations of twice.json: belong to no image of the file",
        "2 annotations of twice.json: have a field twice",
    ]
    (folder / "lists.json").write_text(text.replace('"info": 2', '"images": []'))
    with pytest.raises(
        DamagedFileError, match=r"lists\.json is ambiguous: it has .?images.? twice"
    ):
        CocoData("lists.json", ".", str(folder)).records("objects", "train")


def test_images_stay_below_their_folder(folder):
    images = [{"id": 1, "file_name": "../../secret.png"}, {"id": 2}, {"id": 3, "file_name": 4}]
    annotations = [{"image_id": number, "caption": "x"} for number in (1, 2, 3)]
    (folder.parent.parent / "secret.png").write_bytes(make_image())
    (folder / "bad.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    records = CocoData("bad.json", ".", str(folder)).records("captions", "train")
    assert reasons(records) == [
        "image outside the data's folder",
        "missing field",
        "field of a wrong type",
    ]


def write(folder, name, images, annotations, **other):
    """Writes a file in the format of COCO; returns its name."""
    content = {"images": images, "annotations": annotations} | other
    (folder / name).write_text(json.dumps(content))
    return name


def test_ids_are_the_same_as_numbers_and_as_texts(folder):
    images = [{"id": 10, "file_name": "images/0.png"}, {"id": 11.0, "file_name": "images/1.png"}]
    annotations = [{"image_id": "10", "caption": "zero"}, {"image_id": 11, "caption": "one"}]
    annotations += [{"image_id": 10.0, "category_id": "3", "bbox": [1, 2, 3, 4]}]
    categories = [{"id": 3, "name": "cat"}]
    name = write(folder, "a.json", images, annotations, categories=categories)
    records = CocoData(name, ".", str(folder)).records("captions", "train")
    assert [plain(records[n]) for n in range(2)] == [
        {"id": "10", "captions": ["zero"], "object_labels": ["cat"]},
        {"id": "11", "captions": ["one"]},
    ]


def test_images_that_share_an_id_are_left_out_and_counted(folder):
    images = [*IMAGES, {"id": 10, "file_name": "images/3.png"}, {"file_name": "images/3.png"}, 7]
    name = write(folder, "a.json", images, CAPTIONS["annotations"])
    with collect() as findings:
        records = CocoData(name, ".", str(folder)).records("captions", "train")
    assert [plain(records[0])] == [{"id": "11", "captions": ["a cat"]}] and len(records) == 1
    details = sorted(finding.detail.replace(f"{folder}/", "") for finding in findings)
    assert details == [
        "1 images of a.json: share their id with another one",
        "2 annotations of a.json: belong to no image of the file",
        "2 images of a.json: have no id",
    ]


def test_files_about_different_images_are_refused(folder):
    other = [{"id": 10, "file_name": "images/3.png"}]
    names = ["captions.json", write(folder, "b.json", other, [{"image_id": 10, "caption": "x"}])]
    with pytest.raises(ValueError, match="The image 10 is images/3.png in .* mix other ones"):
        CocoData(names, ".", str(folder)).records("captions", "train")


def test_boxes_are_in_the_format_that_the_option_says(folder):
    annotations = [{"image_id": 10, "category_id": 17, "bbox": [10, 10, 20.5, 30]}]
    name = write(folder, "a.json", IMAGES, annotations, categories=INSTANCES["categories"])
    expected = {"xywh": [10, 10, 30.5, 40], "xyxy": [10, 10, 20.5, 30]}
    for box_format, box in (*expected.items(), (None, expected["xywh"])):
        options = {} if box_format is None else {"box_format": box_format}
        records = CocoData(name, ".", str(folder), **options).records("objects", "train")
        np.testing.assert_array_equal(records[0]["object_boxes"], [box])


def test_numbers_that_are_not_finite_drop_their_annotation(folder):
    boxes = [[float("nan"), 1, 2, 3], [1, 2, float("inf"), 4], [1, 2, 3, 4]]
    annotations = [{"image_id": 10, "category_id": 17, "bbox": box} for box in boxes]
    name = write(folder, "a.json", IMAGES, annotations, categories=INSTANCES["categories"])
    with collect() as findings:
        records = CocoData(name, ".", str(folder)).records("objects", "train")
    np.testing.assert_array_equal(records[0]["object_boxes"], [[1, 2, 4, 6]])
    assert [finding.detail.split()[0] for finding in findings] == ["2"]


def test_categories_may_come_from_the_names_of_classes(folder):
    annotations = [{"image_id": 10, "category_id": 1, "bbox": [1, 2, 3, 4]}]
    name = write(folder, "a.json", IMAGES, annotations)
    records = CocoData(name, ".", str(folder), class_names=["cat", "dog"]).records(
        "objects", "train"
    )
    assert records[0]["object_labels"] == ["dog"]
