"""Tests that a converted data set has the same records as its source."""

import json

import gin
import numpy as np
import pytest
from table_files import make_image, plain, write_images, write_lines

from ofa_jax.data.sources.array_records import OfaArrayRecords
from ofa_jax.data.sources.json_lines import JsonData
from ofa_jax.data.sources.ofa_tsv import OfaTsv
from tools import convert
from tools.train_tokenizer import train_tokenizer

ROWS = [
    {"id": "a", "image": "images/0.png", "captions": ["an apple"], "object_labels": ["apple"]},
    {"id": "b", "image": "images/1.png", "captions": ["two\tpears"]},
    {"id": "c", "image": "images/2.png", "questions": ["what?"], "answers": ["a pear"]},
    {"id": "d", "image": "images/3.png", "phrases": ["left"], "phrase_boxes": [[1, 2, 30.25, 20]]},
    {"id": "e", "image": "images/0.png", "object_labels": ["x"], "object_boxes": [[0, 0, 5, 6]]},
    {"id": "f", "image": "images/1.png", "codes": [3, 1, 2]},
    {"id": "g", "text": "some words"},
    {"id": "h", "image": "images/9.png", "captions": ["no such image"]},
    {"id": "i", "image": "broken.png", "captions": ["not an image"]},
    '{"id": "j", "captions": ["cut',
]


@pytest.fixture
def data(tmp_path):
    write_images(tmp_path, 4)
    (tmp_path / "broken.png").write_bytes(make_image()[:50])
    return JsonData(str(write_lines(tmp_path / "data.jsonl", ROWS)))


def check(found):
    """Checks the records of a converted data set."""
    captions = found.records("captions", "train")
    assert [record["captions"] for record in map(captions.__getitem__, range(2))] == [
        ["an apple"],
        ["two pears"] if isinstance(found, OfaTsv) else ["two\tpears"],
    ]
    assert len(captions) == 2 and captions[0]["image"] == make_image(0)
    assert captions[0]["object_labels"] == ["apple"]
    question = plain(found.records("questions", "train")[0])
    assert (question["id"], question["questions"], question["answers"]) == (
        "c",
        ["what?"],
        ["a pear"],
    )
    assert question["answer_confidences"] == [1.0]
    region = found.records("regions", "train")[0]
    np.testing.assert_array_equal(region["phrase_boxes"], [[1, 2, 30.25, 20]])
    objects = found.records("objects", "train")[0]
    np.testing.assert_array_equal(objects["object_boxes"], [[0, 0, 5, 6]])
    assert objects["object_labels"] == ["x"]
    assert found.records("images", "train")[0]["codes"].tolist() == [3, 1, 2]
    assert found.records("text", "train")[0]["text"] == "some words"
    pool = found.negatives()
    assert pool.captions[0] == "an apple" and set(pool.object_names) == {"apple", "x"}
    assert pool.answers_by_type["other"] == ("a pear",)


def test_array_records_are_those_of_the_source(data, tmp_path, capsys):
    convert.convert(data, tmp_path / "out", "array_record", shard_bytes=100)
    check(OfaArrayRecords(str(tmp_path / "out")))
    assert len(list((tmp_path / "out" / "vision_language" / "train").glob("*-of-*"))) > 1
    shown = capsys.readouterr().out
    assert "1 skipped: image file is not there" in shown and "data.jsonl, line 8" in shown
    stored = json.loads((tmp_path / "out/vision_language/train/conversion.json").read_text())
    assert stored["records"] == 4 and stored["skipped"]["unreadable image"] == 1
    with pytest.raises(ValueError, match="exists: choose another --output_dir"):
        convert.convert(data, tmp_path / "out", "array_record")


def test_tsv_files_are_those_of_the_reference_implementation(data, tmp_path):
    out = tmp_path / "out"
    convert.convert(data, out, "tsv")
    names = {"vision_language", "text", "images", "detection"}
    files = {name: f"{name}-train.tsv" for name in names}
    check(OfaTsv(**files, negative_samples="negative_samples", data_dir=str(out)))


def test_nothing_is_left_behind_where_nothing_can_be_used(data, tmp_path):
    rows = [{"image": "images/9.png", "captions": ["no such image"]}]
    missing = JsonData(str(write_lines(tmp_path / "missing.jsonl", rows)))
    for file_format in ("tsv", "array_record"):
        with pytest.raises(ValueError, match="would be empty: no record can be used, e.g. "):
            convert.convert(missing, tmp_path / "none", file_format)
        left = [path for path in (tmp_path / "none").rglob("*") if path.is_file()]
        assert not left
    with pytest.raises(ValueError, match=r"JsonData\.fields"):
        convert.convert(missing, tmp_path / "none", "tsv", ["text"])


def test_the_command_converts_the_data_of_a_run(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train_tokenizer(["an apple"], 300, tmp_path / "tokenizer.json")
    (tmp_path / "run.gin").write_text(
        """
include 'gin_configs/models/scenes.gin'
include 'gin_configs/runs/pretrain.gin'
MODEL_DIR = 'runs/x'
DATA_SET = @JsonData()
VOCABULARY = @vocabulary_from_tokenizer_json()
vocabulary_from_tokenizer_json.path = 'tokenizer.json'
JsonData.files = 'data.jsonl'
"""
    )
    arguments = ["--gin_file=run.gin", "--output_dir=out", "--kinds", "text", "--format=tsv"]
    gin.clear_config()
    assert convert.main(arguments) == 0
    assert (tmp_path / "out" / "text-train.tsv").read_text() == "g\tsome words\n"
    gin.clear_config()
    assert convert.main(arguments) == 2
    gin.clear_config()


@pytest.mark.parametrize("file_format", ["array_record", "tsv"])
def test_images_without_codes_are_left_out_and_the_rest_is_converted(file_format, tmp_path, capsys):
    (name,) = write_images(tmp_path, 1)
    rows = [{"image": name, "captions": [f"caption {n}"]} for n in range(50)]
    rows[7] = {"image": "images/no_such.png", "captions": ["a caption"]}
    data = JsonData(str(write_lines(tmp_path / "data.jsonl", rows)))
    convert.convert(data, tmp_path / "out", file_format)
    assert "left out: no image that can be read has codes" in capsys.readouterr().out
    assert not [path for path in (tmp_path / "out").iterdir() if "images" in path.name]
    with pytest.raises(ValueError, match="would be empty: no record can be used"):
        convert.convert(data, tmp_path / "alone", file_format, ["images"])
    # One image with codes among many is no reason to lose it.
    write_lines(tmp_path / "data.jsonl", [*rows, {"image": name, "codes": [1, 2]}])
    convert.convert(data, tmp_path / "more", file_format)
    if file_format == "array_record":
        found = OfaArrayRecords(str(tmp_path / "more")).records("images", "train")
        assert [found[n]["codes"].tolist() for n in range(len(found))] == [[1, 2]]
    else:
        lines = (tmp_path / "more" / "images-train.tsv").read_text().splitlines()
        assert [line.split("\t")[2] for line in lines] == ["1 2"]


HARD_TEXTS = [
    "a, b",
    "x& y",
    "tail&",
    "&head",
    '"quoted" \\n',
    "é 图 😀",
    " u2028\u2028u0085\x85end",
    "a" * 70_000,
]


def hard_rows():
    """Returns rows with texts and numbers that a format may change."""
    labels = [*HARD_TEXTS[:4], "&both&"]
    boxes = [[0.1, 1 / 3, 10.123456 + n, 20] for n in range(len(labels))]
    return [
        {
            "id": "c/1",
            "image": "images/0.png",
            "captions": HARD_TEXTS,
            "object_labels": labels,
            "data_set": "mine",
        },
        {
            "id": "q",
            "image": "images/1.png",
            "questions": [f"{text}?" for text in HARD_TEXTS],
            "answers": HARD_TEXTS,
            "answer_confidences": [1 / (n + 3) for n in range(len(HARD_TEXTS))],
        },
        {"image": "images/2.png", "phrases": labels, "phrase_boxes": boxes},
        {"image": "images/3.png", "object_labels": labels, "object_boxes": boxes},
        {"id": "t", "text": " a text, with &signs& "},
    ]


def entries(data, kind, fields):
    """Returns the parallel entries of all records of a kind, with the ids and images."""
    records = data.records(kind, "train")
    found = []
    for record in map(records.__getitem__, range(len(records))):
        row = plain(record)
        columns = [row[field] if isinstance(row[field], list) else [row[field]] for field in fields]
        found += [(row["id"], record.get("image"), *one) for one in zip(*columns, strict=True)]
    return found


@pytest.mark.parametrize("file_format", ["array_record", "tsv"])
def test_every_field_comes_back_as_it_was(file_format, tmp_path, capsys):
    write_images(tmp_path, 4)
    data = JsonData(str(write_lines(tmp_path / "data.jsonl", hard_rows())))
    out = tmp_path / "out"
    convert.convert(data, out, file_format, ["captions", "questions", "regions", "objects", "text"])
    shown = capsys.readouterr().out
    assert "dropped or replaced" not in shown and "1 skipped" not in shown
    found = OfaArrayRecords(str(out))
    if file_format == "tsv":
        names = {"vision_language", "text", "detection"}
        files = {name: f"{name}-train.tsv" for name in names}
        found = OfaTsv(**files, negative_samples="negative_samples", data_dir=str(out))
    for kind, fields in (
        ("captions", ("captions",)),
        ("questions", ("questions", "answers", "answer_confidences")),
        ("regions", ("phrases", "phrase_boxes")),
        ("objects", ("object_labels", "object_boxes")),
        ("text", ("text",)),
    ):
        expected = [
            tuple(np.float32(value).item() if isinstance(value, float) else value for value in one)
            for one in entries(data, kind, fields)
        ]
        assert entries(found, kind, fields) == expected
    record = found.records("captions", "train")[0]
    assert record["data_set"] == "mine"
    assert [label.strip() for label in record["object_labels"]] == hard_rows()[0]["object_labels"]


@pytest.mark.parametrize("file_format", ["array_record", "tsv"])
def test_bad_entries_are_dropped_and_fields_that_are_lost_are_named(file_format, tmp_path, capsys):
    (name,) = write_images(tmp_path, 1)
    rows = [
        {
            "image": name,
            "captions": ["fine", "", 7, None, "half \ud83d"],
            "negative_captions": ["x"],
        },
        {
            "image": name,
            "questions": ["a?", "b?", "c?"],
            "answers": ["yes", "no", " "],
            "answer_confidences": [1, -1, 1],
        },
        {
            "image": name,
            "object_labels": ["a", "b", ""],
            "object_boxes": [[1, 2, 3, 4], "x", [1, 2, 3, 4]],
        },
        {"image": name, "captions": ["", 7]},
    ]
    data = JsonData(str(write_lines(tmp_path / "data.jsonl", rows)))
    convert.convert(data, tmp_path / "out", file_format, ["captions", "questions", "objects"])
    shown = capsys.readouterr().out
    assert "Not stored by the format, in the split train: negative_captions." in shown
    assert "2 entries dropped or replaced: malformed entry" not in shown  # three: 7, None, -1
    assert "data.jsonl, line 1: record 0: number 3 of its captions is not a text" in shown
    assert "3 entries dropped or replaced: malformed entry" in shown
    assert "1 skipped: no usable entry" in shown and "lone surrogate in a text" in shown
    if file_format == "array_record":
        found = OfaArrayRecords(str(tmp_path / "out"))
        assert found.records("captions", "train")[0]["captions"] == ["fine", "half \ufffd"]
        assert found.records("questions", "train")[0]["questions"] == ["a?"]
        assert found.records("objects", "train")[0]["object_labels"] == ["a"]
    else:
        lines = (tmp_path / "out" / "vision_language-train.tsv").read_text().splitlines()
        assert [line.split("\t")[2] for line in lines] == ["fine", "half \ufffd", ""]
