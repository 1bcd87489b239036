import json

import pytest

from ofa_jax.utils import files


def test_json_is_written_and_nothing_is_left_beside_it(tmp_path):
    files.write_json(tmp_path / "results.json", {"é": [1]})
    assert json.loads((tmp_path / "results.json").read_text()) == {"é": [1]}
    assert (tmp_path / "results.json").read_bytes().endswith(b"]\n}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_text_keeps_its_line_breaks(tmp_path):
    files.write_text(tmp_path / "a.txt", "one\r\ntwo\n\u2028")
    assert (tmp_path / "a.txt").read_bytes() == "one\r\ntwo\n\u2028".encode()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with (
        pytest.raises(ZeroDivisionError),
        files.atomic_path(path) as temporary,
    ):
        temporary.write_text("new")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
