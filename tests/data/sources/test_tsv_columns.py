"""Tests the parsers on rows of the official downstream files, with the official columns."""

import base64

import numpy as np
import pytest

from ofa_jax.data.sources.tsv_columns import TSV_FORMATS
from ofa_jax.data.sources.tsv_file import InvalidLineError
from ofa_jax.data.sources.tsv_records import TsvRecords
from ofa_jax.utils.bad_input import collect

PIXELS = b"not looked at"
IMAGE = base64.urlsafe_b64encode(PIXELS).decode()
CODES = " ".join(map(str, range(1024)))

ROWS = {
    "caption": (
        ["17", "COCO_17", "a dog&&A brown dog.", "dog&&ball", IMAGE],
        {"id": "17", "image": PIXELS, "captions": ["a dog", "A brown dog."]},
    ),
    "vqa": (
        ["79459", "79459", "Is this a crowd?", "0.6|!+yes&&1.0|!+no", "person&&hat", IMAGE],
        {
            "id": "79459",
            "image": PIXELS,
            "questions": ["Is this a crowd?"],
            "object_labels": ["person", "hat"],
            "answers": ["no"],
            "answer_confidences": [1.0],
            "reference_answers": ["yes", "no"],
            "reference_confidences": [float(np.float32(0.6)), 1.0],
        },
    ),
    "refcoco": (
        ["79_1", "237367", "man in the middle", "230.79,121.75,423.66,463.06", IMAGE],
        {
            "id": "79_1",
            "image": PIXELS,
            "phrases": ["man in the middle"],
            "phrase_boxes": np.array([[230.79, 121.75, 423.66, 463.06]], np.float32),
        },
    ),
    "snli_ve": (
        ["252244149.jpg#1r1n", "252244149", IMAGE, "a man sleeps", "a man sits", "contradiction"],
        {
            "id": "252244149.jpg#1r1n",
            "image": PIXELS,
            "hypothesis": "a man sleeps",
            "premise": "a man sits",
            "label": "no",
        },
    ),
    "imagenet": ([IMAGE, "500", "cliff dwelling"], {"image": PIXELS, "label": "cliff dwelling"}),
    "text_to_image": (
        ["5", CODES, "a bench by the sea"],
        {"id": "5", "captions": ["a bench by the sea"], "codes": np.arange(1024, dtype=np.int32)},
    ),
    "gigaword": (
        ["the nikkei rose by ## points", "nikkei up"],
        {"text": "the nikkei rose by ## points", "summary": "nikkei up"},
    ),
    "cola": (
        ["gj04", "They drank the pub dry.", "1"],
        {"sentence": "They drank the pub dry.", "label": "yes"},
    ),
    "sst2": (["so bad", "0"], {"sentence": "so bad", "label": "negative"}),
    "mrpc": (
        ["one text", "another", "0"],
        {"sentence1": "one text", "sentence2": "another", "label": "no"},
    ),
    "qqp": (
        ["0", "1", "2", "Why?", "How come?", "1"],
        {"question1": "Why?", "question2": "How come?", "label": "yes"},
    ),
    "mnli": (
        ["it rains", "it is wet", "0"],
        {"premise": "it rains", "hypothesis": "it is wet", "label": "maybe"},
    ),
    "qnli": (
        ["0", "Who?", "It was Ann.", "entailment"],
        {"question": "Who?", "sentence": "It was Ann.", "label": "yes"},
    ),
    "rte": (
        ["0", "It was Ann.", "Ann did it.", "not_entailment"],
        {"sentence1": "It was Ann.", "sentence2": "Ann did it.", "label": "no"},
    ),
}


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        assert type(a[name]) is type(b[name]), name


def parse(name, columns):
    """Parses a whole row with the default columns."""
    tsv_format = TSV_FORMATS[name]
    selected = zip(tsv_format.columns, tsv_format.selected_cols, strict=True)
    return tsv_format.parse({column: columns[index].encode() for column, index in selected})


def test_every_format_is_tested_here_or_with_the_pretraining_files():
    assert set(TSV_FORMATS) == set(ROWS) | {"vision_language", "text", "images", "detection"}


@pytest.mark.parametrize("name", ROWS)
def test_rows_become_records_directly_and_from_a_file(name, tmp_path):
    columns, expected = ROWS[name]
    assert_equal(parse(name, columns), expected)
    path = tmp_path / "rows.tsv"
    path.write_text("\t".join(columns) + "\n" + "malformed\n" + "\t".join(columns))
    records = TsvRecords.open(str(path), name)
    assert len(records) == 3
    assert_equal(records[2], expected)
    with pytest.raises(InvalidLineError, match="rows.tsv, line 2: it has 1 columns instead of"):
        records[1]


@pytest.mark.parametrize("name", [name for name in ROWS if "label" in ROWS[name][1]])
def test_an_unknown_label_makes_a_line_invalid(name):
    columns, _ = ROWS[name]
    if name == "imagenet":
        return  # its labels are names
    with pytest.raises(InvalidLineError, match="its label is 'label' instead of one of ") as raised:
        parse(name, [*columns[:-1], "label"])
    assert raised.value.reason.name == "unknown label"


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("snli_ve", {"entailment": "yes", "neutral": "maybe", "contradiction": "no"}),
        ("mnli", {"0": "maybe", "1": "yes", "2": "no"}),
        ("qnli", {"0": "no", "1": "yes", "not_entailment": "no", "entailment": "yes"}),
        ("sst2", {"0": "negative", "1": "positive"}),
        ("cola", {"0": "no", "1": "yes"}),
    ],
)
def test_labels_have_the_official_targets(name, targets):
    columns, _ = ROWS[name]
    found = {label: parse(name, [*columns[:-1], label])["label"] for label in targets}
    assert found == targets


TARGETS = {
    "caption": "captions",
    "refcoco": "phrase_boxes",
    "text_to_image": "codes",
    "gigaword": "summary",
    **{name: "label" for name in ROWS if "label" in ROWS[name][1]},
}


@pytest.mark.parametrize("name", TARGETS)
def test_without_its_target_a_record_has_only_the_input(name):
    columns, expected = list(ROWS[name][0]), dict(ROWS[name][1])
    tsv_format = TSV_FORMATS[name]
    column = {"phrase_boxes": "box"}.get(TARGETS[name], TARGETS[name])
    index = tsv_format.selected_cols[tsv_format.columns.index(column)]
    del expected[TARGETS[name]]
    for nothing in ("", " ", *(["-1"] if TARGETS[name] == "label" and name != "imagenet" else ())):
        columns[index] = nothing
        assert_equal(parse(name, columns), expected)


def test_without_answers_a_record_has_only_the_question():
    columns, expected = ROWS["vqa"]
    record = parse("vqa", [*columns[:3], "", *columns[4:]])
    assert record == {
        name: expected[name] for name in ("id", "image", "questions", "object_labels")
    }


@pytest.mark.parametrize("refs", ["1.0|!+no&&0.6|!+yes&&0.3|!+no", "0.3|!+no&&1.0|!+yes"])
def test_of_equal_answers_the_later_one_counts(refs):
    columns, _ = ROWS["vqa"]
    record = parse("vqa", [*columns[:3], refs, *columns[4:]])
    assert record["answers"] == ["yes"]


@pytest.mark.parametrize("codes", ["1 2 x", "1 -2", "1 2.5", "99999999999999999999"])
def test_invalid_image_codes_make_a_line_invalid(codes):
    with pytest.raises(InvalidLineError, match="are not image codes"):
        parse("text_to_image", ["5", codes, "a bench"])


@pytest.mark.parametrize(
    ("objects", "sentence"),
    [
        ("1,2,3,4,7", "'1,2,3,4,7' is not x0,y0,x1,y1,category-id,category"),
        ("1,2,y,4,7,dog&&1,2", "1,2,y,4,7,dog are not four numbers"),
        ("", "it has no objects"),
    ],
)
def test_invalid_objects_make_a_line_invalid(objects, sentence):
    with pytest.raises(InvalidLineError, match=sentence):
        parse("detection", ["d", IMAGE, objects])


@pytest.mark.parametrize("bad", ["1,2,y,4,7,dog", "1,2,3", "1,nan,3,4,7,dog", "1,2,3,4,7,"])
def test_a_malformed_object_is_dropped_and_reported(bad):
    with collect() as findings:
        record = parse("detection", ["d", IMAGE, f"1,2,3,4,7,cat&&{bad}&&5,6,7,8,9,cup"])
    assert record["object_labels"] == ["cat", "cup"]
    np.testing.assert_array_equal(record["object_boxes"], [[1, 2, 3, 4], [5, 6, 7, 8]])
    assert [finding.reason.name for finding in findings] == ["malformed object"]


@pytest.mark.parametrize("bad", ["yes", "x|!+yes", "nan|!+yes", "-1|!+yes", "1.0|!+"])
def test_a_malformed_answer_is_dropped_and_reported(bad):
    columns, _ = ROWS["vqa"]
    with collect() as findings:
        record = parse("vqa", [*columns[:3], f"0.6|!+no&&{bad}", *columns[4:]])
    assert record["answers"] == ["no"] and record["reference_answers"] == ["no"]
    assert [finding.reason.name for finding in findings] == ["malformed answer"]
    with pytest.raises(InvalidLineError, match="is not confidence"):
        parse("vqa", [*columns[:3], bad, *columns[4:]])


def test_object_names_may_contain_commas():
    record = parse("detection", ["d", IMAGE, "1,2,3,4,7,clock, wall&&5,6,7,8,9,cat"])
    assert record["object_labels"] == ["clock, wall", "cat"]
    np.testing.assert_array_equal(record["object_boxes"], [[1, 2, 3, 4], [5, 6, 7, 8]])
