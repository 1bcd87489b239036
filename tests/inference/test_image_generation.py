"""Images from captions: guidance and re-ranking change what is chosen, and for the better."""

import json

import numpy as np
import pytest
from PIL import Image

import ofa_jax
from ofa_jax.decoding import DecodingConfig
from ofa_jax.inference.build import build_job
from ofa_jax.inference.image_generation import ImageGeneration
from ofa_jax.inference.presets import find_preset
from ofa_jax.inference.reranking import MatchingRanker, caption_of
from ofa_jax.inference.sources import JsonLines
from ofa_jax.preprocessing import instructions, prompts

CAPTIONS = ["a red apple", "a green apple", "what is in the image"]


class Brightness:
    """Prefers bright images; of captions with `green` dark ones."""

    name = "brightness"

    def score(self, captions, images):
        signs = np.array([-1.0 if "green" in caption else 1.0 for caption in captions])
        return signs * images.mean(axis=(1, 2, 3))


class Broken:
    name = "broken"

    def score(self, captions, images):
        return np.full(len(images), np.nan)


@pytest.fixture(scope="module")
def predictor(run_directory):
    return ofa_jax.Predictor(run_directory, batch_size=2, source_lengths=(32,))


def brightness_of(prediction):
    return float(np.asarray(prediction.image).mean())


def test_reranking_chooses_the_best_candidate_of_the_ranker(run_directory):
    """Control: without the ranker, the same candidates are drawn and another one is chosen."""
    chosen = {
        name: ofa_jax.Predictor(run_directory, batch_size=2).generate_images(
            CAPTIONS, ImageGeneration(num_candidates=8, reranker=ranker)
        )
        for name, ranker in {"ranked": Brightness(), "control": None}.items()
    }
    different = 0
    for ranked, control, caption in zip(*chosen.values(), CAPTIONS, strict=True):
        ours, theirs = ((one, *one.alternatives) for one in (ranked, control))
        assert sorted(one.symbols for one in ours) == sorted(one.symbols for one in theirs)
        sign = -1 if "green" in caption else 1
        scores = [sign * brightness_of(one) for one in ours]
        np.testing.assert_allclose([one.score for one in ours], scores, rtol=1e-5)
        assert scores == sorted(scores, reverse=True)
        assert scores[0] > np.mean(scores) and scores[0] >= sign * brightness_of(control)
        different += ranked.symbols != control.symbols
    assert different


def test_the_model_ranks_by_its_own_image_text_matching(predictor):
    generation = ImageGeneration(num_candidates=4, reranker="matching")
    (found,) = predictor.generate_images(CAPTIONS[0], generation)
    for one in (found, *found.alternatives):
        answer = predictor.predict(
            one.image,
            f'does the image describe "{CAPTIONS[0]}"?',
            candidates=["yes", "no"],
            score_all=True,
        )
        scores = {own.text: own.score for own in (answer, *answer.alternatives)}
        np.testing.assert_allclose(one.score, scores["yes"], rtol=1e-4)
    assert found.score >= max(one.score for one in found.alternatives)
    ranker = MatchingRanker(predictor)
    assert ranker.score(['"', "..."], np.zeros((2, 16, 16, 3), np.uint8)).tolist() == [0, 0]


def test_guidance_changes_what_is_generated(run_directory):
    def generate(scale):
        predictor = ofa_jax.Predictor(run_directory, batch_size=2)
        generation = ImageGeneration(num_candidates=8, guidance_scale=scale)
        found = predictor.generate_images(CAPTIONS, generation)
        return [one.symbols for image in found for one in (image, *image.alternatives)]

    assert generate(1.0) == generate(1.0) != generate(6.0)


def test_the_images_of_a_caption_do_not_depend_on_its_batch(run_directory):
    generation = ImageGeneration(num_candidates=2, guidance_scale=2.0)

    def generate(batch_size, one_by_one=False):
        predictor = ofa_jax.Predictor(run_directory, batch_size=batch_size)
        if one_by_one:
            return [predictor.generate_images(own, generation)[0].symbols for own in CAPTIONS]
        return [found.symbols for found in predictor.generate_images(CAPTIONS, generation)]

    assert generate(1) == generate(4) == generate(2, one_by_one=True)


def test_a_predictor_generates_all_images_as_it_is_told(run_directory):
    """So does a server, whose requests come through `predict`."""
    generation = ImageGeneration(num_candidates=6, reranker=Brightness())
    predictor = ofa_jax.Predictor(run_directory, image_generation=generation)
    found = predictor.predict(None, f"what is the complete image? caption: {CAPTIONS[0]}")
    assert len(found.alternatives) == 5 and found.score == pytest.approx(brightness_of(found))
    own = find_preset("text_to_image", predictor.loaded.processor, predictor.loaded.model.config)
    plain = predictor.predict(None, "what is the complete image? caption: a", decoding=own.decoding)
    assert not plain.alternatives and plain.score < 0


def write_lines(folder):
    path = folder / "captions.jsonl"
    lines = [{"id": text, "instruction": f"what is the complete image? caption: {text}"} for text in
             CAPTIONS]  # fmt: skip
    lines.append({"id": "text", "instruction": "what is it?"})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return JsonLines(str(path), index_dir=str(folder))


def run_job(run_directory, folder, out, generation, **options):
    options = dict(batch_size=2, shard_size=4, source_length=32, num_threads=1) | options
    job = build_job(
        str(run_directory),
        str(folder / out),
        write_lines(folder),
        image_generation=generation,
        **options,
    )
    job.run()
    paths = sorted((folder / out).glob("answers-*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def test_a_job_writes_the_image_that_the_ranker_chooses(run_directory, tmp_path):
    generation = ImageGeneration(num_candidates=8, guidance_scale=2.0, reranker=Brightness())
    lines = run_job(run_directory, tmp_path, "ranked", generation)
    control = run_job(
        run_directory, tmp_path, "control", ImageGeneration(num_candidates=8, guidance_scale=2.0)
    )
    assert [line["id"] for line in lines] == [*CAPTIONS, "text"]
    assert lines[3] == control[3] and "image" not in lines[3]
    means = {"ranked": [], "control": []}
    for caption, ranked, other in zip(CAPTIONS, lines, control, strict=False):
        sign = -1 if "green" in caption else 1
        for out, line in (("ranked", ranked), ("control", other)):
            pixels = np.asarray(Image.open(tmp_path / out / line["image"]))
            assert pixels.shape == (16, 16, 3)
            means[out].append(sign * pixels.mean())
        assert ranked["score"] == pytest.approx(means["ranked"][-1])
    assert (np.array(means["ranked"]) >= means["control"]).all()
    assert means["ranked"] != means["control"]
    # Neither the size of the batches nor a restart changes what is drawn.
    assert run_job(run_directory, tmp_path, "again", generation, batch_size=4) == [
        line | ({"image": line["image"]} if "image" in line else {}) for line in lines
    ]
    with pytest.raises(ValueError, match="image_generation"):
        run_job(run_directory, tmp_path, "ranked", ImageGeneration(num_candidates=8))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.generate_images(" "), "Caption 0 .* is ' ': give a text"),
        (lambda p: p.generate_images(iter(["a", None])), "Caption 1 .* is None"),
        (lambda p: p.generate_images(7), "captions is .*7.* give a list"),
        (lambda p: p.generate_images("a", 24), "generation is 24; give an ImageGeneration"),
        (
            lambda p: p.generate_images("a", ImageGeneration(2, reranker=Broken())),
            "ranker broken did not give each of 2 images a finite number",
        ),
        (
            lambda p: p.predict(None, "what is it?", decoding=DecodingConfig(guidance_scale=2.0)),
            "guidance is for images from captions",
        ),
        (lambda p: ImageGeneration(num_candidates=0), "num_candidates"),
        (lambda p: ImageGeneration(reranker="clip"), "reranker"),
    ],
)
def test_what_cannot_be_generated_is_one_sentence(predictor, call, message):
    with pytest.raises(ValueError, match=message):
        call(predictor)


def test_ranking_needs_an_image_tokenizer(run_directory):
    predictor = ofa_jax.Predictor(run_directory)
    loaded = predictor.loaded.with_processor(image_tokenizer=None)
    with pytest.raises(ValueError, match="the model has no image tokenizer"):
        ofa_jax.Predictor(loaded, image_generation=ImageGeneration(reranker="matching"))
    (found,) = ofa_jax.Predictor(loaded).generate_images("a", ImageGeneration(num_candidates=2))
    assert found.image is None and len(found.codes) == 4


def test_the_instruction_without_a_caption_is_that_of_training(processor):
    vocabulary = processor.vocabulary
    encode = vocabulary.encode
    asked = instructions.encode(
        vocabulary, "what is the complete image? caption: a red apple", None
    )
    ids = np.concatenate([encode(part) if isinstance(part, str) else part for part in asked])
    without = encode(prompts.UNCONDITIONAL_IMAGE)
    np.testing.assert_array_equal(ids[: len(without)], without)
    assert caption_of(prompts.TEXT_TO_IMAGE.format(caption="a Red apple")) == "a Red apple"
    assert caption_of("draw a dog") == "draw a dog"
