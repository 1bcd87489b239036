"""Tests of the reasons for bad input, of text files, regular files and locks."""

import json
import os
import pickle
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofa_jax.utils import bad_input, files, text_files
from ofa_jax.utils.bad_input import Finding, InvalidRecordError, Treatment
from ofa_jax.utils.locks import LockedError, directory_lock, waiting_lock

DROPPED = bad_input.declare("test: a part", Treatment.DROPPED, "Only in tests.", __name__)


def test_notes_reach_the_innermost_collector_of_their_thread():
    with bad_input.collect() as outer:
        bad_input.note(DROPPED, "one")
        with bad_input.collect() as inner:
            bad_input.note(DROPPED, "two")
        other = threading.Thread(target=bad_input.note, args=(DROPPED, "elsewhere"))
        other.start()
        other.join()
        bad_input.note(DROPPED, "three")
    assert [finding.detail for finding in outer] == ["one", "three"]
    assert [finding.detail for finding in inner] == ["two"]


def test_a_reason_is_declared_once():
    with pytest.raises(ValueError, match="Two reasons have the name 'test: a part'"):
        bad_input.declare("test: a part", Treatment.SKIPPED, "Another.", __name__)


def test_findings_and_errors_can_be_pickled():
    finding = Finding(DROPPED, "box 3", "detection")
    assert pickle.loads(pickle.dumps(finding)) == finding
    error = pickle.loads(pickle.dumps(InvalidRecordError("no", DROPPED)))
    assert (str(error), error.reason) == ("no", DROPPED)


def test_any_exception_becomes_an_invalid_record_and_is_logged_once(caplog):
    for _ in range(2):
        try:
            [][3]
        except IndexError as error:
            invalid = bad_input.as_invalid_record(error, "cannot be read")
        assert str(invalid) == "cannot be read (IndexError: list index out of range)"
        assert invalid.reason is bad_input.UNEXPECTED_ERROR


@given(st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]))))
def test_lines_end_at_line_feeds_alone(tmp_path, lines):
    path = tmp_path / "lines.txt"
    for end, mark in (("\n", b""), ("\r\n", b"\xef\xbb\xbf")):
        path.write_bytes(mark + "".join(line + end for line in lines).encode())
        expected = [line.removeprefix("\ufeff") if not number and not mark else line
                    for number, line in enumerate(lines)]  # fmt: skip
        assert text_files.read_lines(path) == expected


def test_text_of_another_encoding_is_refused_by_name(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("yes".encode("utf-16"))
    with pytest.raises(text_files.DamagedFileError, match="text.txt is UTF-16: save it as UTF-8"):
        text_files.read_text(path)
    path.write_bytes(b"one\ncaf\xe9\n")
    with pytest.raises(text_files.DamagedFileError, match="line 2: byte 0xe9 is not UTF-8"):
        text_files.read_text(path)


@given(st.text())
def test_replaced_surrogates_can_be_encoded(text):
    replaced = text_files.replace_surrogates(text + "\ud83d")
    assert len(replaced) == len(text) + 1
    replaced.encode("utf-8")


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 20, b'{"a": 1', b"NaN", b"[" * 100_000, b"\xff\xfe{", b"{} {}"],
    ids=["empty", "zeros", "torn", "nan", "deep", "utf16", "two"],
)
def test_damaged_json_is_one_sentence(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(text_files.DamagedFileError, match=r"a\.json"):
        text_files.read_json(path)


def test_json_with_a_byte_order_mark_is_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": [1]}).encode())
    assert text_files.read_json(path) == {"a": [1]}


@pytest.mark.parametrize("path", ["fifo", ".", "/dev/zero", "/proc/self/status", "a\0b"])
def test_only_regular_files_are_read(tmp_path, path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="is not a"):
        files.read_bytes(tmp_path / path)


def test_a_large_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="the limit is 1,000 bytes"):
        files.read_bytes(path, max_bytes=1000)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, 1)
    with pytest.raises(ZeroDivisionError), files.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert [name.name for name in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text() == "1\n"


def test_two_writers_of_a_file_never_share_an_unfinished_one(tmp_path):
    path = tmp_path / "a.txt"
    with files.atomic_path(path) as first, files.atomic_path(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # the outer block ends last


def test_a_folder_is_locked_until_its_process_ends_in_any_way(tmp_path):
    code = (
        "import sys, time\n"
        "from ofa_jax.utils.locks import directory_lock\n"
        "with directory_lock(sys.argv[1], 'OUTPUT_DIR'):\n"
        "    print('locked', flush=True)\n"
        "    time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"locked\n"
    with (
        pytest.raises(LockedError, match="Another process is writing to .*another OUTPUT_DIR"),
        directory_lock(tmp_path, "OUTPUT_DIR"),
    ):
        pass
    holder.kill()
    holder.communicate()
    with directory_lock(tmp_path, "OUTPUT_DIR"):
        assert not list(tmp_path.iterdir())


def test_waiting_for_a_locked_folder_ends_with_its_lock(tmp_path):
    entered = threading.Event()

    def wait():
        with waiting_lock(tmp_path, "OUTPUT_DIR", seconds=0.01):
            entered.set()

    thread = threading.Thread(target=wait)
    with directory_lock(tmp_path, "OUTPUT_DIR"):
        thread.start()
        assert not entered.wait(0.1)
    thread.join(60)
    assert entered.is_set()


def test_messages_have_no_memory_addresses():
    error = bad_input.InvalidRecordError(f"it is {object()} of 0x12 at 0x34")
    assert str(error) == "it is <object object> of 0x12 at 0x34"
    wrapped = bad_input.as_invalid_record(KeyError(f"a\n  {object()}"), "cannot be read")
    assert "0x" not in str(wrapped) and "\n" not in str(wrapped)
