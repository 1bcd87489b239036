"""A vocabulary of a few hundred ids."""

import pytest

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
