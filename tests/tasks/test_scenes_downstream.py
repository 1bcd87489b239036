"""The downstream tasks on Scenes: through the loader and plain seqio, and their evaluation."""

import functools
import pathlib

import gin
import numpy as np
import pytest
import seqio
import small_flags

import tasks.scenes_downstream as scenes_downstream
from ofa_jax import train
from ofa_jax.data import seqio_bridge
from ofa_jax.data.scenes_downstream import SPLITS, ScenesDownstreamSettings
from ofa_jax.data.sources.scenes import Scenes
from ofa_jax.data.task_settings import default_settings
from ofa_jax.evaluation import eval_spec
from ofa_jax.evaluation.eval_example import read_references
from ofa_jax.evaluation.metrics.exact import word_accuracy
from ofa_jax.evaluation.scoring import compute_metrics
from ofa_jax.training import loop
from tasks.scenes_generated_images import GeneratedScenes

TASKS = tuple(scenes_downstream.TASKS)


@pytest.fixture(scope="module")
def settings(small_scenes):
    settings = ScenesDownstreamSettings(
        Scenes(str(small_scenes)),
        image_size=64,
        code_image_size=32,
        num_train=40,
        num_validation=6,
        num_test=12,
    )
    with default_settings(settings):
        yield settings


def opened(name, split):
    (task,) = seqio_bridge.weighted_tasks(name, split)
    return task


def in_evaluation(settings, name, record):
    """Returns the example of a record outside of training."""
    function = scenes_downstream.TASKS[name][1]
    return function(record, np.random.default_rng(1), settings.evaluation_config)


@pytest.mark.parametrize("name", TASKS)
def test_seqio_and_the_loader_give_the_same_example(settings, name):
    task = opened(name, "validation")
    record = task.records[0]
    ours = in_evaluation(settings, name, record)
    dataset = seqio.get_mixture_or_task(name).get_dataset(
        sequence_length=None, split="validation", shuffle=False, seed=1, num_epochs=1
    )
    theirs = next(dataset.as_numpy_iterator())
    for feature in ("inputs", "targets", "image"):
        if feature in ours and (name, feature) != ("scenes_captioning", "targets"):
            np.testing.assert_array_equal(ours[feature], theirs[feature], err_msg=feature)


@pytest.mark.parametrize("name", TASKS)
def test_the_target_of_an_example_is_a_perfect_prediction(settings, name):
    spec = eval_spec.find(name, settings)
    records = opened(name, "test").records
    lines = []
    for index in range(len(records)):
        example = in_evaluation(settings, name, records[index])
        targets = example["targets"][example["targets"] != 2]
        text = settings.vocabulary.decode(targets).strip()
        if spec.kind == "codes":
            text = settings.vocabulary.decode_codes(targets).tolist()
        if spec.candidates is not None:
            assert f" {text}" in spec.candidates()
        assert len(targets) <= spec.decoding.max_length
        references = read_references(spec.references, records[index])
        lines.append({"references": references, "prediction": text})
    scores = compute_metrics(spec, lines)
    assert scores.failed == {} and scores.scored == len(records)
    assert scores.metrics[scores.main_metric] == pytest.approx(1.0)


@pytest.mark.parametrize("name", TASKS)
def test_every_split_has_as_many_records_as_are_set(settings, name):
    of_a_scene = 4 if name == "scenes_vqa" else 1
    for split, count in zip(SPLITS, (40, 6, 12, 12), strict=True):
        records = opened(name, split).records
        assert len(records) == count * of_a_scene
        ids = [records[index]["id"] for index in range(len(records))]
        assert len(set(ids)) > 0.8 * len(ids)
        with pytest.raises(IndexError):
            records[len(records)]


def test_masked_words_are_drawn_anew_in_training_and_fixed_in_evaluation(settings):
    record = {"text": "the whole coast is rugged with many small islands and some harbours"}
    function, mask = scenes_downstream.TASKS["scenes_masked_words"][1], settings.vocabulary.mask_id
    drawn = [
        function(record, np.random.default_rng(seed), settings.config)["inputs"].tolist()
        for seed in range(8)
    ]
    assert len({tuple(ids) for ids in drawn}) > 4
    fixed = [
        function(record, np.random.default_rng(seed), settings.evaluation_config)
        for seed in range(3)
    ]
    assert all(np.array_equal(one["inputs"], fixed[0]["inputs"]) for one in fixed)
    example = fixed[0]
    words = settings.vocabulary.decode(example["targets"][:-1]).split()
    assert (example["inputs"] == mask).sum() == len(words) == 2
    shown = settings.vocabulary.decode(example["inputs"])
    assert not any(f" {word} " in shown for word in words)


def test_accuracies_of_known_and_of_new_nouns(settings):
    metric = functools.partial(scenes_downstream.noun_accuracy, new=frozenset({"cat"}))
    values = metric(["dog", "cat", "cat", "car"], ["dog", "cat", "dog", "cat"])
    assert values == {"accuracy": 0.5, "accuracy/known": 0.5, "accuracy/new": 0.5}
    values = metric(["dog"], ["dog"])
    assert values == {"accuracy": 1.0, "accuracy/known": 1.0}


def test_word_accuracy_counts_words_at_their_position():
    values = word_accuracy(["one two", "three"], ["one three", None])
    assert values == {"word_accuracy": pytest.approx(1 / 3)}


class _WithFeatures(GeneratedScenes):
    """Measures in the mean colours of four parts of an image, in place of a ResNet's features."""

    def _features(self, images):
        halves = images.reshape(len(images), 2, 16, 2, 16, 3).mean((2, 4))
        return halves.reshape(len(images), -1).astype(np.float32)


def test_generated_images_are_measured_beside_the_true_ones(settings):
    known = ScenesDownstreamSettings(
        settings.data_set,
        image_size=64,
        code_image_size=32,
        num_train=40,
        feature_checkpoint="unused",
    )
    records = opened("scenes_text_to_image", "test").records
    found = [records[index] for index in range(12)]
    references = [
        {"caption": record["captions"][0], "codes": record["codes"].tolist()} for record in found
    ]
    metric = _WithFeatures(known)
    true = metric(references, [record["codes"] for record in found])
    assert true["token_accuracy"] == 1 and true["fid"] == pytest.approx(0, abs=1e-3)
    assert true["asked_noun"] == true["real_noun"]
    other = metric(references, [None] * 12)
    assert other["token_accuracy"] < 0.5 < other["fid"]
    assert other["real_noun"] == true["real_noun"]
    assert metric.clean_reference({"caption": "a dog", "codes": []}) is None


# ------------------------------------------------------------------------------- the gin files

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "gin_configs" / "finetune_scenes").glob("*.gin"))


@pytest.mark.parametrize("name", [file.stem for file in FILES])
def test_every_fine_tuning_configures_and_makes_its_batches(
    name, small_scenes, tmp_path, monkeypatch
):
    monkeypatch.chdir(ROOT)
    runs = []
    monkeypatch.setattr(loop, "train", runs.append)
    gin.clear_config()
    own = {
        "text_to_image": [
            "--gin.FEATURE_CHECKPOINT=None",
            "--gin.TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 16}",
        ],
        "masked_words": [],
        "topics": [],
    }.get(name, ["--gin.IMAGE_SIZE=64"])
    train.main(
        [
            f"--gin_file=gin_configs/finetune_scenes/{name}.gin",
            *small_flags.SCENES_DOWNSTREAM,
            f"--gin.Scenes.data_dir='{small_scenes}'",
            f"--gin.MODEL_DIR='{tmp_path / 'run'}'",
            *own,
        ]
    )
    gin.clear_config()
    (run,) = runs
    assert run.task_names == (f"scenes_{name}",)
    (batch,) = next(run.batches(0)).values()
    scored = batch["decoder_loss_weights"] > 0
    assert scored.any(axis=1).all()
    # Nothing is truncated. Of images there is no eos, nor of topics of one token.
    last = [row[mask][-1] for row, mask in zip(batch["decoder_target_tokens"], scored, strict=True)]
    if name not in ("text_to_image", "topics"):
        assert last == [2] * len(last)
    assert (batch["encoder_input_tokens"] == 2).sum(axis=1).tolist() == [1] * len(last)
    assert ("encoder_images" in batch) == (own == ["--gin.IMAGE_SIZE=64"])
