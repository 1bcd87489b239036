"""Tests folders of images as people have them: links, splits, classes, other files."""

import os

import pytest
from absl import logging
from table_files import make_image, reasons

from ofa_jax.data.sources.base import WrongDataOptionError
from ofa_jax.data.sources.image_folders import ImageFolderData


def write(folder, name, text=None):
    """Writes an image, and perhaps its captions."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(make_image())
    if text is not None:
        path.with_suffix(".txt").write_text(text)


@pytest.fixture
def warnings(monkeypatch):
    """Returns a list that fills with what is logged as a warning."""
    found = []
    monkeypatch.setattr(
        logging, "warning", lambda text, *values, **options: found.append(text % values)
    )
    return found


def test_folders_of_splits_are_not_read_as_one(tmp_path):
    for split in ("train", "val"):
        write(tmp_path, f"{split}/0.jpg", split)
    with pytest.raises(WrongDataOptionError, match="folders of several splits") as raised:
        ImageFolderData(str(tmp_path)).records("captions", "train")
    assert f"'validation': '{tmp_path}/val'" in str(raised.value)
    data = ImageFolderData({"train": f"{tmp_path}/train", "validation": f"{tmp_path}/val"})
    assert data.records("captions", "validation")[0]["captions"] == ["val"]


def test_a_class_is_no_sign_that_a_caption_is_false(tmp_path):
    write(tmp_path, "cats/0.jpg", "a cat")
    records = ImageFolderData(str(tmp_path)).records("pairs", "train")
    assert "label" not in records[0]
    named = ImageFolderData(str(tmp_path), fields={"captions": "label"})
    assert named.records("captions", "train")[0]["captions"] == ["cats"]


def test_linked_folders_are_counted_or_read_once(tmp_path):
    write(tmp_path / "elsewhere", "1.png", "a linked one")
    write(tmp_path / "data", "0.png", "a cat")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    folder = str(tmp_path / "data")
    records = ImageFolderData(folder).records("captions", "train")
    assert reasons(records) == [None, "image outside the data's folder"]
    data = ImageFolderData(folder)
    assert list(data.negatives().captions) == ["a cat", "a cat"]  # no text from elsewhere
    (tmp_path / "secret.txt").write_text("a secret")
    write(tmp_path / "data", "2.png")
    (tmp_path / "data" / "2.txt").symlink_to(tmp_path / "secret.txt")
    assert reasons(data.records("captions", "train")).count(None) == 1
    (tmp_path / "data" / "2.txt").unlink()
    allowed = ImageFolderData(folder, allow_outside_images=True).records("captions", "train")
    assert [allowed[n]["captions"] for n in range(2)] == [["a cat"], ["a linked one"]]


def test_what_is_not_read_is_named(tmp_path, warnings):
    write(tmp_path, "0.jpg", "a cat")
    write(tmp_path, "2.jfif", "a dog")
    (tmp_path / "gone.txt").write_text("its image is gone")
    (tmp_path / "1.TXT").write_text("in capitals")
    (tmp_path / "a.heic").write_bytes(b"x")
    (tmp_path / "folder.jpg").mkdir()
    records = ImageFolderData(str(tmp_path)).records("captions", "train")
    assert reasons(records) == [None, None]
    assert any("2 texts have no image" in line and "gone.txt" in line for line in warnings)
    assert any("1 images are in formats" in line and "a.heic" in line for line in warnings)


def test_the_metadata_of_hugging_face_folders_is_named(tmp_path):
    write(tmp_path, "0.jpg")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.jpg", "text": "a cat"}\n')
    with pytest.raises(ValueError, match=r"not in metadata\.jsonl; JsonData reads lines such as"):
        ImageFolderData(str(tmp_path)).records("captions", "train")


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every folder")
def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    write(tmp_path, "0.jpg", "a cat")
    write(tmp_path, "closed/1.jpg", "a dog")
    (tmp_path / "closed").chmod(0)
    try:
        with pytest.raises(OSError, match="closed cannot be read"):
            ImageFolderData(str(tmp_path)).records("captions", "train")
    finally:
        (tmp_path / "closed").chmod(0o700)
