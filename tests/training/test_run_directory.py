"""A refused run changes nothing; an accepted one writes what describes it, and repairs it."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import jax
import pytest
from small_model import SMALL
from small_run import make_run
from snapshots import snapshot

from ofa_jax.checkpoints import storage
from ofa_jax.checkpoints.manager import SaveError
from ofa_jax.tokenizers.processor import Processor
from ofa_jax.training import loop, run_directory
from ofa_jax.utils import files

FINGERPRINT = {"seed": 3, "shape": (1, 2), "streams": [{"name": "text", "batch_size": 4}]}
PERIODS = dict(log_period=1, checkpoint_period=2)


@pytest.fixture
def described(processor):
    """Returns a function that makes a run with a model, a processor and a configuration."""

    def make(folder, fingerprint=FINGERPRINT, steps=5, model=SMALL, vocabulary=None, **changes):
        run = make_run(folder, run_fingerprint=fingerprint, total_steps=steps, **PERIODS)
        changes.setdefault(
            "processor", processor.replace(vocabulary=vocabulary or processor.vocabulary)
        )
        return dataclasses.replace(run, model=model, config_text=f"# {fingerprint}\n", **changes)

    return make


@pytest.fixture(scope="module")
def trained(tmp_path_factory, processor):
    """Returns the directory of a run of two steps with everything that describes it."""
    run = make_run(
        tmp_path_factory.mktemp("trained") / "run",
        run_fingerprint=FINGERPRINT,
        total_steps=2,
        **PERIODS,
    )
    loop.train(
        dataclasses.replace(run, model=SMALL, processor=processor, config_text="# written once\n")
    )
    return pathlib.Path(run.model_dir)


@pytest.fixture
def directory(trained, tmp_path):
    """Returns a copy of `trained`."""
    return pathlib.Path(shutil.copytree(trained, tmp_path / "run"))


def output(run):
    return run.console.file.getvalue()


def other_optimizer(run):
    """Returns the run with a state that has one more array for every parameter."""
    state = run.abstract_state
    return dataclasses.replace(
        run, abstract_state=state.replace(opt_state=(state.opt_state, state.params))
    )


def test_an_accepted_run_writes_what_describes_it(trained, processor):
    names = {path.name for path in trained.iterdir()}
    assert names == {"checkpoints", "config.gin", "interface", "model.json"}
    assert (trained / "config.gin").read_text() == "# written once\n"
    assert storage.read_model_config(trained) == SMALL
    assert Processor.load(trained).equals(processor)


REFUSALS = {
    "another width": (dict(model=SMALL.replace(width=32)), "width is 16 there and 32 here"),
    "another activation": (dict(model=SMALL.replace(activation="relu")), "activation is gelu"),
    "another size of the vocabulary": (dict(model=SMALL.replace(vocab_size=61)), "vocab_size is"),
    "another seed": (dict(fingerprint=FINGERPRINT | {"seed": 4}), "seed = 3, but now it is 4"),
    "another batch": (
        dict(fingerprint=FINGERPRINT | {"streams": [{"name": "text", "batch_size": 8}]}),
        "started with streams",
    ),
    "a new key of the fingerprint": (dict(fingerprint=FINGERPRINT | {"rates": 1}), "rates = None"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_run_of_another_kind_is_refused_and_nothing_changes(refusal, directory, described):
    changes, sentence = REFUSALS[refusal]
    before = snapshot(directory)
    run = described(directory, **changes)
    with pytest.raises(loop.RunError, match=sentence):
        loop.train(run)
    assert snapshot(directory) == before
    assert not run.writer.scalars and "Compiling" not in output(run)


def test_another_optimizer_is_refused_and_nothing_changes(directory, described):
    before = snapshot(directory)
    with pytest.raises(loop.RunError, match="is of another model or optimiser: opt_state"):
        loop.train(other_optimizer(described(directory)))
    assert snapshot(directory) == before


def test_another_vocabulary_is_refused_and_nothing_changes(directory, described, processor):
    other = type(processor.vocabulary)(
        processor.vocabulary._tokenizer, list(reversed(processor.vocabulary._symbols)), 16, 65
    )
    assert other.vocab_size == processor.vocabulary.vocab_size
    before = snapshot(directory)
    with pytest.raises(loop.RunError, match="was trained with another vocabulary"):
        loop.train(described(directory, vocabulary=other))
    assert snapshot(directory) == before


def test_a_refusal_leaves_damage_and_unfinished_files_where_they_are(directory, described):
    shutil.copytree(directory / "checkpoints" / "2", directory / "checkpoints" / "4")
    (directory / "checkpoints" / "4" / "SHA256SUMS").write_bytes(b"\xff")
    (directory / "checkpoints" / "6.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    (directory / "checkpoints" / "8").mkdir()
    (directory / ".model.json.host-1-2.tmp").write_text("{")
    (directory / "validations.json").write_text("{")
    before = snapshot(directory)
    with pytest.raises(loop.RunError, match="seed = 3, but now it is 4"):
        loop.train(described(directory, fingerprint=FINGERPRINT | {"seed": 4}))
    assert snapshot(directory) == before
    # Accepted, the same directory is cleaned up.
    run = described(directory)
    loop.train(run)
    assert "Falling back to the checkpoint of step 2: that of step 4 is damaged" in output(run)
    assert sorted(path.name for path in (directory / "checkpoints").iterdir()) == [
        "2",
        "4",
        "4.damaged",
        "5",
        "8.damaged",
    ]
    assert not list(directory.glob(".*.tmp"))
    assert (directory / "validations.json.damaged").read_text() == "{"


@pytest.mark.parametrize("taken", [".", "..", "below", "checkpoints", "interface", "model.json"])
def test_a_path_that_is_something_else_is_refused_and_nothing_changes(taken, tmp_path, described):
    directory = tmp_path / "folder" / "run"
    place = directory / taken if taken != "below" else directory
    place = pathlib.Path(os.path.normpath(place))
    place.parent.mkdir(parents=True, exist_ok=True)
    if taken == "model.json":
        place.mkdir()
    else:
        place.write_text("a file of someone")
    if taken == "below":
        directory = directory / "further" / "below"
    before = snapshot(tmp_path)
    with pytest.raises(loop.RunError, match="choose a(nother)? (folder|MODEL_DIR)"):
        loop.train(described(directory))
    assert snapshot(tmp_path) == before


def test_a_folder_that_cannot_be_written_to_is_refused(directory, described, monkeypatch):
    # The tests may run as root, whom no permission stops.
    monkeypatch.setattr(run_directory.os, "access", lambda path, mode: False)
    before = snapshot(directory)
    with pytest.raises(loop.RunError, match="cannot be written to"):
        loop.train(described(directory))
    assert snapshot(directory) == before
    new = directory.parent / "new" / "run"
    with pytest.raises(loop.RunError, match="cannot be written to"):
        loop.train(described(new))
    assert not new.parent.exists()


def test_a_checkpoint_that_training_did_not_write_is_refused(tmp_path, described, trained):
    storage.save_variables(tmp_path, storage.load_numpy_variables(trained))
    before = snapshot(tmp_path)
    with pytest.raises(loop.RunError, match="no state of training: .* INITIAL_CHECKPOINT_PATH"):
        loop.train(described(tmp_path))
    assert snapshot(tmp_path) == before


def test_other_files_in_the_folder_stay_as_they_are(tmp_path, described):
    (tmp_path / "notes.md").write_text("mine")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"\0")
    before = snapshot(tmp_path / "model") | snapshot(tmp_path / "notes.md")
    loop.train(described(tmp_path, steps=1))
    assert snapshot(tmp_path / "model") | snapshot(tmp_path / "notes.md") == before


def test_a_second_process_in_one_folder_is_refused_until_the_first_ends(directory, described):
    hold = (
        "import sys, time\nfrom ofa_jax.utils.locks import directory_lock\n"
        f"with directory_lock({str(directory)!r}, 'MODEL_DIR'):\n"
        "    print('locked', flush=True)\n    time.sleep(60)\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", hold], stdout=subprocess.PIPE, cwd=pathlib.Path(__file__).parents[2]
    )
    try:
        assert other.stdout.readline() == b"locked\n"
        before = snapshot(directory)
        with pytest.raises(loop.RunError, match="Another process is writing to .*MODEL_DIR"):
            loop.train(described(directory))
        assert snapshot(directory) == before
    finally:
        other.kill()  # as a crash would
        other.wait()
        other.stdout.close()
    time.sleep(0.01)
    loop.train(described(directory, steps=3))


def test_a_run_that_is_over_is_described_as_it_was(directory, described):
    before = snapshot(directory)
    run = described(directory, steps=1, model=SMALL.replace(dropout_rate=0.5))
    loop.train(run)
    assert {k: v for k, v in snapshot(directory).items() if k in before} == before


def test_options_that_do_not_change_the_parameters_may_change(directory, described):
    model = SMALL.replace(dropout_rate=0.5, dtype="bfloat16")
    loop.train(described(directory, steps=3, model=model))
    assert storage.read_model_config(directory) == model


def test_a_key_that_earlier_versions_did_not_save_is_not_compared(directory, described):
    new = FINGERPRINT | {"num_records": {"text": {"first": 7}}}
    loop.train(described(directory, fingerprint=new, steps=3, new_in_fingerprint=["num_records"]))
    changed = FINGERPRINT | {"num_records": {"text": {"first": 8}}}
    with pytest.raises(loop.RunError, match="started with num_records = .*7.*, but now it is .*8"):
        loop.train(described(directory, fingerprint=changed, new_in_fingerprint=["num_records"]))


def test_a_run_without_any_checkpoint_may_begin_again_with_another_model(tmp_path, described):
    storage.write_model_config(tmp_path, SMALL.replace(width=32))
    loop.train(described(tmp_path, steps=1))
    assert storage.read_model_config(tmp_path) == SMALL


def test_a_full_disk_at_the_start_is_one_sentence_and_keeps_the_old_files(
    directory, described, monkeypatch
):
    def full(path, value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_text", full)
    before = snapshot(directory)
    with pytest.raises(SaveError, match="cannot be written to .*No space left on device"):
        loop.train(described(directory, model=SMALL.replace(dropout_rate=0.5)))
    assert snapshot(directory) == before


DAMAGES = {
    "empty": b"",
    "torn": b'{"vocab_size": 60, "wid',
    "binary": bytes(range(256)),
    "zeros": bytes(512),
    "a list": b"[1, 2]",
    "null": b"null",
    "another shape": b'{"7": {"loss": "low"}, "x": []}',
    "nested": b"[" * 100_000,
}
FILES = (
    "model.json",
    "config.gin",
    "interface/vocabulary.json",
    "interface/sizes.json",
    "interface/image_tokenizer.npz",
    "validations.json",
    "validation.json",
)


@pytest.mark.parametrize("name", FILES)
def test_every_damage_of_a_file_is_repaired_by_the_next_start(
    name, directory, described, processor
):
    """All damages in one test, as a start takes longer than a look at a file."""
    for damage, content in DAMAGES.items():
        (directory / name).write_bytes(content)
        run = described(directory, steps=2)
        with run_directory.open_run_directory(run, run.console.print) as point:
            assert point.step == 2, damage
        assert storage.read_model_config(directory) == SMALL, damage
        assert Processor.load(directory).equals(processor), damage
        if name in ("model.json", "interface/vocabulary.json", "interface/sizes.json"):
            assert "anew" in output(run), damage


def test_a_file_that_is_a_fifo_neither_hangs_nor_stays(directory, described):
    for name in ("model.json", "interface/vocabulary.json", "validations.json"):
        (directory / name).unlink(missing_ok=True)
        os.mkfifo(directory / name)
    loop.train(described(directory, steps=3))
    assert storage.read_model_config(directory) == SMALL
    Processor.load(directory)


def test_counts_of_bad_input_are_logged_and_written(tmp_path, described):
    counts = {("first", "box is empty"): 2, ("second", "image is damaged"): 3_000}
    run = described(tmp_path, steps=1, findings=lambda: counts)
    loop.train(run)
    text = output(run)
    assert text.index("3,000  second: image is damaged") < text.index("2  first: box is empty")
    assert json.loads((tmp_path / "bad_input.json").read_text()) == {
        "first": {"box is empty": 2},
        "second": {"image is damaged": 3000},
    }


def test_the_first_host_decides_for_the_others(directory, described, monkeypatch):
    """Another host learns the step from the first, and looks at nothing itself."""
    broadcast = []
    monkeypatch.setattr(run_directory.jax, "process_index", lambda: 1)
    monkeypatch.setattr(run_directory.jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        run_directory.multihost_utils, "broadcast_one_to_all", lambda own: broadcast.pop()
    )
    run = described(directory, fingerprint={"seed": 9})
    before = snapshot(directory)
    broadcast[:] = [2]
    with run_directory.open_run_directory(run, print) as point:
        assert point.step == 2 and point.metadata["seed"] == 3
    broadcast[:] = [-1]
    with run_directory.open_run_directory(run, print) as point:
        assert point.step is None
    broadcast[:] = [-2]
    with (
        pytest.raises(loop.RunError, match="The first host does not accept"),
        run_directory.open_run_directory(run, print),
    ):
        pass
    assert snapshot(directory) == before
    assert jax.process_count() == 2
