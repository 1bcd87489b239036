"""Tests all eight objectives against the golden examples in golden/preprocess/fixed.json."""

import dataclasses
import io

import numpy as np
import pytest
from golden_examples import MAIN, assert_matches_golden
from PIL import Image

from ofa_jax.preprocessing import images, objectives
from ofa_jax.preprocessing.boxes import as_boxes
from ofa_jax.preprocessing.negatives import NegativePool
from ofa_jax.preprocessing.records import InvalidRecordError


def rng():
    return np.random.default_rng(0)


def test_pairs_give_the_golden_examples(fixed, pixels, config, to_record):
    for item in fixed["image_text"]:
        row, expected = item["row"], item["examples"][0]
        make = objectives.OBJECTIVES[MAIN[row["type"]]]
        example = make(to_record(row), rng(), config)
        assert_matches_golden(example, expected, config.vocabulary)
        if "patch_image_array" in expected:
            np.testing.assert_array_equal(example["image"], pixels[expected["patch_image_array"]])


def test_matching_gives_the_golden_examples(fixed, config, to_record):
    for item in fixed["image_text"]:
        row, expected = item["row"], item["examples"][1]
        if row["type"] == "visual_grounding":
            continue
        # The second golden draw determines the target; the golden negative is passed in.
        positive = item["random_random_sequence"][1] >= 0.5
        drawn = item["negative_chosen"]
        record = to_record(row) | {"negative_captions": drawn}
        pool = NegativePool(answers_by_type={"other": drawn})
        given = dataclasses.replace(config, negatives=pool)
        captions, questions = objectives._matching_texts(record, given)
        if row["type"] == "qa":
            instruction, weight = objectives._match_answer(
                record, questions, positive, rng(), given
            )
        else:
            instruction = objectives._match_caption(record, captions, positive, rng(), given)
            weight = 1.0
        target = " yes" if positive else " no"
        assert target == expected["target_text"]
        assert (
            config.vocabulary.encode(instruction, add_bos=True, add_eos=True).tolist()
            == expected["source"]
        )
        assert np.float32(weight) == np.float32(expected["conf"][0])


def test_regions_give_the_golden_boxes_and_grounded_captions(fixed, config, to_record):
    for item in fixed["image_text"]:
        if item["row"]["type"] != "visual_grounding":
            continue
        record = to_record(item["row"])
        example = objectives.grounded_captioning(record, rng(), config)
        assert_matches_golden(example, item["examples"][1], config.vocabulary)
        # The golden box before quantisation is in float32 and in units of 512 pixels.
        image, box = images.resize_shorter_side(
            images.decode(record["image"]), record["phrase_boxes"], 400, 672
        )
        _, box = images.object_center_crop(image, box, 384)
        expected = item["transformed_box_xyxy_over_512_and_size"][0]
        np.testing.assert_array_equal(box[0] / np.float32(512), np.array(expected, np.float32))


def test_detection_gives_the_golden_examples(fixed, pixels, config, golden):
    for item in fixed["detection"]:
        _, name, objects = item["row"]
        fields = [entry.split(",") for entry in objects.split("&&")]
        boxes = as_boxes([[float(x) for x in entry[:4]] for entry in fields])
        labels = [entry[5] for entry in fields]
        image = images.decode((golden / "preprocess" / name).read_bytes())
        if item["hflip"]:
            image, boxes = images.horizontal_flip(image, boxes)
        draw = item["all_torch_rand"]
        image, boxes = images.large_scale_jitter(image, boxes, 256, draw, (draw, draw))
        example = objectives.detection_example(images.to_array(image), boxes, labels, config)
        assert_matches_golden(example, item["examples"][0], config.vocabulary)
        np.testing.assert_array_equal(
            example["image"], pixels[item["examples"][0]["patch_image_array"]]
        )


def test_image_infilling_gives_the_golden_example(fixed, pixels, config, golden):
    item = fixed["image_infilling"][0]
    identity, name, codes = item["row"]
    record = {
        "id": identity,
        "image": (golden / "preprocess" / name).read_bytes(),
        "codes": np.array(codes.split(), np.int32),
    }
    example = objectives.image_infilling(record, rng(), config)
    assert_matches_golden(example, item["examples"][0], config.vocabulary)
    assert example["blank_box"].tolist() == [64, 64, 192, 192]
    np.testing.assert_array_equal(
        example["image"], pixels[item["examples"][0]["patch_image_array"]]
    )


def test_text_infilling_gives_the_golden_targets(fixed, config):
    """The source has the golden instruction around the target with masked spans."""
    mask = config.vocabulary.mask_id
    for item in fixed["text_infilling"]:
        for (identity, text), expected in zip(item["rows"], item["examples"], strict=True):
            example = objectives.text_infilling({"id": identity, "text": text}, rng(), config)
            assert example["targets"].tolist() == expected["target"]
            assert example["loss_weight"] == expected["conf"][0]
            source = example["inputs"].tolist()
            before, after = 8, 3
            assert source[:before] == expected["source"][:before]
            assert source[-after:] == expected["source"][-after:]
            kept = [token for token in source[before:-after] if token != mask]
            assert len(kept) < len(source[before:-after])
            remaining = iter(expected["target"])
            assert all(token in remaining for token in kept), "kept tokens must stay in order"


def test_training_images_depend_on_the_seed_alone(config, to_record, fixed):
    training = dataclasses.replace(config, resize_range=(384, 480), randaugment=True)
    record = to_record(fixed["image_text"][0]["row"])

    def make(seed):
        return objectives.image_captioning(record, np.random.default_rng(seed), training)["image"]

    np.testing.assert_array_equal(make(3), make(3))
    assert len({make(seed).tobytes() for seed in range(4)}) > 1


def test_matching_is_positive_half_of_the_time(config, to_record, fixed):
    record = to_record(fixed["image_text"][0]["row"]) | {"negative_captions": ["a false one"]}
    small = dataclasses.replace(
        config, image_size=32, resize_range=(32, 32), detection_image_size=32
    )
    yes = config.vocabulary.encode(" yes")[0]
    draws = 400
    targets = [
        objectives.image_text_matching(record, np.random.default_rng(seed), small)["targets"][0]
        for seed in range(draws)
    ]
    # Five standard deviations of a fair coin.
    assert abs(sum(target == yes for target in targets) - draws / 2) < 5 * np.sqrt(draws) / 2


def test_a_share_of_false_captions_is_distant_in_training(config, to_record, fixed):
    image = io.BytesIO()
    Image.new("RGB", (32, 32)).save(image, "PNG")
    record = to_record(fixed["image_text"][0]["row"]) | {
        "image": image.getvalue(),
        "negative_captions": ["a false one"],
        "object_labels": ["cat"],
        "label": "no",
    }
    pool = NegativePool(captions=("a dog", "a cat"), object_names=("cat", "dog"))
    small = dataclasses.replace(
        config,
        image_size=32,
        resize_range=(32, 32),
        detection_image_size=32,
        negatives=pool,
        distant_negatives=0.25,
    )
    draws = 400

    def share_of_distant(config):
        instructions = [
            config.vocabulary.decode(
                objectives.image_text_matching(record, np.random.default_rng(seed), config)[
                    "inputs"
                ]
            )
            for seed in range(draws)
        ]
        distant = sum("a dog" in text for text in instructions)
        assert distant + sum("a false one" in text for text in instructions) == draws
        return distant / draws

    # Five standard deviations.
    assert abs(share_of_distant(small) - 0.25) < 5 * np.sqrt(0.25 * 0.75 / draws)
    assert share_of_distant(dataclasses.replace(small, training=False)) == 0


def test_questions_are_sampled_by_the_weight_of_their_type_in_training(config, to_record, fixed):
    image = io.BytesIO()
    Image.new("RGB", (32, 32)).save(image, "PNG")
    record = to_record(fixed["image_text"][0]["row"]) | {
        "image": image.getvalue(),
        "captions": ["a caption"],
        "negative_captions": ["a caption of another"],
        "questions": ["is it?", "how many?", "where?"],
        "answers": ["yes", "2", "left"],
        "answer_types": ["existence", "count", "side"],
    }
    small = dataclasses.replace(
        config,
        image_size=32,
        resize_range=(32, 32),
        detection_image_size=32,
        negatives=NegativePool(
            answers_by_type={
                "existence": ("yes", "no"),
                "count": ("1", "2"),
                "side": ("left", "right"),
            }
        ),
        question_weights={"existence": 3.0, "side": 0.0},
        matching_answers=0.75,
    )
    draws = 400

    def share(objective, text, config):
        instructions = [
            config.vocabulary.decode(
                objectives.OBJECTIVES[objective](record, np.random.default_rng(seed), config)[
                    "inputs"
                ]
            )
            for seed in range(draws)
        ]
        return sum(text in instruction for instruction in instructions) / draws

    # Five standard deviations.
    limit = 5 * np.sqrt(0.25 * 0.75 / draws)
    assert abs(share("visual_question_answering", "is it?", small) - 3 / 4) < limit
    assert share("visual_question_answering", "where?", small) == 0
    assert abs(share("image_text_matching", "a caption", small) - 1 / 4) < limit
    evaluated = dataclasses.replace(small, training=False)
    assert abs(share("visual_question_answering", "where?", evaluated) - 1 / 3) < limit * 1.1
    assert abs(share("image_text_matching", "a caption", evaluated) - 1 / 2) < limit * 1.2
    # If all types of a record have weight 0, the questions are sampled uniformly.
    zero = dataclasses.replace(small, question_weights=dict.fromkeys(record["answer_types"], 0.0))
    assert abs(share("visual_question_answering", "where?", zero) - 1 / 3) < limit * 1.1


@pytest.mark.parametrize(
    ("objective", "change", "sentence"),
    [
        ("image_captioning", {"image": b"corrupt"}, "cannot be decoded"),
        ("image_captioning", {"captions": []}, "it has no captions"),
        ("visual_question_answering", {"answers": ["a", "b"]}, "2 answers to 1 questions"),
        ("visual_grounding", {"phrase_boxes": as_boxes([5, 5, 2, 9])}, "no area within its image"),
        ("visual_grounding", {"phrase_boxes": as_boxes([1e3, 5, 2e3, 9])}, "no area within its"),
        ("object_detection", {"object_labels": ["a", "b"]}, "2 names for 1 boxes"),
        ("image_infilling", {"codes": np.zeros(3, np.int32)}, "3 image codes instead of 256"),
        ("text_infilling", {"text": ""}, "it has no text"),
    ],
)
def test_an_invalid_record_raises_an_error_with_its_problem(
    config, to_record, fixed, objective, change, sentence
):
    record = {
        **to_record(fixed["image_text"][0]["row"]),
        "questions": ["what?"],
        "answers": ["a"],
        "phrases": ["a thing"],
        "phrase_boxes": as_boxes([1, 2, 30, 40]),
        "object_labels": ["thing"],
        "object_boxes": as_boxes([1, 2, 30, 40]),
        "codes": np.zeros(256, np.int32),
        "text": "some text",
    }
    objectives.OBJECTIVES[objective](record, rng(), config)
    with pytest.raises(InvalidRecordError, match=sentence):
        objectives.OBJECTIVES[objective](record | change, rng(), config)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"resize_range": (200, 300)}, "must lie between image_size"),
        ({"distant_negatives": 1.5}, "must be between 0 and 1"),
        ({"matching_answers": -0.5}, "must be between 0 and 1"),
        (
            {"negatives": None, "question_weights": {"count": -1.0}},
            r"question_weights\['count'\] is -1.0; it must be at least 0",
        ),
        (
            {
                "negatives": NegativePool(answers_by_type={"count": ("1",)}),
                "question_weights": {"counts": 2.0},
            },
            "count",
        ),
        ({"max_image_size": 300}, "smaller than the images"),
        ({"code_image_size": 300}, "larger than infill_image_size"),
    ],
)
def test_invalid_configurations_are_rejected(config, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(config, **change)
