"""The writers beside TensorBoard: a CSV file, and Weights & Biases, real (offline) and imitated."""

import csv
import importlib.util
import logging
import math
import pathlib
import subprocess
import sys
import textwrap
import types

import numpy as np
import pytest
from etils import epath
from small_run import make_run

from ofa_jax.evaluation import event_writer
from ofa_jax.training import loop, metric_writers
from ofa_jax.training.metric_writers import CsvWriter, WandbWriter, make_writer

ROOT = pathlib.Path(__file__).resolve().parents[2]
IMAGE = np.zeros((1, 4, 4, 3), np.uint8)


class Memory:
    """Takes TensorBoard's place."""

    def __init__(self):
        self.scalars, self.closed = {}, 0

    def write_scalars(self, step, scalars):
        self.scalars.setdefault(step, {}).update(scalars)

    def write_images(self, step, images):
        self.images = images

    def write_texts(self, step, texts):
        self.texts = texts

    def flush(self):
        pass

    def close(self):
        self.closed += 1


@pytest.fixture
def memory(monkeypatch):
    made = Memory()
    monkeypatch.setattr(event_writer, "open_tensorboard", lambda *arguments, **options: made)
    return made


def rows(path):
    """Returns step -> metric -> value of a CSV file; empty cells are left out."""
    with open(path, newline="") as file:
        lines = list(csv.DictReader(file))
    assert len({line["step"] for line in lines}) == len(lines)
    return {
        int(line.pop("step")): {name: float(value) for name, value in line.items() if value}
        for line in lines
    }


def test_a_csv_file_has_a_row_for_each_step_and_a_column_for_each_metric(tmp_path, memory):
    writer = make_writer(epath.Path(tmp_path), [CsvWriter()])
    assert not list(tmp_path.iterdir()), "no file before the first event"
    writer.write_scalars(1, {"train/loss": 2.5, "rate": 1e-7})
    writer.write_scalars(2, {"train/loss": 2.0, "rate": math.nan})
    writer.write_scalars(2, {"validation/loss/a,b": 1 / 3})
    writer.write_scalars(3, {"train/loss": 1.5})
    writer.write_scalars(3, {"train/loss": 1.25, "rate": 1.0})
    writer.write_scalars(4, {"rate": 2.0})
    writer.write_images(4, {"shown": IMAGE})
    writer.write_texts(4, {"shown": "a | b"})
    found = rows(tmp_path / "metrics.csv")
    assert list(found) == [1, 2, 3, 4]
    assert found[1] == {"train/loss": 2.5, "rate": 1e-7}
    assert math.isnan(found[2].pop("rate"))
    assert found[2] == {"train/loss": 2.0, "validation/loss/a,b": 1 / 3}
    assert found[3] == {"train/loss": 1.25, "rate": 1.0} and found[4] == {"rate": 2.0}
    assert memory.scalars[4] == found[4] and memory.texts == {"shown": "a | b"}
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_csv_file_continues_where_the_run_continues(tmp_path, memory):
    directory = epath.Path(tmp_path)
    first = make_writer(directory, [CsvWriter("curve.csv")])
    for step in (1, 2, 3, 4):
        first.write_scalars(step, {"loss": float(step)})
    with (tmp_path / "curve.csv").open("a") as file:
        file.write("5,")  # as a process that was killed leaves it
        file.write("1,2,")
    second = make_writer(directory, [CsvWriter("curve.csv")])
    second.write_scalars(3, {"loss": 30.0})
    second.write_scalars(4, {"loss": 40.0, "new": 1.0})
    assert rows(tmp_path / "curve.csv") == {
        1: {"loss": 1.0},
        2: {"loss": 2.0},
        3: {"loss": 30.0},
        4: {"loss": 40.0, "new": 1.0},
    }


def test_a_file_of_something_else_is_kept_and_costs_no_other_writer(tmp_path, memory, caplog):
    (tmp_path / "metrics.csv").write_text("name,price\napple,1\n")
    writer = make_writer(epath.Path(tmp_path), [CsvWriter()])
    with caplog.at_level(logging.WARNING):
        for step in (1, 2):
            writer.write_scalars(step, {"loss": 1.0})
    assert (tmp_path / "metrics.csv").read_text() == "name,price\napple,1\n"
    assert list(memory.scalars) == [1, 2]
    (sentence,) = [
        text for text in map(logging.LogRecord.getMessage, caplog.records) if "no longer" in text
    ]
    assert "The rows of metrics.csv are no longer written" in sentence
    assert "is no file of metrics: move it elsewhere" in sentence and "\n" not in sentence


def test_the_training_loop_writes_every_metric_and_ends_the_writers(tmp_path, memory):
    run = make_run(tmp_path, total_steps=3, log_period=1, checkpoint_period=3, validation=True)
    writer = make_writer(run.model_dir, [CsvWriter()])
    object.__setattr__(run, "writer", writer)
    loop.train(run)
    found = rows(tmp_path / "metrics.csv")
    assert list(found) == [1, 2, 3] and any(name.startswith("validation/") for name in found[3])
    expected = {
        step: {name: float(value) for name, value in scalars.items()}
        for step, scalars in memory.scalars.items()
    }
    assert found == expected
    assert memory.closed == 1


@pytest.mark.parametrize("name", ["a/b.csv", "..", "../b.csv"])
def test_a_csv_file_stays_in_the_run_directory(name):
    with pytest.raises(ValueError, match=r"CsvWriter.name is .*; give the name of a file"):
        CsvWriter(name)


# ---------------------------------------------------------------------------- Weights & Biases


class StubRun:
    """A run of Weights & Biases that keeps what it gets."""

    def __init__(self):
        self.logged, self.metrics, self.finished = [], [], False

    def define_metric(self, name, **options):
        self.metrics.append((name, options))

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished = True


@pytest.fixture
def stub(monkeypatch):
    """Puts an imitation in the place of the package; returns (runs, arguments of init)."""
    module, runs, given = types.ModuleType("wandb"), [], []
    module.__spec__ = importlib.util.spec_from_loader("wandb", None)
    module.Settings = dict
    module.Image = lambda array: ("image", array.shape)
    module.Html = lambda text, inject: text

    def init(**options):
        runs.append(StubRun())
        given.append(options)
        return runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs, given


def test_weights_and_biases_gets_scalars_images_texts_and_the_configuration(tmp_path, memory, stub):
    (tmp_path / "config.gin").write_text(
        "# Parameters for train:\ntrain.seed = 3\ntrain.streams = [@pairs/Stream()]\n"
        "train.lengths = \\\n    {'inputs': 4,\n     'targets': 8}\nStream.name = 'a = b'\n"
    )
    writer = make_writer(epath.Path(tmp_path), [WandbWriter(tags=["a"], group="g")])
    writer.write_scalars(7, {"loss": np.float32(0.5)})
    writer.write_images(7, {"shown": IMAGE})
    writer.write_texts(7, {"shown": "a <b> | c"})
    writer.close()
    runs, given = stub
    assert len(runs) == 1 and runs[0].finished
    assert runs[0].metrics == [("step", {}), ("*", {"step_metric": "step"})]
    assert runs[0].logged == [
        {"loss": 0.5, "step": 7},
        {"shown": [("image", (4, 4, 3))], "step": 7},
        {"shown": "<pre>a &lt;b&gt; | c</pre>", "step": 7},
    ]
    (options,) = given
    assert options["mode"] == "offline" and options["resume"] is None
    assert options["dir"] == str(tmp_path) and options["name"] == tmp_path.name
    assert options["tags"] == ["a"] and options["group"] == "g"
    assert options["config"] == {
        "train.seed": 3,
        "train.streams": "[@pairs/Stream()]",
        "train.lengths": {"inputs": 4, "targets": 8},
        "Stream.name": "a = b",
    }


def test_a_run_that_is_continued_keeps_its_id_there(tmp_path, memory, stub):
    for mode in ("offline", "online"):
        writer = make_writer(epath.Path(tmp_path), [WandbWriter(mode=mode)])
        writer.write_scalars(1, {"loss": 1.0})
        writer.close()
    first, second = stub[1]
    assert first["id"] == second["id"] == (tmp_path / "wandb_id.txt").read_text().strip()
    assert second["resume"] == "allow" and second["mode"] == "online"


def test_a_failure_of_weights_and_biases_is_one_sentence(tmp_path, memory, stub, caplog):
    sys.modules["wandb"].init = lambda **options: 1 / 0
    writer = make_writer(epath.Path(tmp_path), [WandbWriter(), CsvWriter()])
    with caplog.at_level(logging.WARNING):
        for step in (1, 2):
            writer.write_scalars(step, {"loss": 1.0})
    assert list(rows(tmp_path / "metrics.csv")) == list(memory.scalars) == [1, 2]
    (sentence,) = [
        text for text in map(logging.LogRecord.getMessage, caplog.records) if "no longer" in text
    ]
    assert sentence.startswith("The metrics for Weights & Biases are no longer written to")


def test_a_missing_package_and_a_remote_place_are_one_sentence_before_the_run(monkeypatch, stub):
    with pytest.raises(ValueError, match="on a local disk, not in gs://b/r: set WandbWriter.dir"):
        make_writer(epath.Path("gs://b/r"), [WandbWriter()])
    monkeypatch.setattr(metric_writers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'ofa_jax\[wandb\]'"):
        make_writer(epath.Path("runs/a"), [WandbWriter()])


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs the extra wandb")
def test_the_real_package_writes_a_run_offline(tmp_path):
    """In a process of its own, which ends only when the run is complete."""
    program = """
        import sys
        import numpy as np
        from ofa_jax.training.metric_writers import WandbWriter
        from etils import epath
        writer = WandbWriter(project="tests").open(epath.Path(sys.argv[1]))
        writer.write_scalars(7, {"train/loss": 0.125})
        writer.write_images(7, {"validation/shown": np.zeros((1, 4, 4, 3), np.uint8)})
        writer.write_texts(7, {"validation/table": "a | b"})
        writer.close()
    """
    (tmp_path / "config.gin").write_text("train.seed = 30517\n")
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)],
        check=True,
        cwd=ROOT,
        timeout=300,
    )
    (file,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    content = file.read_bytes()
    run_id = (tmp_path / "wandb_id.txt").read_text().strip()
    assert file.name == f"run-{run_id}.wandb"
    for part in (b"train/loss", b"0.125", b"validation/shown", b"train.seed", b"30517"):
        assert part in content, part
    media = {path.suffix for path in (tmp_path / "wandb").rglob("media/**/*.*")}
    assert media == {".png", ".html"}
