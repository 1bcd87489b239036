"""Tests JSON lines and folders of images: every field, damaged lines, and paths that lead out."""

import gzip
import json
import os
import pickle

import numpy as np
import pytest
from table_files import make_image, plain, reasons, write_images, write_lines

from ofa_jax.data.sources.image_folders import ImageFolderData
from ofa_jax.data.sources.json_lines import JsonData
from ofa_jax.utils.bad_input import InvalidRecordError
from ofa_jax.utils.text_files import DamagedFileError


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path, 4)
    return tmp_path


def test_each_kind_has_the_lines_with_its_fields(folder):
    path = write_lines(
        folder / "data.jsonl",
        [
            {"id": "a", "image": "images/0.png", "captions": ["an apple", "a fruit"]},
            {"image": "images/1.png", "questions": ["what?"], "answers": ["a pear"]},
            {"image": "images/2.png", "phrases": ["left"], "phrase_boxes": [[1, 2, 30, 20]]},
            {"image": "images/3.png", "object_labels": ["cat"], "object_boxes": [[1, 2, 3.5, 4]]},
            {"text": "some words to fill in"},
        ],
    )
    data = pickle.loads(pickle.dumps(JsonData(str(path))))
    assert data.splits == ("train",)
    found = {}
    for kind in ("captions", "questions", "regions", "objects", "text"):
        records = data.records(kind, "train")
        found[kind] = [plain(records[index]) for index in range(len(records))]
    assert found == {
        "captions": [{"id": "a", "captions": ["an apple", "a fruit"]}],
        "questions": [{"id": "1", "questions": ["what?"], "answers": ["a pear"]}],
        "regions": [{"id": "2", "phrases": ["left"], "phrase_boxes": [[1, 2, 30, 20]]}],
        "objects": [{"id": "3", "object_labels": ["cat"], "object_boxes": [[1, 2, 3.5, 4]]}],
        "text": [{"id": "4", "text": "some words to fill in"}],
    }
    assert [len(data.records(kind, "train")) for kind in ("pairs", "images")] == [2, 4]
    records = pickle.loads(pickle.dumps(data.records("captions", "train")))
    assert records[0]["image"] == make_image(0)
    assert records.location(0) == f"{path}, line 1"
    with pytest.raises(IndexError):
        records[1]


def test_fields_have_other_names_and_forms(folder):
    path = write_lines(
        folder / "data.jsonl",
        [
            {
                "file": "images/0.png",
                "caption": "one text",
                "objects": [{"bbox": [0.5, 0.25, 0.5, 0.5], "class": 1}],
                "ref": {"text": "left", "box": [0.0, 0.0, 1.0, 0.5]},
            }
        ],
    )
    data = JsonData(
        str(path),
        fields={
            "image": "file",
            "captions": "caption",
            "object_labels": "objects.class",
            "object_boxes": "objects.bbox",
            "phrases": "ref.text",
            "phrase_boxes": "ref.box",
        },
        box_format="xywh",
        relative_boxes=True,
        class_names=["cat", "dog"],
    )
    assert data.records("captions", "train")[0]["captions"] == ["one text"]
    objects = data.records("objects", "train")[0]
    assert objects["object_labels"] == ["dog"]
    np.testing.assert_allclose(objects["object_boxes"], [[30, 10, 60, 30]])
    regions = data.records("regions", "train")[0]
    np.testing.assert_allclose(regions["phrase_boxes"], [[0, 0, 60, 20]])


def test_damaged_missing_and_mistyped_lines_are_skipped_with_a_reason(folder):
    rows = [
        {"image": "images/0.png", "captions": ["fine"]},
        '{"image": "images/1.png", "captions": ["cut o',
        "[1, 2]",
        "[" * 100_000,
        {"image": "images/9.png", "captions": ["no such file"]},
        {"image": 7, "captions": ["a number"]},
        {"image": "images/1.png", "captions": {"a": 1}},
        {"image": "http://example.org/a.png", "captions": ["a URL"]},
        {"image": "images", "captions": ["a folder"]},
        '{"image": "images/0.png", "captions": ["x"], "id": NaN}',
        {"image": "images/0.png", "captions": "one text"},
        {"image": "images/1.png"},
        '{"image": "images/0.png", "captions": ["x"], "image": "images/1.png"}',
        '{"image": "images/0.png", "captions": ["x"], "extra": {"a": 1, "a": 1}}',
    ]
    records = JsonData(str(write_lines(folder / "data.jsonl", rows))).records("captions", "train")
    assert reasons(records) == [
        None,
        "bad JSON line",
        "bad JSON line",
        "bad JSON line",
        "image file is not there",
        "field of a wrong type",
        "field of a wrong type",
        "image file is not there",
        "image file is not there",
        "bad JSON line",
        None,
        "bad JSON line",
        "bad JSON line",
    ]
    with pytest.raises(InvalidRecordError, match='line is ambiguous: it has the key "image" twice'):
        records[11]


def test_boxes_that_are_no_boxes_are_left_to_the_preprocessor(folder):
    rows = [
        {"image": "images/0.png", "object_labels": ["a", "b"], "object_boxes": [[1, 2, 3], "x"]},
        {"image": "images/0.png", "object_labels": ["a"], "object_boxes": [1, 2, 3, 10**400]},
        {"image": "images/0.png", "object_labels": ["a"], "object_boxes": [1, 2, 3]},
        {"image": "images/0.png", "object_labels": ["a"], "object_boxes": "1,2,3,4"},
        {"image": "images/0.png", "object_labels": ["a"], "object_boxes": [False, False, 9, True]},
    ]
    records = JsonData(str(write_lines(folder / "data.jsonl", rows))).records("objects", "train")
    wrong = "field of a wrong type"
    assert reasons(records) == [None, None, wrong, wrong, None]
    for number in (0, 1, 4):
        assert np.isnan(records[number]["object_boxes"]).all()
    assert np.isnan(records[0]["object_boxes"]).all()


def test_images_outside_the_folder_need_an_option(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "secret.png"
    outside.write_bytes(make_image(5))
    (folder / "link.png").symlink_to(outside)
    names = [str(outside), os.path.relpath(outside, folder), "link.png"]
    rows = [{"image": name, "captions": ["x"]} for name in names]
    path = str(write_lines(folder / "data.jsonl", rows))
    records = JsonData(path).records("captions", "train")
    assert set(reasons(records)) == {"image outside the data's folder"}
    with pytest.raises(InvalidRecordError, match="allow_outside_images = True"):
        records[0]
    allowed = JsonData(path, allow_outside_images=True).records("captions", "train")
    assert [record["image"] for record in map(allowed.__getitem__, range(3))] == [make_image(5)] * 3
    rows = [{"image": "/proc/self/environ", "captions": ["x"]}]
    path = str(write_lines(folder / "proc.jsonl", rows))
    allowed = JsonData(path, allow_outside_images=True).records("captions", "train")
    assert reasons(allowed) == ["image file is not there"]


def test_gzip_patterns_splits_and_an_image_folder(folder):
    for part in range(3):
        row = {"image": f"{part}.png", "captions": [f"part {part}"]}
        with gzip.open(folder / f"part-{part:02d}.jsonl.gz", "wt") as file:
            file.write(json.dumps(row) + "\n")
    for files in ("part-*.jsonl.gz", "part-{00..02}.jsonl.gz", ["part-00.jsonl.gz", "part-0[12]*"]):
        data = JsonData({"train": files, "test": "part-01*"}, "images", str(folder))
        records = data.records("captions", "train")
        assert [records[n]["captions"] for n in range(3)] == [[f"part {n}"] for n in range(3)]
        assert len(data.records("captions", "test")) == 1
    assert records.location(2).endswith("part-02.jsonl.gz, line 1")
    assert len(list(folder.glob(".part-00*.unpacked"))) == 1
    with gzip.open(folder / "part-00.jsonl.gz", "wt") as file:
        file.write(json.dumps({"image": "0.png", "captions": ["changed"]}) + "\n")
    assert data.records("captions", "train")[0]["captions"] == ["changed"]
    assert len(list(folder.glob(".part-00*.unpacked"))) == 1


def test_a_damaged_gzip_file_and_one_that_is_too_large_are_refused(folder):
    whole = gzip.compress(os.urandom(5000))
    (folder / "cut.jsonl.gz").write_bytes(whole[:2000])
    (folder / "text.jsonl.gz").write_bytes(b'{"text": "not compressed"}\n')
    (folder / "bomb.jsonl.gz").write_bytes(gzip.compress(b" " * 1_000_000))
    for name in ("cut", "text"):
        with pytest.raises(DamagedFileError, match=f"{name}.jsonl.gz is damaged"):
            JsonData(str(folder / f"{name}.jsonl.gz")).rows("train")
    (folder / "empty.jsonl.gz").write_bytes(gzip.compress(b"\n"))
    with pytest.raises(ValueError, match=r"The file [^ ]*/empty\.jsonl\.gz has only blank lines"):
        JsonData(str(folder / "empty.jsonl.gz")).rows("train")
    for path in folder.glob("*empty.jsonl.gz*"):
        path.unlink()
    with pytest.raises(DamagedFileError, match="more than 1,000 bytes"):
        JsonData(str(folder / "bomb.jsonl.gz"), max_unpacked_bytes=1000).rows("train")
    assert not list(folder.glob(".*unpacked*"))


def test_what_cannot_be_meant_is_one_sentence(folder):
    path = str(
        write_lines(folder / "data.jsonl", [{"file_name": "images/0.png", "caption": "a text"}])
    )
    with pytest.raises(ValueError) as raised:
        JsonData(path).records("captions", "train")
    sentence = str(raised.value)
    assert "the fields there are file_name, caption" in sentence
    assert "JsonData.fields = {'captions': 'FIELD'}" in sentence
    assert "PretrainingSettings.rates = {'image_captioning': 0}" in sentence
    with pytest.raises(ValueError, match=r"JsonData\.fields names capton; known are"):
        JsonData(path, fields={"capton": "caption"})
    with pytest.raises(FileNotFoundError, match="There is no file .*none"):
        JsonData("none*.jsonl").records("captions", "train")
    with pytest.raises(ValueError, match="no split 'validation', only train"):
        JsonData(path).records("captions", "validation")
    (folder / "list.jsonl").write_text(json.dumps([{"text": "x"}], indent=1))
    with pytest.raises(DamagedFileError, match="is not JSON lines, one object a line"):
        JsonData(str(folder / "list.jsonl")).records("text", "train")
    (folder / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="is empty"):
        JsonData(str(folder / "empty.jsonl")).records("text", "train")


def test_the_captions_of_other_records_are_negatives(folder):
    rows = [{"image": f"images/{n}.png", "captions": [f"caption {n}", "more"]} for n in range(4)]
    rows[2]["captions"] = [""]
    rows += [{"image": "images/0.png", "questions": ["?"], "answers": ["yes"]}]
    data = JsonData(str(write_lines(folder / "data.jsonl", rows)), class_names=["cat"])
    pool = pickle.loads(pickle.dumps(data.negatives()))
    assert list(pool.captions) == ["caption 0", "caption 1", "caption 3", "caption 3"]
    assert list(pool.answers_by_type["other"]) == ["yes"]
    assert pool.object_names == ("cat",)


def test_base64_and_data_urls_are_images_too(folder):
    import base64

    text = base64.b64encode(make_image(3)).decode()
    rows = [{"image": head + text, "captions": ["x"]} for head in ("", "data:image/png;base64,")]
    records = JsonData(str(write_lines(folder / "data.jsonl", rows))).records("captions", "train")
    assert [records[n]["image"] for n in range(2)] == [make_image(3)] * 2


# ----------------------------------------------------------------------------------- image folders


def test_a_folder_of_images_with_texts_beside_them(tmp_path):
    (tmp_path / "cats").mkdir()
    for name in ("cats/0.jpg", "cats/1.PNG", "2.webp", ".hidden.png", "notes.md"):
        (tmp_path / name).write_bytes(make_image(kind="PNG"))
    (tmp_path / "cats" / "0.txt").write_bytes(b"\xef\xbb\xbfa cat\r\n\r\nan animal\n")
    (tmp_path / "2.json").write_text(json.dumps({"captions": "a dog", "image": "/etc/passwd"}))
    data = pickle.loads(pickle.dumps(ImageFolderData(str(tmp_path))))
    captions = data.records("captions", "train")
    assert [plain(captions[n]) for n in range(2)] == [
        {"id": "2.webp", "captions": ["a dog"]},
        {"id": "cats/0.jpg", "captions": ["a cat", "an animal"]},
    ]
    assert captions[0]["image"] == make_image()
    assert len(data.records("images", "train")) == 3
    assert list(data.negatives().captions) == ["a dog", "a cat"]


def test_a_folder_without_images_or_with_damaged_texts(tmp_path):
    with pytest.raises(FileNotFoundError, match="There are no images in"):
        ImageFolderData(str(tmp_path)).records("images", "train")
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        ImageFolderData(str(tmp_path / "none")).records("images", "train")
    for name, text in (("0.json", b'{"captions": '), ("1.txt", b"\xff\xfe\x00"), ("2.txt", b"ok")):
        (tmp_path / name).write_bytes(text)
        (tmp_path / f"{name[0]}.jpg").write_bytes(make_image())
    records = ImageFolderData({"train": str(tmp_path)}).records("captions", "train")
    assert reasons(records) == ["bad JSON line", "bad JSON line", None]
