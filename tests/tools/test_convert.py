"""Tests that a converted data set has the same records as its source."""

import io
import json

import gin
import numpy as np
import pytest
from PIL import Image
from table_files import make_image, plain, write_images, write_lines

from ofa_jax.data.sources.array_records import OfaArrayRecords
from ofa_jax.data.sources.coco_json import CocoData
from ofa_jax.data.sources.json_lines import JsonData
from ofa_jax.data.sources.mixed import MixedData
from ofa_jax.data.sources.ofa_tsv import OfaTsv
from ofa_jax.preprocessing.negatives import NegativePool
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


def test_the_command_converts_the_data_of_a_run(data, tmp_path, monkeypatch, capsys):
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
    for output_dir, sentence in (("", "not empty"), ("a\udcff", "in UTF-8"), ("gs://b/c", "disks")):
        gin.clear_config()
        try:
            assert convert.main(["--gin_file=run.gin", f"--output_dir={output_dir}"]) == 2
        except SystemExit as stopped:
            assert stopped.code == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "gs:").exists()
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


def test_a_kind_without_usable_records_does_not_keep_the_others_from_being_written(data, tmp_path):
    bad = [
        {"id": "a", "image": "images/0.png", "captions": ["an apple"]},
        {"image": "images/0.png", "object_labels": ["x"], "object_boxes": [[5, 5, 5, 5]]},
        {"id": "t", "text": "some words"},
    ]
    odd = JsonData(str(write_lines(tmp_path / "odd.jsonl", bad)))
    out = tmp_path / "out"
    for file_format in ("array_record", "tsv"):
        with pytest.raises(ValueError, match="detection.* would be empty: .* has no area within"):
            convert.convert(odd, out, file_format)
    assert OfaArrayRecords(str(out)).records("text", "train")[0]["text"] == "some words"
    assert (out / "vision_language-train.tsv").read_text().startswith("a\t")
    assert not [path for path in out.iterdir() if path.name.startswith(("detection", "images"))]


def test_images_alone_that_have_no_codes_are_nothing_to_convert(tmp_path):
    rows = [{"image": name} for name in write_images(tmp_path, 2)]
    data = JsonData(str(write_lines(tmp_path / "data.jsonl", rows)))
    with pytest.raises(ValueError, match="would be empty: .* it has no codes"):
        convert.convert(data, tmp_path / "out", "tsv")


def test_nothing_is_written_where_one_of_the_outputs_is_there(data, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "detection-train.tsv").write_text("mine")
    with pytest.raises(ValueError, match=r"detection-train\.tsv exists"):
        convert.convert(data, out, "tsv")
    assert [path.name for path in out.iterdir()] == ["detection-train.tsv"]


def test_converted_files_are_converted_again(data, tmp_path):
    rows = [
        {"id": "i", "image": "images/0.png", "captions": ["x && y"], "object_labels": ["a&", "b"]},
        {
            "id": "j",
            "image": "images/1.png",
            "object_labels": ["p&", "q,r", "s"],
            "object_boxes": [[0, 0, 10, 10.3], [1 / 3, 1, 5, 5], [0, 0, 2, 2]],
        },
    ]
    source = JsonData(str(write_lines(tmp_path / "some.jsonl", rows)))
    convert.convert(source, tmp_path / "a", "tsv")
    files = {"vision_language": "vision_language-train.tsv", "detection": "detection-train.tsv"}
    tsv = OfaTsv(**files, negative_samples="negative_samples", data_dir=str(tmp_path / "a"))
    convert.convert(tsv, tmp_path / "b", "array_record")
    # Not all kinds are there, which is no reason to refuse those that are.
    convert.convert(OfaArrayRecords(str(tmp_path / "b")), tmp_path / "c", "tsv")
    for name in (*files.values(), "negative_samples/object.txt"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()
    with pytest.raises(FileNotFoundError, match="There are no text records in"):
        convert.convert(OfaArrayRecords(str(tmp_path / "b")), tmp_path / "d", "tsv", ["text"])
    with pytest.raises(FileNotFoundError, match="There are no vision_language records in"):
        MixedData({"a": OfaArrayRecords(str(tmp_path / "none"))}).records("captions", "train")
    mixed = MixedData({"a": OfaArrayRecords(str(tmp_path / "b")), "b": tsv})
    assert len(mixed.records("captions", "train")) == 2
    with pytest.raises(FileNotFoundError, match="There are no text records in"):
        mixed.records("text", "train")


@pytest.mark.parametrize("split", ["../up", "a/b", "", ".hidden", "train\n"])
def test_splits_that_are_no_names_of_files_are_refused(split, data, tmp_path):
    lines = JsonData({"train": str(tmp_path / "data.jsonl")})
    lines.files[split] = lines.files["train"]  # OptionErrors come before, for some of them
    with pytest.raises(ValueError, match="cannot be part of the names of files"):
        convert.convert(lines, tmp_path / "out", "tsv", ["text"], [split])
    assert not (tmp_path / "out").exists()


def test_images_that_are_decoded_otherwise_are_counted(tmp_path, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (60, 40)).save(buffer, "JPEG", exif=exif)
    (tmp_path / "turned.jpg").write_bytes(buffer.getvalue())
    (tmp_path / "upright.jpg").write_bytes(make_image(kind="JPEG"))
    rows = [
        {"image": name, "object_labels": ["x"], "object_boxes": [[0, 45, 40, 60]]}
        for name in ("turned.jpg", "upright.jpg")  # of 40 x 60 and 60 x 40 pixels
    ]
    data = JsonData(str(write_lines(tmp_path / "data.jsonl", rows)))
    convert.convert(data, tmp_path / "out", "tsv", ["objects"])
    shown = capsys.readouterr().out
    assert "1 written; 1 records skipped" in shown
    assert "1 records have an image with an EXIF orientation or transparency" in shown
    tsv = OfaTsv(detection="detection-train.tsv", data_dir=str(tmp_path / "out"))
    with pytest.raises(ValueError, match="no area within its image of 60 x 40 pixels"):
        convert.convert(tsv, tmp_path / "again", "array_record", ["objects"])  # as it is stored
    assert "orientation" not in capsys.readouterr().out


def test_captions_that_are_all_blank_are_no_negatives(data, tmp_path):
    class Blank(JsonData):
        def negatives(self):
            return NegativePool([" ", "\t"], ("name",), {})

    blank = Blank(data.files)
    convert.convert(blank, tmp_path / "out", "tsv", ["captions"])
    assert not (tmp_path / "out" / "negative_samples").exists()


def test_what_a_source_drops_when_it_is_opened_is_told(tmp_path, capsys):
    (name,) = write_images(tmp_path, 1)
    content = {
        "images": [{"id": 1, "file_name": name}],
        "annotations": [
            {"image_id": 1, "caption": "a text"},
            {"image_id": 2, "caption": "of no image"},
            {"image_id": 1, "caption": None},
        ],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    data = CocoData("coco.json", ".", str(tmp_path))
    convert.convert(data, tmp_path / "out", "tsv", ["captions"])
    shown = capsys.readouterr().out.replace(f"{tmp_path}/", "")
    assert "In the source: 1 annotations of coco.json: belong to no image of the file" in shown
    assert "In the source: 1 annotations of coco.json: have neither a caption nor" in shown
