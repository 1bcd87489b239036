"""The eight objectives and their mixtures as plain seqio sees them."""

import numpy as np
import pytest
import seqio
import tensorflow as tf

from ofa_jax.data import objectives, prompts, seqio_bridge
from ofa_jax.data.scenes import Scenes
from tasks import pretraining
from tasks.pretraining import PretrainingSettings, scenes_settings

MIXTURES = {
    "ofa_pretrain_pairs": {
        "image_captioning", "visual_question_answering", "image_text_matching",
        "visual_grounding", "grounded_captioning"},
    "ofa_pretrain_images": {"image_infilling", "object_detection"},
    "ofa_pretrain_text": {"text_infilling"},
    "ofa_pretrain": set(objectives.OBJECTIVES),
}
INSTRUCTIONS = {
    "image_captioning": prompts.IMAGE_CAPTIONING,
    "image_infilling": prompts.IMAGE_INFILLING,
    "object_detection": prompts.OBJECT_DETECTION,
    "visual_grounding": "which region does the text",
    "grounded_captioning": "what does the region describe? region:",
    "text_infilling": "what is the complete text of",
}


@pytest.fixture(scope="module", autouse=True)
def settings(small_scenes):
    settings = scenes_settings(
        Scenes(str(small_scenes)), picture_size=64, code_image_size=32, text_window=32)
    pretraining.configure(settings)
    yield settings
    pretraining.configure(None)


def examples(name, count, split="train", **options):
    dataset = seqio.get_mixture_or_task(name).get_dataset(
        sequence_length=None, split=split, shuffle=False, seed=3, num_epochs=None, **options)
    return list(dataset.take(count).as_numpy_iterator())


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
@pytest.mark.parametrize("split", ["train", "validation", "test_shifted"])
def test_each_objective_is_a_task(settings, name, split):
    vocabulary = settings.vocabulary
    for example in examples(name, 3, split):
        inputs, targets = example["inputs"], example["targets"]
        assert inputs[0] == vocabulary.bos_id and inputs[-1] == targets[-1] == vocabulary.eos_id
        assert max(inputs.max(), targets.max()) < vocabulary.vocab_size
        assert INSTRUCTIONS.get(name, "").strip() in vocabulary.decode(inputs)
        assert example["image"].shape == ((0, 0, 3) if name == "text_infilling" else (64, 64, 3))
        codes = np.isin(targets[:-1], list(vocabulary.code_ids))
        assert example["code_mask"] == (name == "image_infilling") == codes.all()
        if name == "image_infilling":
            assert len(targets) == 16 + 1
        if name == "visual_grounding":
            assert np.isin(targets[:-1], list(vocabulary.bin_ids)).all() and len(targets) == 5
        if name == "image_text_matching":
            assert vocabulary.decode(targets[:-1]) in (prompts.YES, prompts.NO)


@pytest.mark.parametrize("mixture", MIXTURES)
def test_each_mixture_yields_all_of_its_objectives(mixture):
    assert set(seqio_bridge.rates(mixture)) == MIXTURES[mixture]
    assert len(examples(mixture, 6)) == 6


def test_matching_is_as_frequent_as_what_it_follows_and_grounding_goes_both_ways():
    """Each pair gives two examples, the second a matching one or the grounded twin."""
    rates = seqio_bridge.rates("ofa_pretrain_pairs")
    assert rates["image_text_matching"] == rates["image_captioning"] + rates[
        "visual_question_answering"]
    assert rates["visual_grounding"] == rates["grounded_captioning"]
    # 8 pairs are 16 examples, to 2 texts, 1 picture to infill and 1 with objects.
    every = seqio_bridge.rates("ofa_pretrain")
    assert sum(every[name] for name in MIXTURES["ofa_pretrain_pairs"]) == pytest.approx(16)
    assert (every["text_infilling"], every["image_infilling"], every["object_detection"]) == (
        2, 1, 1)


def test_a_rate_of_nothing_leaves_an_objective_out(settings, small_scenes):
    try:
        pretraining.configure(
            scenes_settings(Scenes(str(small_scenes)), rates={"image_infilling": 0.0}))
        assert set(seqio_bridge.rates("ofa_pretrain_images")) == {"object_detection"}
        tasks = seqio_bridge.rated_tasks("ofa_pretrain_images", "train")
        assert [task.name for task in tasks] == ["object_detection"]
    finally:
        pretraining.configure(settings)


def test_the_loaders_validation_is_not_augmented_and_the_same_each_time(settings):
    (task,) = seqio_bridge.rated_tasks("visual_grounding", "validation")
    first = task.preprocess(task.records[0], np.random.default_rng(0))
    second = task.preprocess(task.records[0], np.random.default_rng(0))
    np.testing.assert_array_equal(first["image"], second["image"])
    (training,) = seqio_bridge.rated_tasks("visual_grounding", "train")
    assert training.preprocess.split == "train" and task.preprocess.split == "validation"


def test_tasks_of_ones_own_mix_with_these(settings):
    outputs = pretraining.OUTPUT_FEATURES
    assert set(outputs) == set(seqio_bridge.EXAMPLE_SIGNATURE)
    assert outputs["targets"].vocabulary.vocab_size == settings.vocabulary.vocab_size
    assert outputs["image"].dtype == tf.uint8


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(rates={"captioning": 1.0}), "rates names captioning; known are"),
        (dict(options={"picture_size": 3}), "options names picture_size; known are"),
    ],
)
def test_settings_that_name_nothing_are_refused(settings, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        PretrainingSettings(settings.data_set, settings.vocabulary, **options)
