"""Tests the downstream tasks: exact instructions and targets, boxes, decoder prompts, noise."""

import dataclasses

import downstream_files
import numpy as np
import pytest
from PIL import Image

from ofa_jax.data import features
from ofa_jax.preprocessing import downstream, images, language_tasks, prompts
from ofa_jax.preprocessing.boxes import as_boxes
from ofa_jax.preprocessing.downstream import DownstreamConfig
from ofa_jax.preprocessing.records import InvalidRecordError
from ofa_jax.tokenizers.vocabulary import OFAVocabulary

IMAGE = downstream_files.make_image()
LABELLED = {
    "sentence": "They Drank  the pub-dry.",
    "sentence1": "It was Ann.",
    "sentence2": "Ann did it",
    "question": "Who?",
    "question1": "Why?",
    "question2": "How come?",
    "premise": "It rains",
    "hypothesis": "It is {wet}",
    "label": "yes",
}


@pytest.fixture(scope="module")
def config(shared_golden):
    vocabulary = OFAVocabulary.from_ofa_directory(shared_golden / "bpe")
    return DownstreamConfig(vocabulary, image_size=32, grounding_image_size=64, max_image_size=64)


def rng():
    return np.random.default_rng(0)


def texts(example, config):
    """Decodes instruction and target; checks bos and eos and removes them."""
    inputs, targets = example["inputs"].tolist(), example["targets"].tolist()
    assert (inputs[0], inputs[-1]) == (0, 2)
    ended = targets[-1] == 2
    return config.vocabulary.decode(inputs[1:-1]), config.vocabulary.decode(
        targets[:-1] if ended else targets
    )


CASES = {
    "a caption loses case and punctuation": (
        downstream.captioning,
        {"image": IMAGE, "captions": ["A dog's bone, on a red-brown sofa!"]},
        (" what does the image describe?", " a dogs bone on a redbrown sofa"),
    ),
    "a caption keeps twenty words": (
        downstream.captioning,
        {"image": IMAGE, "captions": [" ".join(["word"] * 25)]},
        (" what does the image describe?", " word" * 20),
    ),
    "a question gets its mark": (
        downstream.question_answering,
        {"image": IMAGE, "questions": ["What is red/white"], "answers": ["a cup"]},
        (" what is red white?", " a cup"),
    ),
    "a question keeps its mark": (
        downstream.question_answering,
        {"image": IMAGE, "questions": ["Is it?"], "answers": ["Yes"]},
        (" is it?", " Yes"),
    ),
    "a phrase": (
        downstream.grounding,
        {
            "image": IMAGE,
            "phrases": ["...the Man-in black"],
            "phrase_boxes": as_boxes(downstream_files.BOX),
        },
        # 60 x 40 pixels become 64 x 64: x times 64 / 60, y times 64 / 40, of 64.
        (
            ' which region does the text " the man in black " describe?',
            "<bin_100><bin_100><bin_500><bin_899>",
        ),
    ),
    "a premise and a hypothesis": (
        downstream.entailment,
        {
            "image": IMAGE,
            "hypothesis": "A man sleeps.",
            "premise": "a man/boy sits",
            "label": "maybe",
        },
        (' can image and text1 " a man boy sits " imply text2 " a man sleeps. "?', " maybe"),
    ),
    "a hypothesis alone": (
        downstream.entailment_without_premise,
        {"image": IMAGE, "hypothesis": "A man sleeps.", "label": "no"},
        (' does the image describe " a man sleeps. "?', " no"),
    ),
    "text to image": (
        downstream.text_to_image,
        {"captions": ["A  bench by\tthe sea"], "codes": np.arange(1024)},
        (
            " what is the complete image? caption: A bench by the sea",
            "".join(f"<code_{k}>" for k in range(1024)),
        ),
    ),
    "cola": (
        language_tasks.GLUE_TASKS["cola"],
        LABELLED,
        (' is the text " they drank the pub-dry. " grammatically correct?', " yes"),
    ),
    "sst2": (
        language_tasks.GLUE_TASKS["sst2"],
        LABELLED | {"label": "positive"},
        (
            ' is the sentiment of text " they drank the pub-dry. " positive or negative?',
            " positive",
        ),
    ),
    "mrpc": (
        language_tasks.GLUE_TASKS["mrpc"],
        LABELLED,
        (' does text1 " it was ann. " and text2 " ann did it " have the same semantics?', " yes"),
    ),
    "qqp": (
        language_tasks.GLUE_TASKS["qqp"],
        LABELLED,
        (' is question " why? " and question " how come? " equivalent?', " yes"),
    ),
    "mnli": (
        language_tasks.GLUE_TASKS["mnli"],
        LABELLED | {"label": "maybe"},
        (' can text1 " it rains " imply text2 " it is {wet} "?', " maybe"),
    ),
    "qnli": (
        language_tasks.GLUE_TASKS["qnli"],
        LABELLED,
        (' does " they drank the pub-dry. " contain the answer to question " who? "?', " yes"),
    ),
    "rte": (
        language_tasks.GLUE_TASKS["rte"],
        LABELLED | {"label": "no"},
        (' can text1 " it was ann. " imply text2 " ann did it "?', " no"),
    ),
    "a headline": (
        language_tasks.summarization,
        {"text": "The <unk> rose by ## points", "summary": "<unk> Up-today"},
        (' what is the summary of article " the unk rose by ## points "?', " unk up today"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_instructions_and_targets_are_the_published_ones(case, config):
    task, record, expected = CASES[case]
    example = task(record, rng(), config)
    assert texts(example, config) == expected
    size = {downstream.grounding: 64}.get(task, 32)
    if "image" in record:
        assert example["image"].shape == (size, size, 3) and example["image"].dtype == np.uint8
    else:
        assert "image" not in example
    assert bool(example["code_mask"]) == (task is downstream.text_to_image)
    # In GLUE the target ends with the label, as in the reference implementation.
    glue = task in language_tasks.GLUE_TASKS.values()
    assert (example["targets"][-1] == config.vocabulary.eos_id) == (not glue)
    assert len(example["targets"]) == 1 or not glue


def test_captions_are_dropped_at_a_rate_and_only_in_training(config):
    record = {"captions": ["a bench"], "codes": np.arange(1024)}
    dropping = dataclasses.replace(config, caption_dropout=0.3)
    draws = rng()
    found = [
        texts(downstream.text_to_image(record, draws, dropping), dropping)[0] for _ in range(400)
    ]
    without = " what is the complete image? caption:"
    assert set(found) == {without, f"{without} a bench"}
    assert 0.2 < found.count(without) / 400 < 0.4
    evaluated = dataclasses.replace(dropping, training=False)
    example = downstream.text_to_image(record, draws, evaluated)
    assert texts(example, config)[0] == f"{without} a bench"
    # Without dropout nothing is drawn: the draws of other fields stay as they were.
    draws, state = rng(), rng().bit_generator.state
    downstream.text_to_image(record, draws, config)
    assert draws.bit_generator.state == state


def test_ids_are_the_golden_ones_of_the_same_texts(fixed, config):
    """Pretraining has the same instructions: captioning, and matching for SNLI-VE."""
    compared = 0
    for item in fixed["image_text"]:
        if item["row"]["type"] != "caption":
            continue
        captioning, matching = item["examples"][:2]
        example = downstream.captioning({"image": IMAGE, "captions": ["a"]}, rng(), config)
        assert example["inputs"].tolist() == captioning["source"]
        if matching["target_text"] == " yes":
            record = {"image": IMAGE, "hypothesis": item["row"]["caption"], "label": "yes"}
            example = downstream.entailment_without_premise(record, rng(), config)
            assert example["inputs"].tolist() == matching["source"]
            assert example["targets"].tolist() == matching["target"]
            compared += 1
    assert compared


def test_square_images_have_the_golden_pixels(golden):
    resized = np.load(golden / "preprocess" / "resize.npz")
    stored = (golden / "preprocess" / "images" / "im0_640x480.png").read_bytes()
    image = downstream.load_square_image({"image": stored}, 480)
    assert image.shape == (480, 480, 3)
    np.testing.assert_array_equal(image[::4, ::4], resized["finetune_480_u8_sub4_of_im0"])


@pytest.mark.parametrize("name", ["im0_640x480", "im1_480x640", "im4_1000x400"])
def test_boxes_of_grounding_are_the_golden_ones(golden, config, name):
    number = name.split("_")[0]
    resized = np.load(golden / "preprocess" / "resize.npz")
    *shape, x0, y0, x1, y1 = resized[f"refcoco512_{number}_shape_box"]
    published = dataclasses.replace(config, grounding_image_size=512, max_image_size=512)
    record = {
        "image": (golden / "preprocess" / "images" / f"{name}.png").read_bytes(),
        "phrases": ["it"],
        "phrase_boxes": as_boxes([20, 30, 180, 190]),
    }
    example = downstream.grounding(record, rng(), published)
    assert [3, *example["image"].shape[:2]] == shape
    # Golden boxes are in units of 512 pixels.
    expected = np.round(np.array([x0, y0, x1, y1], np.float32) * 999)
    bins = example["targets"][:-1] - published.vocabulary.bin_ids.start
    np.testing.assert_array_equal(bins, expected)


def test_a_box_that_reaches_slightly_beyond_its_image_is_clipped(config):
    record = {"image": IMAGE, "phrases": ["it"], "phrase_boxes": as_boxes([-0.5, 1, 60.4, 40])}
    example = downstream.grounding(record, rng(), config)
    assert config.vocabulary.decode(example["targets"][:-1]) == (
        "<bin_0><bin_25><bin_999><bin_999>"
    )
    with pytest.raises(InvalidRecordError, match="has no area within its image"):
        downstream.grounding(record | {"phrase_boxes": as_boxes([70, 1, 90, 40])}, rng(), config)


def test_a_question_is_followed_by_the_detected_objects(config):
    seen = dataclasses.replace(config, detected_objects=True, max_objects=2)
    record = {
        "image": IMAGE,
        "questions": ["what?"],
        "answers": ["a"],
        "object_labels": ["cup", "red table", "dog"],
        "answer_confidences": [0.6],
    }
    example = downstream.question_answering(record, rng(), seen)
    assert texts(example, config)[0] == " what? object: cup red table"
    assert example["loss_weight"] == np.float32(0.6)
    assert texts(downstream.question_answering(record, rng(), config), config)[0] == " what?"


@pytest.mark.parametrize("prompt", downstream.DECODER_PROMPTS)
@pytest.mark.parametrize("case", ["a question keeps its mark", "a hypothesis alone", "rte"])
def test_the_decoder_prompt_is_read_and_has_no_loss(case, prompt, config):
    """Compares decoder inputs and targets with loss for the three prompt types."""
    task, record, _ = CASES[case]
    plain = task(record, rng(), config)
    example = task(record, rng(), dataclasses.replace(config, decoder_prompt=prompt))
    source, answer = plain["inputs"], plain["targets"]
    front = {"none": source[:1], "source": source, "previous_output": source[:-1]}[prompt]
    lengths = {"inputs": 40, "targets": 40}
    size = example["image"].shape[0] if "image" in example else None
    row = features.to_features(example, features.Stream("s", "s", 1, lengths, size), 0, rng())
    read = np.concatenate([front, answer[:-1]])
    np.testing.assert_array_equal(row["decoder_input_tokens"][: len(read)], read)
    scored = row["decoder_loss_weights"] > 0
    np.testing.assert_array_equal(row["decoder_target_tokens"][scored], answer)
    assert np.flatnonzero(scored)[0] == len(front) - 1
    np.testing.assert_array_equal(example["inputs"], source)
    # Decoding starts from the prompt without bos.
    np.testing.assert_array_equal(example.get("target_prefix", []), front[1:])


def test_a_long_prompt_is_truncated_as_for_the_encoder(config):
    cut = dataclasses.replace(config, decoder_prompt="source", max_prompt_tokens=8)
    example = language_tasks.GLUE_TASKS["cola"](LABELLED, rng(), cut)
    assert len(example["inputs"]) == 8 and example["inputs"][-1] == 2
    np.testing.assert_array_equal(example["target_prefix"], example["inputs"][1:])
    assert len(example["targets"]) == 8


def test_a_fifth_of_the_decoder_inputs_of_a_summary_is_noise(config):
    summary = " ".join(["points"] * 60)
    record = {"text": "the nikkei rose", "summary": summary}
    stream = features.Stream("s", "s", 1, {"inputs": 40, "targets": 64})
    wrong = []
    for seed in range(40):
        example = language_tasks.summarization(record, np.random.default_rng(seed), config)
        assert texts(example, config)[1] == f" {summary}"
        row = features.to_features(example, stream, 0, rng())
        targets, read = row["decoder_target_tokens"], row["decoder_input_tokens"]
        assert read[0] == 0 and targets[60] == 2
        different = read[1:61] != targets[:60]
        wrong.append(different.mean())
        noise = read[1:61][different]
        assert ((noise >= 4) & (noise <= config.vocabulary.mask_id)).all()
    # Five standard deviations of a mean of 2,400 draws.
    assert abs(np.mean(wrong) - 0.2) < 5 * np.sqrt(0.2 * 0.8 / 2400)
    held_out = dataclasses.replace(config, training=False)
    assert "noisy_targets" not in language_tasks.summarization(record, rng(), held_out)


def test_an_article_is_truncated_with_its_instruction(config):
    short = dataclasses.replace(config, max_article_tokens=12)
    example = language_tasks.summarization({"text": "word " * 50, "summary": "a"}, rng(), short)
    assert len(example["inputs"]) == 14
    assert texts(example, config)[0] == ' what is the summary of article "' + " word" * 5


@pytest.mark.parametrize(
    ("case", "field"),
    [
        ("a caption keeps twenty words", "captions"),
        ("a question keeps its mark", "answers"),
        ("a phrase", "phrase_boxes"),
        ("a hypothesis alone", "label"),
        ("rte", "label"),
        ("a headline", "summary"),
        ("text to image", "codes"),
    ],
)
def test_a_target_may_be_missing_only_in_evaluation(case, field, config):
    task, record, _ = CASES[case]
    without = {name: value for name, value in record.items() if name != field}
    with pytest.raises(InvalidRecordError, match=f"it has no {field}"):
        task(without, rng(), config)
    example = task(without, rng(), dataclasses.replace(config, training=False))
    assert example["targets"].tolist() == [config.vocabulary.eos_id]
    np.testing.assert_array_equal(example["inputs"], task(record, rng(), config)["inputs"])


@pytest.mark.parametrize(
    ("task", "change", "sentence"),
    [
        (downstream.captioning, {"image": b"torn"}, "record 7: .*cannot be decoded"),
        (downstream.question_answering, {"questions": []}, "record 7: it has no questions"),
        (
            downstream.text_to_image,
            {"codes": np.zeros(3, np.int32)},
            "record 7: 3 image codes instead of 1024",
        ),
        (language_tasks.GLUE_TASKS["rte"], {"sentence2": ""}, "record 7: it has no sentence2"),
        (language_tasks.summarization, {"text": "..."}, "record 7: its text is empty"),
    ],
)
def test_an_invalid_record_raises_an_error_with_its_problem(task, change, sentence, config):
    record = LABELLED | {
        "id": "7",
        "image": IMAGE,
        "captions": ["a"],
        "questions": ["a?"],
        "answers": ["a"],
        "codes": np.zeros(1024, np.int32),
        "text": "a",
        "summary": "b",
    }
    task(record, rng(), config)
    with pytest.raises(InvalidRecordError, match=sentence):
        task(record | change, rng(), config)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"decoder_prompt": "src"},
            "decoder_prompt is 'src'; it must be one of none, source",
        ),
        ({"grounding_image_size": 96}, "max_image_size 64 is smaller than grounding_image_size"),
        ({"target_noise": 1.0}, "target_noise is 1.0"),
    ],
)
def test_invalid_configurations_are_rejected(config, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(config, **change)


def test_an_image_of_the_right_size_is_unchanged(config):
    stored = downstream_files.make_image(1, (32, 32))
    np.testing.assert_array_equal(
        downstream.load_square_image({"image": stored}, 32), images.to_array(images.decode(stored))
    )
    assert Image.MAX_IMAGE_PIXELS is None
    assert set(prompts.GLUE_PROMPTS) == set(language_tasks.GLUE_TASKS)
