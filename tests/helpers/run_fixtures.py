"""The directory of a run whose model is small and whose parameters are random, and its parts."""

import numpy as np
import pytest
from official_model import random_variables
from PIL import Image
from small_model import SMALL

from ofa_jax.checkpoints import storage
from ofa_jax.tokenizers import PatchCodebook
from ofa_jax.tokenizers.processor import Processor
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from tools.train_tokenizer import train_tokenizer

PIXELS = 48  # of the model's image; the last of 65 bins stands for 64


@pytest.fixture(scope="session")
def processor(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    text = [
        "which region does the text describe? what color is the car in the region? region:",
        "what does the image describe? a red apple and a green apple, yes no",
    ]
    train_tokenizer(text, 330, path)
    codebook = np.random.default_rng(0).permutation(256)[:16, None] * np.ones((1, 192))
    return Processor(
        OFAVocabulary.from_tokenizer_json(path, num_codes=16, num_bins=65),
        PatchCodebook(codebook.astype(np.float32)),
        image_size=PIXELS,
        max_image_size=64,
        detection_image_size=PIXELS,
        infill_image_size=PIXELS,
    )


@pytest.fixture(scope="session")
def config(processor):
    return SMALL.replace(vocab_size=processor.vocabulary.vocab_size, max_source_positions=64)


@pytest.fixture(scope="session")
def variables(config):
    return random_variables(config)


@pytest.fixture(scope="session")
def run_directory(processor, config, variables, tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    storage.save_variables(str(directory), variables, step=7)
    storage.write_model_config(str(directory), config)
    processor.save(str(directory))
    return directory


@pytest.fixture(scope="session")
def image():
    """Returns an image of 96 x 72 pixels of noise in large squares."""
    pixels = np.random.default_rng(3).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(pixels.repeat(12, axis=0).repeat(12, axis=1))
