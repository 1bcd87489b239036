"""Several wordings of an instruction: weighted, checked, and without effect on other draws."""

import collections
import dataclasses

import numpy as np
import pytest

from ofa_jax.data.pretraining_settings import scenes_settings
from ofa_jax.data.sources.scenes import Scenes
from ofa_jax.preprocessing import instructions, objectives, prompts, wordings
from ofa_jax.preprocessing.examples import make_example
from ofa_jax.preprocessing.objectives import OBJECTIVES, RECORD_KIND
from ofa_jax.utils.option_checks import OptionError

ALL = {
    name: (prompts.TRAINED_WORDINGS[name], prompts.UNSEEN_WORDINGS[name])
    for name in prompts.INSTRUCTIONS
}


@pytest.fixture(scope="module")
def settings(small_scenes):
    return scenes_settings(
        Scenes(str(small_scenes)), image_size=64, code_image_size=32, text_window=32
    )


def example_of(settings, objective, config, seed=3):
    record = settings.data_set.records(RECORD_KIND[objective], "train")[5]
    return OBJECTIVES[objective](record, np.random.default_rng(seed), config)


def with_prompts(settings, chosen):
    return dataclasses.replace(settings.objective_config, prompts=chosen)


@pytest.mark.parametrize("name", prompts.INSTRUCTIONS)
def test_wordings_have_the_names_of_the_published_one_and_are_all_different(name):
    trained, unseen = ALL[name]
    wordings.check_wordings("prompts", wordings.equally({name: trained + unseen}))
    known = {" ".join(wording.split()) for wording in (*trained, *unseen)}
    published = {" ".join(wording.split()) for wording in prompts.INSTRUCTIONS.values()}
    assert len(known) == len(trained) + len(unseen) >= 5 and not known & published


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_only_the_instruction_changes_and_only_where_it_is_asked_for(settings, objective):
    default = example_of(settings, objective, settings.objective_config)
    for chosen in (
        {},
        {"object_detection": {}},
        {name: {wording.strip(): 2.0} for name, wording in prompts.INSTRUCTIONS.items()},
        {
            name: {wording: 1.0, "unused" + wording: 0.0}
            for name, wording in prompts.INSTRUCTIONS.items()
        },
    ):
        same = example_of(settings, objective, with_prompts(settings, chosen))
        assert all(np.array_equal(same[name], default[name]) for name in default)
    found = collections.Counter()
    chosen = wordings.equally(prompts.UNSEEN_WORDINGS)
    for seed in range(8):
        default = example_of(settings, objective, settings.objective_config, seed)
        other = example_of(settings, objective, with_prompts(settings, chosen), seed)
        assert other.keys() == default.keys()
        assert not np.array_equal(other["inputs"], default["inputs"])
        for field in default.keys() - {"inputs"}:
            np.testing.assert_array_equal(other[field], default[field])
        found[settings.vocabulary.decode(other["inputs"])] += 1
    assert len(found) > 1


def test_weights_are_relative_frequencies_of_a_wording():
    chosen = {"image_captioning": {"rare": 1, "often": 3, "never": 0}}
    drawn = collections.Counter(
        wordings.sample_wording("image_captioning", chosen, np.random.default_rng(seed))
        for seed in range(400)
    )
    assert drawn.keys() == {" rare", " often"} and 250 < drawn[" often"] < 350
    rng = np.random.default_rng(0)
    assert wordings.sample_wording("object_detection", chosen, rng) == prompts.OBJECT_DETECTION
    wordings.sample_wording("image_captioning", chosen, rng)
    assert rng.random() == np.random.default_rng(0).random()


def test_several_wordings_keep_a_share_of_the_published_one():
    found = wordings.several_wordings(0.7)
    assert found.keys() == prompts.INSTRUCTIONS.keys()
    for name, own in found.items():
        assert own[prompts.INSTRUCTIONS[name]] == 0.7 and sum(own.values()) == pytest.approx(1)
        assert not set(own) & set(prompts.UNSEEN_WORDINGS[name])
    with pytest.raises(OptionError, match="published"):
        wordings.several_wordings(1.5)


@pytest.mark.parametrize(
    ("chosen", "problem"),
    [
        ({"captioning": {"describe it": 1}}, "names captioning; known are grounded_captioning"),
        ({"visual_grounding": {"where is it?": 1}}, r"must have {phrase}, each once"),
        ({"visual_grounding": {"{phrase} {phrase}?": 1}}, r"must have {phrase}, each once"),
        ({"image_captioning": {"describe {image}": 1}}, "must have no braces"),
        ({"image_captioning": {"describe {": 1}}, "is wrong"),
        ({"matching_caption": {"{caption!r}?": 1}}, "only names may stand in braces"),
        ({"image_captioning": {"describe it": 0.0}}, "every weight is 0"),
    ],
)
def test_wrong_wordings_are_refused_by_a_sentence(settings, chosen, problem):
    with pytest.raises(ValueError, match=problem):
        with_prompts(settings, chosen)


def test_evaluation_has_the_published_wording_and_gin_takes_the_option(small_scenes):
    made = scenes_settings(Scenes(str(small_scenes)), prompts=wordings.several_wordings(0.0))
    assert made.objective_config.prompts.keys() == prompts.INSTRUCTIONS.keys()
    assert made.evaluation_config.prompts == {}


@pytest.mark.parametrize("objective", ["image_captioning", "visual_grounding", "text_infilling"])
def test_the_predictor_gives_a_trained_wording_the_ids_of_training(settings, objective):
    """Tests one constant wording, one with a quoted text and one with masks."""
    chosen = wordings.equally({objective: prompts.TRAINED_WORDINGS[objective][:1]})
    trained = example_of(settings, objective, with_prompts(settings, chosen))["inputs"]
    vocabulary = settings.vocabulary
    written = vocabulary.decode(trained[1:-1]).strip()
    parts = instructions.encode(vocabulary, written)
    assert make_example(vocabulary, parts, "")["inputs"].tolist() == trained.tolist()


def test_a_region_may_stand_anywhere_in_a_wording(settings):
    chosen = {"grounded_captioning": {"what is at {region} in the image?": 1}}
    trained = example_of(settings, "grounded_captioning", with_prompts(settings, chosen))["inputs"]
    vocabulary = settings.vocabulary
    bins = np.array([token for token in trained if token in vocabulary.bin_ids], np.int32)
    parts = instructions.encode(vocabulary, "what is at {region} in the image?", bins)
    assert make_example(vocabulary, parts, "")["inputs"].tolist() == trained.tolist()
    assert objectives.prompts is prompts
