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
from ofa_jax.checkpoints import storage
from ofa_jax.decoding import DecodingConfig, make_decoder, search
from ofa_jax.inference.loading import load_model
from ofa_jax.interop import files
from ofa_jax.model import OFA, layout
from ofa_jax.sharding import Partitioner

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


def test_stacked_parameters_are_taken_apart_once_and_predict_the_same(
    predictor, processor, config, variables, image, tmp_path
):
    """A run of gin_configs/runs/pretrain.gin has stacked layers and a padded embedding."""
    stacked = config.replace(scan_layers=True, vocab_multiple=128)
    storage.save_variables(str(tmp_path), layout.from_plain(variables, stacked), step=7)
    storage.write_model_config(str(tmp_path), stacked)
    processor.save(str(tmp_path))
    loaded = load_model(str(tmp_path), Partitioner(devices=tuple(jax.devices()[:1])))
    assert loaded.model.config == config
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded.variables, dict(variables)))
    other = ofa_jax.Predictor(loaded, batch_size=2, source_lengths=(32, 64), beam_size=3)
    greedy = DecodingConfig(beam_size=1, max_length=8)
    for decoding in (None, greedy):
        found, same = (
            p.predict(image, "what does the image describe?", decoding=decoding)
            for p in (other, predictor)
        )
        assert found.symbols == same.symbols
        assert found.score == pytest.approx(same.score, rel=1e-5)


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


def test_the_packages_export_their_classes_lazily():
    program = (
        "import sys, ofa_jax, ofa_jax.inference as i; assert 'jax' not in sys.modules; "
        "print(ofa_jax.Predictor.__module__, 'Predictor' in dir(ofa_jax)); "
        "assert all(hasattr(i, name) for name in i.__all__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.split() == ["ofa_jax.inference.predictor", "True"]
    with pytest.raises(AttributeError, match="no attribute 'Predicter'"):
        ofa_jax.Predicter  # noqa: B018


def test_the_former_name_of_candidates_is_accepted_with_a_warning(predictor, image):
    candidates = [" yes", " no"]
    with pytest.warns(FutureWarning, match="answers= is now called candidates="):
        former = predictor.predict(image, "is it red?", answers=candidates)
    assert former.text == predictor.predict(image, "is it red?", candidates=candidates).text
    with pytest.raises(TypeError, match="Give candidates alone"):
        predictor.predict(image, "is it red?", answers=candidates, candidates=candidates)


WRONG_ARGUMENTS = {
    "letters as candidates": (dict(candidates="yes"), r"Write \['yes'\] for a single one"),
    "bytes as candidates": (dict(candidates=b"yes"), "give a list of texts"),
    "a dict of candidates": (dict(candidates={"yes": 1}), "give a list of texts"),
    "a candidate of another type": (dict(candidates=["yes", None]), "None is not text"),
    "a blank candidate": (dict(candidates=["yes", " "]), "is empty: leave it out"),
    "half a character": (dict(candidates=["\ud83d"]), "lone surrogate"),
    "an unreachable candidate": (
        dict(candidates=["a red apple and a green apple"], decoding=DecodingConfig(max_length=2)),
        "tokens, more than the 2 that DecodingConfig.max_length allows",
    ),
    "a candidate that is too short": (
        dict(candidates=["no"], decoding=DecodingConfig(max_length=30, min_length=20)),
        "DecodingConfig.min_length is 20",
    ),
    "candidates for an image": (
        dict(candidates=["yes"], task="image_infilling"),
        "The output is an image",
    ),
    "scores of nothing": (dict(score_all=True), "no candidates to score"),
    "a text for a bool": (dict(score_all="no"), "score_all is no; it must be True or False"),
    "a dict for decoding": (dict(decoding={"beam_size": 2}), "give a DecodingConfig"),
    "a number for a task": (dict(task=7), "task is 7; give one of"),
    "a number for an instruction": (dict(instruction=7), "is 7 of the type int; it must be text"),
    "bytes for an instruction": (dict(instruction=b"what?"), "it must be text"),
    "a file descriptor": (dict(image=0), "The image is a int; give a path"),
    "a list of pixels": (dict(image=[[1, 2]]), "The image is a list"),
    "no pixels": (dict(image=np.zeros((0, 5, 3), np.uint8)), "has no pixels"),
    "channels first": (dict(image=np.zeros((3, 8, 8), np.uint8)), "put the channels last"),
    "floats": (dict(image=np.full((8, 8, 3), np.nan, np.float32)), "not float32"),
    "a device": (dict(image="/dev/zero"), "cannot be read: .*not a regular file"),
    "a folder": (dict(image="/"), "cannot be read: .*not a regular file"),
    "a null byte": (dict(image="a\0.png"), "cannot be read"),
    "letters of a region": (dict(region="1234"), "The region 1234 is not a box"),
    "NaN in a region": (dict(region=(0, 0, float("nan"), 5)), "is not a box"),
    "five numbers": (dict(region=(0, 0, 5, 5, 5)), "is not a box"),
    "a huge number": (dict(region=(0, 0, 10**400, 5)), "is not a box"),
    "an edge as a region": (dict(region=(96, 0, 96.5, 10)), "is not a box"),
}


@pytest.mark.parametrize("what", WRONG_ARGUMENTS)
def test_arguments_are_checked_as_on_the_command_line(predictor, image, what):
    arguments, message = WRONG_ARGUMENTS[what]
    arguments = {"image": image, "instruction": "what is it?"} | arguments
    with pytest.raises(ValueError, match=message):
        predictor.predict(**arguments)


def test_iterators_are_read_once_and_an_empty_batch_is_empty(predictor, image):
    candidates = ["yes", "no"]
    expected = predictor.predict(image, "is it red?", candidates=candidates)
    found = predictor.predict(image, "is it red?", candidates=(text for text in candidates))
    assert (found.text, found.score) == (expected.text, expected.score)
    (batched,) = predictor.predict_batch(
        iter([image]), iter(["is it red?"]), regions=iter([None]), candidates=iter(candidates)
    )
    assert batched.text == expected.text
    assert predictor.predict_batch([], "is it red?") == predictor.predict_batch([], []) == []


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("a.png", "images is a.png of the type str; give a list"),
        (np.zeros((8, 8, 3), np.uint8), "call `predict` for a single one"),
        (None, "give a list"),
        ([None, 7], r"Request 1 \(counted from 0\): The image is a int"),
    ],
)
def test_a_batch_names_the_request_that_cannot_be_used(predictor, images, message):
    with pytest.raises(ValueError, match=message):
        predictor.predict_batch(images, "what is it?")


def test_lone_surrogates_are_replaced(predictor, image):
    found = predictor.predict(image, "what is \ud83d here?")
    assert found.symbols == predictor.predict(image, "what is \ufffd here?").symbols


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(beam_size=2.5), "Predictor.beam_size is 2.5"),
        (dict(beam_size=10_000), "needs more than"),
        (dict(batch_size=0), "Predictor.batch_size is 0"),
        (dict(source_lengths=[]), "Predictor.source_lengths"),
        (dict(source_lengths=32), "Predictor.source_lengths is 32"),
        (dict(source_lengths=[1]), "at least 2"),
        (dict(seed="1"), "Predictor.seed"),
        (dict(dtype="float8"), "Predictor.dtype"),
        (dict(image_size=50), "multiple of 16"),
    ],
)
def test_the_arguments_of_the_predictor_are_checked(run_directory, arguments, message):
    with pytest.raises(ValueError, match=message):
        ofa_jax.Predictor(str(run_directory), **arguments)


def test_a_first_answer_imports_neither_tensorflow_nor_seqio(run_directory, image, tmp_path):
    image.save(tmp_path / "image.png")
    program = (
        "import sys, ofa_jax\n"
        "predictor = ofa_jax.Predictor(sys.argv[1], beam_size=1, source_lengths=(32,))\n"
        "print(predictor.predict(sys.argv[2], 'is it red?', candidates=['yes', 'no']).text)\n"
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(run_directory), str(tmp_path / "image.png")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    *_, text, modules = done.stdout.splitlines()
    assert text in ("yes", "no")
    not_needed = {"tensorflow", "seqio", "keras", "pandas", "sklearn", "clu", "grain", "gin"}
    assert not not_needed & set(modules.split())
