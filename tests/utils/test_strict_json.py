"""Tests that JSON whose author may have meant two things is refused or marked."""

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ofa_jax.utils import strict_json
from ofa_jax.utils.text_files import DamagedFileError, read_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(value=VALUES, mark=st.booleans())
def test_other_json_is_parsed_as_ever(value, mark):
    assert strict_json.parse(json.dumps(value), mark_repeated=mark) == value


@pytest.mark.parametrize(
    "text",
    ['{"a": 1, "a": 1}', '[0, {"b": {"c": 1, "a": 2, "a": null}}]', r'{"a": 1, "\u0061": 2}'],
)
def test_a_key_that_is_there_twice_is_refused(text, tmp_path):
    with pytest.raises(strict_json.RepeatedKeyError, match='it has the key "a" twice'):
        strict_json.parse(text)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(DamagedFileError, match=r'config.json is ambiguous: it has the key "a"'):
        read_json(tmp_path / "config.json")


def test_an_object_with_a_key_twice_can_be_marked():
    value = strict_json.parse(
        '[{"a": 1, "b": 2, "a": 3}, {"a": 1}]', only_finite=False, mark_repeated=True
    )
    assert value == [{"a": 3, "b": 2}, {"a": 1}]
    assert isinstance(value[0], strict_json.MarkedObject) and value[0].repeated == ("a",)
    assert type(value[1]) is dict


def test_numbers_that_are_not_finite_are_refused_unless_they_are_asked_for():
    for text in ("NaN", "[Infinity]", '{"a": -Infinity}'):
        with pytest.raises(ValueError, match="is not JSON"):
            strict_json.parse(text)
        strict_json.parse(text, only_finite=False)


def test_a_file_that_is_compressed_is_called_so(tmp_path):
    (tmp_path / "a.json").write_bytes(gzip.compress(b"{}"))
    with pytest.raises(DamagedFileError, match="a.json is compressed with gzip: unpack it"):
        read_json(tmp_path / "a.json")
