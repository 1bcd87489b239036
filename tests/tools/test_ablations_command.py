"""The command of the ablations, with stand-ins for training: it resumes and repeats nothing."""

import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree

import gin
import pytest
import small_flags
import stub_ablations
import test_train
from shown_progress import assert_shown, every_line
from stub_ablations import Stub

from ofa_jax import evaluate, train
from ofa_jax.preprocessing import objectives
from ofa_jax.utils.locks import directory_lock
from tools import (
    ablation_pages,
    ablation_results,
    ablation_runs,
    ablations,
    report_scenes,
)
from tools.ablation_results import CLAIMS, COMPUTE, FULL, METRICS, STEPS, Claim, Estimate

FEW = ("--only", "no_detection", "--tasks", "vqa", "topics", "--seeds", "0", "1")


@pytest.fixture(autouse=True, scope="module")
def short_waits():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablations, "_WAIT_SECONDS", 0.05)
        patch.setattr(report_scenes, "commit", lambda: stub_ablations.COMMIT)
        yield


def arguments(folder, *others):
    return [
        f"--runs_dir={folder / 'runs'}",
        f"--results_dir={folder / 'results'}",
        f"--data_dir={folder / 'data'}",
        *others,
    ]


def written(folder, names=("ablations.json", "ablations.md", "ablations.svg")):
    """Returns what the files of results hold, without the folder in the command."""
    texts = [(folder / "results" / name).read_text() for name in names]
    return [text.replace(str(folder), "FOLDER") for text in texts]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns the folder, the commands and the shown lines of an uninterrupted call."""
    folder, stub = tmp_path_factory.mktemp("whole"), Stub()
    with every_line() as shown:
        assert ablations.main(arguments(folder, *FEW), stub) == 0
    return folder, stub.calls, shown


def test_one_command_pretrains_fine_tunes_evaluates_and_writes_the_table(whole):
    folder, calls, shown = whole
    assert_shown(shown, "ablations", "18 runs")
    modules = [command[1] for command in calls]
    assert modules[:2] == ["tools.build_scenes", "tools.pretrain_encoder"]
    # 2 seeds x (full, without detection twice) pretrainings, and two tasks of each.
    assert modules.count("ofa_jax.train") == 18 and modules.count("ofa_jax.evaluate") == 12
    runs = ablation_results.load(folder / "results" / "ablations.json")
    assert [(run["equal"], run["name"], run["seed"]) for run in runs] == [
        (STEPS, FULL, 0),
        (STEPS, FULL, 1),
        (STEPS, "no_detection", 0),
        (STEPS, "no_detection", 1),
        (COMPUTE, "no_detection", 0),
        (COMPUTE, "no_detection", 1),
    ]
    for run in runs:
        assert {"objectives_left_out", "seed", "steps", "downstream"} <= run.keys()
        assert run["objectives_left_out"] == ([] if run["name"] == FULL else ["object_detection"])
        assert run["steps"] == 1500 and run["minutes"] == 3
        assert list(run["downstream"]) == ["vqa", "topics"]
        assert run["downstream"]["vqa"].keys() == {"accuracy"}
    page = (folder / "results" / "ablations.md").read_text()
    assert "seeds 0, 1" in page and "18 minutes" in page and "python -m tools.ablations" in page
    assert "| object detection | vqa | worse | accuracy | -1" in page


def test_a_fine_tuning_continues_its_own_pretraining_with_its_seed(whole):
    folder, calls, _ = whole
    runs = folder / "runs"
    for command in calls:
        text = " ".join(command)
        if "finetune_scenes" in text:
            place = re.search(r"MODEL_DIR='(.*?)'", text).group(1)
            parent = pathlib.Path(place).parent
            assert f"--gin.INITIAL_CHECKPOINT_PATH='{parent / 'pretraining'}'" in command
            assert f"--gin.SEED={parent.name.removeprefix('seed_')}" in command
    assert not list(runs.glob("*/*/*/vqa/checkpoints")), "only pretrained checkpoints are kept"
    assert list(runs.glob("*/*/*/pretraining/checkpoints"))


def test_the_plot_is_an_image(whole):
    root = xml.etree.ElementTree.parse(whole[0] / "results" / "ablations.svg").getroot()
    assert root.tag.endswith("svg")
    assert len(root.findall("{*}circle")) == 2 + 4


def test_a_second_call_repeats_nothing_even_without_the_run_directories(whole, tmp_path):
    folder, _, _ = whole
    before, stub = written(folder), Stub()
    assert ablations.main(arguments(folder, *FEW), stub) == 0
    assert stub.calls == [] and written(folder) == before
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "ablations.json").write_text(before[0])
    assert ablations.main(arguments(tmp_path, *FEW), stub) == 0
    assert stub.calls == [] and written(tmp_path) == before


@pytest.mark.parametrize("first", [1, 2, 3, 4, 5, 6, 7, 12, 19, 24, 31])
def test_stopped_and_started_again_the_table_is_the_same(whole, tmp_path, first):
    stops, calls = first, []
    for _ in range(40):
        stub = Stub(stop_at=stops)
        code = ablations.main(arguments(tmp_path, *FEW), stub)
        calls += stub.calls
        if code == 0:
            break
        assert code == 130
        stops += 1
    assert code == 0 and written(tmp_path) == written(whole[0])
    assert len(calls) > len(whole[1]), "it was stopped"


def start(folder, log, *others):
    command = [sys.executable, stub_ablations.__file__, str(log), *arguments(folder, *FEW, *others)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def test_killed_and_started_again_as_two_processes_the_table_is_the_same(whole, tmp_path):
    log = tmp_path / "log"
    first = start(tmp_path, log)
    while not log.exists() or len(log.read_text().splitlines()) < 9:
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    others = [start(tmp_path, log) for _ in range(2)]
    assert [process.wait(timeout=120) for process in others] == [0, 0]
    assert written(tmp_path) == written(whole[0])
    # One command of the killed process is made again; no other one is.
    assert len(whole[1]) <= len(log.read_text().splitlines()) <= len(whole[1]) + 1


def test_two_commands_at_once_share_the_runs(whole, tmp_path):
    stubs, codes = [Stub(log=tmp_path / "log") for _ in range(2)], []

    def run(stub):
        codes.append(ablations.main(arguments(tmp_path, *FEW), stub))

    threads = [threading.Thread(target=run, args=(stub,)) for stub in stubs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0, 0] and written(tmp_path) == written(whole[0])
    made = [command for stub in stubs for command in stub.calls]
    assert sorted(map(str, made)) == sorted(
        str(command).replace(str(whole[0]), str(tmp_path)) for command in map(str, whole[1])
    )


def test_several_processes_have_a_share_of_the_cores_each(tmp_path, monkeypatch, capsys):
    commands, shares = [], {}

    class Process:
        def __init__(self, command):
            commands.append(command)
            self.pid = len(commands)

        def wait(self):
            return 0

        def poll(self):
            return 0

    monkeypatch.setattr(ablations.subprocess, "Popen", Process)
    monkeypatch.setattr(ablations.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(ablations.os, "sched_setaffinity", shares.__setitem__, raising=False)
    own = arguments(tmp_path, "--processes=2", "--seeds", "0", "--", "--gin.TRAIN_STEPS=9")
    assert ablations.main(own, Stub()) == 0
    assert shares == {1: [0, 2], 2: [1, 3]} and commands[0] == commands[1]
    where = commands[0].index("--")
    assert commands[0][where - 1 :] == ["--processes=1", "--", "--gin.TRAIN_STEPS=9"]
    assert ablations._parse(commands[0][3:]).processes == 1
    assert "not measured yet" in capsys.readouterr().out


def test_a_run_whose_training_still_goes_on_is_left_to_it(tmp_path):
    folder = tmp_path / "runs" / STEPS / FULL / "seed_0" / "pretraining"
    folder.mkdir(parents=True)
    stub = Stub(log=tmp_path / "log")
    only = arguments(tmp_path, "--only", FULL, "--tasks", "vqa", "--seeds", "0", "1")
    thread = threading.Thread(target=ablations.main, args=(only, stub))
    with directory_lock(folder, "MODEL_DIR"):
        thread.start()
        time.sleep(1)
        assert not any("seed_0" in " ".join(command) for command in stub.calls)
        assert any("seed_1" in " ".join(command) for command in stub.calls)
    thread.join()
    assert any("seed_0" in " ".join(command) for command in stub.calls)


def test_equal_compute_is_more_steps_for_a_cheaper_model(tmp_path):
    stub = Stub()
    only = ["--only", "no_text_infilling", "--tasks", "vqa", "--seeds", "0"]
    assert ablations.main(arguments(tmp_path, *only, "--", "--gin.TRAIN_STEPS=90"), stub) == 0
    runs = ablation_results.load(tmp_path / "results" / "ablations.json")
    assert [(run["equal"], run["steps"]) for run in runs] == [
        (STEPS, 90),
        (STEPS, 90),
        (COMPUTE, 120),
    ]
    assert runs[2]["flops"] == runs[0]["flops"] > runs[1]["flops"]
    # Other options would not be comparable.
    assert ablations.main(arguments(tmp_path, *only), Stub()) == 2


def test_presets_scale_the_steps_and_a_user_can_too(tmp_path):
    stub = Stub()
    own = ["--only", FULL, "--seeds", "0", "--tasks", "vqa", "--preset=quick", "--num_examples=7"]
    finetune = "--finetune_option=--gin.BATCH_SIZE=2"
    assert ablations.main(arguments(tmp_path, *own, finetune), stub) == 0
    pretraining, finetuning, evaluation = stub.calls[2:]
    assert "--gin.TRAIN_STEPS=30" in pretraining and "--gin.BATCH_SIZE=2" not in pretraining
    assert "--gin.TRAIN_STEPS=20" in finetuning and finetuning[-1] == "--gin.BATCH_SIZE=2"
    assert "--gin.NUM_EXAMPLES=7" in evaluation


def test_a_failed_run_ends_the_command_and_keeps_the_table_so_far(tmp_path, capsys):
    assert ablations.main(arguments(tmp_path, *FEW), Stub(fail=("no_detection",))) == 3
    message = capsys.readouterr().err
    assert "no_detection" in message and "Run this again to continue from there." in message
    runs = ablation_results.load(tmp_path / "results" / "ablations.json")
    assert [run["name"] for run in runs] == [FULL]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (["--only", "no_captions"], "choose from full_model, no_"),
        (["--processes=0"], "--processes must be at least 1"),
        (["--num_examples=0"], "--num_examples must be at least 1"),
        (["--seeds", "-1"], "--seeds must not be negative"),
    ],
)
def test_mistakes_are_a_sentence(tmp_path, capsys, wrong, sentence):
    stub = Stub()
    assert ablations.main(arguments(tmp_path, *wrong), stub) == 2
    assert sentence in capsys.readouterr().err and not stub.calls


# --------------------------------------------------------------------------------------- claims


def made_up(name, values, equal=STEPS, task="vqa", metric="accuracy"):
    """Returns a run per seed with a value of one metric."""
    return [
        {
            "name": name,
            "objectives_left_out": list(ablation_results.LEFT_OUT[name]),
            "equal": equal,
            "seed": seed,
            "steps": 10,
            "flops": 10.0,
            "options": [],
            "downstream": {task: {metric: value}},
        }
        for seed, value in enumerate(values)
    ]


NEAR = [0.50, 0.52, 0.51]


@pytest.mark.parametrize(
    ("full", "own", "without", "verdict"),
    [
        (NEAR, [0.40, 0.42, 0.41], "worse", "agrees"),
        (NEAR, [0.40, 0.42, 0.41], "better", "disagrees"),
        (NEAR, [0.40, 0.42, 0.41], "about the same", "disagrees"),
        (NEAR, [0.60, 0.62, 0.61], "better", "agrees"),
        (NEAR, [0.60, 0.62, 0.61], "worse", "disagrees"),
        (NEAR, [0.40, 0.60, 0.52], "worse", "within noise"),
        (NEAR, [0.40, 0.60, 0.52], "better", "within noise"),
        (NEAR, [0.40, 0.60, 0.52], "about the same", "agrees"),
        (NEAR, NEAR, "worse", "within noise"),
        # -2 and -3 points: far from 0, but two seeds have a wide interval.
        ([0.50, 0.51], [0.48, 0.48], "worse", "within noise"),
        (NEAR, [0.2], "worse", "one seed"),
        (NEAR, [], "worse", "not measured yet"),
    ],
)
def test_claims_are_judged_by_the_interval_of_paired_differences(full, own, without, verdict):
    runs = made_up(FULL, full) + made_up("no_detection", own)
    assert ablation_results.verdict_of(runs, Claim("no_detection", "vqa", without), STEPS) == (
        verdict
    )
    # The full model is that of both tables.
    runs = made_up(FULL, full) + made_up("no_detection", own, COMPUTE)
    claim = Claim("no_detection", "vqa", without)
    assert ablation_results.verdict_of(runs, claim, COMPUTE) == verdict


def test_lower_distances_are_better():
    higher = Estimate(0.5, 0.01, 3)
    assert ablation_results.classify("worse", higher, "fid") == "agrees"
    assert ablation_results.classify("worse", higher, "accuracy") == "disagrees"


def test_a_mean_has_the_standard_error_of_a_mean():
    estimate = Estimate.of([1.0, 2.0, 3.0])
    assert estimate.mean == 2 and estimate.error == pytest.approx(1 / 3**0.5)
    assert estimate.half_interval == pytest.approx(4.302653 / 3**0.5, rel=1e-4)
    assert Estimate.of([]) is None and Estimate.of([1.0]).sign == 0
    assert ablation_results.shown_estimate("accuracy", estimate, True) == "+200.0 ± 57.7"
    assert ablation_results.shown_estimate("cider_d", estimate) == "2.000 ± 0.577"


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.7062), (10, 2.2281), (11, 2.2010), (20, 2.0860), (200, 1.9719)]
)
def test_quantiles_of_student(freedom, expected):
    found = ablation_results.student_quantile(freedom)
    assert found == pytest.approx(expected, abs=1e-3)


def test_the_claims_are_about_ablations_and_tasks_that_exist():
    assert {claim.name for claim in CLAIMS} <= set(ablation_results.LEFT_OUT) - {FULL}
    assert {claim.task for claim in CLAIMS} == set(METRICS)
    files = {path.stem for path in ablation_runs.DOWNSTREAM.glob("*.gin")}
    assert files == set(METRICS)


def test_the_page_of_claims_has_what_was_measured():
    page = ablations.CLAIMS_PAGE.read_text()
    runs = ablation_results.load(ablations.ROOT / "results" / "ablations.json")
    assert ablation_pages.claims_table(runs) in page


def test_the_table_of_a_page_is_filled_between_its_marks(tmp_path):
    path = tmp_path / "claims.md"
    path.write_text(f"before\n{ablation_pages.BEGIN}\nold\n{ablation_pages.END}\nafter\n")
    ablation_pages.fill_claims(path, made_up(FULL, NEAR))
    text = path.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert text.count("not measured yet") == 2 * len(CLAIMS)
    path.write_text("no marks")
    with pytest.raises(ValueError, match="put them back"):
        ablation_pages.fill_claims(path, [])


def test_a_run_that_does_not_leave_out_what_it_says_is_refused(tmp_path):
    path = tmp_path / "ablations.json"
    (run,) = made_up("no_detection", [0.5])
    path.write_text(json.dumps([run]))
    assert ablation_results.load(path) == [run]
    path.write_text(json.dumps([run | {"objectives_left_out": []}]))
    with pytest.raises(ValueError, match="does not leave out what its name says"):
        ablation_results.load(path)


# -------------------------------------------------------------------------------- a real run


@pytest.mark.slow
def test_a_small_model_goes_through_all_of_it(small_scenes, tmp_path, monkeypatch):
    """Pretrains, fine-tunes and evaluates for real: two models, two tasks, a few steps."""
    monkeypatch.chdir(ablations.ROOT)
    data = tmp_path / "data"
    shutil.copytree(small_scenes, data)
    # The encoder is of another size: a marker in its place, and no initial checkpoint.
    (data / "scenes" / "encoder" / "checkpoints" / "0" / "state").mkdir(parents=True)
    sizes = [flag for flag in test_train.SMALL if "_size=4" not in flag]
    pretrained = tmp_path / "runs" / STEPS / FULL / "seed_0" / "pretraining"

    def call(command):
        gin.clear_config()
        try:
            {"ofa_jax.train": train.main, "ofa_jax.evaluate": evaluate.main}[command[1]](
                command[2:]
            )
        finally:
            gin.clear_config()
        return 0

    code = ablations.main(
        arguments(
            tmp_path,
            "--only=only_pairs",
            "--tasks",
            "text_to_image",
            "masked_words",
            "--seeds=0",
            "--num_examples=4",
            *(f"--finetune_option={flag}" for flag in small_flags.SCENES_DOWNSTREAM),
            "--finetune_option=--gin.TASK_FEATURE_LENGTHS={'inputs': 80, 'targets': 32}",
            "--finetune_option=--gin.TRAIN_STEPS=3",
            f"--finetune_option=--gin.FEATURE_CHECKPOINT='{pretrained}'",
            "--",
            *sizes,
            "--gin.INITIAL_CHECKPOINT_PATH=None",
        ),
        call,
    )
    assert code == 0
    runs = ablation_results.load(tmp_path / "results" / "ablations.json")
    assert [(run["equal"], run["name"]) for run in runs] == [
        (STEPS, FULL),
        (STEPS, "only_pairs"),
        (COMPUTE, "only_pairs"),
    ]
    assert runs[2]["steps"] > runs[1]["steps"] == runs[0]["steps"] == 4
    assert set(runs[0]["pretraining"]) == set(objectives.OBJECTIVES)
    assert set(runs[0]["pretraining"]) - set(runs[1]["pretraining"]) == set(
        runs[1]["objectives_left_out"]
    )
    for run in runs:
        assert {"asked_noun", "fid", "token_accuracy"} == run["downstream"]["text_to_image"].keys()
        assert run["downstream"]["masked_words"].keys() == {"word_accuracy"}
