"""Tests the negative controls: records on which a model that uses its images must fail."""

import pytest

from ofa_jax.data.sources import negative_controls
from ofa_jax.data.sources.memory import InMemoryRecords
from ofa_jax.data.sources.negative_controls import AbsentNouns, SwappedImages
from ofa_jax.preprocessing.records import InvalidRecordError


def test_a_record_has_the_image_of_the_next_one():
    records = InMemoryRecords([{"id": str(n), "image": bytes([n]), "q": n} for n in range(3)])
    swapped = SwappedImages(records)
    assert [dict(swapped[n]) for n in range(len(swapped))] == [
        {"id": "0", "image": b"\x01", "q": 0},
        {"id": "1", "image": b"\x02", "q": 1},
        {"id": "2", "image": b"\x00", "q": 2},
    ]


def test_the_phrase_names_an_absent_object_and_the_box_is_unchanged():
    regions = InMemoryRecords(
        [{"id": str(n), "phrases": ["the owl"], "phrase_boxes": [[n, 0, 9, 9]]} for n in range(30)]
    )
    objects = InMemoryRecords([{"id": str(n), "object_labels": ["owl", "car"]} for n in range(30)])
    source = AbsentNouns(regions, objects, ("car", "dog", "owl", "tree"))
    phrases = [source[n]["phrases"] for n in range(30)]
    assert {phrase for (phrase,) in phrases} == {"the dog", "the tree"}
    assert phrases == [source[n]["phrases"] for n in range(30)]
    assert source[4]["phrase_boxes"] == [[4, 0, 9, 9]]


def test_images_that_show_every_noun_or_do_not_match_make_a_record_invalid():
    regions = InMemoryRecords([{"id": "0", "phrases": ["the owl"]}])
    for shown, problem in (
        ({"id": "0", "object_labels": ["owl"]}, "everything that has a name is in it"),
        ({"id": "1", "object_labels": []}, "its objects are those of 1"),
    ):
        with pytest.raises(InvalidRecordError, match=problem):
            AbsentNouns(regions, InMemoryRecords([shown]), ("owl",))[0]


def test_tasks_keep_the_names_of_evaluations_on_disk():
    # Another name would also change the random draws of the examples.
    assert negative_controls.SWAPPED == "_swapped_picture"
