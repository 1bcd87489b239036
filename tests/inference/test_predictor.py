"""The predictor: the decoder's own answers to what a person wrote, in pixels of their image."""

import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from official_model import random_variables
from PIL import Image
from small_model import SMALL

import ofa_jax
from ofa_jax.decoding import DecodingConfig, make_decoder, search
from ofa_jax.interop import files
from ofa_jax.model import OFA

GROUNDING = 'which region does the text "a red apple" describe?'
ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def predictor(run_directory):
    return ofa_jax.Predictor(run_directory, batch_size=2, source_lengths=(32, 64), beam_size=3)


@pytest.fixture
def decoded(interface, config, variables):
    """What the decoder writes to what the model should see, made without the predictor."""

    def decode(decoding, text, image=None, boxes=()):
        ids = [0, *interface.vocabulary.encode(text).tolist(), *boxes, 2]
        batch = {"encoder_input_tokens": np.full((1, 32), 1, np.int32)}
        batch["encoder_input_tokens"][0, : len(ids)] = ids
        if image is not None:
            seen = image.resize((48, 48), Image.Resampling.BICUBIC)
            batch["encoder_images"] = np.asarray(seen)[None]
        found = jax.device_get(make_decoder(OFA(config), decoding)(variables, batch))
        return [int(i) for i in found.tokens[0, 0] if i > 2], float(found.scores[0, 0])

    return decode


@pytest.fixture
def box_search(interface):
    bins = interface.vocabulary.bin_ids
    return DecodingConfig(
        beam_size=3, min_length=4, max_length=4, constraint_range=(bins.start, bins.stop)
    )


def test_a_box_is_the_decoders_in_pixels_of_the_given_image(
    predictor, interface, decoded, box_search, image
):
    ids, score = decoded(box_search, ' which region does the text " a red apple " describe?', image)
    found = predictor.predict(image, GROUNDING)
    # 65 bins over 64 pixels: a bin is a pixel of the model's 48 x 48; the image has 96 x 72.
    box = (np.array(ids) - interface.vocabulary.bin_ids.start) * [2.0, 1.5, 2.0, 1.5]
    np.testing.assert_allclose(found.boxes, box[None], rtol=1e-6)
    assert found.labels == () and found.text == "" and found.codes is None
    assert found.score == pytest.approx(score, rel=1e-5)
    assert found.symbols == interface.vocabulary.decode(ids)


def test_free_text_is_the_decoders(predictor, interface, decoded, image):
    decoding = DecodingConfig(beam_size=3, max_length=6)
    ids, _ = decoded(decoding, " what color is the car?", image)
    found = predictor.predict(image, "What color is the car?", decoding=decoding)
    assert found.symbols == interface.vocabulary.decode(ids).strip()


@pytest.mark.parametrize("form", ["path", "array", "bytes"])
def test_images_come_as_paths_arrays_or_bytes(predictor, image, tmp_path, form):
    image.save(tmp_path / "a.png")
    given = {
        "path": tmp_path / "a.png",
        "array": np.asarray(image),
        "bytes": (tmp_path / "a.png").read_bytes(),
    }[form]
    found, same = predictor.predict(given, GROUNDING), predictor.predict(image, GROUNDING)
    np.testing.assert_array_equal(found.boxes, same.boxes)
    assert found.score == same.score


def test_without_an_image_the_model_sees_none(predictor, interface, decoded, box_search):
    ids, score = decoded(box_search, ' which region does the text " a red apple " describe?')
    found = predictor.predict(None, GROUNDING)
    np.testing.assert_array_equal(
        found.boxes[0], np.array(ids) - interface.vocabulary.bin_ids.start
    )
    assert found.score == pytest.approx(score, rel=1e-5)


def test_a_batch_has_the_answers_of_its_questions_alone(predictor, image):
    """float32: 1e-5 relative. Images, none, another length of instruction: five questions."""
    flipped = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    images = [image, flipped, None, image, flipped]
    wordings = [
        GROUNDING,
        GROUNDING,
        GROUNDING,
        "what does the image describe?",
        "what color is the car? " + "a red apple and " * 6,
    ]
    together = predictor.predict_batch(images, wordings)
    for found, image, wording in zip(together, images, wordings, strict=True):
        alone = predictor.predict(image, wording)
        assert found.symbols == alone.symbols
        np.testing.assert_allclose(found.boxes, alone.boxes, rtol=1e-6)
        assert found.score == pytest.approx(alone.score, rel=1e-5)
    assert together[0].score != together[1].score  # the image matters


def test_instructions_of_like_length_share_a_program(predictor, image):
    predictor.predict(image, GROUNDING)
    before = search._encode_and_generate._cache_size()
    for words in ("an apple", "the green apple"):
        predictor.predict(image, GROUNDING.replace("a red apple", words))
    assert search._encode_and_generate._cache_size() == before


def test_a_region_is_given_in_pixels_of_the_image(predictor, interface, decoded, image):
    decoding = DecodingConfig(beam_size=3, max_length=6)
    boxes = interface.vocabulary.encode_box((6, 8, 24, 32), 64)  # halved, and times two thirds
    ids, _ = decoded(decoding, " what color is the car in the region? region:", image, boxes)
    found = predictor.predict(
        image, "What color is the car in the region?", region=(12, 12, 48, 48), decoding=decoding
    )
    assert found.symbols == interface.vocabulary.decode(ids).strip()


def test_only_allowed_answers_are_given(predictor, image):
    allowed = ["yes", "no", "a red apple"]
    searched = predictor.predict(image, "is it red?", answers=allowed)
    scored = predictor.predict(image, "is it red?", answers=allowed, score_all=True)
    assert searched.text in allowed and scored.text in allowed


def test_the_middle_is_written_as_codes_and_decoded(predictor, interface, image):
    wording = "What is the image in the middle part?"
    found = predictor.predict(image, wording)
    assert found.codes.shape == (4,) and 0 <= found.codes.min() <= found.codes.max() < 16
    assert found.image.size == (16, 16)
    expected = interface.image_tokenizer.decode(found.codes.reshape(1, 2, 2))[0]
    np.testing.assert_array_equal(np.asarray(found.image), expected)
    # The middle 16 pixels of 48, that is 24 of the 72 that are seen, are hidden from the model.
    hidden, seen = image.copy(), image.copy()
    hidden.paste((0, 0, 0), (43, 31, 53, 41))
    seen.paste((0, 0, 0), (14, 2, 24, 12))
    assert predictor.predict(hidden, wording).score == found.score
    assert predictor.predict(seen, wording).score != found.score


def test_a_whole_image_is_drawn_and_follows_from_the_seed(run_directory):
    def draw(seed):
        predictor = ofa_jax.Predictor(run_directory, seed=seed)
        wording = "what is the complete image? caption: a red apple"
        return [predictor.predict(None, wording).codes.tolist() for _ in range(3)]

    assert draw(0) == draw(0) != draw(1)


def test_an_official_checkpoint_answers_with_its_bpe(shared_golden, tmp_path):
    # Without an image, or its ResNet of the original's size would take long to compile.
    config = SMALL.replace(
        vocab_size=59457, max_source_positions=64, resnet_layers=(3, 4, 6), resnet_width=64
    )
    files.write(tmp_path / "ofa.pt", random_variables(config), config)
    with pytest.raises(ValueError, match=r"give its vocabulary.*encoder.json, vocab.bpe and dict"):
        ofa_jax.Predictor(str(tmp_path / "ofa.pt"))
    predictor = ofa_jax.Predictor(
        str(tmp_path / "ofa.pt"), vocabulary=shared_golden / "bpe", beam_size=1
    )
    interface = predictor.loaded.interface
    assert (interface.image_size, interface.max_image_size) == (384, 512)
    assert predictor.predict(None, GROUNDING).boxes.shape == (1, 4)


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        (dict(image=np.zeros((8, 8, 3))), r"uint8 \[height, width, 3\], not float64"),
        (dict(image="nowhere.png"), "There is no image nowhere.png"),
        (dict(image=b"no image"), "cannot be decoded"),
        (dict(region=(0, 0, 500, 10)), "no box x0, y0, x1, y1 within the image of 96 x 72"),
        (dict(region=(50, 0, 40, 10)), "no box x0, y0, x1, y1"),
        (dict(image=None, region=(0, 0, 5, 10)), "no image that it lies in"),
        (
            dict(image=None, instruction="what is the image in the middle part?"),
            "there is no image",
        ),
        (dict(answers=[]), "list of allowed answers is empty"),
        (dict(instruction=""), "The instruction is empty"),
    ],
)
def test_what_cannot_be_asked_is_a_sentence(predictor, image, keywords, sentence):
    asked = {"image": image, "instruction": "what is it?"} | keywords
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        predictor.predict(**asked)


def test_a_vocabulary_of_another_size_is_refused(run_directory, shared_golden):
    with pytest.raises(ValueError, match="has 59457 ids and the model of"):
        ofa_jax.Predictor(run_directory, vocabulary=shared_golden / "bpe")


def test_the_package_gives_the_predictor_when_it_is_asked_for():
    program = (
        "import sys, ofa_jax; assert 'jax' not in sys.modules; "
        "print(ofa_jax.Predictor.__module__, 'Predictor' in dir(ofa_jax))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.split() == ["ofa_jax.inference.predictor", "True"]
    with pytest.raises(AttributeError, match="no attribute 'Predicter'"):
        ofa_jax.Predicter  # noqa: B018
