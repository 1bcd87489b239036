"""What a run has reached stands beside its aims, in summary.json, on the page and on screen."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tools import report_scenes, scenes_results, summarise_scenes
from tools.scenes_results import Row
from tools.summarise_scenes import AIMS, aims_of

ROOT = pathlib.Path(__file__).resolve().parents[2]
LOSSES = {
    "image_captioning": {"validation_loss": 1.0, "unigram_loss": 3.0},
    "text_infilling": {"validation_loss": 7.0, "unigram_loss": 6.5},
}


def rows(noun_f1=0.7, answers=0.64, boxes=0.2):
    return [
        Row("image_captioning", "noun_f1", noun_f1, 0.05, "a training caption"),
        Row("visual_question_answering", "accuracy", answers, 0.53, "the most frequent answer"),
        Row("visual_question_answering", "accuracy/count", 0.5, 0.4, "the most frequent answer"),
        Row("visual_grounding", "acc@0.5", boxes, 0.03, "the mean box"),
        Row("object_detection", "f1@0.5", None),
    ]


def by_name(aims):
    return {(aim["task"], aim["metric"]): aim for aim in aims}


def test_an_aim_is_a_value_or_a_distance_to_the_baseline():
    aims = by_name(aims_of("first", rows(), LOSSES))
    assert aims["image_captioning", "noun_f1"]["met"]
    questions = aims["visual_question_answering", "accuracy"]
    assert questions["met"] and questions["wanted"] == pytest.approx(0.63)
    assert not aims["visual_grounding", "acc@0.5"]["met"]
    assert aims["image_captioning", "validation_loss"]["met"]
    assert not aims["text_infilling", "validation_loss"]["met"]
    missed = by_name(aims_of("first", rows(answers=0.62), LOSSES))
    assert not missed["visual_question_answering", "accuracy"]["met"]


def test_what_was_not_evaluated_is_not_met():
    aims = by_name(aims_of("full", rows(), {}))
    assert set(aims) == {(aim.task, aim.metric) for aim in AIMS["full"]}
    for name in (("image_text_matching", "accuracy"), ("object_detection", "f1@0.5")):
        assert aims[name]["reached"] is None and not aims[name]["met"]
    text = summarise_scenes.page({"full": {"aims": list(aims.values()), **_ABOUT}})
    assert "| object detection | f1@0.5 | - | at least 66.8 % | no |" in text


_ABOUT = {
    "command": "bash it",
    "seed": 3,
    "commit": "abc",
    "device": "2 CPU cores",
    "steps": 7,
    "total_steps": 9,
    "minutes_in_all": None,
}


def test_the_command_evaluates_once_and_writes_summary_and_page(tmp_path, monkeypatch, capsys):
    model_dir, results = tmp_path / "run", tmp_path / "results"
    (model_dir / "checkpoints" / "7" / "state").mkdir(parents=True)
    (model_dir / "config.gin").write_text("")
    validation = {
        task: {"loss": losses["validation_loss"], "unigram_loss": losses["unigram_loss"]}
        for task, losses in LOSSES.items()
    }
    (model_dir / "validation.json").write_text(json.dumps(validation))
    calls = []

    def evaluate(command):
        calls.append(command)
        folder = model_dir / "evaluations" / "test" / "7" / "visual_grounding"
        folder.mkdir(parents=True)
        (folder / "predictions.jsonl").write_text('{"index": 0}\n')
        return 0

    class Reporter:
        def __init__(self, settings, baseline_examples):
            assert (settings, baseline_examples) == ("settings", 50)

        def key(self, split):
            return {}

        def rows(self, split, lines):
            assert split == "test" and list(lines) == ["visual_grounding"]
            return iter(rows())

    monkeypatch.setattr(summarise_scenes, "Reporter", Reporter)
    monkeypatch.setattr(
        report_scenes, "settings_of", lambda path: ("settings", {"seed": 3, "total_steps": 9})
    )
    monkeypatch.setattr(report_scenes.storage, "read_run_metadata", lambda path: {})
    monkeypatch.setattr(report_scenes.storage, "count_parameters", lambda path: 10)
    results.mkdir()
    (results / "first_run.json").write_text(json.dumps({"full": {"aims": [], **_ABOUT}}))
    arguments = [f"--model_dir={model_dir}", f"--results_dir={results}", "--num_examples=40"]
    arguments += ["--baseline_examples=50", "--train_command=bash mine", "--started=0"]
    assert summarise_scenes.main(arguments, evaluate) == 0
    shown = capsys.readouterr().out
    assert "70.0 %   aim >= 60.0 %\n" in shown and "20.0 %   aim >= 25.0 %   MISSED" in shown
    assert f"{model_dir / 'report.html'}" in shown
    assert calls[0][-2:] == ["--gin.SPLIT='test'", "--gin.NUM_EXAMPLES=40"]
    written = json.loads((model_dir / "summary.json").read_text())
    assert written["image_captioning"] == {
        "noun_f1": 0.7,
        "validation_loss": 1.0,
        "unigram_loss": 3.0,
    }
    assert written["visual_question_answering"]["accuracy/count"] == 0.5
    assert "object_detection" not in written  # it was not evaluated
    page = (results / "first_run.md").read_text()
    assert "- Command: `bash mine`" in page and "## The full run" in page
    assert scenes_results.shown("acc@0.5", 0.2) in page
    assert summarise_scenes.main(arguments, evaluate) == 0
    assert len(calls) == 1  # the predictions are there


def test_the_evaluation_of_every_objective_is_known_in_a_new_process(tmp_path, small_scenes):
    """Runs without stubs: in this process other tests have registered the tasks."""
    run, lines = tmp_path / "run", tmp_path / "run/evaluations/test/7/visual_grounding"
    (run / "checkpoints" / "7" / "state").mkdir(parents=True)
    (run / "config.gin").write_text("")
    lines.mkdir(parents=True)
    line = {"index": 0, "id": "a", "references": [0, 0, 4, 4], "prediction": [0, 0, 4, 4]}
    (lines / "predictions.jsonl").write_text(json.dumps(line) + "\n")
    program = (
        "import sys; from tools import report_scenes, summarise_scenes as s;"
        "from ofa_jax.evaluation import eval_spec;"
        "report_scenes.settings_of = lambda path: (None, {'seed': 0, 'total_steps': 9});"
        "report_scenes.run_of = lambda *_: {'seed': 0, 'commit': '', 'device': '', 'steps': 7,"
        " 'total_steps': 9};"
        "s.Reporter.key = lambda *_: {};"
        "s.Reporter.rows = lambda *_: print(eval_spec.find('visual_grounding').kind) or iter(());"
        f"sys.exit(s.main(['--model_dir={run}', '--results_dir={tmp_path}']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OFA_DATA_DIR": str(small_scenes)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("box")


def test_wrong_arguments_are_refused_in_one_sentence(tmp_path, capsys):
    assert summarise_scenes.main([f"--model_dir={tmp_path}"]) == 2
    assert f"there is no trained run in {tmp_path}" in capsys.readouterr().err
    (tmp_path / "checkpoints" / "7" / "state").mkdir(parents=True)
    (tmp_path / "config.gin").write_text("")
    assert summarise_scenes.main([f"--model_dir={tmp_path}", "--num_examples=0"]) == 2
    assert "--num_examples must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", '{"full": {"seed": 3}}'])
def test_damaged_results_are_one_sentence_and_stay(tmp_path, monkeypatch, capsys, content):
    run = tmp_path / "run"
    folder = run / "evaluations" / "test" / "7" / "visual_grounding"
    for path in (run / "checkpoints" / "7" / "state", folder):
        path.mkdir(parents=True)
    (run / "config.gin").write_text("")
    (folder / "predictions.jsonl").write_text('{"index": 0}\n')
    monkeypatch.setattr(report_scenes, "settings_of", lambda path: (None, {}))
    monkeypatch.setattr(report_scenes, "rows_of", lambda *_: rows())
    monkeypatch.setattr(report_scenes, "run_of", lambda *_: _ABOUT)
    (tmp_path / "first_run.json").write_text(content)
    assert summarise_scenes.main([f"--model_dir={run}", f"--results_dir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'first_run.json'}" in error and error.count("\n") == 1
    assert (tmp_path / "first_run.json").read_text() == content
