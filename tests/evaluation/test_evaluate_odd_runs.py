"""`python -m ofa_jax.evaluate` where references, metrics, disks and checkpoints are missing."""

import errno
import json
import pathlib
import shutil

import downstream_files
import jax
import numpy as np
import pytest
import small_evaluation
from command_calls import calling
from official_model import random_variables

from ofa_jax import evaluate
from ofa_jax.checkpoints import storage
from ofa_jax.evaluation import eval_spec, evaluator
from ofa_jax.evaluation import run as evaluation_run
from ofa_jax.evaluation.batch_decoder import DecodedBatch
from ofa_jax.evaluation.prediction_files import read_lines
from ofa_jax.model import OFAConfig
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.utils import files
from ofa_jax.utils.locks import directory_lock

SMALL = [
    "--gin_file=gin_configs/runs/pretrain_scenes.gin",
    "--gin_file=gin_configs/runs/evaluate.gin",
    "--gin.scenes_settings.image_size=64",
    "--gin.scenes_settings.code_image_size=32",
    "--gin.train.streams=[@pairs/Stream()]",
    "--gin.pairs/Stream.mixture_or_task_name='eval_captions'",
    "--gin.pairs/Stream.batch_size=4",
    "--gin.pairs/Stream.image_size=64",
    "--gin.train.mixture_or_task_module='evaluation_tasks'",
]


@pytest.fixture
def call(small_scenes, capsys):
    """Calls the command line in this process; returns the exit code and what was printed."""

    def run(arguments):
        code = 0
        try:
            evaluate.main(arguments)
        except SystemExit as ended:
            code = ended.code
        output, errors = capsys.readouterr()
        return code, output, errors

    with calling(run, small_scenes) as call:
        yield call


@pytest.fixture(scope="module")
def config(small_scenes):
    return small_evaluation.scenes_config(small_scenes)


@pytest.fixture(scope="module")
def variables(config):
    return random_variables(config)


@pytest.fixture
def run(config, variables, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    storage.write_model_config(folder, config)
    storage.save_variables(folder, variables, 1)
    return folder


def at(path):
    return f"--gin.MODEL_DIR='{path}'"


def contents(folder):
    """Returns path -> bytes of all files, and None for folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def captions(*metrics):
    """Replaces the metrics of eval_captions."""
    return eval_spec.find("eval_captions").replace(metrics=metrics, main_metric=None)


@pytest.fixture
def with_metrics(call, run, monkeypatch):
    import evaluation_tasks  # noqa: F401

    def replace(*metrics, **others):
        spec = captions(*metrics).replace(**others)
        monkeypatch.setitem(eval_spec._registry, "eval_captions", lambda settings: spec)

    return replace


def count(references, predictions):
    return {"count": len(predictions)}


def fails(references, predictions):
    raise ZeroDivisionError("division by zero [/a]")


# ------------------------------------------------------------------------------------ references


@pytest.fixture
def vqa(tmp_path, shared_golden):
    """Returns the arguments that evaluate a small model on the official test file of VQA."""
    downstream_files.write(tmp_path)
    rows = [row[:3] + [""] + row[4:] for row in downstream_files.ROWS["vqa"]]
    lines = ["\t".join(row) + "\n" for row in rows]
    (tmp_path / "vqa_test.tsv").write_text("".join(lines))
    vocabulary = OFAVocabulary.from_ofa_directory(shared_golden / "bpe")
    config = OFAConfig.base().replace(
        **small_evaluation.SIZES,
        resnet_layers=(1, 1, 1),
        vocab_size=vocabulary.vocab_size,
        vocab_multiple=128,
    )
    folder = tmp_path / "run"
    folder.mkdir()
    storage.write_model_config(folder, config)
    storage.save_variables(folder, random_variables(config), 2)
    return [
        "--gin_file=gin_configs/models/tiny.gin",
        "--gin_file=gin_configs/finetune/vqa.gin",
        "--gin_file=gin_configs/runs/evaluate.gin",
        at(folder),
        f"--gin.DATA_DIR='{tmp_path}'",
        f"--gin.BPE_DIR='{shared_golden / 'bpe'}'",
        "--gin.EXAMPLES=3",
        "--gin.train.num_workers=0",
        "--gin.BATCH_SIZE=4",
        "--gin.IMAGE_SIZE=64",
        "--gin.TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 40}",
        "--gin.evaluate.dtype='float32'",
        "--gin.SPLIT='test'",
    ]


@pytest.fixture
def first_candidate(monkeypatch):
    """Lets every prediction be the first candidate: compiling the model takes half a minute."""

    def decode_batches(decoder, variables, batches, measure):
        tokens = decoder._candidate_table[:1]
        for batch in batches:
            rows = len(batch.examples)
            yield batch, DecodedBatch(np.tile(tokens, (rows, 1, 1)), np.zeros((rows, 1)))

    monkeypatch.setattr(evaluator, "decode_batches", decode_batches)


def test_the_official_test_set_of_vqa_is_predicted_and_said_not_to_be_scored(
    vqa, call, tmp_path, first_candidate
):
    code, output, errors = call(*vqa)
    assert code == 0, errors
    folder = tmp_path / "run" / "evaluations" / "test"
    found = read_lines(folder / "2" / "vqa" / "predictions.jsonl")
    assert len(found) == 3
    assert [line["prediction"] for line in found] == ["two cups"] * 3
    (sentence,) = [line for line in output.splitlines() if "nothing was scored, because" in line]
    assert sentence == output.strip().splitlines()[-1]
    assert "none of its 3 examples has a reference" in sentence
    assert json.loads((folder / "metrics.json").read_text()) == {"2": {"vqa": {}}}
    result = json.loads((folder / "2" / "vqa" / "result.json").read_text())
    assert result["scored"] == 0 and result["examples"] == 3 and not result["failed"]
    code, output, errors = call(*vqa)
    assert code == 0 and "Step 2 is evaluated already." in output

    # The answers of one question become known: other data, other predictions.
    text = (tmp_path / "vqa_test.tsv").read_text()
    (tmp_path / "vqa_test.tsv").write_text(text.replace("red/white?\t", "red/white?\t1.0|!+two"))
    before = contents(folder)
    code, output, errors = call(*vqa)
    assert code == 2 and "data.examples" in errors and "vqa_test.tsv" in errors
    assert contents(folder) == before
    shutil.rmtree(folder)
    code, output, errors = call(*vqa)
    assert code == 0, errors
    assert "vqa: 2 of 3 examples have no reference, so the metrics are over the other 1." in output
    assert "examples without reference" in output
    result = json.loads((folder / "2" / "vqa" / "result.json").read_text())
    assert result["scored"] == 1 and set(result["metrics"]) == {"accuracy"}


def test_a_task_without_metrics_is_predicted(with_metrics, call, run):
    with_metrics()
    code, output, errors = call(*SMALL, at(run))
    assert code == 0 and "nothing was scored, because the task has no metric" in output
    folder = run / "evaluations" / "validation" / "1" / "eval_captions"
    assert len(read_lines(folder / "predictions.jsonl")) == 8


# --------------------------------------------------------------------------------------- failures


def test_a_failing_metric_costs_neither_predictions_nor_other_metrics(
    with_metrics, call, run, monkeypatch
):
    with_metrics(fails, count)
    code, output, errors = call(*SMALL, at(run))
    assert code == 1 and "Traceback" not in errors
    (sentence,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert "eval_captions on step 1: the metric fails failed" in sentence
    assert "ZeroDivisionError: division by zero [/a]" in sentence
    folder = run / "evaluations" / "validation"
    assert json.loads((folder / "metrics.json").read_text()) == {
        "1": {"eval_captions": {"count": 8}}
    }
    result = json.loads((folder / "1" / "eval_captions" / "result.json").read_text())
    assert list(result["failed"]) == ["fails"]

    # Once more without the checkpoint: only the metrics are computed.
    monkeypatch.setattr(evaluation_run, "load_variables", None)
    with_metrics(count)
    code, output, errors = call(*SMALL, at(run))
    assert code == 0 and "all predictions existed already" in output, errors
    result = json.loads((folder / "1" / "eval_captions" / "result.json").read_text())
    assert result["failed"] == {}


def test_markup_in_the_names_of_metrics_and_files_is_printed_as_it_is(with_metrics, call, run):
    with_metrics(lambda references, predictions: {"[/b]": 0.5, "[bold]x": 1.0})
    directory = run.parent / "[/i]"
    code, output, errors = call(*SMALL, at(run), f"--gin.evaluate.directory='{directory}'")
    assert code == 0, errors
    assert "[/b]" in output and "[bold]x" in output and "Results are in" in output


# ---------------------------------------------------------------------------- refused, locked, full


REFUSED = {
    "another vocabulary": ["--gin.scenes_settings.num_bins=32"],
    "another image size": ["--gin.pairs/Stream.image_size=96"],
    "a length": ["--gin.DecodingConfig.max_length=5000"],
    "an unknown split": ["--gin.SPLIT='tests'"],
    "other settings": ["--gin.DecodingConfig.beam_size=1"],
    "fewer examples": ["--gin.NUM_EXAMPLES=3"],
    "the run's own folder": ["--gin.evaluate.directory=%MODEL_DIR"],
    "the folder of checkpoints": ["--gin.evaluate.directory='{run}/checkpoints/1'"],
    "a file": ["--gin.evaluate.directory='{run}/model.json'"],
    "another dtype": ["--gin.evaluate.dtype='bfloat16'"],
}


@pytest.mark.parametrize("change", REFUSED)
def test_a_refused_evaluation_changes_nothing(change, call, run):
    assert call(*SMALL, at(run))[0] == 0
    (run / "config.gin").write_text("# the run's own")
    before = contents(run)
    arguments = [argument.format(run=run) for argument in REFUSED[change]]
    code, output, errors = call(*SMALL, at(run), *arguments)
    assert code == 2, (output, errors)
    assert errors.strip().splitlines()[-1].startswith("error: ")
    assert contents(run) == before


@pytest.mark.parametrize("change", ["another vocabulary", "a length", "an unknown split"])
def test_a_refused_first_evaluation_writes_nothing_at_all(change, call, run):
    before = contents(run)
    assert call(*SMALL, at(run), *REFUSED[change])[0] == 2
    assert contents(run) == before


def test_other_weights_under_the_same_step_are_refused(call, run, variables):
    assert call(*SMALL, at(run))[0] == 0
    shutil.rmtree(run / "checkpoints")
    negated = variables | {"params": jax.tree.map(lambda x: -x, variables["params"])}
    storage.save_variables(run, negated, 1)
    before = contents(run)
    code, output, errors = call(*SMALL, at(run))
    assert code == 2 and "weights = " in errors
    assert contents(run) == before


def test_a_second_evaluation_of_one_folder_is_refused_and_changes_nothing(call, run):
    folder = run / "evaluations" / "validation"
    folder.mkdir(parents=True)
    before = contents(run)
    with directory_lock(folder, "evaluate.directory"):
        code, output, errors = call(*SMALL, at(run))
    assert code == 2 and f"Another process is writing to {folder}" in errors
    assert len(errors.strip().splitlines()) == 1 and "Errno" not in errors
    assert contents(run) == before
    assert call(*SMALL, at(run))[0] == 0


@pytest.mark.parametrize("name", ["part-", "predictions.jsonl", "result.json", "metrics.json"])
def test_a_full_disk_is_one_sentence_and_the_evaluation_goes_on_later(name, call, run, monkeypatch):
    write_text = files.write_text

    def full(path, text):
        if pathlib.Path(path).name.startswith(name):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_text(path, text)

    monkeypatch.setattr(files, "write_text", full)
    code, output, errors = call(*SMALL, at(run))
    assert code == 1 and "No space left on device" in errors and name in errors
    assert "Traceback" not in errors and "run the command again" in errors
    monkeypatch.setattr(files, "write_text", write_text)
    code, output, errors = call(*SMALL, at(run))
    assert code == 0, errors
    folder = run / "evaluations" / "validation"
    assert len(read_lines(folder / "1" / "eval_captions" / "predictions.jsonl")) == 8
    assert not list(folder.rglob("*.tmp"))


def test_events_that_cannot_be_written_cost_the_events_alone(call, run, monkeypatch):
    from ofa_jax.evaluation import event_writer

    class Full:
        def write_scalars(self, step, scalars):
            raise OSError(errno.ENOSPC, "No space left on device")

    for broken in (lambda *a, **k: Full(), lambda *a, **k: 1 / 0):
        monkeypatch.setattr(event_writer, "open_tensorboard", broken)
        code, output, errors = call(*SMALL, at(run))
        assert code == 0, errors
        assert output.count("TensorBoard's events are no longer written") == 1
        shutil.rmtree(run / "evaluations")


def test_a_checkpoint_that_vanishes_while_it_is_read_is_left_out(call, run, variables, monkeypatch):
    storage.save_variables(run, variables, 2)
    load = evaluation_run.load_variables

    def vanish(path, *others):
        if path.endswith("/1"):
            shutil.rmtree(path)
            raise KeyError("state")
        return load(path, *others)

    monkeypatch.setattr(evaluation_run, "load_variables", vanish)
    watching = ["--gin.CHECKPOINTS='watch'", "--gin.evaluate.last_step=2"]
    code, output, errors = call(*SMALL, at(run), *watching)
    assert code == 0, errors
    assert "The checkpoint of step 1 is left out" in output and "it is gone" in output
    metrics = json.loads((run / "evaluations" / "validation" / "metrics.json").read_text())
    assert list(metrics) == ["2"]


@pytest.mark.parametrize("split", ["", "..", "a/b", "../../x"])
def test_a_split_that_is_no_name_of_a_folder_is_refused(split, call, run):
    before = contents(run.parent)
    code, output, errors = call(*SMALL, at(run), f"--gin.SPLIT='{split}'")
    assert code == 2 and contents(run.parent) == before
