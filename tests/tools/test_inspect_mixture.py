"""The output of `python -m tools.inspect_mixture`."""

import functools
import re

import gin
import numpy as np
import pytest
import seqio
import tensorflow as tf
from official_files import write_official_files
from shown_progress import assert_shown, every_line

from ofa_jax.data import seqio_bridge
from ofa_jax.data.pretraining_settings import scenes_settings
from ofa_jax.data.sources.memory import InMemoryRecords
from ofa_jax.data.sources.scenes import Scenes
from ofa_jax.data.task_settings import default_settings
from ofa_jax.preprocessing.records import InvalidRecordError
from ofa_jax.reports import mixture_page
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


@pytest.fixture
def plain_mixture():
    """Registers a user's mixture that knows nothing of this project; returns its name."""
    vocabulary = seqio.ByteVocabulary()

    def dataset(split, shuffle_files, seed=None):
        texts = {"question": ["what?", "x" * 60], "answer": ["<cat>", "é"]}
        return tf.data.Dataset.from_tensor_slices(texts)

    def within_length(dataset, sequence_length):
        limit = sequence_length["inputs"]
        return dataset.map(lambda example: {**example, "inputs": example["inputs"][:limit]})

    rename = functools.partial(
        seqio.preprocessors.rekey, key_map={"inputs": "question", "targets": "answer"}
    )
    steps = [rename, seqio.preprocessors.tokenize, seqio.CacheDatasetPlaceholder()]
    tasks = {
        "plain": [*steps, seqio.preprocessors.append_eos],
        "plain_cut": [*steps, within_length, seqio.preprocessors.append_eos],
    }
    for name, preprocessors in tasks.items():
        seqio.TaskRegistry.add(
            name,
            source=seqio.FunctionDataSource(dataset, ["train"]),
            preprocessors=preprocessors,
            output_features={key: seqio.Feature(vocabulary) for key in ("inputs", "targets")},
        )
    seqio.MixtureRegistry.add("plain_mixture", [("plain", 3), ("plain_cut", 1)])
    yield "plain_mixture"
    seqio.MixtureRegistry.remove("plain_mixture")
    for name in tasks:
        seqio.TaskRegistry.remove(name)


def test_a_plain_seqio_mixture_is_shown_with_its_lengths(plain_mixture, page):
    inspect_mixture.main([plain_mixture, "--lengths={'inputs': 8, 'targets': 4}"])
    text = page.read_text()
    cells = re.findall(r'<td class="number">([^<]*)</td>', text)
    # Rate, share of examples, of target tokens, records: of both tasks.
    assert cells[:8] == ["3", "75.0 %", "75.0 %", "?", "1", "25.0 %", "25.0 %", "?"]
    # Lengths of 6 and 61 inputs, and of 6 and 3 targets; a half of each is cut.
    assert cells[8:16] == [
        *("34 / 58 / 61", "8", "50.0 %", "12.5 %"),
        *("4 / 6 / 6", "4", "50.0 %", "12.5 %"),
    ]
    # Its preprocessor was given the configured length.
    assert cells[16] == "8 / 9 / 9"
    assert '<span title="id 63">&lt;</span>' in text and '<span title="id 1">[1]</span>' in text


def test_preprocessors_that_need_lengths_are_refused_without(plain_mixture, capsys):
    with pytest.raises(SystemExit) as ended:
        inspect_mixture.main([plain_mixture])
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 2
    assert last.startswith("error: plain_cut cannot be read, see above: TypeError")
    assert last.endswith("give --lengths if its preprocessors need them.")


def test_the_official_files_are_shown(golden, shared_golden, tmp_path, page):
    folder = write_official_files(golden, tmp_path)
    try:
        inspect_mixture.main(
            [
                "ofa_pretrain_images",
                "--gin_file=gin_configs/models/tiny.gin",
                "--gin_file=gin_configs/runs/pretrain_ofa_tsv.gin",
                "--gin.MODEL_DIR='unused'",
                f"--gin.DATA_DIR='{folder}'",
                f"--gin.BPE_DIR='{shared_golden / 'bpe'}'",
            ]
        )
    finally:
        gin.clear_config()
    text = page.read_text()
    (true, *others) = [
        [float(number) for number in numbers]
        for numbers in re.findall(
            r'<rect class="true" x="(.*?)" y="(.*?)" width="(.*?)" height="(.*?)">', text
        )
    ]
    assert others and min(true[2:]) > 0
    assert "traffic light" in text and "… 257 tokens" not in text
    assert re.search(r'<span title="id \d+">&lt;code_\d+&gt;</span>', text)


@pytest.mark.parametrize("low, high", [(-1.0, 1.0), (0.0, 1.0), (0.0, 255.0)])
def test_images_of_other_types_are_shown_too(low, high):
    values = np.linspace(low, high, 3, dtype=np.float32)[None, :, None]
    shown = mixture_page._visible(values, {})
    np.testing.assert_allclose(shown[0, :, 1], [0, 127, 255], atol=1)
    assert shown.shape == (1, 3, 3) and shown.dtype == np.uint8
