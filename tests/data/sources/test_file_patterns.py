"""Tests which files paths, folders and patterns stand for, and that no split is read as another."""

import pytest
from table_files import write_images, write_lines

from ofa_jax.data.sources.base import WrongDataOptionError
from ofa_jax.data.sources.file_patterns import find_files, split_of_name
from ofa_jax.data.sources.json_lines import JsonData
from ofa_jax.utils.text_files import DamagedFileError

ROW = {"image": "images/0.png", "captions": ["x"]}


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path, 1)
    return tmp_path


def test_a_pattern_finds_the_same_files_after_the_first_run(folder):
    for name in ("part-0.jsonl", "part-1.jsonl"):
        write_lines(folder / name, [ROW])
    (folder / "part-folder").mkdir()
    for _ in range(2):  # line indices lie beside the files after the first time
        for files in ("part-*", "*", "p*[0-9]*"):
            data = JsonData(files, data_dir=str(folder))
            assert len(data.records("captions", "train")) == 2
    assert (folder / "part-0.jsonl.offsets").is_file()


@pytest.mark.parametrize(
    "names", [("train.jsonl", "test.jsonl"), ("a_train-0.jsonl", "a_val-0.jsonl")]
)
def test_files_of_several_splits_are_not_read_as_one(folder, names):
    (folder / "data").mkdir()
    for name in names:
        write_lines(folder / "data" / name, [ROW])
    for files in (str(folder / "data"), str(folder / "data" / "*.jsonl")):
        with pytest.raises(WrongDataOptionError, match="are of several splits") as raised:
            JsonData(files).records("captions", "train")
        assert "JsonData.files = {" in str(raised.value) and "'train': " in str(raised.value)
    # Named one by one, they are meant.
    paths = [str(folder / "data" / name) for name in names]
    assert len(JsonData(paths, image_folder=str(folder)).records("captions", "train")) == 2


def test_the_words_of_a_name_say_its_split():
    names = {
        "train": "train",
        "pairs-val-00001-of-00002.tar": "validation",
        "dev.jsonl": "validation",
        "my_test_set.parquet": "test",
        "Training Data.jsonl": "train",
        "trainers.jsonl": None,
        "contest-latest.jsonl": None,
        "train_and_val.jsonl": None,
    }
    assert {name: split_of_name(name) for name in names} == names


def test_a_hidden_file_is_read_if_it_is_named(folder):
    path = str(write_lines(folder / ".hidden.jsonl", [ROW]))
    assert len(JsonData(path).records("captions", "train")) == 1
    write_lines(folder / "shown.jsonl", [ROW])
    assert find_files("JsonData", str(folder), "train", "", (".jsonl",)) == (
        str(folder / "shown.jsonl"),
    )


def test_a_folder_without_such_files_is_one_sentence(folder):
    with pytest.raises(FileNotFoundError, match=r"no files in .*images whose names end in .jsonl"):
        JsonData(str(folder / "images")).records("captions", "train")
    with pytest.raises(FileNotFoundError, match="There is no file"):
        JsonData(str(folder / "images-*")).records("captions", "train")


def test_the_folder_of_the_data_is_no_pattern(tmp_path):
    folder = tmp_path / "my [old] data*"
    folder.mkdir()
    write_images(folder, 1)
    for name in ("a 1.jsonl", "a 2.jsonl"):
        write_lines(folder / name, [ROW])
    assert len(JsonData("a*.jsonl", data_dir=str(folder)).records("captions", "train")) == 2
    path = str(folder / "a 1.jsonl")
    assert len(JsonData(path).records("captions", "train")) == 1


@pytest.mark.parametrize(
    ("name", "text", "advice"),
    [
        ("a.csv", "image,captions\nimages/0.png,a dog\n", "Tables in text are not read"),
        ("a.json", '[{"text": "x"}, {"text": "y"}]', "jq -c"),
        ("a.jsonl", "no json\n", r"can be used \(.*\)\.$"),
    ],
)
def test_other_text_files_are_refused_with_advice(tmp_path, name, text, advice):
    (tmp_path / name).write_text(text)
    with pytest.raises(DamagedFileError, match=advice):
        JsonData(str(tmp_path / name)).records("captions", "train")
