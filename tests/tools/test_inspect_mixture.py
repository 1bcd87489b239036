"""The output of `python -m tools.inspect_mixture`."""

import gin
import numpy as np
import pytest
import seqio
import tensorflow as tf
from shown_progress import assert_shown, every_line

from ofa_jax.data import seqio_bridge
from ofa_jax.data.pretraining_settings import scenes_settings
from ofa_jax.data.sources.memory import InMemoryRecords
from ofa_jax.data.sources.scenes import Scenes
from ofa_jax.data.task_settings import default_settings
from ofa_jax.preprocessing.records import InvalidRecordError
from tools import inspect_mixture


@pytest.fixture(autouse=True)
def scenes(small_scenes):
    settings = scenes_settings(Scenes(str(small_scenes)), image_size=64, code_image_size=32)
    with default_settings(settings):
        yield


@pytest.fixture(autouse=True)
def page(tmp_path, monkeypatch):
    """Writes the page to a temporary folder; returns its path."""
    path = tmp_path / "page.html"
    main = inspect_mixture.main
    monkeypatch.setattr(inspect_mixture, "main", lambda given: main([*given, f"--output={path}"]))
    return path


def test_it_shows_shares_sizes_lengths_and_examples(capsys, monkeypatch, page):
    monkeypatch.setenv("COLUMNS", "120")
    with every_line() as shown:
        inspect_mixture.main(["ofa_pretrain_images", "--examples=1", "--sample=5"])
    assert_shown(shown, "sampling", "2 tasks")
    assert_shown(shown, "image_infilling", "5 examples")
    text = capsys.readouterr().out
    assert "image_infilling" in text and "50.0%" in text and "150" in text and "exact" in text
    assert "what are the objects in the image?" in text and "<bin_" in text
    assert "64 x 64 pixels" in text
    # 16 codes and the end.
    assert "17 / 17 / 17" in text
    shown = page.read_text()
    assert shown.count('<article class="card">') == 2 * 5
    assert "http://" not in shown.split("<body>")[1].replace("http://www.w3.org", "")


def test_it_shows_the_data_of_a_run(small_scenes, tmp_path, capsys):
    (tmp_path / "run.gin").write_text(
        "include 'gin_configs/runs/pretrain_scenes.gin'\n"
        "scenes_settings.data_set = @Scenes()\n"
        f"Scenes.data_dir = '{small_scenes}'\n"
    )
    arguments = [f"--gin_file={tmp_path / 'run.gin'}", "--gin.scenes_settings.image_size=96"]
    try:
        inspect_mixture.main(["image_captioning", *arguments, "--examples=1", "--sample=5"])
    finally:
        gin.clear_config()
    assert "96 x 96 pixels" in capsys.readouterr().out


def length_of_text(record, rng):
    """Makes as many zeros as the text says; some texts are invalid, and one raises a bug."""
    if record["text"] == "bad":
        raise InvalidRecordError("is bad")
    tokens = np.zeros(int(record["text"]), np.int32)
    return {"inputs": tokens, "targets": tokens[:3], "loss_weight": np.float32(0.5)}


@pytest.fixture
def register():
    """Registers a task over texts, or over what a tf.data function makes."""
    names = []

    def add(name, records=None, function=None, features=("inputs", "targets")):
        names.append(name)
        vocabulary = seqio.PassThroughVocabulary(300)
        if function is None:
            source = seqio_bridge.RecordDataSource(
                lambda split: InMemoryRecords([{"text": text} for text in records]), "text"
            )
            steps = [seqio_bridge.numpy_preprocessor(length_of_text)]
            outputs = seqio_bridge.output_features(vocabulary)
        else:
            source = seqio.FunctionDataSource(function, ["train"])
            steps = []
            outputs = {feature: seqio.Feature(vocabulary, add_eos=False) for feature in features}
        seqio.TaskRegistry.add(name, source=source, preprocessors=steps, output_features=outputs)

    yield add
    for name in names:
        seqio.TaskRegistry.remove(name)


def test_lengths_are_of_the_good_records(register, capsys):
    # 1, 2, ..., 100; the median is between 50 and 51, five are longer than 95.
    register("inspected", ["bad", *map(str, range(1, 101))])
    inspect_mixture.main(["inspected", "--examples=1"])
    text, skipped = capsys.readouterr()
    assert "50 / 95 / 100" in text and "3 / 3 / 3" in text and "101" in text
    assert "weight  0.5" in text
    assert skipped.strip() == "Skipped inspected, record 0: is bad"


def test_an_error_in_the_function_keeps_its_traceback(register, capsys):
    register("inspected", ["1", "many"])
    with pytest.raises(SystemExit) as ended:
        inspect_mixture.main(["inspected"])
    *above, last = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2
    assert last.startswith("error: inspected fails on record 1, see above: ValueError: invalid")
    assert any(line.endswith("in length_of_text") for line in above)


def test_a_task_of_tensors_is_shown_too(register, capsys):
    def dataset(split, shuffle_files, seed=None):
        tokens = np.array([[5, 6, 7], [8, 9, 10]], np.int32)
        return tf.data.Dataset.from_tensor_slices({"inputs": tokens, "targets": tokens[:, :1]})

    register("inspected", function=dataset)
    inspect_mixture.main(["inspected", "--examples=1"])
    text = capsys.readouterr().out
    assert "seqio's own" in text and "3 / 3 / 3" in text and "1 / 1 / 1" in text


def test_a_task_without_an_instruction_is_refused(register, capsys):
    register(
        "inspected", function=lambda split, shuffle_files, seed=None: None, features=("targets",)
    )
    with pytest.raises(SystemExit):
        inspect_mixture.main(["inspected"])
    assert "The task inspected has no inputs among its output" in capsys.readouterr().err


def test_a_task_without_a_valid_record_is_refused(register, capsys):
    register("inspected", ["bad"])
    with pytest.raises(SystemExit):
        inspect_mixture.main(["inspected"])
    assert "inspected yields nothing on the split 'train'" in capsys.readouterr().err


def test_missing_tasks_and_data_are_reported_in_one_sentence(capsys):
    for arguments, sentence in (
        (["ofa_pretrain_image"], "Did you mean ofa_pretrain_images?"),
        (["ofa_pretrain_images", "--split=tset"], "There is no split 'tset'"),
        (["x", "--module=no_such_module"], "No module named 'no_such_module'"),
        (["x", "--exmaples=1"], "--exmaples"),
    ):
        with pytest.raises(SystemExit) as ended:
            inspect_mixture.main(arguments)
        error = capsys.readouterr().err.strip()
        assert ended.value.code == 2 and sentence in error and "\n" not in error
