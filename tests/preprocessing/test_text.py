"""Tests the cleaning of text against 60 golden strings."""

import json

import pytest

from ofa_jax.preprocessing.text import clean_caption, clean_question


@pytest.fixture(scope="module")
def rows(golden):
    return json.loads((golden / "preprocess" / "pre_caption_question.json").read_text())


@pytest.mark.parametrize(
    ("name", "clean", "max_words"),
    [
        ("pre_caption", clean_caption, None),
        ("pre_caption_max5", clean_caption, 5),
        ("pre_question", clean_question, None),
        ("pre_question_max5", clean_question, 5),
    ],
)
def test_every_golden_string_is_cleaned_exactly(rows, name, clean, max_words):
    assert len(rows) == 60
    for row in rows:
        assert clean(row["text"], max_words) == row[name], row["text"]
