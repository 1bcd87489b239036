"""Parsing tokens, and converting parsed outputs to JSON and back."""

import json

import numpy as np
import pytest

from ofa_jax.evaluation import postprocess
from ofa_jax.evaluation.postprocess import BoxTransform, parse

EOS, PAD = 2, 1
SIZE = 64  # of the model's image in pixels; with 65 bins, one bin is one pixel


def box(vocabulary, *pixels):
    return vocabulary.encode_box(pixels, SIZE).tolist()


def text(vocabulary, words):
    return vocabulary.encode(f" {words}").tolist()


def test_text_ends_at_eos_and_has_no_leading_space(vocabulary):
    ids = [*text(vocabulary, "a red apple"), EOS, *text(vocabulary, "no"), PAD]
    assert parse("text", ids, vocabulary) == "a red apple"
    assert parse("text", [EOS], vocabulary) == ""


def test_a_box_is_returned_in_pixels_of_the_stored_image(vocabulary):
    ids = [*box(vocabulary, 16, 32, 48, 64), EOS]
    np.testing.assert_array_equal(parse("box", ids, vocabulary, SIZE), [16, 32, 48, 64])
    # The stored image is twice as wide and half as high.
    transform = BoxTransform.of_whole_image((128, 32), (SIZE, SIZE))
    np.testing.assert_array_equal(parse("box", ids, vocabulary, SIZE, transform), [32, 16, 96, 32])
    # The model sees the square that starts at (100, 10), enlarged by two.
    transform = BoxTransform((100, 10, 132, 42), (SIZE, SIZE))
    np.testing.assert_array_equal(
        parse("box", ids, vocabulary, SIZE, transform), [108, 26, 124, 42]
    )


def test_location_bins_span_max_image_size_whatever_the_image_size(vocabulary):
    """Bins span 512 pixels for every image size, as in the reference implementation."""
    ids = vocabulary.encode_box((0, 0, 256, 512), 512).tolist()
    transform = BoxTransform.of_whole_image((640, 480), (256, 512))
    np.testing.assert_array_equal(parse("box", ids, vocabulary, 512, transform), [0, 0, 640, 480])


@pytest.mark.parametrize("output", ["three bins", "a word", "nothing"])
def test_an_output_without_a_box_gives_a_box_without_area(vocabulary, output):
    ids = {
        "three bins": [*box(vocabulary, 1, 2, 3, 4)[:3], EOS],
        "a word": [*box(vocabulary, 1, 2, 3, 4)[:2], *text(vocabulary, "red apple")],
        "nothing": [EOS],
    }[output]
    found = parse(
        "box", ids, vocabulary, SIZE, BoxTransform.of_whole_image((100, 100), (SIZE, SIZE))
    )
    assert found.dtype == np.float32 and found.tolist() == [0, 0, 0, 0]


def test_objects_are_boxes_with_their_labels(vocabulary):
    first, second = (1, 2, 3, 4), (10, 20, 30, 40)
    ids = [
        *box(vocabulary, *first),
        *text(vocabulary, "red apple"),
        *box(vocabulary, *second),
        *text(vocabulary, "apple"),
        EOS,
    ]
    found = parse("objects", ids, vocabulary, SIZE)
    assert found["labels"] == ["red apple", "apple"]
    np.testing.assert_array_equal(found["boxes"], [first, second])


def test_incomplete_objects_are_left_out(vocabulary):
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
    found = parse("objects", ids, vocabulary, SIZE)
    assert found["labels"] == ["apple"] and found["boxes"].tolist() == [[5, 6, 7, 8]]
    empty = parse("objects", [EOS], vocabulary, SIZE)
    assert empty["labels"] == [] and empty["boxes"].shape == (0, 4)


def test_codes_keep_their_positions(vocabulary):
    ids = [*vocabulary.encode_codes([3, 0, 15]), vocabulary.bin_ids[0], vocabulary.mask_id]
    found = parse("codes", ids, vocabulary)
    assert found.dtype == np.int32 and found.tolist() == [3, 0, 15, -1, -1]


def test_from_json_inverts_to_json(vocabulary):
    transform = BoxTransform.of_whole_image((333, 77), (SIZE, SIZE))
    ids = [*box(vocabulary, 1, 2, 3, 4), *text(vocabulary, "apple")]
    for kind in ("text", "box", "objects", "codes"):
        output = parse(kind, ids, vocabulary, SIZE, transform)
        plain = json.loads(json.dumps(postprocess.to_json(kind, output)))
        again = postprocess.from_json(kind, plain)
        assert type(again) is type(output)
        if kind == "objects":
            assert again["labels"] == output["labels"]
            again, output = again["boxes"], output["boxes"]
        assert getattr(again, "dtype", None) == getattr(output, "dtype", None)
        np.testing.assert_array_equal(again, output)
