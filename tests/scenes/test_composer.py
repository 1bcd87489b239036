"""Tests that scenes are reproducible, boxes exact and objects visible."""

import io

import numpy as np
import pytest
from PIL import Image

from ofa_jax.scenes import composer, records
from ofa_jax.scenes.composer import SceneOptions

OPTIONS = SceneOptions(seed=3)


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def test_a_scene_depends_only_on_seed_split_and_index():
    first = records.make_record(OPTIONS, "train", 7)
    records.make_record(OPTIONS, "train", 8)
    assert equal(first, records.make_record(OPTIONS, "train", 7))
    for other in (
        records.make_record(OPTIONS, "train", 8),
        records.make_record(OPTIONS, "validation", 7),
        records.make_record(SceneOptions(seed=4), "train", 7),
    ):
        assert first["image"] != other["image"]


def test_boxes_are_tight_around_the_visible_pixels(monkeypatch):
    """An image on white minus that on black is 255 minus the opacity."""

    def compose(value, index):
        background = np.full((128, 128, 3), value, np.uint8)
        monkeypatch.setattr(composer, "_contrasting_background", lambda *_: (background, None))
        rng = composer.make_generator(OPTIONS, "train", index)
        return composer.compose(OPTIONS, "twemoji", rng)

    for index in range(60):
        scene, on_white = compose(255, index)
        _, on_black = compose(0, index)
        opacity = 255 - (on_white.astype(int) - on_black).max(-1)
        union = np.zeros((128, 128), bool)
        for item in scene.objects:
            x0, y0, x1, y1 = map(int, item.box)
            inside = opacity[y0:y1, x0:x1] >= composer.VISIBLE_ALPHA
            # A visible pixel touches each side of the box.
            assert inside[0].any() and inside[-1].any()
            assert inside[:, 0].any() and inside[:, -1].any()
            union[y0:y1, x0:x1] = True
        assert (opacity[~union] < composer.VISIBLE_ALPHA).all(), "a visible pixel is in no box"


@pytest.mark.parametrize("split", ["train", "test_shifted"])
def test_objects_lie_inside_are_large_enough_and_hardly_overlap(split):
    sizes = []
    for index in range(150):
        record = records.make_record(OPTIONS, split, index)
        boxes = record["object_boxes"]
        assert 1 <= len(boxes) <= OPTIONS.max_objects
        assert (boxes >= 0).all() and (boxes <= 128).all()
        sides = boxes[:, 2:] - boxes[:, :2]
        sizes.extend(sides.max(1))
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                shared = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
                smaller = min(np.prod(a[2:] - a[:2]), np.prod(b[2:] - b[:2]))
                # The limit holds for whole boxes; an occlusion may shrink a box by a few pixels.
                assert np.prod(shared.clip(0)) <= 0.1 * smaller
    assert min(sizes) >= 0.2 * 128  # 28 px, of which a neighbour may hide a few
    assert np.mean([size > 28 for size in sizes]) > 0.95


def test_the_image_is_a_jpeg_of_the_given_size():
    record = records.make_record(SceneOptions(image_size=192), "test", 0)
    with Image.open(io.BytesIO(record["image"])) as image:
        assert image.format == "JPEG"
        assert image.size == (192, 192)


@pytest.mark.parametrize(
    ("field", "value"), [("max_objects", 0), ("image_size", 100), ("nouns", 3)]
)
def test_impossible_options_raise_an_error_that_names_the_flag(field, value):
    with pytest.raises(ValueError, match=f"--{field}"):
        SceneOptions(**{field: value})
