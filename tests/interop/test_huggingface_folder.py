"""Folders that `from_pretrained` users know: weights, index files, tokenizer, sizes, model card."""

import argparse
import json
import re
import subprocess
import sys
import tracemalloc

import jax
import ml_dtypes
import numpy as np
import official_model
import pytest
import recipe
from hypothesis import given
from hypothesis import strategies as st

from ofa_jax import convert
from ofa_jax.checkpoints import storage
from ofa_jax.inference import loading
from ofa_jax.interop import (
    config_from_fairseq,
    fairseq,
    files,
    from_fairseq,
    huggingface_folder,
    huggingface_processor,
    huggingface_shards,
    safetensors_file,
    torch_file,
    writer,
)
from ofa_jax.interop.lazy_tensors import LazyTensor
from ofa_jax.tokenizers.processor import Processor
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.utils.text_files import DamagedFileError
from tools.train_tokenizer import train_tokenizer

TEXT = (
    "what does the image describe? which region does the text describe? what color is the car in "
    "the middle of the street? there are two people and a brown horse near the old wooden fence"
)
TYPES = (np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.uint8, np.bool_)


@pytest.fixture(scope="module")
def tiny(golden):
    """Returns (args, state dict) of the small official model, with counters."""
    args, state_dict = official_model.make_tiny(golden)
    for key in state_dict:
        if key.endswith("num_batches_tracked"):
            state_dict[key] = np.array(1234, np.int64)
    return args, state_dict


@pytest.fixture(scope="module", params=[np.float32, ml_dtypes.bfloat16])
def official(request, tiny, tmp_path_factory):
    """Writes a `.pt` of each type; returns its path."""
    args, state_dict = tiny
    cast = {id(a): a.astype(request.param) for a in state_dict.values() if a.dtype == np.float32}
    model = {key: cast.get(id(array), array) for key, array in state_dict.items()}
    path = tmp_path_factory.mktemp("official") / "model.pt"
    torch_file.save(path, {"args": argparse.Namespace(**args), "model": model})
    return path


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """Returns a vocabulary with as many ids as the small model, and its file."""
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.json"
    train_tokenizer([TEXT], 300, path)
    made = OFAVocabulary.from_tokenizer_json(path, num_codes=64, num_bins=32)
    assert made.vocab_size == 401
    made.save(path.with_name("vocabulary.json"))
    return made, path.with_name("vocabulary.json")


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


# ------------------------------------------------------------------------------------ safetensors


def test_the_same_tensors_give_the_bytes_of_the_library(golden, tmp_path):
    written_by_library = golden / "torch_file" / "tensors.safetensors"
    tensors = safetensors_file.load(written_by_library)
    shuffled = {name: tensors[name] for name in sorted(tensors, reverse=True)}
    safetensors_file.save(tmp_path / "x.safetensors", shuffled)
    assert (tmp_path / "x.safetensors").read_bytes() == written_by_library.read_bytes()


@given(st.data())
def test_any_tensors_are_read_as_they_were_written(tmp_path_factory, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    tensors = {}
    for name in data.draw(st.lists(st.text(min_size=1, max_size=9), max_size=5, unique=True)):
        shape = data.draw(st.lists(st.integers(0, 4), max_size=3))
        bytes_ = rng.integers(0, 2, (*shape, 8), np.uint8)
        dtype = np.dtype(data.draw(st.sampled_from(TYPES)))
        tensors[name] = bytes_[..., : dtype.itemsize].copy().view(dtype)[..., 0]
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    tensors.pop("__metadata__", None)
    safetensors_file.save(path, tensors)
    assert_same_bytes(
        dict(sorted(tensors.items())), dict(sorted(safetensors_file.load(path).items()))
    )
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert header % 8 == 0


def test_a_type_without_a_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no tensors of complex64, the type of x"):
        safetensors_file.save(tmp_path / "x.safetensors", {"x": np.zeros(2, np.complex64)})
    assert not list(tmp_path.iterdir())


def test_the_library_reads_what_is_written(tmp_path, tiny):
    library = pytest.importorskip("safetensors", reason="the library safetensors is not installed")
    safetensors_file.save(tmp_path / "x.safetensors", tiny[1])
    with library.safe_open(tmp_path / "x.safetensors", "np") as opened:
        assert opened.metadata() == {"format": "pt"}
        assert_same_bytes({name: opened.get_tensor(name) for name in tiny[1]}, tiny[1])


@pytest.mark.parametrize("save", [safetensors_file.save, torch_file.save])
def test_one_tensor_at_a_time_is_in_memory(tmp_path, save):
    size = 2**20

    def make(number):
        return LazyTensor((size,), np.dtype(np.uint8), lambda: np.full(size, number, np.uint8))

    tensors = {f"{number:02}": make(number) for number in range(40)}
    tracemalloc.start()
    try:
        save(tmp_path / "x.safetensors", tensors)
        assert tracemalloc.get_traced_memory()[1] < 3.5 * size
    finally:
        tracemalloc.stop()
    load = safetensors_file.load if save is safetensors_file.save else torch_file.load
    loaded = load(tmp_path / "x.safetensors")
    assert all((loaded[name] == int(name)).all() for name in tensors)


# ----------------------------------------------------------------------------------------- shards


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


@pytest.fixture(scope="module")
def folder(official, vocabulary, tmp_path_factory):
    """Converts each official file to a folder in several files."""
    path = tmp_path_factory.mktemp("hf") / "tiny"
    command(
        official, path, "--layout=huggingface", "--max_shard_size=100KB",
        f"--vocabulary={vocabulary[1]}",
    )  # fmt: skip
    return path


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


def test_official_to_folder_and_back_is_bitwise(official, folder, tmp_path):
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        back = tmp_path / f"{index}.pt"
        command(folder / index, back)
        one, two = torch_file.load(official)["model"], torch_file.load(back)["model"]
        # Versions have no place in the folder.
        known = {key: array for key, array in one.items() if not key.endswith(".version")}
        assert_same_bytes(known, {key: two[key] for key in known})
        assert files.read(back).config == files.read(official).config


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


def test_a_shard_or_an_index_stands_for_the_folder(folder):
    expected = files.read(folder).state_dict
    for path in (
        folder / "model.safetensors.index.json",
        sorted(folder.glob("model-*"))[1],
        sorted(folder.glob("pytorch_model-*"))[1],
    ):
        found = files.read(path).state_dict
        assert_same_bytes({key: found[key] for key in expected}, dict(expected))


def test_safetensors_come_before_the_file_of_torch(official, tmp_path):
    command(official, tmp_path / "hf", "--layout=huggingface")
    assert huggingface_folder.find_weights(tmp_path / "hf").name == "model.safetensors"
    (tmp_path / "hf" / "pytorch_model.bin").write_bytes(b"")
    files.read(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="pytorch_model.bin is empty"):
        files.read(tmp_path / "hf")


def test_one_kind_of_files_and_another_type_can_be_asked_for(official, tmp_path, capsys):
    command(
        official, tmp_path / "hf", "--layout=huggingface", "--weight_files=safetensors",
        "--dtype=float16",
    )  # fmt: skip
    assert not list(tmp_path.glob("hf/*.bin"))
    loaded = safetensors_file.load(tmp_path / "hf" / "model.safetensors")
    assert {str(array.dtype) for array in loaded.values()} == {"float16", "int64"}
    assert "--vocabulary=PATH gives one" in capsys.readouterr().out
    for option in ("--weight_files=bin", "--max_shard_size=1GB", "--results=x"):
        assert "is for Hugging Face folders" in refused(capsys, official, tmp_path / "x.pt", option)
    assert "our checkpoints are float32" in refused(
        capsys, official, tmp_path / "x", "--dtype=float16"
    )
    sentence = refused(
        capsys, official, tmp_path / "x", "--layout=huggingface", "--max_shard_size=much"
    )
    assert "max_shard_size is much" in sentence
    with pytest.raises(ValueError, match="weight_files is"):
        writer.WriteOptions(weight_files=("h5",))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


def copied(folder, target):
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def rewrite(index, change):
    content = json.loads(index.read_text())
    change(content["weight_map"])
    index.write_text(json.dumps(content))


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


# ------------------------------------------------------------------------ vocabulary, image sizes


def test_the_folder_stores_its_vocabulary_and_sizes(folder, vocabulary, tmp_path):
    loaded = loading.load_processor(str(folder))
    for text in (TEXT, " an unknown zebra, 42!", "", "ünïcödé 中文"):
        np.testing.assert_array_equal(
            loaded.vocabulary.encode(text), vocabulary[0].encode(text), err_msg=text
        )
        assert loaded.vocabulary.decode(loaded.vocabulary.encode(text)) == text
    for name in ("mask_id", "code_ids", "bin_ids", "vocab_size"):
        assert getattr(loaded.vocabulary, name) == getattr(vocabulary[0], name)
    np.testing.assert_array_equal(
        loaded.vocabulary.whole_word_starts, vocabulary[0].whole_word_starts
    )
    assert loaded.image_size == loading.OFFICIAL_IMAGE_SIZE
    # A run directory that was converted from the folder stores them as well.
    command(folder, tmp_path / "ours")
    assert Processor.load(tmp_path / "ours").equals(loaded)


def test_sizes_are_read_in_every_form(folder, tmp_path):
    path = copied(folder, tmp_path / "hf")
    config = path / huggingface_processor.FILE
    for size in (480, {"height": 480, "width": 480}, {"shortest_edge": 480}):
        config.write_text(json.dumps({"size": size, "max_image_size": 500}))
        loaded = loading.load_processor(str(path))
        assert (loaded.image_size, loaded.max_image_size) == (480, 500)
    for content, sentence in (
        ({"size": {"height": 480, "width": 360}}, "OFA's images are square"),
        ({"size": "large"}, "patch_image_size in pixels"),
        ({"size": 0}, "patch_image_size in pixels"),
        ({"size": True}, "patch_image_size in pixels"),
        ([3], "no JSON object"),
    ):
        config.write_text(json.dumps(content))
        with pytest.raises(DamagedFileError, match=sentence):
            files.read(path)


def test_the_official_vocabulary_is_that_of_the_published_folders(shared_golden, tmp_path):
    bpe = shared_golden / "bpe"
    ours = OFAVocabulary.from_ofa_directory(bpe)
    ours.save_for_huggingface(tmp_path)
    pieces = json.loads((tmp_path / "vocab.json").read_text())
    # BART's, whose numbers OFA took over: 50,265 pieces, these among them.
    assert len(pieces) == 50265 and pieces["<mask>"] == 50264
    assert [pieces[name] for name in ("<s>", "<pad>", "</s>", "<unk>", ".")] == [0, 1, 2, 3, 4]
    assert pieces["Ġthe"] == 5 and pieces["<|endoftext|>"] == 50260
    assert pieces["madeupword0002"] == 50263
    merges = (tmp_path / "merges.txt").read_text().splitlines()
    assert merges == (bpe / "vocab.bpe").read_text().splitlines()
    # The published folders have no added_tokens.json; either way the ids are the same.
    rows = json.loads((bpe / "bpe.json").read_text())["encode"]
    for _ in range(2):
        read = OFAVocabulary.from_ofa_directory(tmp_path)
        assert read.vocab_size == ours.vocab_size == 59457
        for row in rows:
            assert read.encode(row["text"]).tolist() == row["ids"]
        np.testing.assert_array_equal(read.whole_word_starts, ours.whole_word_starts)
        (tmp_path / "added_tokens.json").unlink(missing_ok=True)


def write_vocabulary(folder, vocabulary):
    folder.mkdir()
    vocabulary.save_for_huggingface(folder)
    return folder


def test_damaged_tokenizer_files_are_one_sentence(vocabulary, tmp_path):
    good = write_vocabulary(tmp_path / "good", vocabulary[0])
    pieces = json.loads((good / "vocab.json").read_text())
    added = json.loads((good / "added_tokens.json").read_text())
    swapped = dict(pieces) | {"<s>": 1, "<pad>": 0}
    for number, (name, content, sentence) in enumerate(
        (
            ("vocab.json", swapped, "another order of ids"),
            ("vocab.json", [1], "not a JSON object from pieces"),
            ("vocab.json", {**pieces, "x": "y"}, "not a JSON object from pieces"),
            ("vocab.json", {**pieces, "x": 10**6}, "does not number its pieces from 0 on"),
            ("vocab.json", {k: v for k, v in pieces.items() if k != "t"}, "does not number"),
            ("added_tokens.json", {**added, "<audio_0>": 401}, "has the token <audio_0> behind"),
            ("added_tokens.json", {**added, "a": 7}, "has another id of a than"),
            ("merges.txt", "#version: 0.2\nt zzz\n", "line 2 is not a pair of pieces"),
        )
    ):
        path = copied(good, tmp_path / str(number))
        (path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(ValueError, match=sentence) as raised:
            OFAVocabulary.from_huggingface_directory(path)
        assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="lists 64 codes and num_codes is 8192"):
        OFAVocabulary.from_ofa_directory(good)
    assert OFAVocabulary.from_huggingface_directory(good) == OFAVocabulary.from_ofa_directory(
        good, num_codes=64, num_bins=32
    )


def test_a_vocabulary_that_the_files_cannot_express_is_left_out(official, tmp_path, capsys):
    path = tmp_path / "tokenizer.json"
    train_tokenizer([TEXT], 300, path)
    content = json.loads(path.read_text())
    content["normalizer"] = {"type": "Lowercase"}
    path.write_text(json.dumps(content))
    made = OFAVocabulary.from_tokenizer_json(path, num_codes=64, num_bins=32)
    made.save(tmp_path / "vocabulary.json")
    command(
        official, tmp_path / "hf", "--layout=huggingface",
        f"--vocabulary={tmp_path / 'vocabulary.json'}",
    )  # fmt: skip
    assert "no tokenizer files: this vocabulary is not a plain byte-level BPE" in (
        capsys.readouterr().out
    )
    assert not (tmp_path / "hf" / "vocab.json").exists()


def test_a_vocabulary_of_another_size_is_not_written(
    official, folder, vocabulary, tmp_path, capsys
):
    other = tmp_path / "other.json"
    OFAVocabulary.from_tokenizer_json(vocabulary[1].with_name("tokenizer.json"), 64, 40).save(other)
    assert "the vocabulary has 409 ids and the model 401: give that of its training" in refused(
        capsys, official, tmp_path / "x", f"--vocabulary={other}"
    )
    command(folder, tmp_path / "more", "--vocab_size=450")
    assert "is not taken: the vocabulary has 401 ids and the model 450" in capsys.readouterr().out
    assert not (tmp_path / "more" / "interface").exists()


# ------------------------------------------------------------------------------ Chinese checkpoints


@pytest.mark.parametrize("name", ["vocab.txt", "dict.txt"])
def test_chinese_vocabularies_are_refused_by_name(tmp_path, name):
    (tmp_path / "dict.txt").write_text("[unused1] 0\n的 0\n##的 0\n", encoding="utf-8")
    if name == "vocab.txt":
        (tmp_path / name).write_text("[PAD]\n的\n##的\n", encoding="utf-8")
    for read in (
        lambda: OFAVocabulary.from_ofa_directory(tmp_path),
        lambda: OFAVocabulary.from_huggingface_directory(tmp_path),
        lambda: loading._load_vocabulary(str(tmp_path)),
        lambda: loading._load_vocabulary(str(tmp_path / name)),
    ):
        with pytest.raises(ValueError, match=r"BERT.*the Chinese checkpoints"):
            read()
    if name == "vocab.txt":
        with pytest.raises(ValueError, match=r"BERT.*the Chinese checkpoints"):
            OFAVocabulary.from_tokenizer_json(tmp_path / name)


def test_chinese_checkpoints_are_converted_and_named(tiny, folder, tmp_path, capsys):
    args, state_dict = tiny
    for number, content in enumerate(
        (
            {"args": argparse.Namespace(**args | {"bpe": "bert", "bpe_dir": "BERT_CN_dict"})},
            {
                "args": None,
                "cfg": {
                    "model": argparse.Namespace(**args),
                    "task": {"bpe_dir": "utils/BERT_CN_dict/"},
                },
            },
            {
                "args": None,
                "cfg": {"model": argparse.Namespace(**args), "bpe": {"_name": "bert"}},
            },
        )
    ):
        path = tmp_path / f"{number}.pt"
        torch_file.save(path, content | {"model": state_dict})
        command(path, tmp_path / str(number))
        assert "vocabulary of the Chinese models" in capsys.readouterr().out
        with pytest.raises(ValueError, match=r"vocabulary of the Chinese models \(BERT_CN_dict"):
            loading.load_processor(str(path))
    path = copied(folder, tmp_path / "hf")
    for name in ("vocab.json", "merges.txt"):
        (path / name).unlink()
    (path / "vocab.txt").write_text("[PAD]\n")
    command(path, tmp_path / "hf.pt")
    assert "is not taken: " in (printed := capsys.readouterr().out) and "vocab.txt" in printed
    with pytest.raises(ValueError, match=r"vocab\.txt.*Chinese"):
        loading.load_processor(str(path))


# --------------------------------------------------------------------------------------- model card


@pytest.fixture
def run(tiny, vocabulary, tmp_path):
    """Writes the run directory of the small model, with results."""
    args, state_dict = tiny
    config = config_from_fairseq(args, 401)
    path = tmp_path / "run"
    storage.save_variables(path, from_fairseq(state_dict, config), step=20)
    storage.write_model_config(path, config)
    Processor(vocabulary[0], image_size=48, max_image_size=64).save(path)
    metrics = path / "evaluations" / "test" / "metrics.json"
    metrics.parent.mkdir(parents=True)
    grounding = {"visual_grounding": {"acc@0.5": 0.4375}}
    metrics.write_text(json.dumps({"10": {"visual_grounding": {"acc@0.5": 0.1}}, "20": grounding}))
    (path / "summary.json").write_text(
        json.dumps(grounding | {"image_captioning": {"validation_loss": 1.25, "a|b": 3}})
    )
    return path


def test_a_run_becomes_a_folder_with_its_results(run, tmp_path):
    command(run, tmp_path / "my-ofa", "--layout=huggingface")
    card = (tmp_path / "my-ofa" / "README.md").read_text()
    assert "# my-ofa\n" in card and "from `run`" in card and "48 x 48 pixels" in card
    table = [line for line in card.splitlines() if line.startswith("|")]
    assert "| visual_grounding | acc@0.5 | 0.4375 | test | 20 |" in table
    assert "| image_captioning | validation_loss | 1.25 | summary | 20 |" in table
    assert "| image_captioning | a&#124;b | 3 | summary | 20 |" in table
    assert not any("0.1 " in line for line in table)
    count = sum(x.size for x in jax.tree.leaves(storage.load_numpy_variables(run)["params"]))
    assert f"| parameters | {count:,} |" in table
    loaded = loading.load_processor(str(tmp_path / "my-ofa"))
    assert (loaded.image_size, loaded.max_image_size) == (48, 64)


def test_the_hub_reads_the_metadata_of_the_card(run, tmp_path):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    command(run, tmp_path / "hf", "--layout=huggingface")
    card = hub.ModelCard.load(tmp_path / "hf" / "README.md")
    assert card.data.tags == ["ofa", "jax", "vision-language"]
    found = {(r.task_name, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert found["visual_grounding", "acc@0.5"] == 0.4375
    assert found["image_captioning", "validation_loss"] == 1.25


def test_results_can_be_given_and_damaged_ones_are_named(run, official, tmp_path, capsys):
    for number, source in enumerate(
        (run, run / "evaluations" / "test", run / "evaluations" / "test" / "metrics.json")
    ):
        out = tmp_path / str(number)
        command(official, out, "--layout=huggingface", f"--results={source}")
        assert "| acc@0.5 | 0.4375 | test | 20 |" in (out / "README.md").read_text()
    command(official, tmp_path / "none", "--layout=huggingface")
    assert "Not evaluated yet" in (tmp_path / "none" / "README.md").read_text()
    hf = ("--layout=huggingface",)
    assert "There is no " in refused(
        capsys, official, tmp_path / "x", *hf, f"--results={tmp_path / 'nothing'}"
    )
    (run / "summary.json").write_text('{"a": {"b": "c"}}')
    assert "has no numbers for the task a" in refused(
        capsys, official, tmp_path / "x", *hf, f"--results={run}"
    )
    command(run, tmp_path / "y", *hf)
    assert "The model card has no results" in capsys.readouterr().out


@pytest.mark.slow
def test_a_full_size_checkpoint_goes_through_a_folder_in_little_memory(golden, tmp_path):
    """Base, from the recipe, in processes of their own; pages of the mapped input count as well."""
    args, state_dict = recipe.official("base", golden)
    torch_file.save(tmp_path / "base.pt", {"args": argparse.Namespace(**args), "model": state_dict})
    size = (tmp_path / "base.pt").stat().st_size
    program = (
        "import resource, sys; from ofa_jax import convert as c; "
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; c.main(sys.argv[1:]); "
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)"
    )
    for source, target, share in (
        ("base.pt", "hf", 1.4), ("hf", "back.pt", 1.4), ("hf", "ours", 2.2), ("ours", "hf2", 2.2)
    ):  # fmt: skip
        options = ["--layout=huggingface", "--max_shard_size=300MB"] * target.startswith("hf")
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / source), str(tmp_path / target)]
            + options,
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(done.stdout.split()[-1]) < share * size, (source, target)
    for name in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        one, two = (files.read(tmp_path / path / name).state_dict for path in ("hf", "hf2"))
        assert_same_bytes(dict(one), {key: two[key] for key in one})
