"""The eight objectives and their mixtures as plain seqio sees them."""

import re

import jax
import numpy as np
import pytest
import seqio
import tensorflow as tf
from small_model import SMALL

from ofa_jax.data import seqio_bridge
from ofa_jax.data.features import Stream, to_features
from ofa_jax.data.loader import Loader
from ofa_jax.data.pretraining_settings import PretrainingSettings, scenes_settings
from ofa_jax.data.registration import PRETRAINING_FEATURES
from ofa_jax.data.sources.scenes import Scenes
from ofa_jax.data.task_settings import default_settings
from ofa_jax.preprocessing import objectives
from ofa_jax.sharding import Partitioner
from ofa_jax.training.build import build_run
from ofa_jax.training.loop_config import LoopConfig
from ofa_jax.training.optimizer import OptimizerConfig

MIXTURES = {
    "ofa_pretrain_pairs": {
        "image_captioning",
        "visual_question_answering",
        "image_text_matching",
        "visual_grounding",
        "grounded_captioning",
    },
    "ofa_pretrain_images": {"image_infilling", "object_detection"},
    "ofa_pretrain_text": {"text_infilling"},
    "ofa_pretrain": set(objectives.OBJECTIVES),
}
# As in the official code, spaces included; what the groups match must be true of the record.
INSTRUCTIONS = {
    "image_captioning": r" what does the image describe\?",
    "image_text_matching": r' does the image describe " (.+) "\?'
    r'|(?s: what is the answer to question " (.+) "\. is " (.+) "\?)',
    "visual_grounding": r' which region does the text " (.+) " describe\?',
    "grounded_captioning": r"  what does the region describe\? region:((?:<bin_\d+>){4})",
    "object_detection": r" what are the objects in the image\?",
    "image_infilling": r" what is the image in the middle part\?",
    "text_infilling": r' what is the complete text of ".*<mask>.* "\?',
    # Last, because it matches all of them.
    "visual_question_answering": r" (.+\?)",
}


@pytest.fixture(scope="module", autouse=True)
def settings(scenes_settings):
    return scenes_settings


def examples(name, count, split="train", seed=3):
    dataset = seqio.get_mixture_or_task(name).get_dataset(
        sequence_length=None, split=split, shuffle=False, seed=seed, num_epochs=None
    )
    return list(dataset.take(count).as_numpy_iterator())


def instruction(example, vocabulary):
    return vocabulary.decode(example["inputs"][1:-1])


def is_true(name, groups, target, record, vocabulary):
    """Returns whether the target is true; `groups` are those of the instruction's pattern."""

    def regions():
        return {
            (phrase, vocabulary.decode(vocabulary.encode_box(box, 64)))
            for phrase, box in zip(record["phrases"], record["phrase_boxes"], strict=True)
        }

    def question_answer_pairs():
        return set(zip(record["questions"], record["answers"], strict=True))

    if name == "image_captioning":
        return target[1:] in record["captions"]
    if name == "visual_question_answering":
        return (groups[0], target[1:]) in question_answer_pairs()
    if name == "image_text_matching":
        caption, *question = groups
        known = (
            caption in record["captions"] if caption else tuple(question) in question_answer_pairs()
        )
        return target == (" yes" if known else " no")
    if name == "visual_grounding":
        return (groups[0], target) in regions()
    if name == "grounded_captioning":
        return (target[1:], groups[0]) in regions()
    if name == "object_detection":
        found = [label.strip() for label in re.split(r"(?:<bin_\d+>){4}", target)[1:]]
        return sorted(found) == sorted(record["object_labels"])
    if name == "image_infilling":
        return re.fullmatch(r"(<code_\d+>){16}", target)
    return target[1:] in record["text"].lower()


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
@pytest.mark.parametrize("split", ["train", "validation", "test_shifted"])
def test_each_objective_has_the_documented_instruction_and_a_true_target(settings, name, split):
    vocabulary = settings.vocabulary
    records = settings.data_set.records(objectives.RECORD_KIND[name], split)
    for number, example in enumerate(examples(name, 4, split)):
        inputs, targets = example["inputs"], example["targets"]
        assert inputs[0] == vocabulary.bos_id and inputs[-1] == targets[-1] == vocabulary.eos_id
        found = re.fullmatch(INSTRUCTIONS[name], instruction(example, vocabulary))
        assert found, instruction(example, vocabulary)
        target = vocabulary.decode(targets[:-1])
        assert is_true(name, found.groups(), target, records[number], vocabulary), (found, target)
        assert example["image"].shape == ((0, 0, 3) if name == "text_infilling" else (64, 64, 3))
        assert example["code_mask"] == (name == "image_infilling")
        others = name in MIXTURES["ofa_pretrain_images"] | MIXTURES["ofa_pretrain_text"]
        assert example["loss_weight"] == (2.0 if others else 1.0)


@pytest.mark.parametrize("mixture", MIXTURES)
def test_each_mixture_yields_all_of_its_objectives(settings, mixture):
    assert set(seqio_bridge.rates(mixture)) == MIXTURES[mixture]
    seen = {
        next(name for name, pattern in INSTRUCTIONS.items() if re.fullmatch(pattern, text))
        for text in (instruction(x, settings.vocabulary) for x in examples(mixture, 100))
    }
    assert seen == MIXTURES[mixture]


def test_the_loader_mixes_all_eight_exactly_at_their_rates():
    stream = Stream(
        "all", "ofa_pretrain", 60, {"inputs": 64, "targets": 40}, image_size=64, code_targets=True
    )
    loader = Loader([stream], {"all": seqio_bridge.weighted_tasks("ofa_pretrain", "train")}, 0)
    batch = next(loader.batches())["all"]
    counts = np.bincount(batch["task_ids"]).tolist()
    assert dict(zip(loader.task_names, counts, strict=True)) == {
        "image_captioning": 8,
        "visual_question_answering": 8,
        "image_text_matching": 16,
        "visual_grounding": 8,
        "grounded_captioning": 8,
        "text_infilling": 6,
        "image_infilling": 3,
        "object_detection": 3,
    }
    text = batch["task_ids"] == loader.task_names.index("text_infilling")
    np.testing.assert_array_equal(batch["encoder_image_mask"], ~text)


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_seqio_and_the_loader_give_the_same_kind_of_example(name):
    stream = Stream("s", name, 1, {"inputs": 64, "targets": 40}, image_size=64, code_targets=True)
    (task,) = seqio_bridge.weighted_tasks(name, "validation")
    (theirs,) = examples(name, 1, "validation")
    ours = task.preprocess(task.records[0], np.random.default_rng(0))
    rows = [to_features(x, stream, 0, np.random.default_rng(0)) for x in (ours, theirs)]
    assert rows[0].keys() == rows[1].keys()
    # The tokens are drawn from several captions; what has no choice is the same to the last bit.
    drawn = (
        set()
        if name == "image_infilling"
        else {
            "encoder_input_tokens",
            "decoder_input_tokens",
            "decoder_target_tokens",
            "decoder_loss_weights",
        }
    )
    for feature in rows[0].keys() - drawn:
        np.testing.assert_array_equal(rows[0][feature], rows[1][feature], err_msg=feature)


def test_the_rates_of_matching_and_grounding_follow_the_official_code():
    """Each pair gives two examples, the second one for matching or grounding."""
    rates = seqio_bridge.rates("ofa_pretrain_pairs")
    assert (
        rates["image_text_matching"]
        == rates["image_captioning"] + rates["visual_question_answering"]
    )
    assert rates["visual_grounding"] == rates["grounded_captioning"]
    # 8 pairs are 16 examples, to 2 texts, 1 image to infill and 1 with objects.
    every = seqio_bridge.rates("ofa_pretrain")
    assert sum(every[name] for name in MIXTURES["ofa_pretrain_pairs"]) == pytest.approx(16)
    assert (every["text_infilling"], every["image_infilling"], every["object_detection"]) == (
        2,
        1,
        1,
    )


def test_a_rate_of_zero_leaves_an_objective_out(settings, small_scenes):
    without = scenes_settings(Scenes(str(small_scenes)), rates={"image_infilling": 0.0})
    assert set(seqio_bridge.rates("ofa_pretrain_images", without)) == {"object_detection"}
    tasks = seqio_bridge.weighted_tasks("ofa_pretrain_images", "train", without)
    assert [task.name for task in tasks] == ["object_detection"]
    assert set(seqio_bridge.rates("ofa_pretrain_images", settings)) > {"object_detection"}


@pytest.mark.parametrize("name", ["image_captioning", "object_detection"])
def test_training_is_augmented_and_validation_is_not(settings, small_scenes, name):
    def different_images(split):
        """Returns how many images of one record differ, through seqio and through the loader."""
        (task,) = seqio_bridge.weighted_tasks(name, split)
        seeds = range(6)
        return (
            len({examples(name, 1, split, seed)[0]["image"].tobytes() for seed in seeds}),
            len(
                {
                    task.preprocess(task.records[0], np.random.default_rng(seed))["image"].tobytes()
                    for seed in seeds
                }
            ),
        )

    augmented = scenes_settings(
        Scenes(str(small_scenes)), image_size=64, code_image_size=32, randaugment=True
    )
    with default_settings(augmented):
        assert min(different_images("train")) > 1
        assert different_images("validation") == (1, 1)


def test_the_argument_decides_about_augmentation_whatever_the_split_is_called(settings):
    def different_targets(split, training):
        (task,) = seqio_bridge.weighted_tasks(
            "visual_question_answering", split, settings, training=training
        )
        return {
            task.preprocess(task.records[0], np.random.default_rng(seed))["inputs"].tobytes()
            for seed in range(8)
        }

    for split in ("train", "validation"):
        assert len(different_targets(split, training=True)) > 1
        assert len(different_targets(split, training=False)) == 1


@pytest.mark.parametrize("train_split", ["train", "validation"])
def test_a_run_trains_on_its_training_split_whatever_it_is_called(settings, tmp_path, train_split):
    name = "visual_question_answering"
    stream = Stream("pairs", name, 16, {"inputs": 24, "targets": 8}, image_size=64)
    run = build_run(
        str(tmp_path),
        SMALL,
        [stream],
        OptimizerConfig(learning_rate=1e-3, total_steps=2),
        LoopConfig(total_steps=2),
        partitioner=Partitioner(devices=jax.devices()[:1]),
        settings=settings,
        train_split=train_split,
        validation_split="train",
        validation_examples=16,
    )

    def loader_and_tasks(split, training):
        tasks = {"pairs": seqio_bridge.weighted_tasks(name, split, settings, training=training)}
        return Loader([stream], tasks, 0), tasks

    def first_batch(training):
        return next(loader_and_tasks(train_split, training)[0].batches())["pairs"]

    batch = next(iter(run.batches(0)))["pairs"]
    expected, without_training = first_batch(True), first_batch(False)
    assert any((batch[key] != without_training[key]).any() for key in batch)
    for key, array in expected.items():
        np.testing.assert_array_equal(batch[key], array, err_msg=key)
    # The reverse holds for validation, even on a split that is called "train".
    loader, tasks = loader_and_tasks("train", False)
    ((_, validated),) = run.validation_batches()
    ((_, expected),) = loader.validation_batches(tasks, 16)
    for key, array in expected.items():
        np.testing.assert_array_equal(validated[key], array, err_msg=key)


def test_pairs_are_not_augmented_by_default():
    """A statement about a scene may be false of the augmented image."""
    (task,) = seqio_bridge.weighted_tasks("image_captioning", "train")
    # Half of the draws of RandAugment leave an image as it is, so two would not tell.
    images = {
        task.preprocess(task.records[0], np.random.default_rng(seed))["image"].tobytes()
        for seed in range(12)
    }
    assert len(images) == 1


def test_user_defined_tasks_mix_with_the_objectives(settings):
    outputs = PRETRAINING_FEATURES
    assert set(outputs) == set(seqio_bridge.EXAMPLE_SIGNATURE)
    assert outputs["targets"].vocabulary.vocab_size == settings.vocabulary.vocab_size
    assert outputs["image"].dtype == tf.uint8


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(rates={"captioning": 1.0}), "rates names captioning; known are"),
        (dict(options={"image_pixels": 3}), "options names image_pixels; known are"),
    ],
)
def test_settings_with_unknown_names_are_refused(settings, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        PretrainingSettings(settings.data_set, settings.vocabulary, **options)
