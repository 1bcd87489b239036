"""Vocabulary and image sizes of a folder; the Chinese ones are refused by name."""

import argparse
import json

import numpy as np
import pytest
from huggingface_fixtures import TEXT, command, copied, refused

from ofa_jax.inference import loading
from ofa_jax.interop import files, huggingface_processor, torch_file
from ofa_jax.tokenizers.processor import Processor
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.utils.text_files import DamagedFileError
from tools.train_tokenizer import train_tokenizer


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


def test_a_vocabulary_that_the_files_cannot_express_is_left_out(official_file, tmp_path, capsys):
    path = tmp_path / "tokenizer.json"
    train_tokenizer([TEXT], 300, path)
    content = json.loads(path.read_text())
    content["normalizer"] = {"type": "Lowercase"}
    path.write_text(json.dumps(content))
    made = OFAVocabulary.from_tokenizer_json(path, num_codes=64, num_bins=32)
    made.save(tmp_path / "vocabulary.json")
    command(
        official_file, tmp_path / "hf", "--layout=huggingface",
        f"--vocabulary={tmp_path / 'vocabulary.json'}",
    )  # fmt: skip
    assert "no tokenizer files: this vocabulary is not a plain byte-level BPE" in (
        capsys.readouterr().out
    )
    assert not (tmp_path / "hf" / "vocab.json").exists()


def test_a_vocabulary_of_another_size_is_not_written(
    official_file, folder, vocabulary, tmp_path, capsys
):
    other = tmp_path / "other.json"
    OFAVocabulary.from_tokenizer_json(vocabulary[1].with_name("tokenizer.json"), 64, 40).save(other)
    assert "the vocabulary has 409 ids and the model 401: give that of its training" in refused(
        capsys, official_file, tmp_path / "x", f"--vocabulary={other}"
    )
    command(folder, tmp_path / "more", "--vocab_size=450")
    assert "is not taken: the vocabulary has 401 ids and the model 450" in capsys.readouterr().out
    assert not (tmp_path / "more" / "interface").exists()


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
