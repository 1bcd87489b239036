"""Questions about regions: exact, unseen in training, and with answers that cannot be guessed."""

import collections

import numpy as np
import pytest

from ofa_jax.preprocessing import prompts
from ofa_jax.scenes import composer, nouns, phrases, region_questions, relations
from ofa_jax.scenes.composer import SceneOptions
from ofa_jax.scenes.records import make_record
from ofa_jax.scenes.region_questions import ask, possible_answers, restore_scene

OPTIONS = SceneOptions(nouns=12, image_size=64)
NUM_SCENES = 120


@pytest.fixture(scope="module")
def records():
    return [make_record(OPTIONS, "test", index) for index in range(NUM_SCENES)]


@pytest.fixture(scope="module")
def scenes(records):
    names = [noun.name for noun in nouns.first_nouns(12)]
    return [restore_scene(r["object_labels"], r["object_boxes"], 64, names) for r in records]


def questions(task, scenes):
    found = [ask(task, scene, np.random.default_rng(k)) for k, scene in enumerate(scenes)]
    return [(scene, own) for scene, own in zip(scenes, found, strict=True) if own is not None]


def inside(scene, box):
    x0, y0, x1, y1 = box
    return [
        item
        for item in scene.objects
        if x0 <= item.box[0] and y0 <= item.box[1] and item.box[2] <= x1 and item.box[3] <= y1
    ]


def test_a_restored_scene_says_the_same_as_the_composed_one(records, scenes):
    rng = composer.make_generator(OPTIONS, "test", 3)
    scene, _ = composer.compose(OPTIONS, "twemoji", rng)
    assert phrases.true_phrases(scene)[0][0] == phrases.true_phrases(scenes[3])[0][0]
    assert [text for text, _ in phrases.true_phrases(scenes[3])] == records[3]["true_phrases"]


@pytest.mark.parametrize("task", region_questions.MAKERS)
def test_a_question_follows_from_its_generator_and_its_answer_is_possible(scenes, task):
    found = questions(task, scenes)
    assert found == questions(task, scenes) and len(found) > NUM_SCENES / 4
    allowed = possible_answers(task, [noun.name for noun in scenes[0].vocabulary])
    for scene, question in found:
        assert allowed is None or question.answer in allowed
        x0, y0, x1, y1 = question.box
        assert 0 <= x0 < x1 <= 64 and 0 <= y0 < y1 <= 64
        assert "{" not in question.text and inside(scene, question.box)


def test_places_are_asked_only_where_another_object_of_the_noun_is_elsewhere(scenes):
    kinds = collections.Counter()
    for scene, question in questions("grounded_question_answering", scenes * 3):
        kinds[question.type] += 1
        item = next((o for o in scene.objects if o.box == question.box), None)
        find = {
            "left or right": relations.horizontal_half,
            "top or bottom": relations.vertical_half,
            "corner": relations.find_corner,
        }.get(question.type)
        if find is not None:
            assert f"the {item.noun.name} " in question.text
            places = [find(o, 64) for o in scene.objects if o.noun == item.noun]
            assert question.answer == find(item, 64) and len(set(places)) > 1
        if question.type == "object":
            assert question.answer == item.noun.name
    assert kinds.keys() == {"left or right", "top or bottom", "corner", "count", "object"}


def test_counts_are_of_the_objects_within_the_region_and_none_is_cut(scenes):
    answers = collections.Counter()
    for scene, question in questions("grounded_question_answering", scenes * 3):
        if question.type != "count":
            continue
        answers[question.answer] += 1
        plural = question.text.removeprefix("how many ").removesuffix(" are in the region?")
        own = inside(scene, question.box)
        assert question.answer == str(sum(item.noun.plural == plural for item in own))
        assert len(own) < len(scene.objects)
    assert len(answers) > 2 and answers.most_common(1)[0][1] < 0.8 * answers.total()


def test_a_neighbour_is_the_only_object_that_is_clearly_there(scenes):
    for scene, question in questions("region_neighbour", scenes):
        (item,) = [o for o in scene.objects if o.box == question.box]
        assert question.text == f"what is {question.type} the region?"
        there = [
            other
            for other in scene.objects
            if other is not item and not relations.is_clearly_false(other, question.type, item)
        ]
        assert [other.noun.name for other in there] == [question.answer]


def test_the_caption_has_the_style_of_an_example_of_another_noun(scenes):
    found = questions("region_in_style", scenes)
    for scene, question in found:
        (item,) = [o for o in scene.objects if o.box == question.box]
        example = question.text.split('"')[1].strip()
        assert item.noun.name in question.answer and example != question.answer
        words = example.replace(" an ", " a ").split(), question.answer.replace(" an ", " a ")
        assert words[0][0].removesuffix("n") == words[1].split()[0].removesuffix("n")
    assert {question.type for _, question in found} == {"plain", "picture", "there", "exact"}


def test_yes_and_no_are_equally_frequent_and_right(scenes):
    found = questions("region_yes_no", scenes * 4)
    for scene, question in found:
        (item,) = [o for o in scene.objects if o.box == question.box]
        named = f" {item.noun.with_article}" in question.text
        assert question.answer == ("yes" if named else "no")
    yes = np.mean([question.answer == "yes" for _, question in found])
    assert 0.4 < yes < 0.6


def test_no_training_example_has_such_an_instruction(records, scenes):
    trained = {text for record in records for text in record["questions"]}
    wordings = [*prompts.INSTRUCTIONS.values()]
    for names in (prompts.TRAINED_WORDINGS, prompts.UNSEEN_WORDINGS):
        wordings += [wording for own in names.values() for wording in own]
    stems = {wording.strip().split(" region:")[0] for wording in wordings}
    for task in region_questions.MAKERS:
        for _, question in questions(task, scenes):
            assert question.text not in trained and question.text not in stems
            assert "region" in question.text
    assert not any("region" in text for text in trained)
