"""A small official model as a `.pt`, its vocabulary, and the Hugging Face folder of both."""

import argparse
import json

import ml_dtypes
import numpy as np
import official_model
import pytest

from ofa_jax import convert
from ofa_jax.interop import torch_file
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from tools.train_tokenizer import train_tokenizer

TEXT = (
    "what does the image describe? which region does the text describe? what color is the car in "
    "the middle of the street? there are two people and a brown horse near the old wooden fence"
)


@pytest.fixture(scope="session")
def tiny(golden):
    """Returns (args, state dict) of the small official model, with counters."""
    args, state_dict = official_model.make_tiny(golden)
    for key in state_dict:
        if key.endswith("num_batches_tracked"):
            state_dict[key] = np.array(1234, np.int64)
    return args, state_dict


@pytest.fixture(scope="session", params=[np.float32, ml_dtypes.bfloat16])
def official_file(request, tiny, tmp_path_factory):
    """Writes a `.pt` of each type; returns its path."""
    args, state_dict = tiny
    cast = {id(a): a.astype(request.param) for a in state_dict.values() if a.dtype == np.float32}
    model = {key: cast.get(id(array), array) for key, array in state_dict.items()}
    path = tmp_path_factory.mktemp("official") / "model.pt"
    torch_file.save(path, {"args": argparse.Namespace(**args), "model": model})
    return path


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory):
    """Returns a vocabulary with as many ids as the small model, and its file."""
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.json"
    train_tokenizer([TEXT], 300, path)
    made = OFAVocabulary.from_tokenizer_json(path, num_codes=64, num_bins=32)
    assert made.vocab_size == 401
    made.save(path.with_name("vocabulary.json"))
    return made, path.with_name("vocabulary.json")


@pytest.fixture(scope="session")
def folder(official_file, vocabulary, tmp_path_factory):
    """Converts each official file to a folder in several files."""
    path = tmp_path_factory.mktemp("hf") / "tiny"
    command(
        official_file, path, "--layout=huggingface", "--max_shard_size=100KB",
        f"--vocabulary={vocabulary[1]}",
    )  # fmt: skip
    return path


def command(*arguments):
    convert.main([str(argument) for argument in arguments])


def refused(capsys, *arguments):
    capsys.readouterr()  # what earlier commands have printed
    with pytest.raises(SystemExit) as ended:
        command(*arguments)
    error = capsys.readouterr().err.strip()
    assert ended.value.code == 2 and error.startswith("error: ") and "\n" not in error
    return error


def assert_same_bytes(one, two):
    assert one.keys() == two.keys()
    for key, array in one.items():
        assert array.dtype == two[key].dtype and array.shape == two[key].shape, key
        assert array.tobytes() == two[key].tobytes(), key


def copied(folder, target):
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def rewrite(index, change):
    content = json.loads(index.read_text())
    change(content["weight_map"])
    index.write_text(json.dumps(content))
