"""Tests that lists of answers and class names are read as meant, or refused with their shapes."""

import json

import hypothesis.strategies as st
import pytest
from hypothesis import given

from ofa_jax.data.choices import SHAPES, read_choices, read_class_names
from ofa_jax.data.sources.tfds import ClassifiedImageRecord

KEPT = {
    "mark.txt": (b"\xef\xbb\xbfyes\nno\n", ["yes", "no"]),
    "mark.json": (b'\xef\xbb\xbf["yes", "no"]', ["yes", "no"]),
    "crlf.txt": (b"yes\r\nno\r\n", ["yes", "no"]),
    "separators.txt": (
        "rock\u2028roll\na\u0085b\nc\x0bd\ne\x0cf\ng\x1ch\n".encode(),
        ["rock\u2028roll", "a\u0085b", "c\x0bd", "e\x0cf", "g\x1ch"],
    ),
    "separators.json": (b'["rock\\u2028roll", "no"]', ["rock\u2028roll", "no"]),
    "repeated.txt": (b"yes\nno\nyes\n\n", ["yes", "no"]),
    "quoted_in_part.txt": (b'"stop" sign\nno\n', ['"stop" sign', "no"]),
    "one_quoted_of_two.txt": (b'"stop"\nno\n', ['"stop"', "no"]),
    "bracket.txt": (b"[unknown]\n{x}\n", ["[unknown]", "{x}"]),
    "json_by_content.txt": (b'["yes", "no"]\n', ["yes", "no"]),
    "labels.json": (b'{"no": 1, "yes": 0}', ["yes", "no"]),
    "frequencies.json": (b'{"no": 900, "yes": 12.5}', ["no", "yes"]),
    "by_number.json": (b'{"1": "no", "0": "yes"}', ["yes", "no"]),
    "UPPER.JSON": (b'["yes"]', ["yes"]),
    "surrogate.json": (b'["a \\ud83d dog", "no"]', ["a \ufffd dog", "no"]),
}
REFUSED = {
    "text.json": (b'"yes"', 'it is the text "yes"'),
    "nested.json": (b'{"answers": ["yes", "no"]}', 'the value of "answers" is a list'),
    "number.json": (b"3", "it is the number"),
    "null.json": (b"null", "it is null"),
    "numbers.json": (b'["yes", 2]', "entry 2 of the list is the number"),
    "lists.json": (b'[["yes", 1]]', "entry 1 of the list is a list"),
    "bool.json": (b'{"yes": true}', 'the value of "yes" is true'),
    "class_index.json": (b'{"0": ["n01440764", "tench"]}', 'the value of "0" is a list'),
    "texts.json": (b'{"a": "b"}', "the keys are not the numbers from 0 on"),
    "gap.json": (b'{"0": "b", "2": "c"}', "the keys are not the numbers from 0 on"),
    "mixed.json": (b'{"a": 1, "b": "x"}', 'the value of "b" is the text "x"'),
    "twice.json": (b'{"yes": 0, "yes": 1}', 'the key "yes" twice'),
    "nan.json": (b'{"yes": NaN}', "NaN is not JSON"),
    "huge.json": (b'{"yes": 1e999}', 'the value of "yes" is the number'),
    "deep.json": (b"[" * 100_000, ""),
    "torn.json": (b'["yes", "n', ""),
    "lines.jsonl": (b'{"answer": "yes"}\n{"answer": "no"}\n', "line 1 is JSON"),
    "columns.txt": (b"yes\t0\nno\t1\n", "line 1 has several columns"),
    "quoted.txt": (b'"yes"\n"no"\n', "every line is in quotes"),
    "returns.txt": (b"yes\rno\r", "line 1 has carriage returns"),
}


@pytest.mark.parametrize("name", KEPT)
def test_texts_are_read_as_they_are_meant(tmp_path, name):
    content, expected = KEPT[name]
    (tmp_path / name).write_bytes(content)
    assert read_choices(tmp_path / name) == expected


@pytest.mark.parametrize("name", REFUSED)
def test_other_shapes_are_refused_and_the_accepted_ones_listed(tmp_path, name):
    content, problem = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as raised:
        read_choices(tmp_path / name)
    message = str(raised.value)
    assert message.startswith(f"{tmp_path / name} must be {SHAPES}") and problem in message
    assert "\n" not in message


def test_other_encodings_are_named(tmp_path):
    (tmp_path / "a.txt").write_bytes("yes\nno\n".encode("utf-16"))
    with pytest.raises(ValueError, match="a.txt is UTF-16: save it as UTF-8"):
        read_choices(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_bytes("yes\ncaf\u00e9\n".encode("latin-1"))
    with pytest.raises(ValueError, match="b.txt, line 2: byte 0xe9 is not UTF-8"):
        read_choices(tmp_path / "b.txt")


def test_class_names_keep_their_numbers(tmp_path):
    """Two classes of ImageNet are called crane: without the second one, all labels would shift."""
    path = tmp_path / "classes.txt"
    path.write_text("tench\ncrane\nmaillot\ncrane\n\n")
    names = read_class_names(path)
    assert names == ["tench", "crane", "maillot", "crane"]
    assert read_choices(path) == ["tench", "crane", "maillot"]
    record = ClassifiedImageRecord(tuple(names))({"image": b"x", "label": 3})
    assert record["label"] == "crane"
    path.write_text("tench\n\ncrane\n")
    with pytest.raises(ValueError, match=r"name of class 1 \(counted from 0\) is empty"):
        read_class_names(path)


@given(st.lists(st.text(min_size=1)), st.booleans(), st.sampled_from(["\n", "\r\n"]))
def test_any_list_is_the_same_as_json_and_as_text(tmp_path, texts, mark, end):
    answers = [text.replace("\ufeff", "") for text in texts]
    answers = list(dict.fromkeys(text.strip() for text in answers if text.strip()))
    prefix = b"\xef\xbb\xbf" * mark
    path = tmp_path / "list.json"
    path.write_bytes(prefix + json.dumps(answers).encode())
    if not answers:
        with pytest.raises(ValueError, match="has no answers"):
            read_choices(path)
        return
    assert read_choices(path) == answers
    plain = [text for text in answers if not set(text) & set('\n\r\t"[{')]
    if plain:
        path = tmp_path / "list.txt"
        path.write_bytes(prefix + end.join([*plain, ""]).encode())
        assert read_choices(path) == plain


@given(st.binary(max_size=60), st.sampled_from(["list.txt", "list.json"]))
def test_any_bytes_are_a_list_or_refused_in_a_sentence(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    try:
        found = read_choices(tmp_path / name)
    except ValueError as error:
        assert name in str(error) and not isinstance(error, UnicodeError)
    else:
        assert found and all(isinstance(text, str) and text.strip() == text for text in found)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(JSON)
def test_any_json_is_a_list_of_its_own_texts_or_refused(tmp_path, value):
    path = tmp_path / "list.json"
    path.write_text(json.dumps(value))
    try:
        found = read_choices(path)
    except ValueError:
        return
    # Never letters of a text, or texts from deeper inside.
    known = [*value, *(value.values() if isinstance(value, dict) else ())]
    known = {text.strip() for text in known if isinstance(text, str)}
    assert isinstance(value, list | dict) and set(found) <= known
