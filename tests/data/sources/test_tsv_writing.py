"""Tests that the lines of TSV files read back as the records that they were made of."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ofa_jax.data.sources.ofa_tsv import FILE_OF_KIND
from ofa_jax.data.sources.tsv_columns import TSV_FORMATS
from ofa_jax.data.sources.tsv_file import TsvFile
from ofa_jax.data.sources.tsv_writing import NOT_IN_TSV, tsv_lines
from ofa_jax.preprocessing.record_fields import EMPTY_ENTRY
from ofa_jax.preprocessing.text import is_blank
from ofa_jax.utils.bad_input import InvalidRecordError, collect

# Much of what a separator is made of, beside any other character.
TEXTS = st.text(st.sampled_from("ab&|!+,; \"\\\u2028\x85\x0b\xa0\ufeffé😀") | st.characters(
    exclude_categories=["Cs"]), max_size=12)  # fmt: skip
USABLE = TEXTS.filter(lambda text: not is_blank(text))
NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)
BOXES = st.lists(NUMBERS, min_size=4, max_size=4)
IMAGE = bytes(range(256))


def read(kind, record):
    """Writes a record, reads its lines, and returns them with what was reported."""
    with collect() as findings:
        lines = list(tsv_lines(kind, {"id": "7", "image": IMAGE, **record}))
    file_format = TSV_FORMATS[FILE_OF_KIND[kind]]
    found = []
    for line in lines:
        content = "\t".join(line).encode()
        assert b"\n" not in content and b"\r" not in content and b"\0" not in content
        columns = content.split(b"\t")
        assert len(columns) == len(file_format.columns)
        found.append(file_format.parse(dict(zip(file_format.columns, columns, strict=True))))
        assert found[-1].get("image", IMAGE) == IMAGE
    return found, [finding.reason for finding in findings]


def is_clean(text, entry=False):
    """Returns whether TSV can hold a text as it is."""
    return not any(part in text for part in "\t\r\n\0") and not (
        entry and ("&&" in text or "|!+" in text)
    )


@settings(max_examples=150, deadline=None)
@given(captions=st.lists(USABLE, min_size=1, max_size=3), labels=st.lists(TEXTS, max_size=4))
def test_captions_read_back(captions, labels):
    found, reasons = read("captions", {"captions": captions, "object_labels": labels})
    assert len(found) == len(captions)
    for caption, record in zip(captions, found, strict=True):
        (text,) = record["captions"]
        assert text == caption or not is_clean(caption)
        assert text.split() == caption.replace("\0", " ").split()
        kept = [label.strip() for label in labels if not is_blank(label)]
        if all(is_clean(label, entry=True) for label in labels):
            assert [label.strip() for label in record["object_labels"]] == kept
    changed = [text for text in captions if not is_clean(text)]
    changed += [text for text in labels if not (is_clean(text, entry=True) or is_blank(text))]
    assert reasons.count(NOT_IN_TSV) == len(changed)


@settings(max_examples=150, deadline=None)
@given(
    entries=st.lists(
        st.tuples(USABLE, USABLE, st.floats(0, 2**60, width=32)), min_size=1, max_size=3
    )
)
def test_questions_read_back(entries):
    questions, answers, confidences = map(list, zip(*entries, strict=True))
    record = {"questions": questions, "answers": answers, "answer_confidences": confidences}
    usable = [
        entry for entry in entries if not is_blank(entry[1].replace("&&", "").replace("|!+", ""))
    ]
    if not usable:
        with pytest.raises(InvalidRecordError, match="none of its answers can be used"):
            read("questions", record)
        return
    found, reasons = read("questions", record)
    assert len(found) == len(usable) == len(entries) - reasons.count(EMPTY_ENTRY)
    for (question, answer, confidence), one in zip(usable, found, strict=True):
        assert one["questions"] == [question] or not is_clean(question)
        assert one["answers"] == [answer.rstrip()] or not is_clean(answer, entry=True)
        assert one["answer_confidences"] == [np.float32(confidence)]


@settings(max_examples=150, deadline=None)
@given(entries=st.lists(st.tuples(USABLE, BOXES), min_size=1, max_size=4))
def test_regions_and_objects_read_back(entries):
    names, boxes = map(list, zip(*entries, strict=True))
    found, _ = read("regions", {"phrases": names, "phrase_boxes": boxes})
    for (name, box), record in zip(entries, found, strict=True):
        assert record["phrases"] == [name] or not is_clean(name)
        np.testing.assert_array_equal(record["phrase_boxes"], np.float32([box]))
    clean = [entry for entry in entries if is_clean(entry[0], entry=True)]
    if not clean:
        return
    names, boxes = map(list, zip(*clean, strict=True))
    (record,), reasons = read("objects", {"object_labels": names, "object_boxes": boxes})
    assert [name.strip() for name in record["object_labels"]] == [name.strip() for name in names]
    np.testing.assert_array_equal(record["object_boxes"], np.float32(boxes))
    assert not reasons


@settings(max_examples=100, deadline=None)
@given(text=USABLE, own_id=TEXTS)
def test_texts_and_ids_read_back(text, own_id):
    found, _ = read("text", {"text": text, "id": own_id, "image": b""})
    assert found[0]["text"] == text or not is_clean(text)
    assert found[0]["id"] == own_id or not is_clean(own_id) or own_id.startswith("\ufeff")


def test_a_name_that_is_a_separator_alone_is_dropped_and_counted():
    record = {"object_labels": ["a&", "&&", "&", "b"], "object_boxes": np.eye(4)}
    (found,), reasons = read("objects", record)
    assert found["object_labels"] == ["a&", "&", "b"]
    np.testing.assert_array_equal(found["object_boxes"], np.eye(4)[[0, 2, 3]])
    assert reasons == [NOT_IN_TSV, EMPTY_ENTRY]


def test_a_file_of_odd_first_bytes_is_read(tmp_path):
    path = tmp_path / "text.tsv"
    rows = [("\ufeffa", "u\0t\0f\0"), ("b", "two")]
    lines = [
        line for own_id, text in rows for line in tsv_lines("text", {"id": own_id, "text": text})
    ]
    path.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")
    opened = TsvFile(str(path)).open()
    assert [opened.columns(number) for number in range(2)] == [[b" a", b"u t f "], [b"b", b"two"]]
