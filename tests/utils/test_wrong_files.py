"""What a file really is, by its first bytes."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofa_jax.data.sources import array_records, tfds_parquet, tsv_file
from ofa_jax.preprocessing import image_files
from ofa_jax.tokenizers.patch_codebook import PatchCodebook
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.utils import text_files, wrong_files
from ofa_jax.utils.array_files import load_arrays

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
FILES = {
    b"": "is empty",
    POINTER: "is a pointer of Git LFS, not the file itself: run `git lfs pull`",
    b"<!DOCTYPE html><html>": "is a web page",
    b"\xef\xbb\xbf\n  <html lang='en'>": "is a web page",
    b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>": "is an XML document",
    b"\x1f\x8b\x08rest": "gunzip",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "is a zip archive",
    b"\x00" * 300: "begins with zeros only",
    b"name" + b"\x00" * 253 + b"ustar\x0000": "is a tar archive: unpack it first",
    b"\x89HDF\r\n\x1a\n": "HDF5",
    b"\x93NUMPY\x01\x00": "numpy array",
    b"\x10\x00\x00\x00\x00\x00\x00\x00" + b'{"a": 1}': "is a safetensors file",
    b'{"a": 1}': "is a JSON file",
    b"PAR1": "is a Parquet file",
}


@pytest.mark.parametrize("content", FILES, ids=lambda content: repr(content[:12]))
def test_files_are_described_by_their_first_bytes(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    assert FILES[content] in wrong_files.describe(tmp_path / "x.pt")


def test_what_cannot_be_told_is_not_described(tmp_path):
    (tmp_path / "x").write_bytes(b"some text\n")
    assert wrong_files.describe(tmp_path / "x") is None
    assert wrong_files.describe(tmp_path / "nowhere") is None
    assert wrong_files.describe(tmp_path) == "is a folder"
    os.mkfifo(tmp_path / "fifo")
    assert wrong_files.describe(tmp_path / "fifo") == "is not a regular file"


def test_placeholders_are_refused(tmp_path):
    (tmp_path / "x").write_bytes(POINTER)
    with pytest.raises(ValueError, match="x is a pointer of Git LFS"):
        wrong_files.check_placeholder(tmp_path / "x")
    for read in (text_files.read_text, text_files.read_lines, text_files.read_json):
        with pytest.raises(text_files.DamagedFileError, match="x is a pointer of Git LFS"):
            read(tmp_path / "x")
    (tmp_path / "x").write_bytes(b"<html>404</html>")
    with pytest.raises(text_files.DamagedFileError, match="x is a web page"):
        text_files.read_json(tmp_path / "x")
    (tmp_path / "x").write_bytes(b"anything else")
    wrong_files.check_placeholder(tmp_path / "x")


def test_a_pointer_is_named_wherever_a_file_is_read(tmp_path):
    """Images, text files, vocabularies and files of records."""
    (tmp_path / "x").write_bytes(POINTER)
    path = str(tmp_path / "x")
    for read in (
        lambda: image_files.decode(POINTER),
        lambda: tsv_file.refuse_binary(path),
        lambda: array_records._open_shard(tmp_path / "x"),
        lambda: tfds_parquet._read_table(path),
        lambda: load_arrays(path),
        lambda: OFAVocabulary.load(path),
        lambda: OFAVocabulary.from_tokenizer_json(path),
        lambda: PatchCodebook.load(path),
    ):
        with pytest.raises(ValueError, match="is a pointer of Git LFS"):
            read()


@given(st.binary(max_size=400))
def test_any_bytes_are_described_or_not(content):
    description = wrong_files.describe_bytes(content)
    assert description is None or "\n" not in description


@given(st.text() | st.integers() | st.floats() | st.lists(st.integers()) | st.none())
def test_names_of_files_can_be_printed(value):
    shown = wrong_files.shorten(value)
    assert len(shown) <= 80 and shown.isascii() and shown.isprintable()
