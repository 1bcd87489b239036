"""Weights in several files and their index, written and read, and refused in a sentence."""

import numpy as np
import pytest
from huggingface_fixtures import assert_same_bytes, copied, refused, rewrite

from ofa_jax.interop import files, huggingface_shards, safetensors_file


@pytest.mark.parametrize(
    "text, size",
    [("5GB", 5 * 10**9), ("500MB", 5 * 10**8), ("2 GiB", 2**31), ("7kb", 7000), ("123", 123)],
)
def test_sizes_are_those_of_the_field(text, size):
    assert huggingface_shards.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "0GB", "-3MB", "5 parsecs", "1.5GB", "5GB\n5GB"])
def test_other_sizes_are_refused(text, capsys, tmp_path):
    with pytest.raises(ValueError, match="give a size such as 5GB"):
        huggingface_shards.parse_size(text)


@pytest.mark.parametrize("max_bytes", [1, 1000, 20_000, 10**9])
def test_weights_are_divided_as_the_hub_divides_them(tiny, max_bytes):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    factory = hub.split_state_dict_into_shards_factory
    expected = factory(
        tiny[1],
        get_storage_size=lambda array: array.nbytes,
        filename_pattern="model{suffix}.bin",
        get_storage_id=id,
        max_shard_size=max_bytes,
    )
    found = huggingface_shards.split(tiny[1], max_bytes)
    assert sorted(map(sorted, found)) == sorted(map(sorted, expected.filename_to_tensors.values()))


def test_a_shard_or_an_index_stands_for_the_folder(folder):
    expected = files.read(folder).state_dict
    for path in (
        folder / "model.safetensors.index.json",
        sorted(folder.glob("model-*"))[1],
        sorted(folder.glob("pytorch_model-*"))[1],
    ):
        found = files.read(path).state_dict
        assert_same_bytes({key: found[key] for key in expected}, dict(expected))


def test_missing_damaged_and_foreign_shards_are_one_sentence(folder, tmp_path, capsys):
    path = copied(folder, tmp_path / "hf")
    index = path / "model.safetensors.index.json"
    shards = sorted(path.glob("model-*.safetensors"))
    whole = shards[1].read_bytes()
    key = "encoder.layer_norm.weight"

    def sentence():
        return refused(capsys, path, tmp_path / "out")

    shards[1].unlink()
    assert f"There is no {shards[1].name}, which {index} names" in sentence()
    shards[1].write_bytes(whole[:-4])
    assert f"{shards[1]} is not a whole safetensors file" in sentence()
    shards[1].write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "git lfs pull" in sentence()
    # A file of another model, of another division, and one that was renamed.
    safetensors_file.save(shards[1], {**safetensors_file.load(shards[2]), "new": np.zeros(2)})
    assert "lacks" in sentence()
    shards[1].write_bytes(whole)
    held = dict(safetensors_file.load(shards[1]))
    safetensors_file.save(shards[1], {**held, "new": np.zeros(2)})
    assert f"holds new, which {index} does not list" in sentence()
    shards[1].write_bytes(whole)
    rewrite(index, lambda names: names.pop(key))
    assert f"holds {key}, which {index} does not list" in sentence()
    rewrite(index, lambda names: names.update({key: "../x.bin"}))
    assert "names ../x.bin, which is no file of weights" in sentence()
    index.unlink()
    for other in path.glob("pytorch_model*"):
        other.unlink()
    assert f"no index, which says what each file holds: download {index.name}" in sentence()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["hf"]


def test_a_shard_of_another_size_of_model_is_named(folder, tmp_path, capsys):
    path = copied(folder, tmp_path / "hf")
    shard = sorted(path.glob("model-*.safetensors"))[2]
    tensors = {
        name: array[:, :1] if array.ndim > 1 else array
        for name, array in safetensors_file.load(shard).items()
    }
    assert any(array.ndim > 1 for array in tensors.values())
    safetensors_file.save(shard, tensors)
    assert "misshapen: " in refused(capsys, path, tmp_path / "out")
