"""`python -m ofa_jax.evaluate` on checkpoints of a small random model."""

import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import small_evaluation
from command_calls import ROOT, calling
from official_model import random_variables
from report_files import json_in
from shown_progress import assert_shown, every_line
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ofa_jax import evaluate
from ofa_jax.checkpoints import storage
from ofa_jax.checkpoints.load import load_model
from ofa_jax.checkpoints.watch import CheckpointSelector
from ofa_jax.cli import evaluate_command
from ofa_jax.evaluation import run as evaluation_run
from ofa_jax.evaluation.prediction_files import read_lines
from ofa_jax.interop import files
from ofa_jax.sharding import Partitioner

RUN = "--gin_file=gin_configs/runs/pretrain_scenes.gin"
EVALUATE = "--gin_file=gin_configs/runs/evaluate.gin"
TASK = "--gin_file=gin_configs/runs/evaluate_task.gin"
SCENES = ["--gin.scenes_settings.image_size=64", "--gin.scenes_settings.code_image_size=32"]
SMALL = [
    RUN,
    EVALUATE,
    *SCENES,
    "--gin.train.streams=[@pairs/Stream()]",
    "--gin.pairs/Stream.mixture_or_task_name='eval_mixture'",
    "--gin.pairs/Stream.batch_size=4",
    "--gin.pairs/Stream.image_size=64",
    "--gin.train.mixture_or_task_module='evaluation_tasks'",
]


@pytest.fixture
def call(small_scenes):
    """Calls the command line in this process, from a clean gin."""
    with calling(evaluate.main, small_scenes) as call:
        yield call


def at(path):
    return f"--gin.MODEL_DIR='{path}'"


def results(folder, split="validation"):
    return json.loads((folder / "evaluations" / split / "metrics.json").read_text())


def lines(folder, step, task, split="validation"):
    return read_lines(folder / "evaluations" / split / str(step) / task / "predictions.jsonl")


@pytest.fixture(scope="module")
def config(small_scenes):
    return small_evaluation.scenes_config(small_scenes)


@pytest.fixture(scope="module")
def variables(config):
    return random_variables(config)


def negated(variables):
    """Returns another model: all parameters negated."""
    return variables | {"params": jax.tree.map(lambda x: -x, variables["params"])}


@pytest.fixture(scope="module")
def run(config, variables, tmp_path_factory):
    """Returns a run directory with steps 1 and 2; the average of step 2 equals step 1."""
    folder = tmp_path_factory.mktemp("run")
    storage.write_model_config(folder, config)
    storage.save_variables(folder, variables, 1)
    averaged = negated(variables) | {"ema_params": variables["params"]}
    storage.save_variables(folder, averaged, 2)
    return folder


@pytest.fixture
def evaluated(call, run, capsys):
    """Evaluates all checkpoints of the run; returns the printed output."""
    with every_line() as shown:
        call(*SMALL, at(run), "--gin.CHECKPOINTS='all'")
    if not (run / "shown").exists():  # only then are there tasks to evaluate
        (run / "shown").write_text(shown.getvalue())
    return capsys.readouterr().out


def test_all_checkpoints_are_evaluated_on_all_tasks_with_metrics(
    run, evaluated, call, capsys, monkeypatch
):
    shown = io.StringIO((run / "shown").read_text())
    for step in (1, 2):
        assert_shown(shown, f"evaluating step {step}", "2 tasks")
    assert_shown(shown, "eval_captions", "2 batches")
    found = results(run)
    assert list(found) == ["1", "2"]
    for step in found.values():
        assert list(step) == ["eval_captions", "eval_regions"]
        assert list(step["eval_captions"]) == ["exact", "examples"]
        assert step["eval_captions"]["examples"] == 8
    assert "eval_training_only is left out: it is registered without an EvalSpec" in evaluated
    assert "eval_captions: exact" in evaluated and "examples/s" in evaluated
    assert "waiting for data" in evaluated and "compilation" in evaluated
    table = evaluated[evaluated.index("Evaluation (validation)") :]
    assert "step 1" in table and "step 2" in table and "eval_regions" in table
    folder = run / "evaluations" / "validation"
    assert {"config.gin", "metrics.json", "1", "2"} < {path.name for path in folder.iterdir()}
    events = EventAccumulator(str(folder)).Reload()
    tag = "evaluation/eval_captions/exact"
    assert [event.step for event in events.Tensors(tag)] == [1, 2]

    monkeypatch.setattr(evaluation_run, "load_variables", None)  # finished tasks are skipped
    call(*SMALL, at(run), "--gin.CHECKPOINTS='all'")
    again = capsys.readouterr().out
    assert "Step 1 is evaluated already." in again and "eval_regions" in again


def test_lines_have_inputs_references_and_predictions(run, evaluated, small_scenes):
    captions = lines(run, 1, "eval_captions")
    assert [line["index"] for line in captions] == list(range(8))
    for line in captions:
        assert set(line) == {"index", "id", "instruction", "references", "prediction", "score"}
        assert line["instruction"] == "what does the image describe?"
        assert isinstance(line["prediction"], str) and len(line["references"]) > 1
    regions = lines(run, 1, "eval_regions")
    assert [line["index"] for line in regions] == list(range(8))
    invalid = [line for line in regions if "error" in line]
    assert all(str(line["id"]).endswith("3") for line in invalid)
    assert results(run)["1"]["eval_regions"]["examples"] == 8 - len(invalid)
    for line in regions:
        if line not in invalid:
            assert line["instruction"].startswith("which region does the text")
            assert np.array(line["references"]).shape == np.array(line["prediction"]).shape == (4,)


def test_the_report_shows_the_worst_and_best_examples_with_their_boxes(run, evaluated):
    page = (run / "report.html").read_text()
    galleries = {gallery["task"]: gallery["examples"] for gallery in json_in(page, "galleries")}
    predictions = {line["id"]: line for line in lines(run, 2, "eval_regions")}
    assert galleries["eval_regions"]
    for example in galleries["eval_regions"]:
        line = predictions[example["id"]]
        (target,) = example["target_boxes"]
        np.testing.assert_allclose(target["corners"], line["references"], atol=0.05)  # rounded
        assert example["width"] == example["height"] == 64
    assert page.count('<rect class="true"') >= len(galleries["eval_regions"])
    qualities = [example["quality"] for example in galleries["eval_regions"]]
    assert qualities == sorted(qualities)


def test_a_run_given_by_a_relative_path_has_its_report_written_anew(call, run, evaluated, capsys):
    (run / "report.html").unlink()
    call(*SMALL, at(os.path.relpath(run, ROOT)), "--gin.CHECKPOINTS='all'")
    assert f"The report is {os.path.relpath(run, ROOT)}/report.html." in capsys.readouterr().out
    assert "eval_regions" in (run / "report.html").read_text()


def test_averaged_parameters_are_evaluated_if_the_run_has_them(run, evaluated):
    for task in ("eval_captions", "eval_regions"):
        assert lines(run, 1, task) == lines(run, 2, task)


def test_an_official_checkpoint_is_step_0(official, tmp_path):
    path = tmp_path / "official.pt"
    files.write(path, official.variables, official.config)
    (checkpoint,) = CheckpointSelector(str(path)).list_existing()
    assert checkpoint.step == 0
    model, loaded = load_model(checkpoint.path, Partitioner(devices=(jax.devices()[0],)))
    assert model.config == official.config
    jax.tree.map(np.testing.assert_array_equal, loaded, dict(official.variables))


def test_gin_overrides_decoding_for_all_tasks_or_one(call, run, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(evaluate_command, "run_evaluation", seen.append)
    call(
        *SMALL,
        at(run),
        f"--gin.evaluate.directory='{tmp_path}'",
        "--gin.DecodingConfig.beam_size=3",
        "--gin.eval_captions/DecodingConfig.max_length=9",
        "--gin.eval_captions/DecodingConfig.no_repeat_ngram_size=2",
    )
    captions, regions = (task.spec.decoding for task in seen[0].tasks)
    assert (captions.beam_size, captions.max_length, captions.no_repeat_ngram_size) == (3, 9, 2)
    assert (regions.beam_size, regions.max_length, regions.min_length) == (3, 4, 4)
    (last_step,) = re.findall(
        r"^TRAIN_STEPS = (\d+)", (ROOT / RUN.split("=")[1]).read_text(), re.MULTILINE
    )
    assert seen[0].selector.last_step == int(last_step)  # of the run


def test_a_task_with_tf_data_preprocessors_is_scored_by_its_seqio_metrics(
    call, run, tmp_path, capsys
):
    options = [
        TASK,
        *SCENES,
        at(tmp_path),
        f"--gin.CHECKPOINT_PATH='{run}'",
        "--gin.MIXTURE_OR_TASK_MODULE='evaluation_tasks'",
        "--gin.MIXTURE_OR_TASK_NAME='eval_tf_data'",
        "--gin.SETTINGS=@scenes_settings()",
        "--gin.TASK_FEATURE_LENGTHS={'inputs': 12, 'targets': 8}",
        "--gin.BATCH_SIZE=2",
        "--gin.DecodingConfig.beam_size=1",
        "--gin.DecodingConfig.max_length=4",
    ]
    call(*options, "--gin.CHECKPOINTS=[1]")
    found = results(tmp_path)["1"]["eval_tf_data"]
    texts = ["a red apple", "yes", "no", "green", "an apple"]
    predictions = lines(tmp_path, 1, "eval_tf_data")
    assert [line["references"] for line in predictions] == texts
    assert [line["instruction"] for line in predictions] == texts
    accuracy = np.mean([line["prediction"] == line["references"] for line in predictions])
    assert found == {"seqio_exact": accuracy, "in_order": 1.0}


def test_a_damaged_checkpoint_is_left_out_or_reported(call, config, variables, tmp_path, capsys):
    storage.write_model_config(tmp_path, config)
    for step in (1, 2):
        folder = storage.save_variables(tmp_path, variables, step)
    victim = max(
        (p for p in (pathlib.Path(folder) / "state").rglob("*") if p.is_file()),
        key=lambda p: p.stat().st_size,
    )
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    only = "--gin.evaluate.tasks=['eval_captions']"
    call(*SMALL, at(tmp_path), only, "--gin.CHECKPOINTS='all'")
    assert "step 2 is left out: it is damaged" in capsys.readouterr().out
    assert list(results(tmp_path)) == ["1"]
    with pytest.raises(SystemExit) as ended:
        call(*SMALL, at(tmp_path), only)
    assert ended.value.code == 2
    assert "checkpoints/2 cannot be evaluated: it is damaged" in capsys.readouterr().err


def test_a_killed_evaluation_resumes_on_two_processes_with_the_same_predictions(
    call, run, small_scenes, tmp_path, capsys
):
    """Kills the evaluation after a part; finished parts stay, no prediction is lost or doubled.

    Scores are float32 sums over a few tokens: 1e-5 relative.
    """

    def arguments(folder):
        return [
            *SMALL,
            at(run),
            "--gin.CHECKPOINTS=[1]",
            "--gin.pairs/Stream.batch_size=2",
            "--gin.evaluate.batches_per_part=1",
            f"--gin.evaluate.directory='{folder}'",
        ]

    one, two = tmp_path / "one", tmp_path / "two"
    call(*arguments(one))
    assert "2 processes" not in capsys.readouterr().out
    program = [sys.executable, "-m", "ofa_jax.evaluate", *arguments(two)]
    flags = os.environ.get("XLA_FLAGS", "")
    environment = os.environ | {
        "OFA_DATA_DIR": str(small_scenes),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT / "tests" / "helpers"),
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=1".strip(),
    }
    first = subprocess.Popen(
        program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT, env=environment
    )
    while first.poll() is None and not list(two.glob("1/*/part-*.jsonl")):
        time.sleep(0.001)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert not list(two.glob("1/eval_regions/predictions.jsonl")), "it was killed in the middle"
    kept = {path: path.read_bytes() for path in two.glob("1/*/part-*.jsonl")}

    supervisor = [sys.executable, "-m", "launch.supervisor", "--processes=2", "--restarts=0", "--"]
    done = subprocess.run(
        [*supervisor, *program], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Evaluation (two)") == 1, "only the first host prints"
    assert kept and not list(two.glob("1/*/part-*.jsonl"))
    for task in ("eval_captions", "eval_regions"):
        of_one, of_two = (
            read_lines(folder / "1" / task / "predictions.jsonl") for folder in (one, two)
        )
        scores = [[line.pop("score", None) for line in found] for found in (of_one, of_two)]
        assert of_one == of_two and len(of_one) == 8
        np.testing.assert_allclose(
            *(np.array(found, float) for found in scores), rtol=1e-5, err_msg=task
        )
    assert json.loads((one / "metrics.json").read_text()) == json.loads(
        (two / "metrics.json").read_text()
    )


MISTAKES = {
    "no run": ([EVALUATE], "There is nothing to evaluate: give the gin files of a run"),
    "an unknown word for checkpoints": (
        [*SMALL, "--gin.CHECKPOINTS='newst'"],
        "evaluate.checkpoints is 'newst'; it must be one of newest, all, watch",
    ),
    "a missing step": ([*SMALL, "--gin.CHECKPOINTS=[3]"], "There is no checkpoint of step 3 in"),
    "an unknown task": (
        [*SMALL, "--gin.evaluate.tasks=['eval_caption']"],
        "evaluate.tasks names eval_caption, which none of the streams has.",
        "Did you mean eval_captions?",
    ),
    "a task without metrics": (
        [*SMALL, "--gin.pairs/Stream.mixture_or_task_name='eval_training_only'"],
        "Task 'eval_training_only' has no EvalSpec",
    ),
    "a decoding setting": (
        [*SMALL, "--gin.DecodingConfig.beam_sise=2"],
        "DecodingConfig has no parameter beam_sise",
    ),
    "a decoding setting's type": (
        [*SMALL, "--gin.DecodingConfig.beam_size='two'"],
        "DecodingConfig.beam_size is 'two'; it must be a whole number.",
    ),
    "a length": (
        [*SMALL, "--gin.DecodingConfig.max_length=5000"],
        "Task eval_captions does not fit the model",
        "reduce DecodingConfig.max_length",
    ),
    "a vocabulary": (
        [*SMALL, "--gin.scenes_settings.num_bins=32"],
        "vocabulary of",
        "evaluate with the vocabulary that it was trained with",
    ),
    "an image's size": (
        [*SMALL, "--gin.pairs/Stream.image_size=96"],
        "expects images of (96, 96, 3)",
    ),
    "an unknown split": ([*SMALL, "--gin.SPLIT='tests'"], "There is no split 'tests'"),
    "other settings": (
        [*SMALL, "--gin.DecodingConfig.beam_size=1"],
        "holds predictions that were made with decoding.beam_size = 2 and not 1",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_reported_in_one_sentence_with_exit_code_2(
    mistake, call, run, evaluated, capsys, monkeypatch
):
    monkeypatch.setattr(evaluate_command, "run_evaluation", None)
    arguments, *parts = MISTAKES[mistake]
    where = [at(run)] if RUN in arguments else []
    with pytest.raises(SystemExit) as ended:
        call(*arguments, *where)
    assert ended.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    for part in parts:
        assert part in error, error
