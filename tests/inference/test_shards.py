"""Files of answers: whole or not there, every input in one, and in only one, host's share."""

import json
import os
import pathlib

import pytest

from ofa_jax.inference import shards
from ofa_jax.inference.shards import Shards


def lines_of(parts, shard):
    return [{"id": str(number)} for number in parts.inputs(shard)]


@pytest.mark.parametrize("num_hosts", [1, 2, 3, 7])
def test_the_shares_of_hosts_are_disjoint_and_complete(tmp_path, num_hosts):
    parts = Shards(tmp_path, 53, 10)
    shares = [parts.share(host, num_hosts) for host in range(num_hosts)]
    inputs = [number for share in shares for shard in share for number in parts.inputs(shard)]
    assert sorted(inputs) == list(range(53))


def test_a_shard_is_not_there_until_it_is_whole(tmp_path, monkeypatch):
    parts = Shards(tmp_path, 25, 10)
    parts.write(0, lines_of(parts, 0))
    assert parts.unfinished(range(3)) == [1, 2]

    def fail(*arguments):
        raise OSError("killed")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="killed"):
        parts.write(1, lines_of(parts, 1))
    assert parts.unfinished(range(3)) == [1, 2]
    monkeypatch.undo()
    for shard in (1, 2):
        parts.write(shard, lines_of(parts, shard), {f"images/{shard}/0.png": b"pixels"})
    assert parts.unfinished(range(3)) == []
    assert sorted(path.name for path in tmp_path.glob("*")) == [
        "answers-00000-of-00003.jsonl",
        "answers-00001-of-00003.jsonl",
        "answers-00002-of-00003.jsonl",
        "images",
    ]
    assert (tmp_path / "images" / "2" / "0.png").read_bytes() == b"pixels"


def test_contents_reach_the_disk_before_they_have_their_name(tmp_path, monkeypatch):
    happened = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (happened.append("fsync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *paths: (happened.append("name"), replace(*paths)))
    shards.write_atomically(tmp_path / "a", b"1")
    assert happened == ["fsync", "name", "fsync"]


def test_finished_shards_are_counted_and_a_changed_one_is_found(tmp_path):
    parts = Shards(tmp_path, 12, 10)
    parts.write(0, lines_of(parts, 0))
    parts.write(1, [{"id": "a", "error": "No"}, {"id": "b", "answer": '"error": no'}])
    assert parts.tally(range(2)) == (12, 1)
    with pytest.raises(ValueError, match="has 2 inputs, not 1"):
        parts.write(1, [{"id": "a"}])
    text = parts.path(0).read_text().splitlines(keepends=True)
    parts.path(0).write_text("".join(text[:-1]))
    with pytest.raises(shards.ShardError, match="9 lines for 10 inputs: delete it"):
        parts.tally(range(2))


def test_another_job_in_the_same_place_is_refused(tmp_path):
    job = {"checkpoint": "runs/x/checkpoints/3", "inputs": {"path": "a", "columns": (1, 2)}}
    shards.compare(tmp_path / "new", job)
    assert not (tmp_path / "new").exists()
    for _ in range(2):
        shards.begin(tmp_path / "new", job)
    with pytest.raises(ValueError, match=r"begun with checkpoint = runs/x/checkpoints/3, and is y"):
        shards.begin(tmp_path / "new", job | {"checkpoint": "y"})
    assert json.loads(pathlib.Path(tmp_path / "new" / "job.json").read_text())["inputs"] == {
        "path": "a",
        "columns": [1, 2],
    }
