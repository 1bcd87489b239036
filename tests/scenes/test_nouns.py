"""Tests the English grammar of the nouns, and that each has a pictogram in both styles."""

import pytest

from ofa_jax.scenes import nouns, sprites


@pytest.mark.parametrize(
    ("name", "article", "plural"),
    [
        ("dog", "a dog", "dogs"),
        ("owl", "an owl", "owls"),
        ("unicorn", "a unicorn", "unicorns"),
        ("umbrella", "an umbrella", "umbrellas"),
        ("hourglass", "an hourglass", "hourglasses"),
        ("house", "a house", "houses"),
        ("strawberry", "a strawberry", "strawberries"),
        ("key", "a key", "keys"),
        ("bus", "a bus", "buses"),
        ("fox", "a fox", "foxes"),
        ("toothbrush", "a toothbrush", "toothbrushes"),
        ("kitchen knife", "a kitchen knife", "kitchen knives"),
        ("maple leaf", "a maple leaf", "maple leaves"),
        ("mouse", "a mouse", "mice"),
        ("goose", "a goose", "geese"),
        ("sheep", "a sheep", "sheep"),
        ("cactus", "a cactus", "cacti"),
        ("octopus", "an octopus", "octopuses"),
        ("tomato", "a tomato", "tomatoes"),
        ("avocado", "an avocado", "avocados"),
        ("die", "a die", "dice"),
        ("slice of pizza", "a slice of pizza", "slices of pizza"),
        ("ear of corn", "an ear of corn", "ears of corn"),
    ],
)
def test_articles_and_plurals(name, article, plural):
    assert nouns.with_article(name) == article
    assert nouns.plural(name) == plural


def test_counts_are_written_as_words():
    owl = nouns.Noun("owl", "1f989")
    assert [owl.counted(n) for n in (0, 1, 3)] == ["no owls", "an owl", "three owls"]


def test_every_noun_has_a_pictogram_in_both_styles():
    missing = [
        (noun.name, style)
        for noun in nouns.all_nouns()
        for style in sprites.STYLES
        if not sprites.sprite_path(noun.code, style).is_file()
    ]
    assert not missing


def test_names_and_pictograms_are_unique():
    table = nouns.all_nouns()
    assert len({noun.name for noun in table}) == len({noun.code for noun in table}) == len(table)
    # A plural that is also another noun's name would be ambiguous.
    names = {noun.name for noun in table}
    assert not [noun for noun in table if noun.plural != noun.name and noun.plural in names]


def test_no_noun_is_a_kind_of_another():
    """Compares the heads: no "video camera" beside "camera". A hot dog is not a dog."""
    names = [noun.name for noun in nouns.all_nouns() if noun.name != "hot dog"]
    assert not [(a, b) for a in names for b in names if b.endswith(f" {a}")]


def test_too_many_nouns_raise_an_error_with_their_number():
    count = len(nouns.all_nouns())
    with pytest.raises(ValueError, match=f"{count} nouns to choose from"):
        nouns.first_nouns(count + 1)
