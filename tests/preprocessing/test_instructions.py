"""Tests that instructions as users write them get the ids that training produces."""

import dataclasses
import json

import numpy as np
import pytest

from ofa_jax.preprocessing import instructions, objectives
from ofa_jax.preprocessing.examples import make_example
from ofa_jax.preprocessing.objective_config import ObjectiveConfig
from ofa_jax.tokenizers.vocabulary import OFAVocabulary


@pytest.fixture(scope="module")
def vocabulary(shared_golden):
    return OFAVocabulary.from_ofa_directory(shared_golden / "bpe")


def ids(vocabulary, instruction, region=None):
    parts = instructions.encode(vocabulary, instruction, region)
    return make_example(vocabulary, parts, "")["inputs"].tolist()


def test_golden_instructions_have_the_golden_ids(golden, vocabulary):
    """Writes them as a user would: raw captions, quotes close to the text, no leading space."""
    cases = json.loads((golden / "preprocess" / "fixed.json").read_text())["image_text"]
    compared = 0
    for case in cases:
        row = case["row"]
        for example in case["examples"]:
            source = example["source_text"]
            if row["type"] == "qa" and source.startswith(" what is the answer to question"):
                continue  # contains a sampled answer
            written = {
                " what does the image describe?": "What does the image describe?",
                " does the image describe": f'does the image describe "{row["caption"]}"?',
                " which region does": f'which region does the text "{row["caption"]}" describe?',
            }
            (instruction,) = [v for k, v in written.items() if source.startswith(k)] or [None]
            if instruction is None and row["type"] == "qa":
                instruction = row["question"]
            if instruction is None:
                continue
            if source.startswith(" does the image") and row["caption"].lower()[2:12] not in source:
                continue  # is about another caption
            assert ids(vocabulary, instruction) == example["source"], source
            compared += 1
    assert compared >= 4


@pytest.mark.parametrize(
    "written",
    [
        'which region does the text " A red-apple " describe?',
        'Which region does the text "a red apple" describe?',
        '  which region does the text "A  RED/apple"  describe?  ',
    ],
)
def test_spaces_quotes_and_case_do_not_matter(vocabulary, written):
    expected = ' which region does the text " a red apple " describe?'
    if "  describe" in written:
        written = " ".join(written.split())
    assert ids(vocabulary, written) == [0, *vocabulary.encode(expected).tolist(), 2]


def test_a_region_has_the_position_of_grounded_captioning(vocabulary):
    config = ObjectiveConfig(vocabulary, training=False)
    pixels = np.zeros((384, 384, 3), np.uint8)
    from io import BytesIO

    from PIL import Image

    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    record = {
        "image": file.getvalue(),
        "phrases": ["a dog"],
        "phrase_boxes": np.array([[10, 20, 200, 300]], np.float32),
    }
    rng = np.random.default_rng(0)
    example = objectives.grounded_captioning(record, rng, dataclasses.replace(config))
    region = vocabulary.encode_box((10, 20, 200, 300), config.max_image_size)
    for written in (
        "what does the region describe? region: {region}",
        "what does the region describe? region:",
        "what does the region describe?",
    ):
        assert ids(vocabulary, written, region) == example["inputs"].tolist()
    bins = "".join(f"<bin_{index - vocabulary.bin_ids.start}>" for index in region)
    assert ids(vocabulary, f"what does the region describe? region: {bins}") == (
        example["inputs"].tolist()
    )


def test_an_unknown_instruction_may_have_a_region(vocabulary):
    """Grounded question answering (Wang et al. 2022, section 4.4)."""
    region = vocabulary.encode_box((0, 0, 100, 200), 512)
    expected = [0, *vocabulary.encode(" what color is the car in the region? region:"), *region, 2]
    for written in (
        "What color is the car in the region?",
        "what color is the car in the region? region: {region}",
    ):
        assert ids(vocabulary, written, region) == expected
    middle = ids(vocabulary, "is the car in {region} red?", region)
    assert middle == [
        0,
        *vocabulary.encode(" is the car in"),
        *region,
        *vocabulary.encode(" red?"),
        2,
    ]


def test_masks_replace_words(vocabulary):
    before, after = ' what is the complete text of " the', ' of the well-known house "?'
    expected = [0, *vocabulary.encode(before), vocabulary.mask_id, *vocabulary.encode(after), 2]
    assert (
        ids(vocabulary, 'what is the complete text of "the <mask> of the  well-known house"?')
        == expected
    )


def test_questions_are_cleaned_as_questions(vocabulary):
    expected = [0, *vocabulary.encode(" is the hat red white ?"), 2]
    assert ids(vocabulary, "...Is the hat red-white ?") == expected


def test_the_caption_of_text_to_image_is_unchanged(vocabulary):
    text = " what is the complete image? caption: A Red-haired man"
    assert ids(vocabulary, text) == [0, *vocabulary.encode(text), 2]
    assert instructions.recognise_task(text) == "text_to_image"


@pytest.mark.parametrize(
    ("written", "region", "sentence"),
    [
        ("  ", None, "The instruction is empty"),
        ("what is in {region}?", None, "no region is given"),
        ("what is in <bin_1000>?", None, "<bin_1000>, which this vocabulary of 8192 codes"),
    ],
)
def test_an_invalid_instruction_raises_an_error(vocabulary, written, region, sentence):
    with pytest.raises(ValueError, match=sentence):
        instructions.encode(vocabulary, written, region)


@pytest.mark.parametrize(
    ("instruction", "task"),
    [
        ('Which region does the text "a red apple" describe?', "visual_grounding"),
        ("What are the objects in the image?", "object_detection"),
        ("what is the image in the middle part?", "image_infilling"),
        (' what is the complete text of "the <mask> of the house"?', "text_infilling"),
        ("what does the image describe? ", "image_captioning"),
        ("what does the region describe? region: {region}", "grounded_captioning"),
        ('does the image describe "a red apple"?', "image_text_matching"),
        ("which region is red?", None),
        ("what color is the car?", None),
    ],
)
def test_recognise_task_knows_the_instructions_of_training(instruction, task):
    assert instructions.recognise_task(instruction) == task
