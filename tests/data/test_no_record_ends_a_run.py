"""Tests that no single record ends a run: it is skipped, or repaired, and counted by its reason."""

import io

import numpy as np
import pytest
from PIL import Image

from ofa_jax.data.features import Stream
from ofa_jax.data.sampling import WeightedTask, features_of_record
from ofa_jax.data.sources.memory import InMemoryRecords
from ofa_jax.preprocessing import objectives
from ofa_jax.preprocessing.objective_config import ObjectiveConfig
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.utils.bad_input import Treatment
from tools.train_tokenizer import train_tokenizer


def make_image(width, height):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.json"
    train_tokenizer(["what does the image describe"], 300, path)
    vocabulary = OFAVocabulary.from_tokenizer_json(path, num_codes=16, num_bins=64)
    return ObjectiveConfig(vocabulary=vocabulary)


def findings(objective, record, config):
    """Returns the findings about a record of an objective."""
    function = objectives.OBJECTIVES[objective]
    detects = objective == "object_detection"
    size = config.detection_image_size if detects else config.image_size
    stream = Stream("s", objective, 1, {"inputs": 40, "targets": 40}, image_size=size)
    task = WeightedTask(
        objective,
        1.0,
        InMemoryRecords([record]),
        lambda record, rng: function(record, rng, config),
    )
    features, found = features_of_record(stream, task, 0, 0, np.random.default_rng(0))
    skipped = any(finding.is_skipped for finding in found)
    assert (features["decoder_loss_weights"].sum() == 0) == skipped
    assert all(finding.task == objective for finding in found)
    for finding in found:
        finding.detail.encode("utf-8")  # can be logged and written
        assert "\n" not in finding.detail and " at 0x" not in finding.detail
    return found


@pytest.mark.parametrize("text", ["a \ud83d dog", "\udcff cat", "\udfff\ud800 bus"])
def test_lone_surrogates_are_replaced_and_counted(config, text):
    for objective, record in (
        ("image_captioning", {"image": make_image(50, 40), "captions": [text]}),
        ("text_infilling", {"text": f"{text} and some more words to fill in"}),
    ):
        found = findings(objective, {"id": "\ud83d"} | record, config)
        assert found and {finding.reason.treatment for finding in found} == {Treatment.REPLACED}


def test_a_very_thin_image_is_skipped_before_it_is_resized(config):
    record = {
        "id": "2",
        "image": make_image(1, 30000),
        "object_labels": ["pole"],
        "object_boxes": np.array([[0, 0, 1, 29000]], np.float32),
    }
    (found,) = findings("object_detection", record, config)
    assert found.is_skipped and "1 x 30000 pixels" in found.detail


@pytest.mark.parametrize(
    "record",
    [
        None,
        [],
        "a text",
        {},
        {"id": 3, "image": 7, "captions": 5},
        {"image": b"no", "captions": ["a dog"]},
        {"image": None, "captions": ["a dog"]},
        {"image": make_image(5, 5), "captions": [4]},
        {"image": make_image(5, 5), "captions": {"a": "dog"}},
        {"image": make_image(5, 5), "captions": [["a dog"]]},
        {"image": make_image(5, 5), "captions": []},
    ],
)
def test_records_of_odd_types_are_skipped(config, record):
    found = findings("image_captioning", record, config)
    assert sum(finding.is_skipped for finding in found) == 1
