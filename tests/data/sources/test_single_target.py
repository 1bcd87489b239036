"""Tests that each record has a single target, the same whenever it is read."""

import pickle

import numpy as np
import pytest

from ofa_jax.data.sources.memory import InMemoryRecords
from ofa_jax.data.sources.single_target import SingleTarget, select_single_target

SCENE = {
    "id": "s",
    "image": b"",
    "captions": ["a dog", "a cat"],
    "negative_captions": ["a cow"],
    "questions": ["q0", "q1", "q2"],
    "answers": ["a0", "a1", "a2"],
    "answer_types": ["t0", "t1", "t2"],
    "answer_confidences": [0.0, 0.1, 0.2],
    "phrases": ["p0", "p1"],
    "phrase_boxes": np.arange(8, dtype=np.float32).reshape(2, 4),
}


def read(kind, count=60, scene=SCENE):
    records = SingleTarget(InMemoryRecords([scene] * count), kind)
    again = pickle.loads(pickle.dumps(records))
    made = [records[index] for index in range(len(records))]
    for record, index in zip(made, reversed(range(count)), strict=False):
        assert again[index].keys() == records[index].keys()
        assert str(again[index]) == str(records[index])
        assert record["id"] == "s"
    return made


def test_one_question_is_kept_with_its_answer():
    seen = set()
    for record in read("questions"):
        (question,), (answer,) = record["questions"], record["answers"]
        assert answer == "a" + question[1] and record["answer_types"] == ["t" + question[1]]
        assert record["answer_confidences"] == [SCENE["answer_confidences"][int(question[1])]]
        seen.add(question)
    assert seen == {"q0", "q1", "q2"}


def test_one_phrase_is_kept_with_its_box():
    seen = set()
    for record in read("regions"):
        (phrase,) = record["phrases"]
        np.testing.assert_array_equal(
            record["phrase_boxes"], SCENE["phrase_boxes"][[int(phrase[1])]]
        )
        seen.add(phrase)
    assert seen == {"p0", "p1"}


def test_matching_keeps_a_caption_or_a_question_and_is_positive_half_of_the_time():
    made = read("pairs", 400)
    for record in made:
        assert ("captions" in record) != ("questions" in record)
        assert len(record.get("captions") or record["questions"]) == 1
        assert record["negative_captions"] == ["a cow"]
    # Five standard deviations of a fair coin.
    for number in (
        sum(record["label"] == "yes" for record in made),
        sum("captions" in record for record in made),
    ):
        assert abs(number - 200) < 5 * np.sqrt(400) / 2
    assert {record["label"] for record in made} == {"yes", "no"}


def test_matching_without_questions_keeps_a_caption():
    captions = {"id": "s", "captions": ["a dog", "a cat"]}
    assert all(len(record["captions"]) == 1 for record in read("pairs", 20, captions))


def test_other_kinds_and_inconsistent_records_are_unchanged():
    assert read("captions", 1)[0] == SCENE
    inconsistent = SCENE | {"answers": ["a0"]}
    assert read("questions", 1, inconsistent)[0] == inconsistent


def test_the_location_of_a_record_is_that_of_the_source():
    class Located(InMemoryRecords):
        def location(self, index):
            return f"file, line {index + 1}"

    assert SingleTarget(Located([SCENE]), "questions").location(0) == "file, line 1"
    assert SingleTarget(InMemoryRecords([SCENE]), "questions").location(0) == "record 0"


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("questions", {"questions": ["???", "what?", None]}),
        ("questions", {"answers": ["", "dog", " "]}),
        ("questions", {"answer_confidences": [float("nan"), 1.0, -1.0]}),
        ("regions", {"phrases": ["...", "a dog", b""]}),
        ("regions", {"phrase_boxes": [[5, 5, 5, 9], [1, 2, 3, 4], [1, 2, 3]]}),
        ("pairs", {"captions": ["", "a dog", "-"], "questions": []}),
    ],
)
def test_the_target_is_one_that_can_be_used(kind, change):
    """Of three entries the middle one is usable, so it is chosen whatever the draw."""
    record = {
        "id": "1",
        "captions": ["a", "b", "c"],
        "questions": ["a?", "b?", "c?"],
        "answers": ["x", "y", "z"],
        "answer_confidences": [1.0, 0.5, 0.25],
        "phrases": ["a", "b", "c"],
        "phrase_boxes": [[1, 2, 3, 4]] * 3,
    } | change
    ((field, values), *_) = change.items()
    for seed in range(8):
        single = select_single_target(record, kind, np.random.default_rng(seed))
        assert list(single[field]) == [values[1]]
