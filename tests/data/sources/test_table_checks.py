"""Tests that options which do not fit the rows are one sentence, before anything is compiled."""

import io

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from table_files import reasons, write_images, write_lines

from ofa_jax.data.sources.arrow_files import ArrowData
from ofa_jax.data.sources.base import WrongDataOptionError
from ofa_jax.data.sources.json_lines import JsonData
from ofa_jax.data.sources.mixed import MixedData
from ofa_jax.utils.bad_input import collect
from ofa_jax.utils.decode_options import AS_STORED, DecodeOptions


@pytest.fixture
def lines(tmp_path):
    """Returns a function that writes JSON lines and returns their path."""
    write_images(tmp_path, 2)

    def write(*rows):
        return str(write_lines(tmp_path / "data.jsonl", rows))

    return write


def region(**fields):
    """Returns a row with an object."""
    return {"image": "images/0.png", "object_labels": ["cat"]} | fields


@pytest.mark.parametrize(
    ("fields", "kind", "sentence"),
    [
        ({"captions": "capton"}, "captions", "captions is 'capton'"),
        ({"object_boxes": "objects.bboxx"}, "objects", "object_boxes is 'objects.bboxx'"),
        ({"answer_confidences": "confidence"}, "questions", "is 'confidence'"),
        ({"negative_captions": "false.captions"}, "pairs", "is 'false.captions'"),
        ({"id": "key"}, "captions", "id is 'key'"),
    ],
)
@pytest.mark.parametrize("is_parquet", [False, True])
def test_a_field_that_no_row_has_is_refused(fields, kind, sentence, is_parquet, lines, tmp_path):
    row = {
        "image": "images/0.png",
        "caption": "a text",
        "captions": ["a text"],
        "objects": [{"bbox": [1, 2, 30, 20], "name": "cat"}],
        "object_labels": ["cat"],
        "questions": ["what?"],
        "answers": ["a cat"],
        "conf": [0.5],
    }
    data = JsonData(lines(row, row, {"text": "x"}), fields=fields)
    if is_parquet:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row] * 2), tmp_path / "a.parquet")
        data = ArrowData(str(tmp_path / "a.parquet"), fields=fields)
    with pytest.raises(WrongDataOptionError, match=sentence) as raised:
        data.records(kind, "train")
    assert "objects.bbox, objects.name" in str(raised.value) and "\n" not in str(raised.value)


def test_a_field_that_few_rows_have_is_found(lines, tmp_path):
    rows = [{"image": "images/0.png", "captions": ["x"]} for _ in range(300)]
    rows[137]["neg"] = {"captions": ["false"]}
    data = JsonData(lines(*rows), fields={"negative_captions": "neg.captions"})
    assert len(data.records("pairs", "train")) == 300
    table = pyarrow.table(
        {"image": ["images/0.png"] * 300, "caption": ["x" * (n == 77) for n in range(300)]}
    )
    pyarrow.parquet.write_table(table, tmp_path / "rare.parquet")
    data = ArrowData(str(tmp_path / "rare.parquet"), fields={"captions": "caption"})
    assert data.records("captions", "train")[77]["captions"] == ["x"]


def test_shares_and_pixels_are_not_taken_for_each_other(lines):
    shares = lines(region(object_boxes=[[0.1, 0.2, 0.5, 1]]), region(object_boxes=[[0, 0, 1, 1]]))
    with pytest.raises(WrongDataOptionError, match=r"set JsonData\.relative_boxes = True"):
        JsonData(shares).records("objects", "train")
    assert reasons(JsonData(shares, relative_boxes=True).records("objects", "train")) == [None] * 2
    pixels = lines(region(object_boxes=[[1, 2, 30, 20]]), region(object_boxes=[[0, 0, 50, 9]]))
    with pytest.raises(WrongDataOptionError, match=r"set JsonData\.relative_boxes = False"):
        JsonData(pixels, relative_boxes=True).records("objects", "train")


def test_boxes_in_another_format_are_refused(lines):
    path = lines(*(region(object_boxes=[[30, 20, 5 + n, 5]]) for n in range(4)))
    with pytest.raises(WrongDataOptionError, match="4 of 4 sampled boxes .* have no area as xyxy"):
        JsonData(path).records("objects", "train")
    records = JsonData(path, box_format="xywh").records("objects", "train")
    np.testing.assert_array_equal(records[1]["object_boxes"], [[30, 20, 36, 25]])


def test_classes_that_are_numbers_need_names(lines):
    path = lines(*(region(object_boxes=[[1, 2, 30, 20]], object_labels=[n]) for n in (4, 5)))
    with pytest.raises(WrongDataOptionError, match=r"no names are known.* JsonData\.class_names"):
        JsonData(path).records("objects", "train")
    with pytest.raises(WrongDataOptionError, match=r"none has a name.* \(there are 2\)"):
        JsonData(path, class_names=["a", "b"]).records("objects", "train")
    records = JsonData(path, class_names=list("abcdef")).records("objects", "train")
    assert [records[n]["object_labels"] for n in range(2)] == [["e"], ["f"]]


def test_boxes_as_mappings_are_named_in_the_reason(lines):
    box = {"x": 1, "y": 2, "width": 3, "height": 4}
    path = lines(
        region(object_boxes=[box]),
        region(object_labels=list("abcd"), object_boxes=[box] * 4),
        region(object_boxes=[[1, 2, 30, 20]]),
    )
    records = JsonData(path).records("objects", "train")
    assert reasons(records) == ["field of a wrong type"] * 2 + [None]
    with pytest.raises(ValueError, match="are mappings .of x, y, width, height"):
        records[0]


def test_a_class_is_no_sign_that_a_caption_is_false(lines):
    labels = ["cats", "yes", "no", 3, True, None, ["cats"]]
    rows = [{"image": "images/0.png", "captions": ["x"], "label": label} for label in labels]
    path = lines(*rows)
    records = JsonData(path).records("pairs", "train")
    found = [records[n].get("label") for n in range(len(labels))]
    assert found == [None, "yes", "no", None, "yes", None, None]
    # Where the user names the field, it says whether the text is true.
    rows = [{"image": "images/0.png", "captions": ["x"], "match": label} for label in labels]
    records = JsonData(lines(*rows), fields={"label": "match"}).records("pairs", "train")
    wrong = "field of a wrong type"
    assert reasons(records) == [wrong, None, None, wrong, None, None, wrong]


def test_ids_are_texts(lines):
    ids = ["a", 7, 7.0, 2.5, "", None, True, [1], "\ud83d"]
    path = lines(*({"image": "images/0.png", "captions": ["x"], "id": key} for key in ids))
    records = JsonData(path).records("captions", "train")
    with collect() as findings:
        found = [records[n]["id"] for n in range(len(ids))]
    assert found == ["a", "7", "7", "2.5", "4", "5", "6", "7", "\ud83d"]
    assert [finding.reason.name for finding in findings] == ["id is not a text"] * 2


def test_bytes_that_are_not_utf8_are_counted(tmp_path):
    table = pyarrow.table({"text": [b"caf\xe9", "café".encode()]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    records = ArrowData(str(tmp_path / "a.parquet")).records("text", "train")
    with collect() as findings:
        assert [records[n]["text"] for n in range(2)] == ["caf\ufffd", "café"]
    assert [finding.reason.name for finding in findings] == ["text is not UTF-8"]


def test_relative_boxes_are_of_the_image_as_it_is_decoded(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by a quarter
    buffer = io.BytesIO()
    Image.new("RGB", (80, 40)).save(buffer, "JPEG", exif=exif)
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    row = {"image": "a.jpg", "object_labels": ["cat"], "object_boxes": [[0, 0, 1, 1]]}
    path = str(write_lines(tmp_path / "data.jsonl", [row]))
    for honour, size in ((True, (40, 80)), (False, (80, 40))):
        options = DecodeOptions(honour_orientation=honour)
        data = JsonData(path, relative_boxes=True, decode_options=options)
        record = data.records("objects", "train")[0]
        np.testing.assert_array_equal(record["object_boxes"], [[0, 0, *size]])
    with pytest.raises(WrongDataOptionError, match=r"set JsonData\.decode_options instead"):
        MixedData({"a": JsonData(path, relative_boxes=True)}, decode_options=AS_STORED)
    assert MixedData({"a": data}, decode_options=AS_STORED).decode_options == AS_STORED


def test_the_reason_names_a_path_of_windows_and_a_name_that_looks_like_base64(lines):
    rows = [{"image": name, "captions": ["x"]} for name in ("images\\0.png", "cat1", "images/0000")]
    records = JsonData(lines(*rows)).records("captions", "train")
    assert reasons(records) == ["image file is not there"] * 3
    with pytest.raises(ValueError, match="have / between them"):
        records[0]


@pytest.mark.parametrize(
    "boxes", ["0,0,9,9", [["0", "0", "9", "9"]], ["0", "0", "9", "9"], ["0 0"]]
)
def test_boxes_that_are_texts_are_refused(boxes, lines):
    with pytest.raises(WrongDataOptionError, match="object_boxes of .* are texts such as .*0"):
        JsonData(lines(*[region(object_boxes=boxes)] * 3)).records("objects", "train")
    mixed = JsonData(lines(region(object_boxes=boxes), region(object_boxes=[[0, 0, 9, 9]])))
    assert len(mixed.records("objects", "train")) == 2  # which the loader skips alone
