"""Folders that `from_pretrained` users know: what is in them, and every direction bit for bit."""

import json
import re

import pytest
from huggingface_fixtures import assert_same_bytes, command, refused

from ofa_jax.interop import (
    config_from_fairseq,
    fairseq,
    files,
    from_fairseq,
    huggingface_folder,
    safetensors_file,
    torch_file,
    writer,
)
from ofa_jax.interop.lazy_tensors import LazyTensor


def test_a_folder_has_what_from_pretrained_looks_for(folder):
    names = {re.sub(r"\d{5}", "N", path.name) for path in folder.iterdir()}
    assert names == {
        "config.json", "model-N-of-N.safetensors", "model.safetensors.index.json",
        "pytorch_model-N-of-N.bin", "pytorch_model.bin.index.json", "vocab.json", "merges.txt",
        "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json",
        "preprocessor_config.json", "README.md",
    }  # fmt: skip
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = json.loads((folder / f"{stem}.{suffix}.index.json").read_text())
        count = len(list(folder.glob(f"{stem}-*.{suffix}")))
        assert count > 3 and set(index["weight_map"].values()) == {
            f"{stem}-{n:05d}-of-{count:05d}.{suffix}" for n in range(1, count + 1)
        }
        assert list(index["weight_map"]) == sorted(index["weight_map"])
        # The tied copies of the embedding are listed where they are stored.
        tied = "decoder.output_projection.weight" in index["weight_map"]
        assert tied == (suffix == "bin")
        held = huggingface_folder.open_file(folder / f"{stem}.{suffix}.index.json").content
        unique = {array.__array_interface__["data"][0]: array.nbytes for array in held.values()}
        assert index["metadata"] == {"total_size": sum(unique.values())}


def test_official_to_folder_and_back_is_bitwise(official_file, folder, tmp_path):
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        back = tmp_path / f"{index}.pt"
        command(folder / index, back)
        one, two = torch_file.load(official_file)["model"], torch_file.load(back)["model"]
        # Versions have no place in the folder.
        known = {key: array for key, array in one.items() if not key.endswith(".version")}
        assert_same_bytes(known, {key: two[key] for key in known})
        assert files.read(back).config == files.read(official_file).config


def test_folder_to_ours_and_back_is_bitwise(folder, tmp_path):
    command(folder, tmp_path / "ours")
    command(tmp_path / "ours", tmp_path / "again", "--layout=huggingface")
    one, two = files.read(folder), files.read(tmp_path / "again")
    assert_same_bytes(dict(one.state_dict), dict(two.state_dict))
    assert one.config == two.config
    for name in ("vocab.json", "merges.txt", "added_tokens.json", "preprocessor_config.json"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    described = json.loads((folder / "config.json").read_text())
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert described == again
    assert described["torch_dtype"] == str(one.state_dict["encoder.embed_tokens.weight"].dtype)


def test_safetensors_come_before_the_file_of_torch(official_file, tmp_path):
    command(official_file, tmp_path / "hf", "--layout=huggingface")
    assert huggingface_folder.find_weights(tmp_path / "hf").name == "model.safetensors"
    (tmp_path / "hf" / "pytorch_model.bin").write_bytes(b"")
    files.read(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="pytorch_model.bin is empty"):
        files.read(tmp_path / "hf")


def test_one_kind_of_files_and_another_type_can_be_asked_for(official_file, tmp_path, capsys):
    command(
        official_file, tmp_path / "hf", "--layout=huggingface", "--weight_files=safetensors",
        "--dtype=float16",
    )  # fmt: skip
    assert not list(tmp_path.glob("hf/*.bin"))
    loaded = safetensors_file.load(tmp_path / "hf" / "model.safetensors")
    assert {str(array.dtype) for array in loaded.values()} == {"float16", "int64"}
    assert "--vocabulary=PATH gives one" in capsys.readouterr().out
    for option in ("--weight_files=bin", "--max_shard_size=1GB", "--results=x"):
        assert "is for Hugging Face folders" in refused(
            capsys, official_file, tmp_path / "x.pt", option
        )
    assert "our checkpoints, and those of t5x, are float32" in refused(
        capsys, official_file, tmp_path / "x", "--dtype=float16"
    )
    sentence = refused(
        capsys, official_file, tmp_path / "x", "--layout=huggingface", "--max_shard_size=much"
    )
    assert "max_shard_size is much" in sentence
    with pytest.raises(ValueError, match="weight_files is"):
        writer.WriteOptions(weight_files=("h5",))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


def test_completing_equals_converting_there_and_back(tiny):
    args, state_dict = tiny
    config = config_from_fairseq(args, 401)
    part = {
        key: array
        for key, array in state_dict.items()
        if not key.startswith("decoder.embed_tokens") and "version" not in key
    }
    expected = fairseq.to_fairseq(from_fairseq(part, config), config)
    found = {
        key: tensor.make() if isinstance(tensor, LazyTensor) else tensor
        for key, tensor in fairseq.complete(part, config).items()
    }
    assert_same_bytes(found, expected)
