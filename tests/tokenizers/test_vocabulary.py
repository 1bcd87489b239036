"""The id space against the official dictionary: every row of golden/bpe, exactly."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofa_jax.data.seqio_vocabulary import SeqioVocabulary
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.utils.bad_input import collect
from ofa_jax.utils.text_files import replace_surrogates
from tools.train_tokenizer import train_tokenizer

TEXTS = [" a red apple and two green apples", " is there a dog in the picture? yes", " naïve café"]


@pytest.fixture(scope="module")
def official(shared_golden):
    return OFAVocabulary.from_ofa_directory(shared_golden / "bpe")


@pytest.fixture(scope="module")
def rows(shared_golden):
    return json.loads((shared_golden / "bpe" / "bpe.json").read_text())


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    train_tokenizer(TEXTS, 300, path)
    return OFAVocabulary.from_tokenizer_json(path, num_codes=16, num_bins=64)


def test_the_official_layout(official, rows):
    layout = rows["dictionary"]
    assert official.vocab_size == layout["size"]
    assert official.mask_id == layout["mask"]
    assert [official.code_ids[0], official.code_ids[-1]] == layout["code"]
    assert [official.bin_ids[0], official.bin_ids[-1]] == layout["bin"]
    assert [official.bos_id, official.pad_id, official.eos_id, official.unk_id] == [
        layout[name] for name in ("bos", "pad", "eos", "unk")
    ]


def test_every_golden_text_encodes_and_decodes(official, rows):
    for row in rows["encode"]:
        assert official.encode(row["text"]).tolist() == row["ids"], row["text"]
        assert official.decode(row["ids"]) == row["decoded"], row["text"]


def test_every_golden_symbol_row(official, rows):
    for row in rows["encode_no_bpe"]:
        assert official.encode_symbols(row["text"]).tolist() == row["ids"], row["text"]


def test_every_golden_option_row(official, rows):
    names = {"length": "max_length", "append_bos": "add_bos", "append_eos": "add_eos"}
    for row in rows["encode_options"]:
        options = {names[name]: value for name, value in row["args"].items()}
        assert official.encode(row["text"], **options).tolist() == row["ids"], row


def test_the_whole_word_table(official, shared_golden):
    expected = np.load(shared_golden / "bpe" / "whole_word_mask.npz")["is_word_start"]
    np.testing.assert_array_equal(official.whole_word_starts, expected.astype(bool))


def test_gpt2_files_alone_give_gpt2_order(shared_golden):
    bpe = shared_golden / "bpe"
    vocabulary = OFAVocabulary.from_gpt2_files(bpe / "encoder.json", bpe / "vocab.bpe")
    encoder = json.loads((bpe / "encoder.json").read_text())
    assert vocabulary.encode(" the").tolist() == [4 + encoder["Ġthe"]]
    assert vocabulary.mask_id == 4 + len(encoder)


def test_text_survives_a_round_trip_in_a_small_vocabulary(small):
    for text in [*TEXTS, " wörld 猫 \n", "", "  two  spaces "]:
        assert small.decode(small.encode(text)) == text


def test_boxes_and_codes_are_shown_readably(small):
    ids = [
        small.bos_id,
        *small.encode_box([0, 16, 32, 64], 64),
        *small.encode(" red"),
        small.mask_id,
        *small.encode_codes([3, 15]),
        small.unk_id,
        small.eos_id,
        small.pad_id,
    ]
    expected = "<bin_0><bin_16><bin_32><bin_63> red<mask><code_3><code_15><unk>"
    assert small.decode(ids) == expected


def test_a_box_comes_back_within_half_a_bin(small):
    rng = np.random.default_rng(0)
    for box in rng.uniform(0, 512, (200, 4)):
        decoded = small.decode_box(small.encode_box(box, 512), 512)
        # Half of one of 63 steps, and float32's rounding of numbers up to 512 (2**-15 each way).
        assert np.abs(decoded - box).max() <= 512 / 63 / 2 + 2**-14


def test_codes_come_back(small):
    codes = np.arange(16).reshape(4, 4)
    np.testing.assert_array_equal(small.decode_codes(small.encode_codes(codes)), codes.ravel())


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda v: v.encode_box([0, 0, 1], 512), "four finite numbers"),
        (lambda v: v.encode_box([0, 0, 1, float("nan")], 512), "four finite numbers"),
        (lambda v: v.encode_box([0, 0, 1, 600], 512), "reaches outside 0..512"),
        (lambda v: v.decode_box([0, 1, 2, 3], 512), "A box is four ids in"),
        (lambda v: v.encode_codes([16]), "has 16: it was made for another"),
        (lambda v: v.decode_codes([0]), "Not all of these ids are image codes"),
        (lambda v: v.decode([v.vocab_size]), "outside this vocabulary"),
    ],
)
def test_invalid_input_is_reported_in_one_sentence(small, call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(small)


def test_missing_and_wrong_files_are_reported_in_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no encoder\.json in"):
        OFAVocabulary.from_ofa_directory(tmp_path)
    path = tmp_path / "words.json"
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(path))
    with pytest.raises(ValueError, match="not a byte-level BPE"):
        OFAVocabulary.from_tokenizer_json(path)


def test_equal_by_content_and_picklable(small):
    copy = pickle.loads(pickle.dumps(small))
    assert copy == small and hash(copy) == hash(small)
    other = OFAVocabulary(small._tokenizer, small._symbols, num_codes=16, num_bins=65)
    assert other != small


def test_training_a_tokenizer_is_deterministic(tmp_path):
    for name in "ab":
        train_tokenizer(TEXTS * 5, 280, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_seqio_view(small):
    import seqio
    import tensorflow as tf

    view = SeqioVocabulary(small)
    assert isinstance(view, seqio.Vocabulary)
    assert (view.pad_id, view.bos_id, view.eos_id, view.unk_id) == (1, 0, 2, 3)
    assert view.vocab_size == small.vocab_size
    text = " two red apples"
    assert view.encode(text) == small.encode(text).tolist()
    assert view.encode_tf(tf.constant(text)).numpy().tolist() == view.encode(text)
    assert view.decode(view.encode(text) + [small.eos_id, small.pad_id]) == text
    assert view.decode_tf(view.encode_tf(tf.constant(text))).numpy().decode() == text
    assert view == SeqioVocabulary(small)


@given(st.text(st.characters(), max_size=50))
def test_any_text_is_encoded(official, text):
    r"""Tests texts with lone surrogates and NUL; a lone surrogate counts as U+FFFD."""
    with collect() as findings:
        ids = official.encode(text)
        expected = official.encode(replace_surrogates(text))
    np.testing.assert_array_equal(ids, expected)
    assert official.decode(ids) == replace_surrogates(text)
    changed = replace_surrogates(text) != text
    assert [finding.reason.name for finding in findings] == ["lone surrogate in a text"] * changed


def test_of_a_long_text_the_first_ids_are_those_of_the_whole_text(official):
    text = " a red apple, 17 green ones" * 3000
    whole = official.encode(text)
    with collect() as findings:
        np.testing.assert_array_equal(official.encode(text, max_length=100), whole[:100])
    assert not findings


def test_the_length_of_a_text_is_bounded_before_it_is_encoded(official):
    with collect() as findings:
        ids = official.encode("word " * 400_000)
        official.encode("x" * 10**8, max_length=10)
    assert len(ids) <= 400_000
    assert [finding.reason.name for finding in findings] == ["text is too long to encode"]
