"""Tests vocabulary files by other conventions, and damaged ones."""

import json

import hypothesis.strategies as st
import pytest
from hypothesis import given
from tokenizers import pre_tokenizers

from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from tools.train_tokenizer import train_tokenizer

MARK = b"\xef\xbb\xbf"


@pytest.fixture
def folder(tmp_path):
    """Returns a folder with a small vocabulary in the official layout."""
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces += ["ab", "abc"]
    encoder = {piece: number for number, piece in enumerate(pieces)}
    (tmp_path / "encoder.json").write_text(json.dumps(encoder))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\na b\nab c\n")
    lines = [f"{number} {1000 - number}" for number in reversed(range(len(pieces)))]
    (tmp_path / "dict.txt").write_text("\n".join([*lines, "madeupword0000 0", ""]))
    return tmp_path


def read(folder):
    return OFAVocabulary.from_ofa_directory(folder, num_codes=4, num_bins=8)


@pytest.mark.parametrize("name", ["encoder.json", "vocab.bpe", "dict.txt"])
@pytest.mark.parametrize("mark", [b"", MARK])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_marks_and_line_ends_change_nothing(folder, name, mark, end):
    expected = read(folder)
    path = folder / name
    path.write_bytes(mark + path.read_bytes().replace(b"\n", end))
    vocabulary = read(folder)
    assert vocabulary == expected
    assert vocabulary.encode("abc").tolist() == [4]  # the last piece, first in dict.txt


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("encoder.json", b'{"a": 0', "encoder.json is not valid JSON"),
        ("encoder.json", b'["a"]', "is not GPT-2's encoder.json"),
        ("encoder.json", b'{"a": [0]}', "is not GPT-2's encoder.json"),
        ("encoder.json", b'{"a": 0, "b": 5}', "is not GPT-2's encoder.json"),
        ("encoder.json", "{}".encode("utf-16"), "encoder.json is UTF-16"),
        ("vocab.bpe", b"#version: 0.2\na b\nab\n", "vocab.bpe, line 3 is not a pair"),
        ("vocab.bpe", b"#version: 0.2\na z\n", "vocab.bpe, line 2 is not a pair"),
        ("vocab.bpe", b"\xff\xfe\0", "vocab.bpe is UTF-16"),
        ("dict.txt", b"0 5\n9999 3\n", "names BPE id 9999"),
        ("dict.txt", b"0 5\n\xe9 3\n", "dict.txt, line 2: byte 0xe9 is not UTF-8"),
    ],
)
def test_damaged_files_are_reported_in_a_sentence(folder, name, content, sentence):
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as raised:
        read(folder)
    assert "\n" not in str(raised.value)


def test_a_tokenizer_with_a_mark_is_read(tmp_path):
    path = tmp_path / "tokenizer.json"
    train_tokenizer(["some text"], 300, path)
    expected = OFAVocabulary.from_tokenizer_json(path)
    path.write_bytes(MARK + path.read_bytes())
    assert OFAVocabulary.from_tokenizer_json(path) == expected


@given(st.data())
def test_damage_of_a_saved_vocabulary_is_a_sentence(tmp_path, data):
    path, saved = tmp_path / "tokenizer.json", tmp_path / "vocabulary.json"
    if not saved.exists():
        train_tokenizer(["some text"], 300, path)
        OFAVocabulary.from_tokenizer_json(path, num_codes=4, num_bins=8).save(saved)
    for file, load in (
        (path, OFAVocabulary.from_tokenizer_json),
        (saved, OFAVocabulary.load),
    ):
        whole = file.read_bytes()
        start = data.draw(st.integers(0, len(whole)))
        damaged = whole[:start] + data.draw(
            st.just(b"") | st.binary(max_size=4).map(lambda b, s=start, w=whole: b + w[s + 2 :])
        )
        try:
            file.write_bytes(damaged)
            load(file)
        except ValueError as error:
            assert file.name in str(error) or "num_codes" in str(error), error
        finally:
            file.write_bytes(whole)


def test_a_saved_vocabulary_with_an_unknown_piece_is_named(tmp_path):
    path, saved = tmp_path / "tokenizer.json", tmp_path / "vocabulary.json"
    train_tokenizer(["some text"], 300, path)
    OFAVocabulary.from_tokenizer_json(path, num_codes=4, num_bins=8).save(saved)
    content = json.loads(saved.read_text())
    content["text_symbols"][0] = 99_999
    saved.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"vocabulary\.json is damaged: .* names BPE id 99999"):
        OFAVocabulary.load(saved)
