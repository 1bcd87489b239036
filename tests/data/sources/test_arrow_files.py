"""Tests Parquet files and what `datasets.save_to_disk` writes, whole and damaged."""

import decimal
import json
import os
import pickle

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from table_files import make_image, plain, reasons, write_images

from ofa_jax.data.sources.arrow_files import ArrowData
from ofa_jax.utils.text_files import DamagedFileError

FEATURES = {
    "image": {"_type": "Image"},
    "caption": {"dtype": "string", "_type": "Value"},
    "objects": {
        "bbox": {"feature": {"feature": {"dtype": "float32"}, "_type": "Sequence"}},
        "category": {
            "feature": {"names": ["cat", "dog"], "_type": "ClassLabel"},
            "_type": "Sequence",
        },
    },
}
FIELDS = {
    "captions": "caption",
    "object_labels": "objects.category",
    "object_boxes": "objects.bbox",
}


def make_table(start=0, count=3):
    """Returns a table as `datasets` stores it: images as structs, classes as numbers."""
    numbers = range(start, start + count)
    table = pyarrow.table(
        {
            "image": [{"bytes": make_image(number), "path": None} for number in numbers],
            "caption": [f"caption {number}" for number in numbers],
            "objects": [
                {"bbox": [[1.0, 2.0, 10.0, 20.0]], "category": [number % 2]} for number in numbers
            ],
        }
    )
    metadata = json.dumps({"info": {"features": FEATURES}})
    return table.replace_schema_metadata({"huggingface": metadata})


def save_to_disk(folder, tables):
    """Writes a folder as `Dataset.save_to_disk` does."""
    folder.mkdir(parents=True)
    names = [f"data-{n:05d}-of-{len(tables):05d}.arrow" for n in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        with pyarrow.OSFile(str(folder / name), "wb") as sink:
            with pyarrow.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table, max_chunksize=2)
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def check(data):
    """Checks the records of six rows of `make_table`."""
    captions = pickle.loads(pickle.dumps(data)).records("captions", "train")
    found = [captions[index] for index in range(len(captions))]
    assert [plain(record) for record in found] == [
        {
            "id": str(number),
            "captions": [f"caption {number}"],
            "object_labels": [("cat", "dog")[number % 2]],
        }
        for number in range(6)
    ]
    assert [record["image"] for record in found] == [make_image(number) for number in range(6)]
    objects = pickle.loads(pickle.dumps(data.records("objects", "train")))
    assert [objects[n]["object_labels"] for n in range(3)] == [["cat"], ["dog"], ["cat"]]
    np.testing.assert_array_equal(objects[5]["object_boxes"], [[1, 2, 10, 20]])
    assert set(data.negatives().object_names) == {"cat", "dog"}
    with pytest.raises(ValueError, match="text, which records of the kind text need"):
        data.records("text", "train")


def test_a_saved_data_set_is_read(tmp_path):
    folder = save_to_disk(tmp_path / "saved", [make_table(0, 4), make_table(4, 2)])
    check(ArrowData(str(folder), fields=FIELDS))
    assert sorted(os.listdir(folder)) == sorted(
        ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow", "dataset_info.json"]
        + ["state.json"]
    )


def test_a_saved_dict_of_data_sets_has_its_splits(tmp_path):
    for split in ("train", "test"):
        save_to_disk(tmp_path / "all" / split, [make_table(0, 6)])
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    data = ArrowData("all", data_dir=str(tmp_path), fields=FIELDS)
    assert data.splits == ("train", "test")
    check(data)
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["../train"]}')
    with pytest.raises(DamagedFileError, match="lists no splits"):
        _ = ArrowData("all", data_dir=str(tmp_path)).splits


def test_parquet_shards_of_a_folder_have_the_splits_of_their_names(tmp_path):
    (tmp_path / "data").mkdir()
    for number in range(2):
        name = f"data/train-{number:05d}-of-00002.parquet"
        pyarrow.parquet.write_table(make_table(3 * number, 3), tmp_path / name, row_group_size=2)
    pyarrow.parquet.write_table(
        make_table(0, 1), tmp_path / "data" / "validation-00000-of-00001.parquet"
    )
    data = ArrowData(str(tmp_path), fields=FIELDS)
    assert data.splits == ("train", "validation")
    check(data)
    check(ArrowData(str(tmp_path / "data" / "train-*.parquet"), fields=FIELDS))
    rewritten = list((tmp_path / "data").glob(".train-00000*.rows.arrow"))
    assert len(rewritten) == 1
    os.unlink(tmp_path / "data" / "train-00001-of-00002.parquet")
    with pytest.raises(FileNotFoundError, match="1 of 2 shards are missing"):
        ArrowData(str(tmp_path), fields=FIELDS).records("captions", "train")


def test_rewritten_files_go_to_another_folder_and_follow_the_file(tmp_path):
    path = tmp_path / "a.parquet"
    for start in (0, 3):
        pyarrow.parquet.write_table(make_table(start, 2), path)
        os.utime(path, (start, start))
        data = ArrowData(str(path), index_dir=str(tmp_path / "index"), fields=FIELDS)
        assert data.records("captions", "train")[0]["captions"] == [f"caption {start}"]
        assert len(list((tmp_path / "index").iterdir())) == 1


def test_missing_and_mistyped_values_are_skipped_with_a_reason(tmp_path):
    names = write_images(tmp_path, 1)
    table = pyarrow.table(
        {
            "image": [names[0], None, "none.png", "../out.png", names[0], names[0]],
            "captions": [["a"], ["b"], ["c"], ["d"], None, [None, "f"]],
            "id": [1, 2, 3, 4, 5, 6],
        }
    )
    (tmp_path.parent / "out.png").write_bytes(make_image())
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    records = ArrowData(str(tmp_path / "rows.parquet")).records("captions", "train")
    expected = [None, "image file is not there", "image outside the data's folder", None]
    assert reasons(records) == expected
    assert plain(records[0]) == {"id": "1", "captions": ["a"]}
    numbers = pyarrow.table({"image": [1, 2], "captions": [3.5, 4.5]})
    pyarrow.parquet.write_table(numbers, tmp_path / "numbers.parquet")
    records = ArrowData(str(tmp_path / "numbers.parquet")).records("captions", "train")
    assert reasons(records) == ["field of a wrong type"] * 2


def test_damaged_files_are_refused_in_one_sentence(tmp_path):
    folder = save_to_disk(tmp_path / "saved", [make_table(0, 4)])
    file = folder / "data-00000-of-00001.arrow"
    whole = file.read_bytes()
    for content in (whole[:700], b"", b"ARROW1" + bytes(100), b"<!doctype html><html>"):
        file.unlink()
        file.write_bytes(content)
        path = tmp_path / f"copy-{len(content)}.arrow"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=path.name) as raised:
            ArrowData(str(path), fields=FIELDS).records("captions", "train")
        assert "\n" not in str(raised.value)
        parquet = path.with_suffix(".parquet")
        parquet.write_bytes(b"PAR1" + content)
        with pytest.raises(DamagedFileError, match=f"{parquet.name} is damaged"):
            ArrowData(str(parquet), fields=FIELDS).records("captions", "train")
    (folder / "state.json").write_text('{"_data_files": [{"filename": "../../etc/passwd"}]}')
    with pytest.raises(DamagedFileError, match="lists no Arrow files"):
        ArrowData(str(folder)).records("captions", "train")
    (folder / "state.json").write_text('{"_data_files": [{"filename": "gone.arrow"}]}')
    with pytest.raises(FileNotFoundError, match=r"gone\.arrow is missing"):
        ArrowData(str(folder)).records("captions", "train")


def test_damage_within_an_arrow_file_never_crashes(tmp_path):
    folder = save_to_disk(tmp_path / "saved", [make_table(0, 6)])
    whole = bytearray((folder / "data-00000-of-00001.arrow").read_bytes())
    rng = np.random.default_rng(0)
    for number in range(30):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 8):
            damaged[place] ^= int(rng.integers(1, 256))
        path = tmp_path / f"{number}.arrow"
        path.write_bytes(damaged)
        try:
            records = ArrowData(str(path), fields=FIELDS).records("captions", "train")
            reasons(records)
        except ValueError as error:
            assert "\n" not in str(error)


def write_parquet(path, **columns):
    """Writes a Parquet file with one image and other columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({"image": [make_image()], **columns}), path)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_the_words_of_names_say_the_splits_of_a_folder(tmp_path, kind):
    for split in ("train", "test"):
        path = tmp_path / "saved" / f"pets-{split}-00000-of-00001.{kind}"
        write_parquet(path, captions=[split])
        if kind == "arrow":
            table = pyarrow.parquet.read_table(path)
            with pyarrow.OSFile(str(path), "wb") as sink:
                with pyarrow.ipc.new_file(sink, table.schema) as writer:
                    writer.write_table(table)
    data = ArrowData(str(tmp_path / "saved"))
    assert sorted(data.splits) == ["test", "train"]
    for split in data.splits:
        records = data.records("captions", split)
        assert [records[n]["captions"] for n in range(len(records))] == [[split]]
    with pytest.raises(ValueError, match="are of several splits"):
        ArrowData(str(tmp_path / "saved" / f"*.{kind}")).records("captions", "train")


def test_the_folders_of_a_partitioned_data_set_are_columns(tmp_path):
    for language in ("en", "d%65"):
        write_parquet(tmp_path / f"all/lang={language}/0.parquet", caption=["x"])
    fields = {"captions": "caption", "data_set": "lang"}
    with pytest.raises(FileNotFoundError, match=r"such as .*all/\*\*/\*\.parquet"):
        ArrowData(str(tmp_path / "all"), fields=fields).records("captions", "train")
    records = ArrowData(str(tmp_path / "all/**/*.parquet"), fields=fields).records(
        "captions", "train"
    )
    assert [records[n]["data_set"] for n in range(2)] == ["de", "en"]


def test_columns_of_one_name_are_refused(tmp_path):
    columns = [pyarrow.array([make_image()]), pyarrow.array(["a"]), pyarrow.array(["b"])]
    table = pyarrow.Table.from_arrays(columns, names=["image", "captions", "captions"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pyarrow.OSFile(str(tmp_path / "b.arrow"), "wb") as sink:
        with pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    for name in ("a.parquet", "b.arrow"):
        with pytest.raises(ValueError, match=f"{name} has several columns called captions"):
            ArrowData(str(tmp_path / name)).records("captions", "train")


def test_numbers_of_databases_are_boxes_and_ids(tmp_path):
    (name,) = write_images(tmp_path, 1)
    numbers = list(map(decimal.Decimal, ("0", "1.25", "9", "9.5")))
    table = pyarrow.table(
        {
            "id": [decimal.Decimal("7.0"), decimal.Decimal("7.5"), None],
            "image": [name] * 3,
            "object_labels": [["a"]] * 3,
            "object_boxes": [[numbers]] * 3,
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    records = ArrowData(str(tmp_path / "a.parquet")).records("objects", "train")
    assert [records[number]["id"] for number in range(3)] == ["7", "7.5", "2"]
    np.testing.assert_array_equal(records[2]["object_boxes"], [[0, 1.25, 9, 9.5]])
