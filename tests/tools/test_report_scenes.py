"""The report's numbers, computed from synthetic predictions."""

import json
import subprocess

import numpy as np
import pytest
from shown_progress import assert_shown, every_line

import tasks.scenes_negative_controls  # noqa: F401  registers its tasks
from ofa_jax.data.pretraining_settings import scenes_settings
from ofa_jax.data.sources.negative_controls import ABSENT_NOUN, SWAPPED, SWAPPED_OBJECTIVES
from ofa_jax.data.sources.single_target import SingleTarget
from ofa_jax.data.task_settings import default_settings
from ofa_jax.evaluation import eval_spec, postprocess
from ofa_jax.preprocessing import objectives
from tools import report_scenes, scenes_results, scenes_rows
from tools.scenes_rows import Reporter

SPLIT = "test"
TASKS = tuple(scenes_rows.SHOWN)


@pytest.fixture(scope="module")
def settings(small_scenes):
    from ofa_jax.data.sources.scenes import Scenes

    settings = scenes_settings(Scenes(str(small_scenes)), image_size=64, code_image_size=32)
    with default_settings(settings):
        yield settings


def make_lines(task, settings, predict):
    """Returns prediction lines; `predict(task, reference)` gives each prediction."""
    config, spec = settings.evaluation_config, eval_spec.find(task)
    objective, kind = objectives.OBJECTIVES[task], objectives.RECORD_KIND[task]
    records = SingleTarget(settings.data_set.records(kind, SPLIT), kind)
    lines = []
    for index in range(min(len(records), 4)):
        record = records[index]
        example = objective(record, np.random.default_rng(index), config)
        reference = json.loads(json.dumps(spec.references(record), default=np.ndarray.tolist))
        lines.append(
            {
                "index": index,
                "id": record["id"],
                "references": reference,
                "instruction": config.vocabulary.decode(example["inputs"]).strip(),
                "prediction": postprocess.to_json(spec.kind, predict(task, reference)),
            }
        )
    return lines


def right(task, reference):
    if task == "image_captioning":
        return reference["captions"][0]
    if task == "visual_question_answering":
        return reference["answers"][0]
    if task == "object_detection":
        return {"boxes": np.float32(reference["boxes"]), "labels": reference["labels"]}
    if task == "visual_grounding":
        return np.float32(reference)
    if task == "grounded_captioning":
        return reference[0]
    return np.int32(reference) if task == "image_infilling" else reference


@pytest.fixture(scope="module")
def rows(settings):
    """Returns the rows of a perfect model; one of its controls uses the image, one does not."""
    lines = {task: make_lines(task, settings, right) for task in TASKS}
    lines["visual_grounding" + SWAPPED] = make_lines(
        "visual_grounding", settings, lambda task, reference: np.zeros(4, np.float32)
    )
    lines[ABSENT_NOUN] = lines["visual_grounding" + SWAPPED]
    found = list(Reporter(settings, baseline_examples=60).rows(SPLIT, lines))
    return {(row.task, row.metric): row for row in found}


def test_perfect_predictions_meet_every_threshold(rows):
    for (task, metric), threshold in scenes_results.THRESHOLDS.items():
        row = rows[task, metric]
        assert row.threshold == threshold and row.value >= 0.8 and row.met
    assert rows["visual_grounding", "acc@0.5"].value == 1
    assert rows["object_detection", "f1@0.5"].value == 1
    assert rows["text_infilling", "exact_spans"].value == 1
    assert rows["image_infilling", "token_accuracy"].value == 1
    # Codes are not the image: the decibels are those of the true codes, no more.
    true = rows["image_infilling: the true codes", "psnr"]
    assert rows["image_infilling", "psnr"].value == true.value
    assert true.baseline < rows["image_infilling", "psnr"].baseline < true.value < 48


def test_every_number_has_a_baseline_and_those_of_images_a_control(rows):
    for row in rows.values():
        assert row.baseline is not None and row.baseline_is, row
    for task in ("image_captioning", "object_detection", "image_infilling"):
        row = next(row for (name, _), row in rows.items() if name == task)
        assert row.control < row.value and row.control_is == "prediction of another image"
    row = rows["visual_grounding", "acc@0.5"]
    assert row.control == 0 and row.control_is == "instruction of another image"
    assert rows["visual_question_answering", "accuracy"].control is None
    assert rows[ABSENT_NOUN, "acc@0.5"].value == 0
    assert any(
        name.startswith("accuracy/") for task, name in rows if task == "visual_question_answering"
    )


def test_missing_evaluations_are_listed(settings):
    found = list(Reporter(settings, 10).rows(SPLIT, {}))
    assert {row.task for row in found} == set(TASKS) and {row.value for row in found} == {None}
    page = scenes_results.page({"splits": {SPLIT: list(map(scenes_results.as_json, found))}})
    assert "| visual grounding | acc@0.5 | - | - | - | - | 50.0 %: not measured |" in page
    assert "The run was not evaluated" in page and "The ablation was not run" in page


def test_thresholds_apply_to_the_test_split_only(settings):
    lines = {
        "grounded_captioning": make_lines(
            "grounded_captioning", settings, lambda task, reference: "nothing"
        )
    }
    by_split = {
        split: [row for row in Reporter(settings, 10).rows(split, lines) if row.value is not None]
        for split in ("test", "test_shifted")
    }
    row, very_phrase = by_split["test"]
    assert row.value == 0 and row.met is False
    assert very_phrase.metric == "exact_match" and very_phrase.threshold is None
    assert by_split["test_shifted"][0].threshold is None


def test_two_splits_read_the_training_data_once(settings, monkeypatch):
    reads = []
    original = Reporter._training_records
    monkeypatch.setattr(
        Reporter, "_training_records", lambda self, task: reads.append(task) or original(self, task)
    )
    names = ("text_infilling", "grounded_captioning")
    lines = {task: make_lines(task, settings, right) for task in names}
    reporter = Reporter(settings, 10)
    for split in ("test", "test_shifted"):
        assert list(reporter.rows(split, lines)) == list(Reporter(settings, 10).rows(split, lines))
    assert len(reads) == 2 * (1 + 2)


def test_rows_of_the_same_predictions_are_computed_once(settings, tmp_path, monkeypatch):
    lines = {"grounded_captioning": make_lines("grounded_captioning", settings, right)}
    path = tmp_path / "grounded_captioning" / "predictions.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(line) + "\n" for line in lines["grounded_captioning"]))
    computed = []
    original = Reporter.rows
    monkeypatch.setattr(
        Reporter, "rows", lambda self, *given: computed.append(given) or original(self, *given)
    )

    def rows(examples=10, commit="abc"):
        before = len(computed)
        found = scenes_rows.rows_of(Reporter(settings, examples), SPLIT, lines, tmp_path, commit)
        return found, len(computed) > before

    first, is_new = rows()
    assert is_new and first[-1].value is None and any(row.value == 1 for row in first)
    assert rows() == (first, False)
    assert rows(examples=11)[1]
    assert rows(examples=11, commit="abd")[1]
    path.write_text(path.read_text() + "\n")
    assert rows(examples=11, commit="abd")[1]
    (tmp_path / scenes_rows.FILE).write_text('{"key": {}, "rows": [{"task": 3}]}')
    assert rows()[1] and not rows()[1]
    for unsure in ("unknown", "abc with changes"):
        assert rows(commit=unsure)[1] and rows(commit=unsure)[1]


def test_page_and_json_have_the_same_numbers_and_keep_other_sections(rows, tmp_path):
    run = {
        "steps": 3,
        "total_steps": 4,
        "minutes_trained": 1.25,
        "parameters": 12345,
        "seed": 7,
        "commit": "abc",
        "device": "2 CPU cores",
        "checkpoint": "runs/x/checkpoints/3",
        "commands": ["python -m one", "python -m two"],
    }
    results = {
        "run": run,
        "splits": {SPLIT: list(map(scenes_results.as_json, rows.values()))},
        "ablations": {
            "split": SPLIT,
            "command": "c",
            "commit": "d",
            "runs": [
                {"name": "full_model", "steps": 5, "numbers": {"a/acc@0.5": 0.25}},
                {"name": "no_regions", "steps": 5, "numbers": {"b/cider_d": 1.5}},
            ],
        },
    }
    scenes_results.save(tmp_path, results)
    assert scenes_results.load(tmp_path / "scenes.json") == json.loads(json.dumps(results))
    page = (tmp_path / "scenes.md").read_text()
    assert "3 of 4 steps, 1.2 minutes" in page and "python -m two" in page
    for row in rows.values():
        assert scenes_results.shown(row.metric, row.value) in page
    assert "| | full model (5 steps) | no regions (5 steps) |" in page
    assert "| a: acc@0.5 | 25.0 % | - |" in page and "| b: cider d | - | 1.500 |" in page


def test_the_command_evaluates_both_splits_and_writes_the_report(settings, tmp_path, monkeypatch):
    """Replaces the evaluation by synthetic predictions."""
    model_dir = tmp_path / "run"
    (model_dir / "checkpoints" / "7" / "state").mkdir(parents=True)
    (model_dir / "config.gin").write_text("")
    stage_dir = tmp_path / "stage"
    (stage_dir / "checkpoints" / "3" / "state").mkdir(parents=True)
    (stage_dir / "config.gin").write_text("")
    lines = make_lines("grounded_captioning", settings, right)
    calls = []

    def evaluate(command):
        calls.append(command)
        split = "test_shifted" if "'test_shifted'" in command[-1] else "test"
        folder = model_dir / "evaluations" / split / "7" / "grounded_captioning"
        folder.mkdir(parents=True)
        bad = {"index": 9, "id": "9", "error": "it is bad"}
        (folder / "predictions.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in [*lines, bad])
        )
        return 0

    monkeypatch.setattr(
        report_scenes, "settings_of", lambda path: (settings, {"seed": 5, "total_steps": 9})
    )
    monkeypatch.setattr(
        report_scenes.storage, "read_run_metadata", lambda path: {"trained_seconds": 90}
    )
    monkeypatch.setattr(report_scenes.storage, "count_parameters", lambda path: 1000)
    scenes_results.save(
        tmp_path / "results",
        {"ablations": {"split": SPLIT, "command": "kept", "commit": "d", "runs": []}},
    )
    arguments = [
        f"--model_dir={model_dir}",
        f"--results_dir={tmp_path / 'results'}",
        "--baseline_examples=9",
        f"--stage_dirs={stage_dir}",
    ]
    with every_line() as shown:
        assert report_scenes.main(arguments, evaluate) == 0
    assert_shown(shown, "evaluations", "2 splits")
    assert_shown(shown, "computing baselines and controls", f"{2 * len(TASKS)} tasks")
    assert [command[-1] for command in calls] == [
        "--gin.SPLIT='test'",
        "--gin.SPLIT='test_shifted'",
    ]
    results = scenes_results.load(tmp_path / "results" / "scenes.json")
    assert results["run"]["minutes_trained"] == 1.5 and results["run"]["steps"] == 7
    assert [stage["steps"] for stage in results["run"]["stages"]] == [3]
    assert results["ablations"]["command"] == "kept"
    assert "visual_grounding was not evaluated on test." in results["missing"]
    page = (tmp_path / "results" / "scenes.md").read_text()
    assert f"| grounded captioning | exact match | {len(lines)} | 100.0 % |" in page
    assert "--gin.SPLIT=\"'test'\"" in page and "7 of 9 steps, 1.5 minutes" in page
    assert f"{stage_dir}/checkpoints/3, 1.5 minutes" in page


def test_a_folder_without_a_run_is_reported_in_one_sentence(tmp_path, capsys):
    assert report_scenes.main([f"--model_dir={tmp_path}"]) == 2
    assert f"error: there is no trained run in {tmp_path}" in capsys.readouterr().err
    run, stage = tmp_path / "run", tmp_path / "stage"
    (run / "checkpoints" / "7" / "state").mkdir(parents=True)
    (run / "config.gin").write_text("")
    for flag in ("--stage_dirs", "--lesson_dirs"):
        assert report_scenes.main([f"--model_dir={run}", f"{flag}={stage}"]) == 2
        assert f"error: there is no trained run in {stage}" in capsys.readouterr().err


def test_control_tasks_have_the_instructions_of_their_objectives(settings):
    from ofa_jax.data import seqio_bridge

    tasks = {t.name: t for t in seqio_bridge.weighted_tasks("scenes_controls", SPLIT)}
    assert set(tasks) == {f"{name}{SWAPPED}" for name in SWAPPED_OBJECTIVES} | {ABSENT_NOUN}
    (plain,) = seqio_bridge.weighted_tasks("visual_question_answering", SPLIT)
    swapped = tasks["visual_question_answering" + SWAPPED]
    examples = [
        [task.preprocess(task.records[n], np.random.default_rng(0)) for n in range(2)]
        for task in (plain, swapped)
    ]
    for own, other in zip(*examples, strict=True):
        np.testing.assert_array_equal(own["inputs"], other["inputs"])
    np.testing.assert_array_equal(examples[1][0]["image"], examples[0][1]["image"])
    spec = eval_spec.find("visual_question_answering" + SWAPPED)
    assert spec.task.endswith(SWAPPED) and spec.kind == "text"
    shown = settings.data_set.records("objects", SPLIT)
    absent = tasks[ABSENT_NOUN].records
    for n in range(len(absent)):
        (phrase,) = absent[n]["phrases"]
        assert phrase.removeprefix("the ") not in shown[n]["object_labels"]


def test_a_commit_is_marked_as_changed_by_code_but_not_by_written_results(tmp_path):
    for name in ("tools", "results"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("as committed")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)
    found = report_scenes.commit(tmp_path / "tools")
    assert len(found) == 12
    (tmp_path / "results" / "file").write_text("new numbers")
    assert report_scenes.commit(tmp_path / "tools") == found
    (tmp_path / "tools" / "file").write_text("new code")
    assert report_scenes.commit(tmp_path / "tools") == f"{found} with changes"
