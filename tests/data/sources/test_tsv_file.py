"""Tests random access to the lines of large files, and the index behind it."""

import base64
import os
import pathlib
import pickle
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ofa_jax.data.sources import tsv_file, tsv_index
from ofa_jax.data.sources.tsv_columns import BAD_BOX
from ofa_jax.data.sources.tsv_file import InvalidLineError, TextFileLines, TsvFile, decode_base64

LINES = [f"id{number}\t{'x' * (number * 37 % 400)}\t{'ab'[number % 2]}" for number in range(100)]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "data.tsv"
    path.write_text("\n".join(LINES) + "\n")
    return path


def texts(file):
    opened = file.open()
    return [opened.line(number).decode() for number in range(len(opened))]


def build_index(file):
    tsv_index.build_index(file.path, file.index_path, file.index_options)


def columns(file):
    opened = file.open()
    return ["\t".join(part.decode() for part in opened.columns(n)) for n in range(len(opened))]


def test_every_line_is_found_by_its_number(path):
    opened = TsvFile(str(path), key_column=2).open()
    assert len(opened) == 100 and opened.num_columns == 3
    for number in (99, 0, 50, 1):
        assert opened.line(number).decode() == LINES[number]
        assert opened.columns(number) == [part.encode() for part in LINES[number].split("\t")]
    assert opened.keys == ("a", "b")
    np.testing.assert_array_equal(opened.key_codes, np.arange(100) % 2)
    assert not opened.malformed_lines().any()


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_last_line_without_an_end_and_windows_line_ends_are_read(tmp_path, end):
    path = tmp_path / "data.tsv"
    path.write_bytes((end or "\n").join(["a\tb", "c\td"]).encode() + end.encode())
    assert texts(TsvFile(str(path))) == ["a\tb", "c\td"]


def test_an_index_is_built_once_and_reused(path, monkeypatch):
    file = TsvFile(str(path))
    assert texts(file) == LINES
    assert file.index_path == path.with_name("data.tsv.offsets")
    tsv_file._open.cache_clear()
    monkeypatch.setattr(tsv_file, "build_index", None)
    assert texts(file) == LINES


@pytest.mark.parametrize(
    "change", ["lines", "time", "key column", "truncated index", "other index"]
)
def test_an_outdated_index_is_rebuilt(path, change):
    file, lines = TsvFile(str(path)), LINES
    file.open()
    index = file.index_path
    if change == "lines":
        lines = LINES[:7]
        path.write_text("\n".join(lines) + "\n")
    elif change == "time":
        lines = [line.replace("\t", "x\t", 1)[: len(line)] for line in LINES]
        path.write_text("\n".join(lines) + "\n")
        os.utime(path, ns=(1, 1))
    elif change == "key column":
        file = TsvFile(str(path), key_column=2)
    elif change == "truncated index":
        os.truncate(index, index.stat().st_size - 1)
    else:
        index.write_bytes(pickle.dumps((100, [0] * 100)))
    tsv_file._open.cache_clear()
    assert texts(file) == lines
    assert file.key_column is None or file.open().keys == ("a", "b")


def test_an_index_may_be_in_another_folder(path, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    namesake = other / "data.tsv"
    namesake.write_text("q\n")
    folder = str(tmp_path / "indices")
    assert texts(TsvFile(str(path), index_dir=folder)) == LINES
    assert texts(TsvFile(str(namesake), index_dir=folder)) == ["q"]
    assert len(list(pathlib.Path(folder).iterdir())) == 2
    assert not path.with_name("data.tsv.offsets").exists()


def test_an_index_that_cannot_be_written_raises_an_error_with_advice(path):
    with pytest.raises(OSError, match="cannot be written to .*data.tsv.*give a folder .*index_dir"):
        TsvFile(str(path), index_dir=str(path)).open()


def test_a_failed_build_leaves_no_index(path, monkeypatch):
    monkeypatch.setattr(tsv_index, "_MAX_LINE_LENGTH", 100)
    with pytest.raises(ValueError, match="data.tsv: line 4 is longer"):
        TsvFile(str(path)).open()
    assert [file.name for file in path.parent.iterdir()] == ["data.tsv"]


def test_missing_remote_and_empty_files_are_rejected(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file .*gone.tsv: check the path"):
        TsvFile(str(tmp_path / "gone.tsv")).open()
    with pytest.raises(FileNotFoundError, match="only files on a disk or a mount can be read"):
        TsvFile("gs://bucket/data.tsv").open()
    (tmp_path / "empty.tsv").touch()
    with pytest.raises(ValueError, match="empty.tsv is empty"):
        TsvFile(str(tmp_path / "empty.tsv")).open()


def test_lines_with_another_number_of_columns_are_malformed(tmp_path):
    path = tmp_path / "data.tsv"
    path.write_text("a\tb\tc\n" * 3 + "a\tb\n" + "a\tb\tc\td\n" + "\n" + "a\tb\tc\n")
    opened = TsvFile(str(path), key_column=2).open()
    assert opened.num_columns == 3
    np.testing.assert_array_equal(np.flatnonzero(opened.malformed_lines()), [3, 4, 5])
    assert opened.key_codes.tolist() == [0, 0, 0, tsv_index.NO_KEY, 0, tsv_index.NO_KEY, 0]
    for number, count in ((3, 2), (4, 4), (5, 1)):
        with pytest.raises(
            InvalidLineError, match=f"it has {count} columns instead of 3"
        ) as raised:
            opened.columns(number)
        assert raised.value.reason.name == "wrong number of columns"


def test_the_number_of_keys_in_an_index_is_limited(tmp_path):
    path = tmp_path / "data.tsv"
    path.write_text("".join(f"{number}\n" for number in range(1000)))
    opened = TsvFile(str(path), key_column=0).open()
    assert opened.keys == tuple(map(str, range(200)))
    assert opened.key_codes.tolist() == [*range(200)] + [tsv_index.OTHER_KEY] * 800


def test_building_an_index_needs_little_memory(tmp_path):
    """A file of 40 MB in lines of 200 kB: one line and a buffer are in memory at a time."""
    path = tmp_path / "data.tsv"
    line = b"x" * 100_000 + b"\t" + b"y" * 100_000 + b"\n"
    path.write_bytes(line * 200)
    tracemalloc.start()
    try:
        build_index(TsvFile(str(path)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4e6, peak
    assert TsvFile(str(path)).open().line(199) == line[:-1]


def test_building_an_index_reports_its_progress(path, monkeypatch, capsys):
    monkeypatch.setattr(tsv_index, "_SECONDS_BETWEEN_LINES", 0)
    build_index(TsvFile(str(path)))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 100 and lines[-1].startswith(f"Indexing {path}: 0.0 of 0.0 GB, 100 lines")


def test_threads_share_an_open_file(path):
    opened = TsvFile(str(path)).open()
    assert TsvFile(str(path)).open() is opened
    numbers = list(range(100)) * 20
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda number: opened.line(number).decode(), numbers))
    assert read == [LINES[number] for number in numbers]


def test_text_file_lines_are_a_sequence_on_disk(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("\n  \n a dog \nzwei K\u00e4tzchen\n\n\nthe end")
    lines = TextFileLines(str(path))
    assert list(lines) == ["a dog", "zwei K\u00e4tzchen", "the end"]
    assert len(pickle.dumps(lines)) < 300
    assert pickle.loads(pickle.dumps(lines))[1] == "zwei K\u00e4tzchen"
    with pytest.raises(IndexError, match="has no line 3"):
        lines[3]
    path.write_text(" \n\n")
    with pytest.raises(ValueError, match="has only blank lines"):
        len(TextFileLines(str(path)))


def test_both_alphabets_of_base64_are_decoded_and_nothing_else():
    value = bytes(range(256))
    assert decode_base64(base64.urlsafe_b64encode(value)) == value
    assert decode_base64(base64.b64encode(value)) == value
    encoded = base64.urlsafe_b64encode(value)
    for invalid in (encoded[:-1], encoded[:50] + b" " + encoded[50:], b"=", b"a?cd", b"im.png"):
        with pytest.raises(InvalidLineError, match="its image is not base64") as raised:
            decode_base64(invalid)
        assert raised.value.reason.name == "bad base64"


def test_an_invalid_line_error_can_be_pickled():
    error = pickle.loads(pickle.dumps(InvalidLineError(BAD_BOX, "line 3: what is it")))
    assert (error.reason, str(error)) == (BAD_BOX, "line 3: what is it")
