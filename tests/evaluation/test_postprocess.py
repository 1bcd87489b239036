"""Reading tokens into answers, and answers through JSON."""

import json

import numpy as np
import pytest

from ofa_jax.evaluation import postprocess
from ofa_jax.evaluation.postprocess import View, read

EOS, PAD = 2, 1
SIZE = 64  # of the model's image; with 65 bins a bin is a pixel


def box(vocabulary, *pixels):
    return vocabulary.encode_box(pixels, SIZE).tolist()


def text(vocabulary, words):
    return vocabulary.encode(f" {words}").tolist()


def test_text_is_read_up_to_its_eos_without_the_space_in_front(vocabulary):
    ids = [*text(vocabulary, "a red apple"), EOS, *text(vocabulary, "no"), PAD]
    assert read("text", ids, vocabulary) == "a red apple"
    assert read("text", [EOS], vocabulary) == ""


def test_a_box_is_in_pixels_of_the_stored_image(vocabulary):
    ids = [*box(vocabulary, 16, 32, 48, 64), EOS]
    np.testing.assert_array_equal(read("box", ids, vocabulary, SIZE), [16, 32, 48, 64])
    # Twice as wide and half as high there.
    view = View.whole((128, 32), (SIZE, SIZE))
    np.testing.assert_array_equal(read("box", ids, vocabulary, SIZE, view), [32, 16, 96, 32])
    # The model saw the square from (100, 10) on, enlarged by two.
    view = View((100, 10, 132, 42), (SIZE, SIZE))
    np.testing.assert_array_equal(read("box", ids, vocabulary, SIZE, view), [108, 26, 124, 42])


def test_the_last_bin_stands_for_the_largest_image_not_for_this_one(vocabulary):
    """Section 2 of the spec: bins are over 512 pixels, whatever the image's size."""
    ids = vocabulary.encode_box((0, 0, 256, 512), 512).tolist()
    view = View.whole((640, 480), (256, 512))
    np.testing.assert_array_equal(read("box", ids, vocabulary, 512, view), [0, 0, 640, 480])


@pytest.mark.parametrize("written", ["three bins", "a word", "nothing"])
def test_what_is_no_box_has_no_area(vocabulary, written):
    ids = {
        "three bins": [*box(vocabulary, 1, 2, 3, 4)[:3], EOS],
        "a word": [*box(vocabulary, 1, 2, 3, 4)[:2], *text(vocabulary, "red apple")],
        "nothing": [EOS],
    }[written]
    found = read("box", ids, vocabulary, SIZE, View.whole((100, 100), (SIZE, SIZE)))
    assert found.dtype == np.float32 and found.tolist() == [0, 0, 0, 0]


def test_objects_are_boxes_with_their_names(vocabulary):
    first, second = (1, 2, 3, 4), (10, 20, 30, 40)
    ids = [
        *box(vocabulary, *first),
        *text(vocabulary, "red apple"),
        *box(vocabulary, *second),
        *text(vocabulary, "apple"),
        EOS,
    ]
    found = read("objects", ids, vocabulary, SIZE)
    assert found["labels"] == ["red apple", "apple"]
    np.testing.assert_array_equal(found["boxes"], [first, second])


def test_incomplete_objects_are_left_out_and_the_others_stay(vocabulary):
    whole = [*box(vocabulary, 5, 6, 7, 8), *text(vocabulary, "apple")]
    ids = [
        *text(vocabulary, "green"),
        *box(vocabulary, 1, 2, 3, 4)[:3],
        *text(vocabulary, "red"),
        *whole,
        *box(vocabulary, 1, 2, 3, 4),
        *box(vocabulary, 1, 2, 3, 4),
        *text(vocabulary, "no"),
        *box(vocabulary, 1, 2, 3, 4),
    ]
    found = read("objects", ids, vocabulary, SIZE)
    assert found["labels"] == ["apple"] and found["boxes"].tolist() == [[5, 6, 7, 8]]
    nothing = read("objects", [EOS], vocabulary, SIZE)
    assert nothing["labels"] == [] and nothing["boxes"].shape == (0, 4)


def test_codes_keep_their_places(vocabulary):
    ids = [*vocabulary.encode_codes([3, 0, 15]), vocabulary.bin_ids[0], vocabulary.mask_id]
    found = read("codes", ids, vocabulary)
    assert found.dtype == np.int32 and found.tolist() == [3, 0, 15, -1, -1]


def test_json_gives_the_same_answers_back(vocabulary):
    view = View.whole((333, 77), (SIZE, SIZE))
    ids = [*box(vocabulary, 1, 2, 3, 4), *text(vocabulary, "apple")]
    for kind in ("text", "box", "objects", "codes"):
        answer = read(kind, ids, vocabulary, SIZE, view)
        plain = json.loads(json.dumps(postprocess.to_json(kind, answer)))
        again = postprocess.from_json(kind, plain)
        assert type(again) is type(answer)
        if kind == "objects":
            assert again["labels"] == answer["labels"]
            again, answer = again["boxes"], answer["boxes"]
        assert getattr(again, "dtype", None) == getattr(answer, "dtype", None)
        np.testing.assert_array_equal(again, answer)
