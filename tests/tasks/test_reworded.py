"""The objectives with other wordings: the same examples, another instruction."""

import dataclasses

import numpy as np
import pytest

from ofa_jax.data import seqio_bridge
from ofa_jax.data.task_settings import default_settings
from ofa_jax.evaluation import eval_spec
from ofa_jax.preprocessing import prompts, wordings
from ofa_jax.preprocessing.objectives import OBJECTIVES
from tasks import reworded


@pytest.fixture(scope="module", autouse=True)
def settings(scenes_settings):
    return scenes_settings


def task_of(name, split="validation", settings=None):
    (task,) = seqio_bridge.weighted_tasks(name, split, settings, training=False)
    return task


@pytest.mark.parametrize("suffix", reworded.SUFFIXES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_only_the_instruction_differs_from_the_objective(settings, name, suffix):
    published, other = task_of(name), task_of(name + suffix)
    for index in range(4):
        first, second = (
            task.preprocess(task.records[index], np.random.default_rng(index))
            for task in (published, other)
        )
        assert not np.array_equal(first["inputs"], second["inputs"])
        for field in first.keys() - {"inputs"}:
            np.testing.assert_array_equal(first[field], second[field])
    expected = eval_spec.find(name)
    found = eval_spec.find(name + suffix)
    assert found.task == name + suffix
    assert found.kind == expected.kind and len(found.metrics) == len(expected.metrics)


def test_no_wording_is_much_longer_than_the_published_one(settings):
    """Counts tokens of a vocabulary of 800; of 4,096, they fit into 40, 16 and 48."""
    longest = {"pairs": 64, "images": 32, "text": 72}
    for stream, length in longest.items():
        for name in seqio_bridge.rates(f"reworded_{stream}"):
            task = task_of(name)
            for index in range(8):
                example = task.preprocess(task.records[index], np.random.default_rng(index))
                assert len(example["inputs"]) <= length, name


def test_what_a_run_leaves_out_is_not_evaluated(settings):
    without = dataclasses.replace(settings, rates={"visual_grounding": 0.0})
    every, fewer = (set(seqio_bridge.rates("reworded_pairs", own)) for own in (settings, without))
    assert len(every) == 10
    assert every - fewer == {f"visual_grounding{suffix}" for suffix in reworded.SUFFIXES}


def test_a_run_with_several_wordings_is_evaluated_with_the_published_one(settings):
    options = dict(settings.options) | {"prompts": wordings.several_wordings(0.0)}
    trained = dataclasses.replace(settings, options=options)
    with default_settings(trained):
        (training,) = seqio_bridge.weighted_tasks("image_captioning", "train", training=True)
        rng = np.random.default_rng(0)
        inputs = training.preprocess(training.records[0], rng)["inputs"]
        text = settings.vocabulary.decode(inputs[1:-1])
        assert text in prompts.TRAINED_WORDINGS["image_captioning"]
        evaluated = task_of("image_captioning")
        inputs = evaluated.preprocess(evaluated.records[0], rng)["inputs"]
        assert settings.vocabulary.decode(inputs[1:-1]) == prompts.IMAGE_CAPTIONING
