"""Tests TSV files by other conventions, and line indices that are damaged or of another file."""

import bz2
import gzip
import json
import logging
import lzma
import os
import pathlib
import pickle
import random
import shutil

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from ofa_jax.data.sources import tsv_file, tsv_index
from ofa_jax.data.sources.tsv_conventions import describe_conventions
from ofa_jax.data.sources.tsv_file import (
    BINARY_SIGNATURES,
    InvalidLineError,
    TextFileLines,
    TsvFile,
)
from ofa_jax.data.sources.tsv_records import TsvRecords

MARK = b"\xef\xbb\xbf"
SEPARATORS = "rock\u2028roll\u2029a\u0085b\x0bc\x0cd\x1ce"


@pytest.fixture(autouse=True)
def forget_open_files():
    tsv_file._open.cache_clear()
    yield
    tsv_file._open.cache_clear()


def lines_of(path, **options):
    tsv_file._open.cache_clear()
    opened = TsvFile(str(path), **options).open()
    return [opened.line(number) for number in range(len(opened))]


# --------------------------------------------------------------------------- other conventions


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", MARK])
@pytest.mark.parametrize("skip_blank", [False, True])
def test_a_mark_line_ends_and_separators_inside_values_change_nothing(
    tmp_path, end, mark, skip_blank
):
    path = tmp_path / "texts.tsv"
    path.write_bytes(mark + end.join(["a\tone", f"b\t{SEPARATORS}", ""]).encode())
    assert lines_of(path, skip_blank=skip_blank) == [b"a\tone", f"b\t{SEPARATORS}".encode()]
    records = TsvRecords.open(str(path), "text")
    assert [records[0], records[1]] == [
        {"id": "a", "text": "one"},
        {"id": "b", "text": SEPARATORS},
    ]


def test_a_mark_alone_is_no_line(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_bytes(MARK + b"\r\n\na dog\n")
    assert list(TextFileLines(str(path))) == ["a dog"]
    path.write_bytes(MARK)
    with pytest.raises(ValueError, match="has only blank lines"):
        lines_of(path, skip_blank=True)


def test_line_numbers_are_those_of_an_editor(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("\n \nfirst\n\nsecond\nthird\n\n\t\nfourth\n\n")
    opened = TsvFile(str(path), skip_blank=True).open()
    numbers = [opened.line_number(number) for number in range(len(opened))]
    assert numbers == [3, 5, 6, 9]
    texts = path.read_text().split("\n")
    assert [texts[number - 1].encode() for number in numbers] == lines_of(path, skip_blank=True)
    # Where blank lines are lines, such as in the official files, they count anyway.
    opened = TsvFile(str(path)).open()
    assert [opened.line_number(number) for number in range(10)] == list(range(1, 11))


def test_blanks_behind_a_line_are_not_part_of_its_last_column(tmp_path):
    path = tmp_path / "lines.tsv"
    path.write_text("a\tb\n \t \n\nc\td\n\t\n")
    assert lines_of(path, skip_blank=True) == [b"a\tb", b"c\td"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a\tb\nc\td\n".encode("utf-16"), "is UTF-16"),
        ("a\tb\nc\td\n".encode("utf-16-be"), "is UTF-16"),
        ("a\tb\nc\td\n".encode("utf-16-le"), "is UTF-16"),
        (b"\x1f\x8b\x08\0\0\0\0\0", "compressed with gzip"),
        (b"PK\x03\x04\x14\0", "zip archive"),
        (b"a\tb\0\tc\n", "null bytes"),
        (b"a\tb\rc\td\r", "carriage return alone"),
    ],
)
def test_files_that_are_not_text_by_line_are_refused_by_name(tmp_path, content, sentence):
    path = tmp_path / "data.tsv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as raised:
        TsvFile(str(path)).open()
    assert str(path) in str(raised.value)
    assert [file.name for file in tmp_path.iterdir()] == ["data.tsv"]


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.tsv")
    for path, kind in (
        (tmp_path, "is a folder"),
        (tmp_path / "pipe.tsv", "is a pipe or a device"),
        ("/dev/zero", "is a pipe or a device"),
    ):
        with pytest.raises(ValueError, match=kind):
            TsvFile(str(path)).open()
    with pytest.raises(FileNotFoundError, match="There is no file"):
        TsvFile("a\0b").open()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"1,a text\n2,another\n", "seem to be separated by commas"),
        (b"1;a text\n2;another\n", "seem to be separated by semicolons"),
        (b'1\t"say ""hi"" to it"\n2\tother\n', "line 1: a column is in quotes"),
        (b'\n1\ta\n2\t"he said ""no"""\n', "line 3: a column is in quotes"),
        (b'"1"\t"a"\n"2"\t"b"\n', "a column is in quotes"),
        (b"1\tcaf\xe9\n", "not UTF-8, perhaps Latin-1 or Windows-1252"),
        (b'1\t"hi" he said\n2\t"no"\n', None),
        (b"1\ta, b\n", None),
    ],
)
def test_other_conventions_are_said_once(tmp_path, content, sentence, caplog):
    path = tmp_path / "texts.tsv"
    path.write_bytes(content)
    found = describe_conventions(TsvFile(str(path), skip_blank=True).open())
    assert len(found) == (sentence is not None)
    assert not found or sentence in found[0]
    if sentence is None or "separated" in sentence:
        return
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            try:
                TsvRecords.open(str(path), "text")
            except ValueError as error:
                assert "is not UTF-8" in str(error)
    assert len([message for message in caplog.messages if sentence.split(": ")[-1] in message]) == 1


def test_a_file_with_other_separators_is_refused_with_the_reason(tmp_path):
    path = tmp_path / "texts.tsv"
    path.write_text("1,a text\n2,another\n")
    with pytest.raises(ValueError, match="have 1 columns.* seem to be separated by commas"):
        TsvRecords.open(str(path), "text")


def test_a_known_type_counts_behind_any_number_of_unknown_ones(tmp_path):
    line = "x\tAAAA\ta thing\twhat?\t1|!+a\t\tcoco\t"
    path = tmp_path / "pairs.tsv"
    lines = [f"{line}kind{number}" for number in range(300)] + [f"{line}caption", f"{line}qa"]
    path.write_text("\n".join(lines) + "\n")
    for kind in ("caption", "qa"):
        records = TsvRecords.open(str(path), "vision_language", types=(kind,))
        assert len(records) == 1
        assert records.location(0).endswith(f"line {301 + (kind == 'qa')}")


# ------------------------------------------------------------------------------------- indices

LINES = [f"id{number}\t{'x' * (number * 37 % 400)}\tsome text".encode() for number in range(60)]


@pytest.fixture
def data(tmp_path):
    """Returns a file whose index is built, and the path of the index."""
    path = tmp_path / "data.tsv"
    path.write_bytes(b"\n".join(LINES) + b"\n")
    TsvFile(str(path)).open()
    return path, path.with_name("data.tsv.offsets")


def previous_format(path):
    header = {"format": "ofa_jax line index 1", "size": 3, "mtime_ns": 1, "num_lines": 1}
    return json.dumps(header).encode().ljust(127) + b"\n" + bytes(192)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda index: b"", "is empty"),
        (lambda index: index[:-1], "is not complete"),
        (lambda index: index[: len(index) // 2], "is not complete"),
        (lambda index: index[:30], "is damaged, or not an index"),
        (lambda index: index + b"\0", "is not complete"),
        (lambda index: index[:-200] + b"\1" + index[-199:], "is damaged"),
        (lambda index: index.replace(b'"num_columns": 3', b'"num_columns": 2'), "is damaged"),
        (lambda index: index[:-64] + b"0" * 64, "is damaged"),
        (lambda index: previous_format(index), "is of another version"),
        (lambda index: pickle.dumps((60, [0] * 60)), "is damaged, or not an index"),
        (lambda index: b"[1, 2]\n" + index, "is damaged, or not an index"),
        (lambda index: b"[" * 100_000 + b"\n" + index, "cannot be read"),
    ],
)
def test_a_damaged_index_is_built_again_and_this_is_said(data, damage, sentence, caplog):
    path, index = data
    whole = index.read_bytes()
    index.write_bytes(damage(whole))
    with caplog.at_level(logging.WARNING):
        assert lines_of(path) == LINES
    assert len(caplog.messages) == 1
    assert f"The index {index} {sentence}" in caplog.text and "it is built again" in caplog.text
    assert index.read_bytes() == whole


def test_an_index_of_another_file_is_not_used(data, tmp_path, caplog):
    """Neither size nor time tells the files apart."""
    path, index = data
    other = tmp_path / "other.tsv"
    content = [line.replace(b"\t", b"x", 1).replace(b"some ", b"s\tome") for line in LINES]
    other.write_bytes(b"\n".join(content) + b"\n")
    status = path.stat()
    assert other.stat().st_size == status.st_size
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    shutil.copy(index, other.with_name("other.tsv.offsets"))
    with caplog.at_level(logging.WARNING):
        assert lines_of(other) == content
    assert "is of another file, or the file has changed since" in caplog.text


@pytest.mark.parametrize("size", [1 << 10, 1 << 17])
def test_a_changed_file_of_the_same_size_and_time_is_indexed_again(tmp_path, size):
    path = tmp_path / "data.tsv"
    path.write_bytes(b"ab\n" * size)
    status = path.stat()
    assert len(lines_of(path)) == size
    path.write_bytes(b"a\nb" * (size - 1) + b"a\n\n")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert lines_of(path) == [b"a"] + [b"ba"] * (size - 1) + [b""]


def test_a_file_that_changes_while_it_is_open_gives_no_wrong_lines(data):
    path, _ = data
    opened = TsvFile(str(path)).open()
    content = path.read_bytes()
    with path.open("r+b") as file:  # the same inode
        file.write(content[5:] + content[:5])
    for number in range(1, 60):
        with pytest.raises(InvalidLineError) as raised:
            opened.line(number)
        assert raised.value.reason.name == "changed file"
    os.truncate(path, 100)
    with pytest.raises(InvalidLineError, match="has become shorter"):
        opened.line(59)


@pytest.mark.parametrize("kind", ["folder", "fifo", "device", "loop"])
def test_what_is_no_file_where_the_index_belongs_is_an_error_with_advice(tmp_path, kind):
    path = tmp_path / "data.tsv"
    path.write_bytes(b"a\tb\n")
    index = tmp_path / "data.tsv.offsets"
    if kind == "folder":
        (index / "inner").mkdir(parents=True)
        with pytest.raises(OSError, match="cannot be written to .*: give a folder"):
            lines_of(path)
        return
    if kind == "fifo":
        os.mkfifo(index)
    else:
        index.symlink_to("/dev/zero" if kind == "device" else index)
    assert lines_of(path) == [b"a\tb"]
    assert index.is_file() and not index.is_symlink()


def test_a_full_disk_is_an_error_with_advice(tmp_path, monkeypatch):
    path = tmp_path / "data.tsv"
    path.write_bytes(b"a\tb\n")

    def replace(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tsv_index.os, "replace", replace)
    with pytest.raises(OSError, match=r"cannot be written to .* \(No space left on device\): give"):
        lines_of(path)
    assert [file.name for file in tmp_path.iterdir()] == ["data.tsv"]


@given(st.data())
def test_any_damage_of_an_index_is_noticed(tmp_path, data):
    path = tmp_path / "data.tsv"
    path.write_bytes(b"\n".join(LINES[:9]) + b"\n")
    index = path.with_name("data.tsv.offsets")
    lines_of(path)
    whole = bytearray(index.read_bytes())
    start = data.draw(st.integers(0, len(whole) - 1))
    stop = data.draw(st.integers(start, min(len(whole), start + 20)))
    whole[start:stop] = data.draw(st.binary(max_size=20))
    index.write_bytes(whole)
    assert lines_of(path) == LINES[:9]


ALPHABET = "ab\t\r\n \u2028\u0085\x0b\x0c\ufeff\u00e9"
CONTENT = st.text(ALPHABET, max_size=40).map(str.encode) | st.binary(max_size=40)


@given(CONTENT, st.booleans(), st.booleans())
def test_the_lines_of_any_bytes_are_those_between_line_feeds(tmp_path, content, mark, skip_blank):
    path = tmp_path / "data.tsv"
    path.write_bytes(MARK * mark + content)
    parts = (MARK * mark + content).removeprefix(MARK).split(b"\n")
    expected = [part.rstrip(b"\r") for part in (parts if parts[-1] else parts[:-1])]
    if skip_blank:
        expected = [part for part in expected if part.strip()]
    try:
        found = lines_of(path, skip_blank=skip_blank)
    except ValueError:
        alone = len(parts) - (not parts[-1]) == 1 and b"\r" in parts[0].rstrip(b"\r")
        is_binary = path.read_bytes().startswith(tuple(BINARY_SIGNATURES))
        assert not expected or alone or is_binary or b"\0" in content
        return
    assert found == (expected or [b""])
    numbers = [TsvFile(str(path), skip_blank=skip_blank).open().line_number(n) for n in range(1)]
    assert parts[numbers[0] - 1].rstrip(b"\r") == found[0]


def test_types_are_the_same_as_counted_one_by_one(tmp_path):
    generator = random.Random(0)
    types = [generator.choice(["caption", "qa", "visual_grounding", "x"]) for _ in range(500)]
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"a\t{kind}\n" for kind in types))
    opened = TsvFile(str(path), key_column=1, known_keys=("caption", "qa")).open()
    assert opened.keys[:2] == ("caption", "qa")
    np.testing.assert_array_equal([opened.keys[code] for code in opened.key_codes], types)


def test_indices_are_built_by_several_processes_at_once(data):
    """The unfinished names are the process's own, and hidden."""
    path, index = data
    index.unlink()
    with tsv_index._atomic_write(str(path), index) as first:
        first.write(b"torn")
        tsv_index.build_index(str(path), index, TsvFile(str(path)).index_options)
        assert lines_of(path) == LINES
        assert pathlib.Path(first.name).name.startswith(".")
    assert lines_of(path) == LINES


def test_a_file_may_begin_with_bad_lines(tmp_path):
    path = tmp_path / "texts.tsv"
    path.write_text("1\t \n" * 50 + "2\ta text\n" * 50)
    records = TsvRecords.open(str(path), "text")
    assert records[99]["text"] == "a text"
    path.write_text("1\t \n" * 100)
    with pytest.raises(ValueError, match="8 lines can be used as text, and none of 8 others"):
        TsvRecords.open(str(path), "text")
    path.write_text("1\t \n" * 3)
    with pytest.raises(ValueError, match="None of the first 3 lines can be used as text"):
        TsvRecords.open(str(path), "text")


@pytest.mark.parametrize("name", ["BZhang", "PAR1", "PK-7"])
def test_text_that_begins_like_a_binary_file_is_read(tmp_path, name):
    (tmp_path / "data.tsv").write_text(f"{name}\tx\n")
    assert lines_of(tmp_path / "data.tsv") == [f"{name}\tx".encode()]


@pytest.mark.parametrize("compress", [bz2.compress, gzip.compress, lzma.compress])
def test_a_compressed_file_is_refused_by_name(tmp_path, compress):
    (tmp_path / "data.tsv").write_bytes(compress(b"1\tx\n" * 9))
    with pytest.raises(ValueError, match="is compressed with .*: unpack it"):
        lines_of(tmp_path / "data.tsv")
