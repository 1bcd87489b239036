"""The zero-shot command: what it runs, how it continues, and what it writes."""

import json
import pathlib

import pytest
from command_lint import check_command
from shown_progress import assert_shown, every_line

from tools import svg_plots, zero_shot, zero_shot_results
from tools.svg_plots import Series

UNSEEN = {
    "grounded_question_answering": {"accuracy": 0.5, "accuracy/count": 0.4},
    "region_neighbour": {"accuracy": 0.1},
    "region_in_style": {"accuracy": 0.0},
    "region_yes_no": {"accuracy": 0.5},
}


def unseen(shift):
    found = {name: {m: v + shift for m, v in own.items()} for name, own in UNSEEN.items()}
    among = {
        f"{name}_among_answers": {"accuracy": own["accuracy"] + 0.05}
        for name, own in found.items()
        if name != "region_in_style"
    }
    return found | among


def write_metrics(directory, step, found):
    path = directory / "metrics.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text()) if path.exists() else {str(step): {}}
    known[str(step)] |= found
    path.write_text(json.dumps(known))


def make_run(path, step=40):
    folder = path / "checkpoints" / str(step)
    (folder / "state").mkdir(parents=True)
    (folder / "run").mkdir()
    (folder / "run" / "metadata").write_text('{"trained_seconds": 90}')
    (path / "config.gin").write_text("")
    return path


def fake(calls, fail=None):
    """Replaces training and evaluation."""

    def call(command):
        calls.append(command)
        if fail is not None and any(fail in part for part in command):
            return 3
        flags = dict(part.removeprefix("--gin.").split("=", 1) for part in command[4:])
        if "ofa_jax.train" in command:
            model_dir = pathlib.Path(flags["MODEL_DIR"].strip("'"))
            if not model_dir.exists():
                make_run(model_dir, 100)
            return 0
        model_dir = pathlib.Path(command[2].removeprefix("--gin_file=")).parent
        directory = pathlib.Path(flags["evaluate.directory"].strip("'"))
        if "evaluate_unseen" in command[3]:
            tuned = "UNSEEN_TASKS" in flags
            shift = 0.3 + 0.1 * int(model_dir.name[-1]) if tuned else 0.0
            write_metrics(directory, 100 if tuned else 40, unseen(shift))
        elif "reworded" in command[3]:
            other = {"accuracy": 0.7}, {"accuracy": 0.6}
            names = ("_trained_wordings", "_unseen_wordings")
            rows = {
                f"{objective}{suffix}": own
                for objective in ("visual_question_answering", "image_text_matching")
                for suffix, own in zip(names, other, strict=True)
            }
            write_metrics(directory, 40, rows)
        else:
            rows = {name: {"accuracy": 0.8, "other": 1} for name in
                    ("visual_question_answering", "image_text_matching")}  # fmt: skip
            write_metrics(directory, 40, rows)
        return 0

    return call


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("full", "without", "several"):
        make_run(tmp_path / name)
    majorities = {
        name: {
            "count": 400,
            "majority": 0.4,
            "zero_shot": {},
            "among_answers": {},
            "by_type": {},
            "fine_tuned": {},
        }
        for name in zero_shot.TASKS
    }
    monkeypatch.setattr(zero_shot, "_majorities", lambda *_: json.loads(json.dumps(majorities)))
    monkeypatch.setattr(zero_shot, "_image_size", lambda model_dir: 96)
    return tmp_path


def arguments(folder, *others):
    return [
        f"--model_dir={folder / 'full'}",
        f"--without={folder / 'without'}",
        f"--wordings={folder / 'several'}",
        f"--runs_dir={folder / 'runs'}",
        f"--results_dir={folder / 'results'}",
        "--seeds",
        "0",
        "1",
        *others,
    ]


def test_one_command_measures_everything_and_writes_the_page(folder, capsys):
    calls = []
    with every_line() as shown:
        code = zero_shot.main(
            arguments(folder, "--num_examples=50", "--", "--gin.TRAIN_STEPS=7"), fake(calls)
        )
    assert code == 0
    assert_shown(shown, "unseen tasks", "21 evaluations")
    trained = [command for command in calls if "ofa_jax.train" in command]
    assert len(trained) == 2 * 4 * 2 and len(calls) == 3 + 2 * len(trained) + 2 * 2
    assert all("--gin.TRAIN_STEPS=7" in command for command in trained)
    assert all(
        ("--gin.NUM_EXAMPLES=50" in command) == (command not in trained) for command in calls
    )
    assert "--gin.UNSEEN_TASKS='region_yes_no_100'" in trained[-1]
    assert "--gin.UNSEEN_IMAGE_SIZE=96" in trained[-1] and "--gin.UNSEEN_IMAGE_SIZE=96" in calls[0]
    folder_of_evaluation = folder / "runs" / "model_full" / "evaluation_test_50"
    assert f"--gin.evaluate.directory='{folder_of_evaluation}'" in calls[0]
    assert not (folder / "full" / "evaluations").exists()  # the run's own stay as they are
    results = json.loads((folder / "results" / "zero_shot.json").read_text())
    assert results["runs"]["without"]["steps"] == 40 and results["seeds"] == [0, 1]
    assert results["runs"]["model"]["minutes"] == 1.5
    assert "--without" in results["commands"][0] and results["commit"]
    task = results["tasks"]["grounded_question_answering"]
    assert task["zero_shot"] == dict.fromkeys(("model", "without", "wordings"), 0.5)
    assert task["fine_tuned"]["model"] == {"0": 0.8, "1": 0.9}
    assert task["by_type"]["model"] == {"count": 0.4}
    assert task["among_answers"]["without"] == pytest.approx(0.55)
    assert "wordings" not in task["fine_tuned"]
    assert not results["tasks"]["region_in_style"]["among_answers"]
    assert results["wordings"]["model"] == {
        f"{name}/accuracy": {"published": 0.8, "trained": 0.7, "unseen": 0.6}
        for name in ("visual_question_answering", "image_text_matching")
    }
    page = capsys.readouterr().out
    assert (folder / "results" / "zero_shot.md").read_text().strip() == page.strip()
    assert "| 50.0 % (above) |" in page and "| 10.0 % (below) |" in page
    assert "85.0 % ± 5.0" in page
    assert "| visual question answering | accuracy | 80.0 % | 70.0 % | 60.0 % |" in page
    assert "grounded QA" in (folder / "results" / "zero_shot.svg").read_text()


def test_the_commands_name_gin_files_and_options_that_exist(folder):
    calls = []
    assert zero_shot.main(arguments(folder, "--", "--gin.TRAIN_STEPS=7"), fake(calls)) == 0
    different = {}
    for command in calls:
        different.setdefault((command[1], command[3], len(command)), command)
    assert len(different) == 5
    for command in different.values():
        check_command(command)


def test_a_failure_ends_the_command_keeps_what_there_is_and_the_next_call_goes_on(folder, capsys):
    assert zero_shot.main(arguments(folder), fake([], fail="region_yes_no_100")) == 3
    assert "Run this again to continue" in capsys.readouterr().err
    results = json.loads((folder / "results" / "zero_shot.json").read_text())
    assert results["tasks"]["region_in_style"]["fine_tuned"]["model"].keys() == {"0", "1"}
    assert not results["tasks"]["region_yes_no"]["fine_tuned"] and not results["wordings"]
    assert "Unseen tasks" in (folder / "results" / "zero_shot.md").read_text()
    assert zero_shot.main(arguments(folder), fake([])) == 0
    results = json.loads((folder / "results" / "zero_shot.json").read_text())
    assert results["tasks"]["region_yes_no"]["fine_tuned"]["without"].keys() == {"0", "1"}


def test_one_run_without_fine_tuning_is_enough(folder):
    calls = []
    options = [
        part for part in arguments(folder)[:5] if "--with" not in part and "--wo" not in part
    ]
    assert zero_shot.main([*options, "--examples=0"], fake(calls)) == 0
    assert [command[1] for command in calls] == ["ofa_jax.evaluate"] * 3
    page = (folder / "results" / "zero_shot.md").read_text()
    assert "| task | examples | majority | zero-shot, the model |" in page


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    assert zero_shot.main([f"--model_dir={tmp_path}"], fake([])) == 2
    assert "there is no trained run" in capsys.readouterr().err
    make_run(tmp_path / "full")
    code = zero_shot.main([f"--model_dir={tmp_path / 'full'}", "--without=x"], fake([]))
    assert code == 2 and "another --without" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "expected"), [(0.5, "within noise"), (0.6, "above"), (0.4, "below")]
)
def test_a_difference_counts_from_two_standard_errors_on(value, expected):
    assert zero_shot_results.verdict(value, 0.5, 400) == expected
    assert zero_shot_results.verdict(value, 0.5, 4) == "within noise"


def test_plots_show_all_points_within_the_frame_and_refuse_what_they_cannot_show():
    series = [
        Series("a < b", [1.0, 10.0, 100.0], [2.0, 1.0, 0.5], [0.1, 0.1, 1.0]),
        Series("fit", [1.0, 100.0], [2.0, 0.5], line=True, dashed=True),
    ]
    drawn = svg_plots.plot(series, "loss", "FLOPs", "nats", log_x=True, log_y=True)
    assert drawn.count("<circle") == 4 and "a &lt; b" in drawn and "<polyline" in drawn
    assert ">10<" in drawn and ">0.5<" in drawn
    import xml.etree.ElementTree

    root = xml.etree.ElementTree.fromstring(drawn)
    for circle in root.iter("{http://www.w3.org/2000/svg}circle"):
        assert 0 < float(circle.get("cx")) < 640 and 0 < float(circle.get("cy")) < 400
    with pytest.raises(ValueError, match="positive"):
        svg_plots.plot([Series("", [0.0], [1.0])], "", "", "", log_x=True)
    assert svg_plots.plot([Series("", [3.0], [1.0])], "", "", "").count("<circle") == 1
