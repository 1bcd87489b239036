"""Static shapes, shifting, truncation, and invalid examples and streams."""

import numpy as np
import pytest

from ofa_jax.data.features import (
    BOS_ID,
    EOS_ID,
    PAD_ID,
    Stream,
    empty_features,
    stack,
    to_features,
)  # fmt: skip

LENGTHS = {"inputs": 6, "targets": 5}
TEXT = Stream("text", "m", 2, LENGTHS)
IMAGES = Stream("images", "m", 2, LENGTHS, image_size=48, code_targets=True)
SAMPLED = Stream("sampled", "m", 2, LENGTHS, image_size=48, num_sampled_patches=4)


def example(inputs=(0, 7, 2), targets=(8, 9, 2), **others):
    return {"inputs": np.array(inputs), "targets": np.array(targets)} | others


def features(stream=TEXT, seed=0, **parts):
    return to_features(example(**parts), stream, 3, np.random.default_rng(seed))


def make_image(size=48):
    return np.random.default_rng(1).integers(0, 256, (size, size, 3), np.uint8)


def test_targets_are_shifted_behind_bos_and_weighted_by_the_confidence():
    row = features(loss_weight=0.25)
    np.testing.assert_array_equal(row["encoder_input_tokens"], [0, 7, 2, 1, 1, 1])
    np.testing.assert_array_equal(row["decoder_target_tokens"], [8, 9, 2, 1, 1])
    np.testing.assert_array_equal(row["decoder_input_tokens"], [0, 8, 9, 1, 1])
    np.testing.assert_array_equal(row["decoder_loss_weights"], [0.25, 0.25, 0.25, 0, 0])
    assert row["task_ids"] == 3


TOKENS = {
    "encoder_input_tokens": ((6,), "int32"),
    "decoder_input_tokens": ((5,), "int32"),
    "decoder_target_tokens": ((5,), "int32"),
    "decoder_loss_weights": ((5,), "float32"),
    "task_ids": ((), "int32"),
}
IMAGE = {"encoder_images": ((48, 48, 3), "uint8"), "encoder_image_mask": ((), "bool")}


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (TEXT, TOKENS),
        (
            IMAGES,
            TOKENS
            | IMAGE
            | {"decoder_code_mask": ((), "bool"), "encoder_image_blank_boxes": ((4,), "int32")},
        ),
        (SAMPLED, TOKENS | IMAGE | {"encoder_patch_indices": ((4,), "int32")}),
    ],
    ids=lambda part: getattr(part, "name", ""),
)
def test_features_have_static_shapes_and_types_and_text_streams_no_images(stream, expected):
    image = {} if stream.image_size is None else {"image": make_image()}
    for row in (features(stream, **image), empty_features(stream, 3)):
        assert {k: (v.shape, v.dtype.name) for k, v in row.items()} == expected


def test_long_inputs_keep_their_eos_and_long_targets_lose_it():
    row = features(inputs=[0, *range(10, 18), EOS_ID], targets=[*range(20, 28), EOS_ID])
    np.testing.assert_array_equal(row["encoder_input_tokens"], [0, 10, 11, 12, 13, EOS_ID])
    np.testing.assert_array_equal(row["decoder_target_tokens"], range(20, 25))
    np.testing.assert_array_equal(row["decoder_input_tokens"], [BOS_ID, *range(20, 24)])


def test_unscored_targets_are_read_but_not_scored():
    """As the official code does with captions of CC12M: targets become padding, inputs do not."""
    row = features(unscored_targets=2)
    np.testing.assert_array_equal(row["decoder_target_tokens"], [PAD_ID, PAD_ID, 2, 1, 1])
    np.testing.assert_array_equal(row["decoder_input_tokens"], [0, 8, 9, 1, 1])
    np.testing.assert_array_equal(row["decoder_loss_weights"], [0, 0, 1, 0, 0])


def test_eos_is_scored_even_if_unscored_targets_exceeds_the_target():
    row = features(targets=[8, 2], unscored_targets=4)
    np.testing.assert_array_equal(row["decoder_target_tokens"], [PAD_ID, 2, 1, 1, 1])
    np.testing.assert_array_equal(row["decoder_loss_weights"], [0, 1, 0, 0, 0])


def test_an_image_is_uint8_with_its_blank_box_and_code_mask():
    image = make_image()
    row = features(IMAGES, image=image, blank_box=np.array([8, 8, 24, 24]), code_mask=True)
    assert row["encoder_images"].dtype == np.uint8
    np.testing.assert_array_equal(row["encoder_images"], image)
    assert row["encoder_image_mask"] and row["decoder_code_mask"]
    np.testing.assert_array_equal(row["encoder_image_blank_boxes"], [8, 8, 24, 24])


def test_an_image_is_copied_into_the_batch_alone():
    image = make_image()
    row = features(IMAGES, image=image)
    assert row["encoder_images"] is image
    batch = stack([row, features(IMAGES)])["encoder_images"]
    np.testing.assert_array_equal(batch, [image, np.zeros_like(image)])
    assert not np.shares_memory(batch, image)
    # Numbers of another type are still converted to a copy.
    wide = features(IMAGES, image=image.astype(np.int64))["encoder_images"]
    assert wide.dtype == np.uint8
    np.testing.assert_array_equal(wide, image)


@pytest.mark.parametrize("image", [None, np.zeros((0, 0, 3), np.uint8)])
def test_an_example_without_an_image_masks_it(image):
    row = features(IMAGES, **({} if image is None else {"image": image}))
    assert not row["encoder_image_mask"] and not row["encoder_images"].any()


def test_patches_are_drawn_without_replacement_and_differently_for_each_example():
    rows = [
        features(SAMPLED, seed, image=make_image())["encoder_patch_indices"] for seed in range(40)
    ]
    assert all(len(set(row)) == 4 for row in rows)
    # 9 patches; 160 draws miss one of them with a probability of about 1e-9.
    assert {int(patch) for row in rows for patch in row} == set(range(9))
    assert len({tuple(row) for row in rows}) > 30


@pytest.mark.parametrize("stream", [TEXT, IMAGES, SAMPLED])
def test_an_empty_row_has_no_loss_but_a_token_to_attend_to(stream):
    image = {} if stream.image_size is None else {"image": make_image()}
    row, empty = features(stream, **image), empty_features(stream, 3)
    np.testing.assert_array_equal(empty["encoder_input_tokens"], [BOS_ID] + 5 * [PAD_ID])
    np.testing.assert_array_equal(empty["decoder_input_tokens"], [BOS_ID] + 4 * [PAD_ID])
    assert not empty["decoder_loss_weights"].any()
    assert (empty["decoder_target_tokens"] == PAD_ID).all()
    batch = stack([row, empty])
    assert all(len(array) == 2 for array in batch.values())


@pytest.mark.parametrize(
    ("stream", "parts", "sentence"),
    [
        (TEXT, {"image": make_image()}, "has no image_size, but m yields images"),
        (IMAGES, {"image": make_image(32)}, r"expects images of \(48, 48, 3\), but m yields"),
        (SAMPLED, {"image": make_image(), "code_mask": True}, "set its code_targets=True"),
        (SAMPLED, {"image": make_image(), "blank_box": np.ones(4)}, "blanked part: set its code_t"),
    ],
)
def test_an_example_that_does_not_fit_its_stream_is_refused(stream, parts, sentence):
    with pytest.raises(ValueError, match=sentence):
        features(stream, **parts)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(task_feature_lengths={"inputs": 5}), "give {'inputs': S, 'targets': T}"),
        (
            dict(task_feature_lengths={"inputs": 5, "targets": 0}),
            r"task_feature_lengths\['targets'\] is 0; it must be at least 1",
        ),
        (dict(batch_size=0), "batch_size is 0"),
        (
            dict(image_size=40),
            "is 40; .* a multiple of 16, or None. A patch has 16 x 16 pixels",
        ),
        (dict(num_sampled_patches=3), "cannot sample 3 of 0 patches"),
        (dict(image_size=48, num_sampled_patches=10), "cannot sample 10 of 9 patches"),
    ],
)
def test_an_invalid_stream_is_refused(options, sentence):
    settings = (
        dict(name="s", mixture_or_task_name="m", batch_size=2, task_feature_lengths=LENGTHS)
        | options
    )
    with pytest.raises(ValueError, match=sentence):
        Stream(**settings)
