"""Damage of any file of a run is found: fall back, rebuild or one sentence; never a hang."""

import io
import os
import pathlib
import shutil

import fault_run
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from small_model import SMALL
from snapshots import snapshot

from ofa_jax.checkpoints import checksums, resume, storage
from ofa_jax.checkpoints.manager import Checkpoints
from ofa_jax.checkpoints.watch import CheckpointSelector
from ofa_jax.sharding import Partitioner
from ofa_jax.training import loop
from ofa_jax.utils.text_files import DamagedFileError

pytestmark = pytest.mark.usefixtures("absl_flags")


def make_run(directory, steps):
    run = fault_run.make_run(fault_run.parse([str(directory), f"--steps={steps}"]), Partitioner())
    object.__setattr__(run, "console", Console(file=io.StringIO(), width=300))
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns the directory of a run with checkpoints of steps 2 and 4."""
    directory = tmp_path_factory.mktemp("whole")
    loop.train(make_run(directory, 4))
    return directory


@pytest.fixture
def run(whole, tmp_path):
    """Returns a copy of it."""
    return pathlib.Path(shutil.copytree(whole, tmp_path / "run"))


@pytest.fixture(scope="module")
def shared(whole, tmp_path_factory):
    """Returns one copy for all examples of a test, each of which restores what it changes."""
    return pathlib.Path(shutil.copytree(whole, tmp_path_factory.mktemp("shared") / "run"))


def chosen(run):
    return resume.find_resume_point(run / "checkpoints").step


def assert_found(run, path, content):
    """Asserts that the newest checkpoint is not used while one of its files is different."""
    good = path.read_bytes()
    assert content != good
    try:
        path.write_bytes(content)
        assert chosen(run) == 2
        with pytest.raises(ValueError, match="is damaged"):
            storage.load_numpy_variables(run)
    finally:
        path.write_bytes(good)


def sums(run):
    return run / "checkpoints" / "4" / checksums.FILE


@given(st.data())
def test_any_flipped_bit_of_any_file_is_found(shared, data):
    folder = shared / "checkpoints" / "4"
    names = [checksums.FILE, *sorted(checksums._file_names(folder))]
    path = folder / data.draw(st.sampled_from(names))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, 8 * len(content) - 1))
    content[place // 8] ^= 1 << place % 8
    assert_found(shared, path, bytes(content))


@given(st.data())
def test_checksums_that_are_cut_off_lack_lines_or_have_others_are_damage(shared, data):
    content = sums(shared).read_bytes()
    lines = content.splitlines(keepends=True)
    line = data.draw(st.integers(0, len(lines) - 1))
    foreign = data.draw(st.binary(max_size=90))
    assert_found(
        shared,
        sums(shared),
        data.draw(
            st.sampled_from(
                [
                    content[: data.draw(st.integers(0, len(content) - 1))],
                    b"".join(lines[:line] + lines[line + 1 :]),
                    b"".join([*lines, lines[line]]),
                    b"".join([*lines, b"0" * 64 + b"  " + foreign + b"\n"]),
                    b"\xef\xbb\xbf" + content,
                    content.replace(b"\n", b"\r\n"),
                ]
            )
        ),
    )


@pytest.mark.parametrize(
    "name",
    ["../2/run/metadata", "/etc/passwd", "/dev/zero", "state/../run/metadata", "state", ".", "",
     "run/fifo", "nul\0", "x" * 5000, "SHA256SUMS", "_CHECKPOINT_METADATA"],
)  # fmt: skip
def test_names_that_lead_elsewhere_are_never_opened(name, run, monkeypatch):
    opened = []
    original = checksums.files.open_regular
    monkeypatch.setattr(
        checksums.files, "open_regular", lambda path: opened.append(str(path)) or original(path)
    )
    with sums(run).open("a") as file:
        file.write(f"{'0' * 64}  {name}\n")
    assert checksums.find_damage(run / "checkpoints" / "4") is not None
    assert chosen(run) == 2
    assert all(".." not in path and str(run) in path for path in opened)


def fifo(path):
    path.unlink()
    os.mkfifo(path)


def device(path):
    path.unlink()
    path.symlink_to("/dev/zero")


def loop_of_folders(path):
    path.unlink()
    path.symlink_to("..")


def folder_instead(path):
    path.unlink()
    path.mkdir()


def emptied(path):
    path.write_bytes(b"")


@pytest.mark.parametrize(
    "change", [fifo, device, loop_of_folders, folder_instead, emptied, pathlib.Path.unlink]
)
@pytest.mark.parametrize("name", ["SHA256SUMS", "run/metadata", "state/_METADATA"])
def test_what_is_not_a_regular_file_neither_hangs_nor_is_used(change, name, run):
    change(run / "checkpoints" / "4" / name)
    assert chosen(run) == 2


def test_files_that_systems_add_to_folders_are_not_damage(run):
    for name in (".DS_Store", "._metadata", "Thumbs.db", ".nfs000000000a1b2c3d"):
        (run / "checkpoints" / "4" / "state" / name).write_text("x")
    assert chosen(run) == 4


def empty_folder(path):
    path.mkdir()


def a_file(path):
    path.write_text("x")


def state_is_a_file(path):
    path.mkdir()
    (path / "state").write_text("x")


@pytest.mark.parametrize("what", [empty_folder, a_file, state_is_a_file])
@pytest.mark.parametrize("step", ["3", "20"])
def test_a_step_that_is_no_checkpoint_is_left_out_by_all_and_set_aside_by_training(
    what, step, run, capsys
):
    what(run / "checkpoints" / step)
    before = snapshot(run)
    # Readers change nothing.
    assert storage.find_checkpoint(run).name == "4" and chosen(run) == 4
    assert list(storage.list_checkpoints(run)) == [2, 4]
    assert [c.step for c in CheckpointSelector(str(run), "all").list_existing()] == [2, 4]
    assert storage.load_numpy_variables(run)["params"]
    assert snapshot(run) == before
    training = make_run(run, 6)
    loop.train(training)
    output = training.console.file.getvalue()
    assert "Resuming from step 4 of 6" in output and f"{step}.damaged" in output
    assert (run / "checkpoints" / f"{step}.damaged").exists()
    assert list(storage.list_checkpoints(run)) == [2, 4, 6]


NAMES = [
    "abc",
    "²",
    "٣",
    "-1",
    "007",
    "1e3",
    "4.5",
    "99999999999999999999",
    "2147483648",
    " 8",
    "8 ",
]


@pytest.mark.parametrize("name", NAMES)
def test_folders_with_other_names_are_not_checkpoints_and_stay(name, run):
    shutil.copytree(run / "checkpoints" / "2", run / "checkpoints" / name)
    assert list(storage.list_checkpoints(run)) == [2, 4] and chosen(run) == 4
    before = snapshot(run / "checkpoints" / name)
    loop.train(make_run(run, 5))
    assert snapshot(run / "checkpoints" / name) == before


@given(st.text(max_size=12))
def test_any_name_is_a_step_or_not(name):
    step = storage.step_of(name)
    assert step is None or str(step) == name


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b'{"item', b"\xff\xfe", b"[" * 10**5])
def test_orbaxs_own_record_is_made_anew_if_it_is_damaged(content, run):
    for step in ("2", "4"):
        (run / "checkpoints" / step / "_CHECKPOINT_METADATA").write_bytes(content)
    training = make_run(run, 6)
    loop.train(training)
    assert "Resuming from step 4 of 6" in training.console.file.getvalue()


def torn(path):
    os.truncate(path, path.stat().st_size // 2)


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


# Reads that TensorStore has begun end in Orbax's event loop, which is closed by then; outside of
# pytest `orbax_logs` drops what Python prints about each of them.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "damaged", ["run/metadata", "state/_METADATA", "state/manifest.ocdbt", None]
)
def test_without_checksums_a_checkpoint_that_cannot_be_read_is_not_used(damaged, run):
    for step in ("2", "4"):
        (run / "checkpoints" / step / checksums.FILE).unlink()
    folder = run / "checkpoints" / "4"
    torn(folder / damaged if damaged else largest(folder / "state"))
    training = make_run(run, 6)
    loop.train(training)
    assert "Resuming from step 2 of 6" in training.console.file.getvalue()
    shutil.rmtree(run / "checkpoints")
    folder.mkdir(parents=True)
    with pytest.raises(loop.RunError, match="Every checkpoint in .* is damaged"):
        loop.train(make_run(run, 6))


CONTENTS = [
    b"", b"{", b"[1]", b"null", b"3", b'"x"', b"\xff\xfe{}", bytes(300), b"{}", b"[" * 10**5,
    b'{"width": 16}', b'{"resnet_layers": 3}', b'{"resnet_layers": [1], "unknown": 1}',
    b'{"resnet_layers": [1, 1, 1], "width": NaN}',
]  # fmt: skip


@pytest.mark.parametrize("content", CONTENTS)
def test_a_damaged_model_json_is_one_sentence_that_names_it(content, run):
    storage.write_model_config(run, SMALL)
    assert storage.read_model_config(run) == SMALL
    (run / "model.json").write_bytes(content)
    with pytest.raises(DamagedFileError, match="model.json") as error:
        storage.read_model_config(run)
    assert "\n" not in str(error.value)


def test_a_model_json_that_is_a_fifo_is_one_sentence(run):
    os.mkfifo(run / "model.json")
    with pytest.raises(DamagedFileError, match="model.json is not a regular file"):
        storage.read_model_config(run)


def test_a_failed_removal_of_partial_files_does_not_end_training(run, monkeypatch):
    """A disk that vanished: neither writing nor cleaning up works, and one sentence says so."""
    messages = []
    manager = Checkpoints(run, log=messages.append)

    def vanished(*arguments, **options):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(checksums, "write", vanished)
    monkeypatch.setattr(Checkpoints, "_folders_of", vanished)
    manager.save(6, {"x": SMALL.width}, {})
    assert manager.newest_complete() is not None
    assert len(messages) == 1 and "could not be written" in messages[0]
    monkeypatch.undo()
    manager.abandon()
