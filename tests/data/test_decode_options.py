"""Tests which data is decoded as people see it, and that boxes and views follow."""

import io

import gin
import numpy as np
import pytest
from PIL import Image

from ofa_jax.cli import gin_registry
from ofa_jax.data.downstream_settings import DownstreamSettings
from ofa_jax.data.pretraining_settings import PretrainingSettings
from ofa_jax.data.sources.array_records import OfaArrayRecords
from ofa_jax.data.sources.ofa_tsv import OfaTsv
from ofa_jax.data.sources.scenes import Scenes
from ofa_jax.preprocessing import downstream, objectives
from ofa_jax.preprocessing.downstream import DownstreamConfig
from ofa_jax.preprocessing.negatives import NegativePool
from ofa_jax.preprocessing.objective_config import ObjectiveConfig
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.utils.decode_options import AS_SEEN, AS_STORED, DecodeOptions
from tools.train_tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    train_tokenizer([" a red apple and two green apples"], 300, path)
    return OFAVocabulary.from_tokenizer_json(path, num_codes=16, num_bins=1000)


class OwnData:
    """A data set that says nothing about images."""

    splits = ("train",)

    def records(self, kind, split):
        raise NotImplementedError

    def negatives(self):
        return NegativePool()


class OwnStoredData(OwnData):
    decode_options = AS_STORED


def test_official_data_is_decoded_as_stored_and_other_data_as_seen(vocabulary):
    assert OfaTsv(text="a.tsv").decode_options == AS_STORED
    assert OfaArrayRecords("folder").decode_options == AS_STORED
    assert not hasattr(Scenes("folder"), "decode_options")
    for data_set, expected in (
        (OwnData(), AS_SEEN),
        (OwnStoredData(), AS_STORED),
        (OfaTsv(text="a.tsv"), AS_STORED),
    ):
        settings = PretrainingSettings(data_set, vocabulary)
        assert settings.config_for(True).decode_options == expected
        assert settings.config_for(False).decode_options == expected
        own = DecodeOptions(max_pixels=7)
        settings = PretrainingSettings(data_set, vocabulary, options={"decode_options": own})
        assert settings.config_for(True).decode_options == own


def test_downstream_data_in_tfds_alone_is_decoded_as_seen(vocabulary):
    files, tfds = {"caption": {"train": "a.tsv"}}, {"imagenet": "imagenet2012"}
    for settings, expected in (
        (DownstreamSettings(vocabulary, files=files), AS_STORED),
        (DownstreamSettings(vocabulary, tfds=tfds), AS_SEEN),
        (DownstreamSettings(vocabulary, files=files, tfds=tfds), AS_STORED),
    ):
        assert settings.config.decode_options == expected
        assert settings.evaluation_config.decode_options == expected


def test_gin_sets_the_options():
    gin.clear_config()
    gin_registry.register({})
    gin.parse_config(
        "PretrainingSettings.options = {'decode_options': @DecodeOptions()}\n"
        "DecodeOptions.max_pixels = 50_000\nDecodeOptions.compose_on_white = False\n"
    )
    found = gin_registry.bound_value("PretrainingSettings.options")["decode_options"]
    assert found == DecodeOptions(max_pixels=50_000, compose_on_white=False)
    gin.clear_config()


def turned_image():
    """Returns a JPEG of 80 x 40 stored pixels that people see as 40 x 80."""
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (80, 40), "red").save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("options", "size"), [(AS_SEEN, (40, 80)), (AS_STORED, (80, 40))], ids=["seen", "stored"]
)
def test_boxes_are_in_pixels_of_the_decoded_image(options, size, vocabulary):
    """The lower right quarter of the decoded image, in grounding and in detection."""
    width, height = size
    box = np.array([[width / 2, height / 2, width, height]], np.float32)
    record = {
        "image": turned_image(),
        "phrases": ["it"],
        "phrase_boxes": box,
        "object_labels": ["it"],
        "object_boxes": box,
    }
    config = DownstreamConfig(
        vocabulary,
        image_size=64,
        grounding_image_size=64,
        max_image_size=64,
        decode_options=options,
        training=False,
    )
    example = downstream.grounding(record, np.random.default_rng(0), config)
    assert example["view"].tolist() == [0, 0, *size]
    found = vocabulary.decode_box(example["targets"][:4], 64)
    np.testing.assert_allclose(found, [32, 32, 64, 64], atol=0.1)

    pretraining = ObjectiveConfig(
        vocabulary,
        image_size=32,
        resize_range=(32, 32),
        resize_max_size=64,
        max_image_size=64,
        detection_image_size=64,
        decode_options=options,
        training=False,
    )
    example = objectives.object_detection(record, np.random.default_rng(0), pretraining)
    # The central square of 64 x 64 of 64 x 128 pixels, in pixels of the decoded image.
    across = width < height
    assert example["view"].tolist() == ([0, 20, 40, 60] if across else [20, 0, 60, 40])
    bins = vocabulary.decode_box(example["targets"][:4], 64)
    np.testing.assert_allclose(bins, [32, 32, 64, 64], atol=0.1)
