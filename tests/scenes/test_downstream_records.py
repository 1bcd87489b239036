"""Downstream scenes: none of pretraining's, with new nouns, and in words that it does not have."""

import numpy as np
import pytest

from ofa_jax.scenes import composer, corpus, downstream_records, questions, records, rewording
from ofa_jax.scenes.downstream_records import DownstreamScenes

SMALL = DownstreamScenes(image_size=64, max_objects=4)


def test_a_record_follows_from_its_arguments_and_is_no_scene_of_pretraining():
    one, again = (downstream_records.make_record(SMALL, "train", 5) for _ in range(2))
    assert one == again
    pretraining = composer.SceneOptions(image_size=64, max_objects=4)
    images = {records.make_record(pretraining, "train", index)["image"] for index in range(20)}
    assert not images & {
        downstream_records.make_record(SMALL, "train", index)["image"] for index in range(20)
    }


def test_a_third_of_the_nouns_are_new_and_splits_differ():
    assert len(SMALL.names) == 60 and len(SMALL.new_names) == 20
    known = {noun.name for noun in composer.SceneOptions().vocabulary}
    assert not known & set(SMALL.new_names)
    found = [downstream_records.make_record(SMALL, "train", index) for index in range(60)]
    labels = [label for record in found for label in record["object_labels"]]
    assert 0.15 < np.mean([label in SMALL.new_names for label in labels]) < 0.5
    others = [downstream_records.make_record(SMALL, "test", index)["image"] for index in range(20)]
    assert not {record["image"] for record in found} & set(others)


def test_too_many_new_nouns_are_refused():
    with pytest.raises(ValueError, match="set new_nouns to 0 to"):
        DownstreamScenes(new_nouns=10_000)


def test_texts_have_the_answers_of_pretraining_in_other_words():
    options = composer.SceneOptions(image_size=64)
    kinds, before, after = set(), set(), set()
    for index in range(150):
        rng = composer.make_generator(options, "train", index)
        scene, _ = composer.compose(options, "twemoji", rng)
        for question in questions.sample_questions(scene, 9, rng):
            kinds.add(question.type)
            before.add(question.text)
            after.add(rewording.reword_question(question.text))
    assert kinds == set(questions.ANSWER_TYPES)
    assert len(after) == len(before) and not before & after


def test_a_question_that_scenes_do_not_have_is_refused():
    with pytest.raises(ValueError, match="no question 'why"):
        rewording.reword_question("why is there a dog?")


def test_every_topic_has_sentences_of_one_section_and_none_of_training():
    topics = {split: dict(corpus.load_topics(split)) for split in ("train", "test")}
    assert set(topics["train"].values()) == set(topics["test"].values())
    assert set(topics["train"].values()) == set(corpus.TOPICS.values())
    assert not topics["train"].keys() & topics["test"].keys()
    assert topics["test"].keys() <= set(corpus.load_sentences("test"))
    counts = np.unique(list(topics["test"].values()), return_counts=True)[1]
    assert counts.max() < 0.5 * counts.sum(), "no topic is the most frequent by far"
