"""The predictor: the output of the decoder for plain instructions, in pixels of the given image."""

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
def decoded(processor, config, variables):
    """Decodes the expected features without the predictor."""

    def decode(decoding, text, image=None, boxes=()):
        ids = [0, *processor.vocabulary.encode(text).tolist(), *boxes, 2]
        batch = {"encoder_input_tokens": np.full((1, 32), 1, np.int32)}
        batch["encoder_input_tokens"][0, : len(ids)] = ids
        if image is not None:
            seen = image.resize((48, 48), Image.Resampling.BICUBIC)
            batch["encoder_images"] = np.asarray(seen)[None]
        found = jax.device_get(make_decoder(OFA(config), decoding)(variables, batch))
        return [int(i) for i in found.tokens[0, 0] if i > 2], float(found.scores[0, 0])

    return decode


@pytest.fixture
def box_search(processor):
    bins = processor.vocabulary.bin_ids
    return DecodingConfig(
        beam_size=3, min_length=4, max_length=4, constraint_range=(bins.start, bins.stop)
    )


def test_a_box_is_returned_in_pixels_of_the_given_image(
    predictor, processor, decoded, box_search, image
):
    ids, score = decoded(box_search, ' which region does the text " a red apple " describe?', image)
    found = predictor.predict(image, GROUNDING)
    # 65 bins over 64 pixels: one bin is one pixel of the model's 48 x 48; the image has 96 x 72.
    box = (np.array(ids) - processor.vocabulary.bin_ids.start) * [2.0, 1.5, 2.0, 1.5]
    np.testing.assert_allclose(found.boxes, box[None], rtol=1e-6)
    assert found.labels == () and found.text == "" and found.codes is None
    assert found.score == pytest.approx(score, rel=1e-5)
    assert found.symbols == processor.vocabulary.decode(ids)


def test_free_text_equals_the_output_of_the_decoder(predictor, processor, decoded, image):
    decoding = DecodingConfig(beam_size=3, max_length=6)
    ids, _ = decoded(decoding, " what color is the car?", image)
    found = predictor.predict(image, "What color is the car?", decoding=decoding)
    assert found.symbols == processor.vocabulary.decode(ids).strip()


@pytest.mark.parametrize("form", ["path", "array", "bytes"])
def test_images_may_be_paths_arrays_or_bytes(predictor, image, tmp_path, form):
    image.save(tmp_path / "a.png")
    source = {
        "path": tmp_path / "a.png",
        "array": np.asarray(image),
        "bytes": (tmp_path / "a.png").read_bytes(),
    }[form]
    found, same = predictor.predict(source, GROUNDING), predictor.predict(image, GROUNDING)
    np.testing.assert_array_equal(found.boxes, same.boxes)
    assert found.score == same.score


def test_a_request_without_an_image_has_no_image_features(
    predictor, processor, decoded, box_search
):
    ids, score = decoded(box_search, ' which region does the text " a red apple " describe?')
    found = predictor.predict(None, GROUNDING)
    np.testing.assert_array_equal(
        found.boxes[0], np.array(ids) - processor.vocabulary.bin_ids.start
    )
    assert found.score == pytest.approx(score, rel=1e-5)


def test_a_batch_has_the_predictions_of_its_requests_alone(predictor, image):
    """Mixes requests with and without images and of two lengths; float32: 1e-5 relative."""
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


def test_instructions_of_similar_length_share_a_program(predictor, image):
    predictor.predict(image, GROUNDING)
    before = search._encode_and_generate._cache_size()
    for words in ("an apple", "the green apple"):
        predictor.predict(image, GROUNDING.replace("a red apple", words))
    assert search._encode_and_generate._cache_size() == before


def test_a_region_is_given_in_pixels_of_the_image(predictor, processor, decoded, image):
    decoding = DecodingConfig(beam_size=3, max_length=6)
    boxes = processor.vocabulary.encode_box((6, 8, 24, 32), 64)  # scaled by 1/2 and 2/3
    ids, _ = decoded(decoding, " what color is the car in the region? region:", image, boxes)
    found = predictor.predict(
        image, "What color is the car in the region?", region=(12, 12, 48, 48), decoding=decoding
    )
    assert found.symbols == processor.vocabulary.decode(ids).strip()


def test_a_task_selects_the_decode_preset_of_any_instruction(predictor, processor, image):
    bins = processor.vocabulary.bin_ids
    wording = "where is the red apple?"
    found = predictor.predict(image, wording, task="visual_grounding")
    expected = predictor.predict(
        image,
        wording,
        decoding=DecodingConfig(
            beam_size=3, min_length=4, max_length=4, constraint_range=(bins.start, bins.stop)
        ),
    )
    assert found.symbols == expected.symbols and found.boxes.shape == (1, 4)
    (batched,) = predictor.predict_batch([image], wording, task="visual_grounding")
    assert batched.symbols == expected.symbols


def test_only_candidates_are_predicted(predictor, image):
    candidates = ["yes", "no", "a red apple"]
    searched = predictor.predict(image, "is it red?", candidates=candidates)
    scored = predictor.predict(image, "is it red?", candidates=candidates, score_all=True)
    assert searched.text in candidates and scored.text in candidates


def test_image_infilling_predicts_codes_and_their_image(predictor, processor, image):
    wording = "What is the image in the middle part?"
    found = predictor.predict(image, wording)
    assert found.codes.shape == (4,) and 0 <= found.codes.min() <= found.codes.max() < 16
    assert found.image.size == (16, 16)
    expected = processor.image_tokenizer.decode(found.codes.reshape(1, 2, 2))[0]
    np.testing.assert_array_equal(np.asarray(found.image), expected)
    # The central 16 of 48 pixels, which are 24 of the 72 that the model sees, are hidden from it.
    hidden, seen = image.copy(), image.copy()
    hidden.paste((0, 0, 0), (43, 31, 53, 41))
    seen.paste((0, 0, 0), (14, 2, 24, 12))
    assert predictor.predict(hidden, wording).score == found.score
    assert predictor.predict(seen, wording).score != found.score


def test_text_to_image_samples_depend_on_the_seed(run_directory):
    def sample(seed):
        predictor = ofa_jax.Predictor(run_directory, seed=seed)
        wording = "what is the complete image? caption: a red apple"
        return [predictor.predict(None, wording).codes.tolist() for _ in range(3)]

    assert sample(0) == sample(0) != sample(1)


def test_an_official_checkpoint_needs_its_bpe(shared_golden, tmp_path):
    # Without an image, because a ResNet of the official size takes long to compile.
    config = SMALL.replace(
        vocab_size=59457, max_source_positions=64, resnet_layers=(3, 4, 6), resnet_width=64
    )
    files.write(tmp_path / "ofa.pt", random_variables(config), config)
    with pytest.raises(ValueError, match=r"give its vocabulary.*encoder.json, vocab.bpe and dict"):
        ofa_jax.Predictor(str(tmp_path / "ofa.pt"))
    predictor = ofa_jax.Predictor(
        str(tmp_path / "ofa.pt"), vocabulary=shared_golden / "bpe", beam_size=1
    )
    processor = predictor.loaded.processor
    assert (processor.image_size, processor.max_image_size) == (384, 512)
    assert predictor.predict(None, GROUNDING).boxes.shape == (1, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(image=np.zeros((8, 8, 3))), r"uint8 \[height, width, 3\], not float64"),
        (dict(image="nowhere.png"), "There is no image nowhere.png"),
        (dict(image=b"no image"), "cannot be decoded"),
        (dict(region=(0, 0, 500, 10)), "not a box x0, y0, x1, y1 within the image of 96 x 72"),
        (dict(region=(50, 0, 40, 10)), "not a box x0, y0, x1, y1"),
        (dict(image=None, region=(0, 0, 5, 10)), "no image that it lies in"),
        (
            dict(image=None, instruction="what is the image in the middle part?"),
            "there is no image",
        ),
        (dict(candidates=[]), "list of candidates is empty"),
        (dict(instruction=""), "The instruction is empty"),
        (dict(task="visual_groundin"), "Did you mean visual_grounding?"),
    ],
)
def test_invalid_arguments_are_reported(predictor, image, arguments, message):
    arguments = {"image": image, "instruction": "what is it?"} | arguments
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        predictor.predict(**arguments)


def test_a_vocabulary_of_another_size_is_refused(run_directory, shared_golden):
    with pytest.raises(ValueError, match="has 59457 ids and the model of"):
        ofa_jax.Predictor(run_directory, vocabulary=shared_golden / "bpe")


def test_the_package_imports_the_predictor_on_first_use():
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


def test_the_package_exports_its_classes_lazily():
    program = (
        "import sys, ofa_jax.inference as i; assert 'jax' not in sys.modules; "
        "assert all(hasattr(i, name) for name in i.__all__)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_the_former_name_of_candidates_is_accepted_with_a_warning(predictor, image):
    candidates = [" yes", " no"]
    with pytest.warns(FutureWarning, match="answers= is now called candidates="):
        former = predictor.predict(image, "is it red?", answers=candidates)
    assert former.text == predictor.predict(image, "is it red?", candidates=candidates).text
    with pytest.raises(TypeError, match="Give candidates alone"):
        predictor.predict(image, "is it red?", answers=candidates, candidates=candidates)
