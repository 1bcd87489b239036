"""Evaluation of the eight objectives over Scenes: the target itself scores as correct."""

import json

import numpy as np
import pytest
import seqio
import seqio_evaluation

from ofa_jax.data import seqio_bridge
from ofa_jax.data.pretraining_settings import PretrainingSettings
from ofa_jax.data.seqio_tasks import training_mode
from ofa_jax.data.sources.memory import InMemoryRecords
from ofa_jax.evaluation import eval_spec
from ofa_jax.preprocessing import objectives

PERFECT = {
    "image_captioning": {"noun_recall": 1.0},
    "visual_question_answering": {"accuracy": 1.0},
    "image_text_matching": {"accuracy": 1.0},
    "visual_grounding": {"acc@0.5": 1.0},
    "grounded_captioning": {"accuracy": 1.0, "exact_match": 1.0},
    "object_detection": {"f1@0.5": 1.0},
    "image_infilling": {"token_accuracy": 1.0},
    "text_infilling": {"exact_match": 1.0},
}


@pytest.fixture(scope="module", autouse=True)
def settings(scenes_settings):
    return scenes_settings


def read(kind, ids, vocabulary):
    """Parses a target as a prediction, with boxes in pixels of an image of 64."""
    is_bin = np.isin(ids, vocabulary.bin_ids)
    if kind == "text":
        return vocabulary.decode(ids).strip()
    if kind == "codes":
        return vocabulary.decode_codes(ids)
    if kind == "box":
        return vocabulary.decode_box(ids, 64)
    starts = [k for k in range(len(ids)) if is_bin[k] and (k == 0 or not is_bin[k - 1])]
    ends = [*starts[1:], len(ids)]
    return {
        "boxes": np.array([vocabulary.decode_box(ids[k : k + 4], 64) for k in starts]),
        "labels": [
            vocabulary.decode(ids[k + 4 : end]).strip() for k, end in zip(starts, ends, strict=True)
        ],
    }


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
@pytest.mark.parametrize("split", ["validation", "test", "test_shifted"])
def test_the_training_target_gets_the_full_score(settings, name, split):
    described = eval_spec.find(name)
    assert described.max_image_size == 64
    (task,) = seqio_bridge.weighted_tasks(name, split)
    references, predictions = [], []
    for index in range(min(len(task.records), 6)):
        record = task.records[index]
        # Another draw than that of the example must not change what is right.
        for seed in (0, 1):
            example = task.preprocess(record, np.random.default_rng(seed))
            references.append(described.references(record))
            predictions.append(read(described.kind, example["targets"][:-1], settings.vocabulary))
            if described.candidates is not None:
                assert f" {predictions[-1]}" in described.candidates()
    json.dumps(references)
    scores = {}
    for metric in described.metrics:
        scores |= metric(references, predictions)
    if name == "image_captioning":
        # A caption need not name all that is there, but what it names is.
        assert scores["noun_precision"] == 1.0 and scores["cider_d"] > 1
        return
    for key, value in PERFECT[name].items():
        assert scores[key] == value, scores
    if name == "visual_question_answering":
        kinds = {own["type"] for own in references}
        assert {f"accuracy/{kind}" for kind in kinds} < set(scores)


def test_every_true_phrase_of_a_region_is_correct(settings):
    described = eval_spec.find("grounded_captioning")
    (task,) = seqio_bridge.weighted_tasks("grounded_captioning", "test")
    several = 0
    for index in range(len(task.records)):
        record = task.records[index]
        known = described.references(record)
        box = record["phrase_boxes"][0]
        here = [
            phrase
            for phrase, own in zip(record["true_phrases"], record["true_phrase_boxes"], strict=True)
            if (own == box).all()
        ]
        assert known[0] == record["phrases"][0] and sorted(known) == sorted(here)
        several += len(known) > 1
    assert several
    record = {"phrases": ["it"], "phrase_boxes": np.array([[0, 0, 9, 9]], np.float32)}
    assert described.references(record) == ["it"]  # of data that know no more


def test_only_image_codes_are_decoded_and_exactly_their_number(settings):
    decoding, codes = eval_spec.find("image_infilling").decoding, settings.vocabulary.code_ids
    assert decoding.exact_length and decoding.max_length == 16
    assert decoding.constraint_range == (codes.start, codes.stop)


def test_training_draws_among_all_targets_of_a_record(settings):
    (task,) = seqio_bridge.weighted_tasks("visual_question_answering", "train")
    assert len(task.records[0]["questions"]) > 1
    (task,) = seqio_bridge.weighted_tasks("visual_question_answering", "validation")
    assert {len(task.records[k]["questions"]) for k in range(4)} == {1}


class Large:
    """One image of 200 x 100 pixels, with a region and an object."""

    splits = ("train", "validation")

    def __init__(self, image):
        self.record = {
            "id": "0",
            "image": image,
            "phrases": ["it"],
            "object_labels": ["thing"],
            "phrase_boxes": np.array([[120, 20, 160, 60]], np.float32),
            "object_boxes": np.array([[80, 20, 120, 60]], np.float32),
        }

    def records(self, kind, split):
        return InMemoryRecords([self.record])

    def negatives(self):
        return None


@pytest.mark.parametrize("name", ["visual_grounding", "grounded_captioning", "object_detection"])
def test_boxes_are_mapped_to_the_stored_image_by_the_view(settings, name):
    import downstream_files

    data = Large(downstream_files.make_image(0, (200, 100)))
    options = dict(
        image_size=64,
        resize_range=(64, 80),
        resize_max_size=140,
        max_image_size=64,
        detection_image_size=64,
        infill_image_size=64,
        code_image_size=32,
    )
    large = PretrainingSettings(data, settings.vocabulary, options=options)
    (task,) = seqio_bridge.weighted_tasks(name, "validation", large)
    example = task.preprocess(task.records[0], np.random.default_rng(0))
    where = "inputs" if name == "grounded_captioning" else "targets"
    ids = example[where][np.isin(example[where], settings.vocabulary.bin_ids)]
    seen = settings.vocabulary.decode_box(ids, 64)
    x0, y0, x1, y1 = example["view"]
    assert example["image"].shape == (64, 64, 3)
    stored = seen * np.array([x1 - x0, y1 - y0] * 2) / 64 + np.array([x0, y0] * 2)
    field = "object_boxes" if name == "object_detection" else "phrase_boxes"
    # Half a bin of 64 over 64 pixels, which are 100 there.
    np.testing.assert_allclose(stored, data.record[field][0], atol=0.5 * 64 / 63 * 100 / 64 + 1e-3)


# ------------------------------------------------------------------------------- seqio.Evaluator


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_seqio_evaluator_computes_the_same_metrics(settings, name):
    theirs, ours, lines = seqio_evaluation.compare(name, settings)
    assert theirs == ours and ours
    assert len({str(line["prediction"]) for line in lines}) > 1


def test_seqio_evaluator_takes_a_mixture_and_the_training_split(settings):
    from ofa_jax.data.feature_converter import OFAFeatureConverter
    from ofa_jax.data.features import Stream

    lengths = {"inputs": 64, "targets": 40}
    stream = Stream("s", "ofa_pretrain_pairs", 4, lengths, image_size=64)
    evaluator = seqio.Evaluator("ofa_pretrain_pairs", OFAFeatureConverter(stream), num_examples=2)
    assert len(evaluator.eval_tasks) == 5
    with training_mode(False):
        theirs, ours, _ = seqio_evaluation.compare(
            "visual_question_answering", settings, "train", async_compute_metrics=False
        )
    assert theirs == ours and ours
    evaluator = seqio.Evaluator(
        "image_captioning", OFAFeatureConverter(stream), "train", num_examples=2
    )
    with pytest.raises(ValueError, match="within `ofa_jax.data.seqio_tasks.training_mode"):
        evaluator.evaluate(
            compute_metrics=True,
            predict_fn=lambda dataset: [(k, np.array([5, 2])) for k in range(2)],
        )[0].result()


def test_text_without_ids_is_parsed_by_its_symbols(settings):
    from ofa_jax.evaluation.seqio_metrics import Postprocess

    vocabulary = settings.vocabulary
    text = vocabulary.decode(vocabulary.encode_box(np.array([0, 16, 32, 48]), 64))
    example = {"box_transform": np.array([0, 0, 128, 128, 64, 64], np.float64)}
    box = Postprocess("visual_grounding")(text, example)
    np.testing.assert_allclose(box, [0, 32, 64, 96], atol=1.1)


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_all_features_have_a_length(name):
    for feature in seqio.TaskRegistry.get(name).output_features.values():
        assert feature.rank > 0


def test_a_negative_control_is_evaluated_by_seqio(settings):
    import tasks.scenes_negative_controls  # noqa: F401

    theirs, ours, _ = seqio_evaluation.compare("visual_grounding_absent_noun", settings)
    assert theirs == ours and ours
