"""Tests that a bad part of a record drops that part, and that only its own error escapes."""

import dataclasses
import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ofa_jax.preprocessing import downstream, language_tasks, objectives
from ofa_jax.preprocessing.classification import classification
from ofa_jax.preprocessing.downstream import DownstreamConfig
from ofa_jax.preprocessing.negatives import NegativePool
from ofa_jax.preprocessing.objective_config import ObjectiveConfig
from ofa_jax.preprocessing.records import InvalidRecordError
from ofa_jax.preprocessing.text import clean_caption, has_no_words, is_blank
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.utils.bad_input import collect


def png(width, height):
    buffer = io.BytesIO()
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


IMAGE = png(64, 48)
RECORD = {
    "id": "7",
    "image": IMAGE,
    "captions": ["a dog", "the dog runs", "a brown dog"],
    "negative_captions": ["a cat", "a bird"],
    "questions": ["what is it?", "is it big?", "where is it?"],
    "answers": ["dog", "yes", "here"],
    "answer_confidences": [1.0, 0.5, 0.25],
    "answer_types": ["other", "yes/no", "other"],
    "phrases": ["a dog", "the tail", "an ear"],
    "phrase_boxes": np.array([[1, 2, 30, 40], [5, 6, 20, 21], [8, 8, 60, 47]], np.float32),
    "object_labels": ["dog", "tail", "ear"],
    "object_boxes": np.array([[1, 2, 30, 40], [5, 6, 20, 21], [8, 8, 60, 47]], np.float32),
    "codes": np.zeros(64, np.int32),
    "text": "the quick brown fox",
    "summary": "a fox",
    "label": "yes",
    **{
        name: "it is so"
        for name in ("sentence", "sentence1", "sentence2", "question", "question1", "question2")
    },
    "premise": "it is",
    "hypothesis": "it was",
}
DOWNSTREAM = {
    "captioning": downstream.captioning,
    "question_answering": downstream.question_answering,
    "grounding": downstream.grounding,
    "entailment": downstream.entailment,
    "entailment_without_premise": downstream.entailment_without_premise,
    "text_to_image": downstream.text_to_image,
    "classification": classification,
    "summarization": language_tasks.summarization,
    **language_tasks.GLUE_TASKS,
}
TASKS = {**objectives.OBJECTIVES, **DOWNSTREAM}


@pytest.fixture(scope="module")
def configs(shared_golden):
    vocabulary = OFAVocabulary.from_ofa_directory(str(shared_golden / "bpe"))
    pool = NegativePool(("a cat", "a bird"), ("cat", "bird"), {"other": ("cat", "no")})
    sizes = dict(image_size=32, resize_range=(32, 40), resize_max_size=56, max_image_size=64)
    pretraining = ObjectiveConfig(
        vocabulary,
        negatives=pool,
        infill_image_size=64,
        code_image_size=64,
        detection_image_size=32,
        question_weights={"other": 2.0},
        **sizes,
    )
    finetuning = DownstreamConfig(
        vocabulary,
        image_size=32,
        grounding_image_size=64,
        max_image_size=64,
        code_image_size=64,
        detected_objects=True,
    )
    return pretraining, finetuning


def run(name, record, configs, seed=0, training=True):
    """Returns the example of a task, and the names of the reasons of what was reported."""
    config = configs[name in DOWNSTREAM]
    config = dataclasses.replace(config, training=training)
    with collect() as findings:
        example = TASKS[name](record, np.random.default_rng(seed), config)
    return example, [finding.reason.name for finding in findings]


def text_of(example, name, configs):
    return configs[0].vocabulary.decode(example[name])


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


# ------------------------------------------------------------------------------ one part of several

BAD_TEXTS = ["", "   ", "...", " ?!", "\t\n", "\u200b", "\0", "-/-", None, 7, ["a"], math.nan]
"""Entries that are empty after cleaning, or are not texts."""
LISTS = {
    "image_captioning": ("captions",),
    "captioning": ("captions",),
    "visual_question_answering": (
        "questions",
        "answers",
        "answer_confidences",
        "answer_types",
    ),
    "question_answering": ("questions", "answers", "answer_confidences", "answer_types"),
    "visual_grounding": ("phrases", "phrase_boxes"),
    "grounded_captioning": ("phrases", "phrase_boxes"),
    "object_detection": ("object_labels", "object_boxes"),
}


def without(record, names, index):
    """Returns a record without one entry of its parallel fields."""
    keep = [number for number in range(3) if number != index]
    return {**record, **{name: [record[name][number] for number in keep] for name in names}}


@pytest.mark.parametrize("bad", BAD_TEXTS, ids=repr)
@pytest.mark.parametrize("name", LISTS)
def test_a_bad_text_of_several_is_dropped(name, bad, configs):
    """Compares with the record that never had it, for each place and several draws."""
    first, *_ = LISTS[name]
    if first == "object_labels" and isinstance(bad, str) and not is_blank(bad):
        pytest.skip("names of objects are not cleaned")
    for index in range(3):
        values = list(RECORD[first])
        values[index] = bad
        expected = without(RECORD, LISTS[name], index)
        for seed in range(4):
            example, reasons = run(name, {**RECORD, first: values}, configs, seed)
            assert same(example, run(name, expected, configs, seed)[0])
            assert reasons[0] in ("empty entry", "malformed entry")


@pytest.mark.parametrize(
    "box",
    [
        [9.98, 18.5, 15.5, 18.5],
        [30, 2, 1, 40],
        [70, 1, 90, 40],
        [-9, -9, -1, -1],
        [math.nan, 1, 2, 3],
        [1, 2, math.inf, 40],
        [1, 2, 3],
        [1, 2, 3, 4, 5],
        ["a", "b", "c", "d"],
        None,
        "box",
    ],
    ids=repr,
)
@pytest.mark.parametrize("name", ["visual_grounding", "object_detection"])
def test_a_bad_box_drops_that_box(name, box, configs):
    texts, boxes = LISTS[name]
    for index in range(3):
        values = RECORD[boxes].tolist()
        values[index] = box
        expected = without(RECORD, LISTS[name], index)
        for seed in range(3):
            example, reasons = run(name, {**RECORD, boxes: values}, configs, seed)
            assert same(example, run(name, expected, configs, seed)[0])
            assert reasons == ["box without area"]


@pytest.mark.parametrize(
    "box", [[-0.01, 2, 30, 40], [1, 2, 64.5, 40], [1, 2, 66, 47], [-50, -50, 500, 500]], ids=repr
)
@pytest.mark.parametrize("name", ["visual_grounding", "object_detection", "grounding"])
def test_a_box_beyond_the_image_is_clipped(name, box, configs):
    _, boxes = LISTS.get(name, LISTS["visual_grounding"])
    values = RECORD[boxes].copy()
    values[0] = box
    clipped = values.clip(0, [64, 48, 64, 48])
    training = name == "grounding"  # the others sample a box and a crop
    for seed in range(3):
        example, reasons = run(name, {**RECORD, boxes: values}, configs, seed, training)
        expected, _ = run(name, {**RECORD, boxes: clipped}, configs, seed, training)
        assert not reasons
        assert len(example["targets"]) == len(expected["targets"])
        if name != "visual_grounding":  # which is cropped around the unclipped box's centre
            np.testing.assert_array_equal(example["targets"], expected["targets"])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.5, None, "x", [1]], ids=repr)
def test_a_bad_confidence_drops_its_question(bad, configs):
    record = {**RECORD, "answer_confidences": [bad, 0.5, 0.25]}
    names = LISTS["visual_question_answering"]
    for seed in range(4):
        example, reasons = run("visual_question_answering", record, configs, seed)
        expected = without(RECORD, names, 0)
        assert same(example, run("visual_question_answering", expected, configs, seed)[0])
        assert reasons == ["malformed entry"]


def test_matching_takes_the_captions_if_no_question_can_be_used(configs):
    record = {**RECORD, "questions": ["???"] * 3}
    for seed in range(6):
        example, reasons = run("image_text_matching", record, configs, seed)
        assert text_of(example, "inputs", configs).startswith(' does the image describe "')
        assert reasons == ["empty entry"] * 3
    record = {**RECORD, "captions": [None], "negative_captions": ["", 7]}
    for seed in range(6):
        example, _ = run("image_text_matching", record, configs, seed)
        assert "what is the answer to question" in text_of(example, "inputs", configs)


@pytest.mark.parametrize("name", TASKS)
def test_a_record_without_bad_parts_reports_nothing(name, configs):
    for training in (False, True):
        assert run(name, RECORD, configs, training=training)[1] == []


# ----------------------------------------------------------------------- records with nothing left

NEEDED = {
    "image_captioning": {"captions": ["...!"]},
    "visual_question_answering": {"questions": ["???"] * 3},
    "image_text_matching": {"captions": ["."], "questions": [""] * 3},
    "visual_grounding": {"phrases": ["..."] * 3},
    "grounded_captioning": {"phrase_boxes": np.zeros((3, 4), np.float32)},
    "object_detection": {"object_labels": [" "] * 3},
    "text_infilling": {"text": "   "},
    "captioning": {"captions": ["..."]},
    "question_answering": {"answers": [" "] * 3},
    "grounding": {"phrases": ["#"] * 3},
    "entailment": {"premise": "..."},
    "entailment_without_premise": {"hypothesis": "-"},
    "text_to_image": {"captions": [" "]},
    "classification": {"label": " "},
    "summarization": {"summary": "..."},
    "cola": {"sentence": " \t"},
    "qnli": {"question": "\0"},
    "rte": {"label": ""},
}


@pytest.mark.parametrize("name", NEEDED)
def test_a_record_with_nothing_left_is_skipped(name, configs):
    with collect() as findings, pytest.raises(InvalidRecordError, match="record 7: ") as caught:
        run(name, RECORD | NEEDED[name], configs)
    assert caught.value.reason.name in (
        "text is empty after cleaning",
        "no usable entry",
        "missing field",
    )
    assert not findings


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("image_captioning", {"captions": "a dog"}),
        ("image_captioning", {"captions": b"a dog"}),
        ("image_captioning", {"captions": {"a": 1}}),
        ("image_captioning", {"captions": 5}),
        ("visual_question_answering", {"questions": "what?"}),
        ("visual_question_answering", {"answer_confidences": [1.0]}),
        ("visual_grounding", {"phrase_boxes": np.zeros(13, np.float32)}),
        ("visual_grounding", {"phrase_boxes": np.zeros((2, 4), np.float32)}),
        ("object_detection", {"object_boxes": "1,2,3,4"}),
        ("object_detection", {"object_boxes": 4}),
        ("classification", {"label": 5}),
        ("text_infilling", {"text": ["a"]}),
    ],
)
def test_a_field_of_a_wrong_type_skips_the_record(name, change, configs):
    with pytest.raises(InvalidRecordError) as caught:
        run(name, RECORD | change, configs)
    assert caught.value.reason.name == "field of a wrong type"


@pytest.mark.parametrize(
    "codes",
    [
        np.full(64, 8192),
        np.full(64, -1),
        np.zeros(64, np.float32),
        np.zeros(63, int),
        np.zeros((8, 8), int),
        ["1"] * 64,
        "1 2 3",
        [2**70] * 64,
        np.zeros(64, bool),
    ],
)
@pytest.mark.parametrize("name", ["image_infilling", "text_to_image"])
def test_wrong_codes_skip_the_record(name, codes, configs):
    with pytest.raises(InvalidRecordError) as caught:
        run(name, RECORD | {"codes": codes}, configs)
    assert caught.value.reason.name == "wrong image codes"


def test_bytes_that_are_not_utf8_are_replaced_and_reported(configs):
    example, reasons = run("image_captioning", RECORD | {"captions": [b"a dog \xff"]}, configs)
    assert text_of(example, "targets", configs) == " a dog \ufffd"
    assert reasons == ["text is not UTF-8"]


def test_a_very_long_text_is_cut_and_reported(configs):
    example, reasons = run("image_captioning", RECORD | {"captions": ["dog " * 400_000]}, configs)
    assert text_of(example, "targets", configs) == " dog" * 30
    assert reasons == ["text is too long"]
    run("text_infilling", RECORD | {"text": "x" * 3_000_000}, configs)


def test_lone_surrogates_are_replaced_and_reported(configs):
    example, reasons = run("image_captioning", RECORD | {"captions": ["a \ud83d dog"]}, configs)
    assert text_of(example, "targets", configs) == " a \ufffd dog"
    assert reasons == ["lone surrogate in a text"]
    with pytest.raises(InvalidRecordError) as caught:
        run("image_captioning", {"id": "\ud83d", "image": b""}, configs)
    str(caught.value).encode("utf-8")


# --------------------------------------------------------------------------------- anything at all

_ANY = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(), max_size=9),
    st.binary(max_size=9),
    st.just(np.zeros((2, 3))),
    st.just(np.array(["a", None], object)),
    st.just(np.float32(2)),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)
_ANY_LIST = st.one_of(
    _ANY, st.lists(_ANY, max_size=4), st.lists(st.lists(_ANY, max_size=5), max_size=3)
)


@settings(max_examples=60)
@given(st.data())
def test_whatever_a_field_has_a_record_is_used_or_skipped(configs, data):
    """Tests every task on records with up to three fields of any type."""
    name = data.draw(st.sampled_from(sorted(TASKS)))
    fields = data.draw(st.lists(st.sampled_from(sorted(RECORD)), max_size=3, unique=True))
    record = RECORD | {field: data.draw(_ANY_LIST) for field in fields}
    for training in (True, False):
        try:
            example, _ = run(name, record, configs, training=training)
        except InvalidRecordError as error:
            str(error).encode("utf-8")
            assert len(str(error)) < 500
            continue
        assert example["inputs"].dtype == example["targets"].dtype == np.int32
        assert math.isfinite(example["loss_weight"]) and example["loss_weight"] >= 0


@given(st.lists(st.tuples(*[st.floats(width=32)] * 4), min_size=1, max_size=4))
def test_any_boxes_give_bins_or_are_dropped(configs, boxes):
    record = RECORD | {"object_labels": ["dog"] * len(boxes), "object_boxes": np.float32(boxes)}
    try:
        example, reasons = run("object_detection", record, configs)
    except InvalidRecordError as error:
        assert error.reason.name == "no usable entry"
        return
    bins = configs[0].vocabulary.bin_ids
    inside = [token for token in example["targets"] if token in bins]
    assert len(inside) % 4 == 0 and len(inside) // 4 + len(reasons) <= len(boxes)


@given(st.text(st.characters(), max_size=40))
def test_a_text_without_words_is_what_cleaning_leaves_nothing_of(text):
    if not clean_caption(text).strip():
        assert has_no_words(text) or has_no_words(clean_caption(text))
    if any(character.isalnum() for character in text):
        assert not is_blank(text) and not has_no_words(text)
