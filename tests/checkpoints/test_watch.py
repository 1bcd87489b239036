"""Selecting checkpoints: the newest, all, some, and those written while watching."""

import pytest

from ofa_jax.checkpoints import checksums, watch
from ofa_jax.checkpoints.watch import CheckpointSelector, follow


def write(run, *steps):
    for step in steps:
        (run / "checkpoints" / str(step) / "state").mkdir(parents=True)


def steps(selector, **others):
    return [checkpoint.step for checkpoint in follow(selector, print, **others)]


@pytest.fixture
def run(tmp_path):
    write(tmp_path, 10, 200, 30)
    (tmp_path / "checkpoints" / "40.orbax-checkpoint-tmp-1" / "state").mkdir(parents=True)
    (tmp_path / "checkpoints" / "20.damaged" / "state").mkdir(parents=True)
    return tmp_path


def test_newest_all_and_some(run):
    assert steps(CheckpointSelector(str(run))) == [200]
    assert steps(CheckpointSelector(str(run), "all")) == [10, 30, 200]
    assert steps(CheckpointSelector(str(run), [30, 10])) == [10, 30]
    assert steps(CheckpointSelector(str(run / "checkpoints" / "30"), "all")) == [30]
    assert steps(CheckpointSelector("some/official.pt")) == [0]


@pytest.mark.parametrize(
    ("which", "sentence"),
    [
        ("newst", "which is 'newst'; it must be one of newest, all, watch"),
        ([], "which is \\[\\]; it must be non-empty"),
        ([10, 11, 12], "no checkpoint of step 11, 12 in .* it has 10"),
    ],
)
def test_a_missing_checkpoint_is_reported(run, which, sentence):
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        steps(CheckpointSelector(str(run), which))


def test_a_run_without_checkpoints_is_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no checkpoint in"):
        steps(CheckpointSelector(str(tmp_path), "all"))


def test_watching_yields_existing_and_new_checkpoints_until_the_last_step(tmp_path, capsys):
    coming = iter([(), (10,), (), (20, 30)])
    selector = CheckpointSelector(str(tmp_path), "watch", last_step=30)
    assert steps(selector, sleep=lambda seconds: write(tmp_path, *next(coming))) == [10, 20, 30]
    assert next(coming, None) is None
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if "Waiting for checkpoints" in line]) == 2
    assert lines[-1] == "Step 30 has been evaluated: done."


def test_watching_ends_without_a_new_checkpoint_within_the_timeout(run, capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])

    def sleep(seconds):
        now[0] += seconds

    selector = CheckpointSelector(
        str(run), "watch", last_step=1000, timeout_seconds=60, poll_seconds=7
    )
    assert steps(selector, sleep=sleep) == [10, 30, 200]
    assert now[0] == 63
    assert "No new checkpoint in" in capsys.readouterr().out


def test_deleted_and_damaged_checkpoints_are_reported(run):
    one, other = CheckpointSelector(str(run), [10, 30]).list_existing()
    (run / "checkpoints" / "10" / "state" / "array").write_text("numbers")
    checksums.write(run / "checkpoints" / "10")
    assert watch.find_problem(one) is None
    (run / "checkpoints" / "10" / "state" / "array").write_text("others")
    assert "damaged (state/array is not as it was written)" in watch.find_problem(one)
    assert watch.find_problem(other) is None  # from before there were checksums
    (run / "checkpoints" / "30" / "state").rmdir()
    assert "it is gone" in watch.find_problem(other)


def test_an_empty_newest_folder_gives_way_to_the_newest_checkpoint(run):
    (run / "checkpoints" / "300").mkdir()
    assert steps(CheckpointSelector(str(run))) == [200]
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 300"):
        steps(CheckpointSelector(str(run), [300]))


def test_watching_a_single_checkpoint_ends_after_it(run):
    assert steps(CheckpointSelector("some/official.pt", "watch")) == [0]
    folder = run / "checkpoints" / "30"
    (found,) = follow(CheckpointSelector(str(folder), "watch"), print)
    assert found.path == str(folder)


def test_watching_goes_on_where_a_folder_vanishes_while_it_is_listed(run, monkeypatch):
    listed = watch.storage.list_checkpoints
    answers = iter([FileNotFoundError("gone"), PermissionError("busy")])

    def list_checkpoints(path):
        if (error := next(answers, None)) is not None:
            raise error
        return listed(path)

    monkeypatch.setattr(watch.storage, "list_checkpoints", list_checkpoints)
    selector = CheckpointSelector(str(run), "watch", last_step=200)
    assert steps(selector, sleep=lambda seconds: None) == [10, 30, 200]


def test_checksums_that_cannot_be_read_are_a_problem_and_no_traceback(run, monkeypatch):
    folder = run / "checkpoints" / "30"
    (folder / "state" / "array").write_bytes(b"1")
    checksums.write(folder)
    (checkpoint,) = CheckpointSelector(str(folder)).list_existing()
    for content in (b"", b"\xff\xfe\x80", b"\0" * 100, b"0" * 64):
        (folder / checksums.FILE).write_bytes(content)
        assert "it is damaged" in watch.find_problem(checkpoint)

    def vanish(path):
        (folder / "state" / "array").unlink()
        (folder / "state").rmdir()
        raise FileNotFoundError("gone")

    monkeypatch.setattr(checksums, "find_damage", vanish)
    assert "it is gone" in watch.find_problem(checkpoint)
