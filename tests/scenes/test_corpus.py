"""Tests that sentences are clean, and that no other split has one of training."""

import doctest
import re

import pytest

from ofa_jax.scenes import corpus

SPLITS = ("train", "validation", "test", "test_shifted")


def test_no_other_split_has_a_training_sentence():
    train = set(corpus.load_sentences("train"))
    for split in SPLITS[1:]:
        assert corpus.load_sentences(split)
        assert train.isdisjoint(corpus.load_sentences(split))


def test_sentences_are_plain_text():
    for split in SPLITS:
        sentences = corpus.load_sentences(split)
        assert len(set(sentences)) == len(sentences)
        for text in sentences:
            assert not re.search(r"</?[a-z]|&[a-z]+;|[\n\t\xa0]", text), text
            assert text == " ".join(text.split())
            assert 5 <= len(text.split()) <= 48
    assert len(corpus.load_sentences("train")) > 10_000


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("<p>Supr&ecirc;me <em>Court</em> &amp; more</p>", "Suprême Court & more"),
        ("the people’s flag – red", "the people's flag - red"),
        ("note 1: the coast , is  long", "the coast, is long"),
    ],
)
def test_clean_removes_markup_and_simplifies_characters(raw, clean):
    assert corpus.clean(raw) == clean


def test_docstring_examples():
    assert doctest.testmod(corpus).failed == 0


def test_figures_and_lists_of_names_are_not_prose():
    assert corpus.is_prose("most of the country is rugged and mountainous")
    assert not corpus.is_prose("urban: 96.1% of population 2022 total: 84.3% rural 50.1%")
    assert not corpus.is_prose("Algiers, Oran, Constantine, Batna, Djelfa, Setif, Annaba")
