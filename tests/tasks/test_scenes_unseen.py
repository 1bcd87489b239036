"""The unseen tasks over Scenes: registered, exact, and as a user would write them."""

import json

import numpy as np
import pytest

from ofa_jax.data import seqio_bridge
from ofa_jax.data.pretraining_settings import PretrainingSettings
from ofa_jax.data.sources.memory import InMemoryRecords
from ofa_jax.data.task_settings import default_settings
from ofa_jax.evaluation import eval_spec, trivial_baselines
from ofa_jax.preprocessing import instructions
from ofa_jax.preprocessing.examples import make_example
from ofa_jax.preprocessing.objectives import OBJECTIVES
from tasks import scenes_unseen
from tools import zero_shot


@pytest.fixture(scope="module", autouse=True)
def settings(scenes_settings):
    return scenes_settings


def task_of(name, split, training=False):
    (task,) = seqio_bridge.weighted_tasks(name, split, training=training)
    return task


def examples(task):
    for index in range(len(task.records)):
        record = task.records[index]
        yield record, task.preprocess(record, np.random.default_rng(index))


@pytest.mark.parametrize("name", scenes_unseen.NAMES)
@pytest.mark.parametrize("split", ["validation", "train"])
def test_the_answer_gets_the_full_score_and_is_among_the_candidates(settings, name, split):
    spec, task = eval_spec.find(name), task_of(name, split)
    assert spec.candidates is None and spec.max_image_size == 64
    references, predictions = [], []
    for record, example in examples(task):
        references.append(spec.references(record))
        predictions.append(settings.vocabulary.decode(example["targets"][:-1]).strip())
        if scenes_unseen.has_answers(name):
            among = eval_spec.find(name + scenes_unseen.AMONG_ANSWERS)
            assert f" {predictions[-1]}" in among.candidates()
            assert among.references(record) == references[-1]
    json.dumps(references)
    (metric,) = spec.metrics
    scores = metric(references, predictions)
    assert len(references) and set(scores.values()) == {1.0}
    assert {f"accuracy/{own['type']}" for own in references} < set(scores)


@pytest.mark.parametrize("name", scenes_unseen.NAMES)
def test_an_instruction_has_the_ids_that_the_predictor_makes_of_it(settings, name):
    vocabulary = settings.vocabulary
    for record, example in examples(task_of(name, "validation")):
        (question,) = record["questions"]
        bins = np.array([t for t in example["inputs"] if t in vocabulary.bin_ids], np.int32)
        assert len(bins) == 4
        assert len(example["inputs"]) <= 56, "as long as the streams of the gin files"
        parts = instructions.encode(vocabulary, question.replace("-", " "), bins)
        assert make_example(vocabulary, parts, "")["inputs"].tolist() == example["inputs"].tolist()


def test_no_training_instruction_is_an_unseen_one(settings):
    """Compares the instructions without their boxes."""
    vocabulary = settings.vocabulary

    def stem(example):
        return vocabulary.decode([t for t in example["inputs"] if t not in vocabulary.bin_ids])

    unseen = {
        stem(example)
        for name in scenes_unseen.NAMES
        for split in ("train", "validation")
        for _, example in examples(task_of(name, split))
    }
    assert len(unseen) > 100
    for name in OBJECTIVES:
        task = task_of(name, "train", training=True)
        for index in range(60):
            rng = np.random.default_rng(index)
            assert stem(task.preprocess(task.records[index], rng)) not in unseen


def test_a_few_examples_are_the_first_of_the_training_split(settings):
    whole = task_of("region_neighbour", "train")
    few = task_of("region_neighbour_10", "train", training=True)
    assert len(few.records) == 10 < len(whole.records) < 150
    assert [few.records[k]["id"] for k in range(10)] == [whole.records[k]["id"] for k in range(10)]
    assert few.records[9]["questions"] == whole.records[9]["questions"]
    held_out = task_of("region_neighbour_10", "validation")
    assert len(held_out.records) == len(task_of("region_neighbour", "validation").records)


def test_the_most_frequent_answer_is_far_from_right():
    for name, most in (("region_neighbour", 0.3), ("region_yes_no", 0.65)):
        task = task_of(name, "train")
        known = [scenes_unseen.references(task.records[k]) for k in range(len(task.records))]
        guesses = trivial_baselines.most_frequent_answer(known, known, np.random.default_rng(0))
        (metric,) = eval_spec.find(name).metrics
        assert metric(known, guesses)["accuracy"] < most


def test_the_mixture_has_every_evaluated_task_and_the_tool_knows_them():
    rates = seqio_bridge.rates(scenes_unseen.MIXTURE)
    assert len(rates) == 7 and set(scenes_unseen.NAMES) < set(rates)
    assert zero_shot.TASKS == scenes_unseen.NAMES
    assert zero_shot.AMONG_ANSWERS == scenes_unseen.AMONG_ANSWERS
    assert zero_shot.FEW_EXAMPLES == scenes_unseen.TRAINING_EXAMPLES


def test_plain_seqio_reads_the_tasks(settings):
    task = seqio_bridge.find("region_yes_no")
    (element,) = task.get_dataset(None, "validation", shuffle=False).take(1)
    (expected,) = [
        example for _, example in list(examples(task_of("region_yes_no", "validation")))[:1]
    ]
    np.testing.assert_array_equal(element["inputs"], expected["inputs"])


def test_other_data_is_refused_by_a_sentence(settings):
    class Other:
        splits = ("train",)

        def records(self, kind, split):
            return InMemoryRecords([{}])

        def negatives(self):
            return None

    other = PretrainingSettings(Other(), settings.vocabulary, options=settings.options)
    with default_settings(other), pytest.raises(ValueError, match="is about Scenes, but .* Other"):
        task_of("region_yes_no", "train")
