"""Tests the rates of false captions and answers, and that they differ from the correct one."""

import numpy as np
import pytest

from ofa_jax.preprocessing.negatives import (
    NegativePool,
    sample_distant_caption,
    sample_negative_answer,
    sample_negative_caption,
    sample_other,
)

POOL = NegativePool(
    captions=("a cat", "two dogs", "a red car"),
    object_names=("cat", "dog", "car"),
    answers_by_type={
        "how many": ("0", "1", "2", "7"),
        "yes/no": ("yes", "no"),
        "other": ("tennis", "left"),
    },
)
DRAWS = 2000


def many(make):
    return [make(np.random.default_rng(seed)) for seed in range(DRAWS)]


def share(values, predicate):
    return sum(map(predicate, values)) / len(values)


# Five standard deviations of a share near one half over 2,000 draws.
BOUND = 5 * 0.5 / np.sqrt(DRAWS)


def test_forty_percent_replace_an_object_name():
    drawn = many(lambda rng: sample_negative_caption("a blue cat sits", ["cat"], POOL, rng))
    replaced = share(drawn, lambda caption: caption in ("a blue dog sits", "a blue car sits"))
    assert abs(replaced - 0.4) < BOUND
    assert set(drawn) - {"a blue dog sits", "a blue car sits"} == set(POOL.captions)


def test_without_objects_another_caption_is_sampled():
    drawn = many(lambda rng: sample_negative_caption("a cat", [], POOL, rng))
    assert set(drawn) == {"two dogs", "a red car"}


def test_a_name_that_is_not_in_the_caption_is_not_replaced():
    drawn = many(lambda rng: sample_negative_caption("a cat", ["zebra"], POOL, rng))
    assert "a cat" not in drawn


def test_a_distant_caption_names_an_absent_object():
    drawn = many(lambda rng: sample_distant_caption(["car"], POOL, rng))
    assert set(drawn) == {"a cat", "two dogs"}
    # Every caption may be true of such an image.
    assert sample_distant_caption(["cat", "dog", "car"], POOL, np.random.default_rng(0)) is None


def test_names_are_whole_words_and_the_longest_that_match():
    pool = NegativePool(("a carrot and hot dogs",), ("car", "dog", "hot dog", "carrot"))
    assert pool.object_name_pattern.findall(pool.captions[0]) == ["carrot", "hot dog"]
    assert sample_distant_caption(["carrot", "hot dog"], pool, np.random.default_rng(0)) is None


def test_confident_answers_have_negatives_of_their_type():
    drawn = many(lambda rng: sample_negative_answer("yes", 1.0, "yes/no", POOL, rng))
    # confidence 1 > draw + 0.1 nine times in ten.
    assert abs(share(drawn, lambda answer: answer == "no") - 0.9) < BOUND
    assert set(drawn) == {"no", "tennis", "left"}


def test_counts_are_sometimes_off_by_one_and_never_negative():
    drawn = many(lambda rng: sample_negative_answer("4", 1.0, "how many", POOL, rng))
    # For draws between 0.5 and 0.9 the count is off by one; 3 and 5 are in no list.
    assert abs(share(drawn, lambda answer: answer in ("3", "5")) - 0.4) < BOUND
    drawn = many(lambda rng: sample_negative_answer("0", 1.0, "how many", POOL, rng))
    assert not {"0", "-1"} & set(drawn)


def test_the_type_of_an_answer_is_looked_up_if_unknown():
    drawn = many(lambda rng: sample_negative_answer("no", 1.0, None, POOL, rng))
    assert abs(share(drawn, lambda answer: answer == "yes") - 0.9) < BOUND


@pytest.mark.parametrize("taken", POOL.captions)
def test_sample_other_never_returns_the_taken_choice(taken):
    assert taken not in many(lambda rng: sample_other(POOL.captions, taken, rng))


def test_an_empty_choice_gives_none():
    rng = np.random.default_rng(0)
    assert sample_other((), "a", rng) is None
    assert sample_other(("a",), "a", rng) is None
    assert sample_negative_caption("a", [], NegativePool(), rng) is None
    assert sample_negative_answer("a", 1.0, None, NegativePool(), rng) is None


def test_an_answer_that_is_also_of_type_other_keeps_its_type():
    pool = NegativePool(answers_by_type={"what color": ("red", "blue"), "other": ("red", "tree")})
    assert pool.type_by_answer == {"red": "what color", "blue": "what color"}
