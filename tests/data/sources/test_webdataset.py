"""Tests WebDataset tars: samples in any order, their index, and damage."""

import io
import json
import os
import pickle
import tarfile

import numpy as np
import pytest
from table_files import make_image, plain, reasons

from ofa_jax.data.sources.webdataset import WebDatasetData
from ofa_jax.utils.bad_input import collect
from ofa_jax.utils.text_files import DamagedFileError


def write_tar(path, members, kind="w"):
    """Writes files by name into a tar."""
    with tarfile.open(path, kind, format=tarfile.PAX_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def samples(start, count):
    """Returns the files of some samples: an image, a caption, and more in JSON."""
    for number in range(start, start + count):
        yield f"./{number:04d}.png", make_image(number)
        yield f"./{number:04d}.txt", f"caption {number}\nanother\n".encode()
        row = {"phrases": ["left"], "phrase_boxes": [[1, 2, 3, 4]], "image": "/etc/passwd"}
        yield f"./{number:04d}.json", json.dumps(row).encode()


def test_samples_are_read_in_any_order(tmp_path):
    write_tar(tmp_path / "a-0.tar", samples(0, 3))
    write_tar(tmp_path / "a-1.tar", samples(3, 2))
    for files in ("a-*.tar", "a-{0..1}.tar", ["a-0.tar", "a-1.tar"], "."):
        data = pickle.loads(pickle.dumps(WebDatasetData(files, data_dir=str(tmp_path))))
        captions = pickle.loads(pickle.dumps(data.records("captions", "train")))
        assert [plain(captions[n]) for n in (4, 0, 2)] == [
            {"id": f"./{n:04d}", "captions": [f"caption {n}", "another"]} for n in (4, 0, 2)
        ]
        assert captions[3]["image"] == make_image(3)
        regions = data.records("regions", "train")
        np.testing.assert_array_equal(regions[1]["phrase_boxes"], [[1, 2, 3, 4]])
        assert list(data.negatives().captions) == [f"caption {n}" for n in range(5)]
    assert captions.location(4) == f"{tmp_path}/a-1.tar, sample ./0004"
    assert len(list(tmp_path.glob(".a-*.members.npz"))) == 2


def test_the_index_follows_the_tar_and_is_made_again_if_it_is_damaged(tmp_path):
    path = write_tar(tmp_path / "a.tar", samples(0, 3))
    index = tmp_path / "indices"
    options = {"index_dir": str(index), "fields": {"captions": "txt"}}
    assert len(WebDatasetData(path, **options).records("captions", "train")) == 3
    write_tar(path, samples(0, 5))
    assert len(WebDatasetData(path, **options).records("captions", "train")) == 5
    (file,) = index.iterdir()
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"PK" + bytes(90)):
        file.write_bytes(damaged)
        os.utime(path)  # nothing is remembered
        assert len(WebDatasetData(path, **options).records("captions", "train")) == 5


def test_each_kind_has_the_samples_with_its_files(tmp_path):
    members = [
        ("a.jpg", make_image()),
        ("b.jpg", make_image()),
        ("b.caption", b"a text"),
        ("c.txt", b"no image"),
        ("d.seg.png", make_image(1)),
        ("d.cls", b"1"),
        ("dir/e.jpg", make_image()),
        ("dir/e.question", b"what?"),
        ("dir/e.answer", b"a dog"),
        ("README", b"no sample"),
    ]
    path = write_tar(tmp_path / "a.tar", members)
    data = WebDatasetData(path, fields={"questions": "question", "answers": "answer"})
    counts = {
        kind: len(data.records(kind, "train")) for kind in ("captions", "images", "questions")
    }
    assert counts == {"captions": 1, "images": 4, "questions": 1}
    assert data.records("questions", "train")[0]["id"] == "dir/e"
    with pytest.raises(ValueError, match=r"WebDatasetData\.fields"):
        data.records("regions", "train")


def test_damaged_samples_are_skipped_with_a_reason(tmp_path):
    members = [
        ("a.jpg", make_image()),
        ("a.json", b'{"captions": ["fine"]}'),
        ("b.jpg", make_image()),
        ("b.json", b'{"captions": ["cut'),
        ("c.jpg", make_image()),
        ("c.json", b'{"captions": 7}'),
        ("d.jpg", make_image()),
        ("d.txt", b"caf\xe9"),
    ]
    records = WebDatasetData(write_tar(tmp_path / "a.tar", members)).records("captions", "train")
    assert reasons(records) == [None, "bad JSON line", "field of a wrong type", "bad JSON line"]


def test_damaged_tars_are_refused_in_one_sentence(tmp_path):
    path = write_tar(tmp_path / "a.tar", samples(0, 3))
    whole = open(path, "rb").read()
    damaged = bytearray(whole)
    damaged[1024:1112] = b"x" * 88
    contents = {
        "cut": whole[:1800],
        "header": bytes(damaged),
        "text": b"just text\n" * 200,
        "zeros": bytes(2048),
        "page": b"<!doctype html><html></html>",
    }
    for name, content in contents.items():
        file = tmp_path / f"{name}.tar"
        file.write_bytes(content)
        with pytest.raises(DamagedFileError, match=f"{name}.tar ") as raised:
            WebDatasetData(str(file)).records("captions", "train")
        assert "\n" not in str(raised.value)
    packed = write_tar(tmp_path / "packed.tar", samples(0, 1), "w:gz")
    with pytest.raises(DamagedFileError, match="compressed with gzip: unpack it"):
        WebDatasetData(packed).records("captions", "train")


def test_links_and_devices_in_a_tar_are_never_followed(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for kind, name in ((tarfile.SYMTYPE, "a.jpg"), (tarfile.CHRTYPE, "a.txt")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    with pytest.raises(DamagedFileError, match="has no samples"):
        WebDatasetData(str(path)).records("captions", "train")


def test_a_tar_that_becomes_shorter_is_noticed(tmp_path):
    path = write_tar(tmp_path / "a.tar", samples(0, 2))
    records = WebDatasetData(path).records("captions", "train")
    records[1]
    os.truncate(path, 600)
    with pytest.raises(ValueError):
        records[1]


def read(path, **options):
    """Returns id, captions and whether the image is that of the number, of all samples."""
    records = WebDatasetData(path, **options).records("captions", "train")
    found = [records[n] for n in range(len(records))]
    images = [make_image(number) for number in range(4)]
    return [(one["id"], one["captions"], images.index(one["image"])) for one in found]


def test_samples_of_one_name_are_not_mixed_up(tmp_path):
    members = [
        ("a.png", make_image(0)),
        ("a.txt", b"zero"),
        ("a.png", make_image(1)),
        ("a.txt", b"one"),
    ]
    path = write_tar(tmp_path / "a.tar", members)
    for _ in range(2):  # the second time with the stored index
        assert read(path) == [("a", ["zero"], 0), ("a", ["one"], 1)]
        os.utime(path)


def test_files_of_a_sample_need_not_be_side_by_side(tmp_path):
    members = [
        ("a.png", make_image(0)),
        ("x/b.png", make_image(1)),
        ("a.txt", b"zero"),
        ("x/b.txt", b"one"),
    ]
    assert read(write_tar(tmp_path / "a.tar", members)) == [
        ("a", ["zero"], 0),
        ("x/b", ["one"], 1),
    ]


def test_links_within_a_tar_are_followed_and_others_counted(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in (("d/a.png", make_image(2)), ("d/a.txt", b"two")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        links = [
            (tarfile.LNKTYPE, "d/b.png", "d/a.png"),
            (tarfile.SYMTYPE, "d/b.txt", "./a.txt"),
            (tarfile.SYMTYPE, "d/c.png", "../../etc/passwd"),
            (tarfile.LNKTYPE, "d/c.txt", "/etc/passwd"),
        ]
        for kind, name, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    with collect() as findings:
        assert read(str(path)) == [("d/a", ["two"], 2), ("d/b", ["two"], 2)]
    assert [finding.reason.name for finding in findings] == ["file of a tar left out"] * 2


def test_names_of_any_characters_are_read(tmp_path):
    members = [
        ("caf\udce9.png", make_image(0)),
        ("caf\udce9.txt", b"zero"),
        ("../../a b.png", make_image(1)),
        ("../../a b.txt", b"one"),
        ("b.pn\ng", b"no image"),
        ("b.png", make_image(2)),
        ("b.txt", b"two"),
    ]
    path = write_tar(tmp_path / "a.tar", members)
    for _ in range(2):
        assert read(path) == [
            ("caf?", ["zero"], 0),
            ("../../a b", ["one"], 1),
            ("b", ["two"], 2),
        ]
        os.utime(path)


def test_several_images_of_a_sample_are_named_or_counted(tmp_path):
    members = [
        ("a.left.png", make_image(0)),
        ("a.right.png", make_image(1)),
        ("a.txt", b"two views"),
        ("b.seg.png", make_image(2)),
        ("b.png", make_image(3)),
        ("b.txt", b"one view and a mask"),
    ]
    path = write_tar(tmp_path / "a.tar", members)
    with collect() as findings:
        assert [image for _, _, image in read(path)] == [0, 3]
    assert [finding.reason.name for finding in findings] == ["one of several images"]
    with collect() as findings:
        assert [image for _, _, image in read(path, fields={"image": "right.png"})] == [1]
    assert not findings


def test_a_class_is_no_sign_that_a_caption_is_false(tmp_path):
    members = [("a.png", make_image(0)), ("a.txt", b"a cat"), ("a.cls", b"7")]
    records = WebDatasetData(write_tar(tmp_path / "a.tar", members)).records("pairs", "train")
    assert reasons(records) == [None] and "label" not in records[0]
