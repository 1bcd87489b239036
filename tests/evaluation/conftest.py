"""A vocabulary of a few hundred ids, and a small model on one device."""

import jax
import pytest
from official_model import random_variables
from small_evaluation import make_model

from ofa_jax.sharding import Partitioner
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from tools.train_tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def vocabulary_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    train_tokenizer([" a red apple and a green apple", " yes no"], 280, path)
    return path


@pytest.fixture(scope="session")
def vocabulary(vocabulary_path):
    return OFAVocabulary.from_tokenizer_json(vocabulary_path, num_codes=16, num_bins=65)


@pytest.fixture(scope="module")
def partitioner():
    return Partitioner(devices=tuple(jax.devices()[:1]))


@pytest.fixture(scope="module")
def model(vocabulary):
    return make_model(vocabulary)


@pytest.fixture(scope="module")
def variables(model):
    return random_variables(model.config)
