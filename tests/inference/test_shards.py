"""Output files: complete or absent, and every input in exactly one host's share."""

import json
import os
import pathlib

import pytest

from ofa_jax.inference import shards
from ofa_jax.inference.shards import Shards


def lines_of(outputs, shard):
    return [{"id": str(number)} for number in outputs.inputs(shard)]


@pytest.mark.parametrize("num_hosts", [1, 2, 3, 7])
def test_the_shares_of_hosts_are_disjoint_and_complete(tmp_path, num_hosts):
    outputs = Shards(tmp_path, 53, 10)
    shares = [outputs.share(host, num_hosts) for host in range(num_hosts)]
    inputs = [number for share in shares for shard in share for number in outputs.inputs(shard)]
    assert sorted(inputs) == list(range(53))


def test_a_shard_has_no_file_until_it_is_complete(tmp_path, monkeypatch):
    outputs = Shards(tmp_path, 25, 10)
    outputs.write(0, lines_of(outputs, 0))
    assert outputs.unfinished(range(3)) == [1, 2]

    def fail(*arguments):
        raise OSError("killed")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="killed"):
        outputs.write(1, lines_of(outputs, 1))
    assert outputs.unfinished(range(3)) == [1, 2]
    monkeypatch.undo()
    for shard in (1, 2):
        outputs.write(shard, lines_of(outputs, shard), {f"images/{shard}/0.png": b"pixels"})
    assert outputs.unfinished(range(3)) == []
    assert sorted(path.name for path in tmp_path.glob("*")) == [
        "answers-00000-of-00003.jsonl",
        "answers-00001-of-00003.jsonl",
        "answers-00002-of-00003.jsonl",
        "images",
    ]
    assert (tmp_path / "images" / "2" / "0.png").read_bytes() == b"pixels"


def test_contents_are_flushed_before_the_file_is_renamed(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (calls.append("fsync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("replace"), replace(*paths)))
    shards.write_durably(tmp_path / "a", b"1")
    assert calls == ["fsync", "replace", "fsync"]


def test_lines_are_counted_and_a_changed_shard_is_reported(tmp_path):
    outputs = Shards(tmp_path, 12, 10)
    outputs.write(0, lines_of(outputs, 0))
    outputs.write(1, [{"id": "a", "error": "No"}, {"id": "b", "answer": '"error": no'}])
    assert outputs.count_lines(range(2)) == (12, 1)
    with pytest.raises(ValueError, match="has 2 inputs, not 1"):
        outputs.write(1, [{"id": "a"}])
    text = outputs.path(0).read_text().splitlines(keepends=True)
    outputs.path(0).write_text("".join(text[:-1]))
    with pytest.raises(shards.ShardError, match="9 lines for 10 inputs: delete it"):
        outputs.count_lines(range(2))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "surrogates"])
def test_answers_of_another_encoding_are_damage(tmp_path, encoding):
    outputs = Shards(tmp_path, 2, 2)
    outputs.write(0, [{"id": "1", "answer": "a"}, {"id": "2", "answer": "b"}])
    text = outputs.path(0).read_text().replace('"b"', '"\ud83d"')
    content = text.encode("utf-8" if encoding == "surrogates" else encoding, "surrogatepass")
    outputs.path(0).write_bytes(content)
    with pytest.raises(shards.ShardError, match="is damaged|lines for"):
        outputs.count_lines([0])


def test_another_job_in_the_same_directory_is_refused(tmp_path):
    job = {"checkpoint": "runs/x/checkpoints/3", "inputs": {"path": "a", "columns": (1, 2)}}
    shards.check_job_file(tmp_path / "new", job)
    assert not (tmp_path / "new").exists()
    for _ in range(2):
        shards.write_job_file(tmp_path / "new", job)
    with pytest.raises(
        ValueError, match=r"started with checkpoint = runs/x/checkpoints/3, but now it is y"
    ):
        shards.write_job_file(tmp_path / "new", job | {"checkpoint": "y"})
    # Settings that an earlier version did not have are None.
    shards.check_job_file(tmp_path / "new", job | {"task": None})
    assert json.loads(pathlib.Path(tmp_path / "new" / "job.json").read_text())["inputs"] == {
        "path": "a",
        "columns": [1, 2],
    }
