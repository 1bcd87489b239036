"""The scaling command: its runs, its fit, and what happens when it is stopped and started again."""

import json
import pathlib
import threading

import numpy as np
import pytest
from command_lint import check_command
from shown_progress import assert_shown, every_line

from ofa_jax.checkpoints import storage
from ofa_jax.utils.locks import directory_lock
from tools import pretrain_encoder, scaling, scaling_fit, scaling_results
from tools.scaling import SIZES, Plan, Unit

PARAMETERS = {"small": 1e5, "medium": 4e5, "large": 1e6}


def loss_of(flops, scenes):
    """Returns a loss that falls as a power of compute, further with more scenes."""
    return 1.0 + 0.5 * 1e-3 * (scenes is not None) + 2.0 * (flops / 1e10) ** -0.3


@pytest.fixture
def call(monkeypatch):
    """Replaces the training; writes what a run leaves behind."""
    calls = []
    metadata = {}

    def run(command):
        calls.append(command)
        if "tools.pretrain_encoder" in command:
            return 0
        flags = dict(part.removeprefix("--gin.").split("=", 1) for part in command[3:])
        if flags.get("FAIL"):
            return 3
        model_dir = pathlib.Path(flags["MODEL_DIR"].strip("'"))
        steps, width = int(flags["TRAIN_STEPS"]), int(flags["model_config.width"])
        scenes = None if flags["NUM_SCENES"] == "None" else int(flags["NUM_SCENES"])
        (model_dir / "checkpoints" / str(steps) / "state").mkdir(parents=True, exist_ok=True)
        flops = 1e8 * (width / 64) ** 2
        rows = {
            step: {
                "visual_grounding": {"loss": loss_of(step * flops, scenes) + 0.1},
                "image_captioning": {"loss": loss_of(step * flops, scenes) - 0.1},
            }
            for step in range(100, steps + 1, 100)
        }
        (model_dir / "validations.json").write_text(json.dumps(rows))
        metadata[str(model_dir)] = {"flops_per_step": flops, "trained_seconds": 90.0}
        return 0

    monkeypatch.setattr(storage, "read_run_metadata", lambda path: metadata[path])
    by_width = {size.width: PARAMETERS[name] for name, size in SIZES.items()}
    monkeypatch.setattr(
        storage,
        "count_parameters",
        lambda path: by_width[SIZES[pathlib.Path(path).parent.name.split("_")[0]].width],
    )
    run.calls = calls
    return run


def arguments(tmp_path, *others):
    folders = (f"--{name}_dir={tmp_path / name}" for name in ("data", "runs", "results"))
    return [*folders, "--steps=1000", *others]


def results_in(tmp_path):
    return json.loads((tmp_path / "results" / "scaling.json").read_text())


def test_one_command_trains_every_size_on_every_data_and_writes_the_page(tmp_path, call, capsys):
    with every_line() as shown:
        assert scaling.main(arguments(tmp_path), call) == 0
    assert_shown(shown, "scaling", "9 runs")
    assert len(call.calls) == 18
    encoders = [command for command in call.calls if "tools.pretrain_encoder" in command]
    trainings = [command for command in call.calls if "ofa_jax.train" in command]
    assert {"--layers=1", "--width=64", "--nouns=10", "--num_scenes=2000"} < set(encoders[0])
    assert {"--gin.NUM_SCENES=2000", "--gin.NOUNS=10"} < set(trainings[0])
    assert "--gin.VALIDATION_PERIOD=100" in trainings[0]
    assert {"--gin.NUM_SCENES=None", "--gin.NOUNS=40"} < set(trainings[-1])
    assert {"--gin.model_config.width=192", "--gin.model_config.num_heads=6"} < set(trainings[-1])
    encoder = tmp_path / "runs" / "large_40xendless_seed0" / "encoder"
    assert f"--output={encoder}" in encoders[-1]
    assert f"--gin.INITIAL_CHECKPOINT_PATH='{encoder}'" in trainings[-1]
    results = results_in(tmp_path)
    assert len(results["runs"]) == 9 and "tools.scaling" in results["command"]
    last = results["runs"][-1]
    assert (last["size"], last["nouns"], last["scenes"], last["seed"]) == ("large", 40, None, 0)
    assert last["minutes"] == 1.5 and last["steps"] == 1000 and last["parameters"] == 1e6
    assert last["curve"][-1] == {
        "step": 1000,
        "flops": 9e11,
        "loss": pytest.approx(loss_of(9e11, None)),
        "losses": {
            "visual_grounding": pytest.approx(loss_of(9e11, None) + 0.1),
            "image_captioning": pytest.approx(loss_of(9e11, None) - 0.1),
        },
    }
    page = capsys.readouterr().out
    assert (tmp_path / "results" / "scaling.md").read_text().strip() == page.strip()
    assert "| data | small (0.10 M parameters) | medium (0.40 M parameters) |" in page
    assert "| 40xendless | " in page and "0.300 (0.300 to 0.300)" in page
    drawn = (tmp_path / "results" / "scaling.svg").read_text()
    assert "40xendless: large" in drawn and "20x20000: fit" in drawn


def test_the_commands_name_gin_files_and_options_that_exist(tmp_path, call):
    few = ["--sizes", "large", "--data", "40x50", "--", "--gin.LEARNING_RATE=5e-4"]
    assert scaling.main(arguments(tmp_path, *few), call) == 0
    encoder, training = call.calls
    options = pretrain_encoder._parse(encoder[2:])
    assert (options.layers, options.width, options.nouns, options.num_scenes) == (3, 192, 40, 50)
    check_command(training)


def test_a_second_call_repeats_nothing_and_more_seeds_are_added(tmp_path, call):
    few = ["--sizes", "small", "medium", "--data", "40x50"]
    assert scaling.main(arguments(tmp_path, *few), call) == 0
    first, calls = results_in(tmp_path), len(call.calls)
    assert scaling.main(arguments(tmp_path, *few), call) == 0
    again = results_in(tmp_path)
    assert len(call.calls) == calls and again["runs"] == first["runs"]
    assert scaling.main(arguments(tmp_path, *few, "--seeds", "0", "1"), call) == 0
    assert len(call.calls) == 2 * calls
    runs = results_in(tmp_path)["runs"]
    assert [(run["size"], run["seed"]) for run in runs] == [
        ("small", 0),
        ("small", 1),
        ("medium", 0),
        ("medium", 1),
    ]
    page = (tmp_path / "results" / "scaling.md").read_text()
    assert " ± 0.000 |" in page


def test_a_failed_run_ends_the_command_and_the_next_call_goes_on(tmp_path, call, capsys):
    few = ["--sizes", "small", "medium", "--data", "40x50"]

    def killed(command):
        return 3 if any("medium" in part for part in command) else call(command)

    assert scaling.main(arguments(tmp_path, *few), killed) == 3
    assert "Run this again to continue" in capsys.readouterr().err
    assert [run["size"] for run in results_in(tmp_path)["runs"]] == ["small"]
    calls = len(call.calls)
    assert scaling.main(arguments(tmp_path, *few), call) == 0
    assert len(call.calls) == calls + 2
    stopped = results_in(tmp_path)
    whole = tmp_path / "whole"
    assert scaling.main(arguments(whole, *few), call) == 0
    assert results_in(whole)["runs"] == stopped["runs"]


def test_a_run_of_another_process_is_waited_for_and_not_made_twice(tmp_path, call, monkeypatch):
    monkeypatch.setattr(scaling, "_WAIT", 0.05)
    plan = Plan(tmp_path / "data", tmp_path / "runs", 1000, 450)
    unit = Unit("small", 40, 50, 0)
    (tmp_path / "runs" / unit.name).mkdir(parents=True)
    entered, leave = threading.Event(), threading.Event()

    def other_process():
        with directory_lock(tmp_path / "runs" / unit.name, "--runs_dir"):
            entered.set()
            leave.wait(10)
            for command in unit.commands(plan):
                call(command)
            unit.finish(plan)

    other = threading.Thread(target=other_process)
    other.start()
    entered.wait(10)
    made = []

    def own(command):
        made.append(command)
        leave.set()
        return call(command)

    few = ["--sizes", "small", "medium", "--data", "40x50"]
    assert scaling.main(arguments(tmp_path, *few), own) == 0
    other.join()
    assert len(made) == 2 and all("small_" not in part for command in made for part in command)
    assert len(results_in(tmp_path)["runs"]) == 2


@pytest.mark.parametrize(
    ("others", "problem"),
    [
        (["--data", "40"], "no data size: give NOUNSxSCENES"),
        (["--data", "0x50"], "no data size"),
        (["--data", "40x0"], "no data size"),
        (["--steps=0"], "must be at least 1"),
        (["--sizes", "huge"], "choose from"),
    ],
)
def test_wrong_options_are_refused_by_a_sentence(tmp_path, call, capsys, others, problem):
    try:
        assert scaling.main(arguments(tmp_path, *others), call) == 2
    except SystemExit as ended:
        assert ended.code == 2
    assert problem in capsys.readouterr().err and not call.calls


def test_runs_with_other_options_and_damaged_files_are_refused(tmp_path, call, capsys):
    few = ["--sizes", "small", "--data", "40x50"]
    assert scaling.main(arguments(tmp_path, *few), call) == 0
    assert scaling.main(arguments(tmp_path, *few, "--", "--gin.LEARNING_RATE=1"), call) == 2
    assert "steps=1000, encoder_steps=450, not steps=1000" in capsys.readouterr().err
    (tmp_path / "results" / "scaling.json").write_text('{"runs": [{}]}')
    assert scaling.main(arguments(tmp_path, *few), call) == 2
    assert "does not have results of scaling" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------- the fit


def test_the_fit_recovers_a_power_law():
    compute = np.geomspace(1e10, 1e13, 12)
    for floor, alpha in ((1.0, 0.3), (0.0, 0.1), (2.0, 1.0)):
        losses = floor + 3.0 * (compute / 1e11) ** -alpha
        found = scaling_fit.fit(list(zip(compute, losses, strict=True)))
        assert found.best.alpha == pytest.approx(alpha, rel=0.03)
        assert found.best.floor == pytest.approx(floor, abs=0.05)
        np.testing.assert_allclose(found.best(compute), losses, rtol=0.01)
        value, low, high = found.predict(1e14)
        assert low <= value <= high
        assert value == pytest.approx(floor + 3.0 * 1000**-alpha, abs=0.05)


def test_the_interval_has_the_truth_and_widens_with_noise():
    compute = np.geomspace(1e10, 1e13, 15)
    truth = 1.0 + 2.0 * (compute / 1e11) ** -0.3
    widths = []
    for noise in (0.002, 0.05):
        covered = 0
        for seed in range(12):
            losses = truth + np.random.default_rng(seed).normal(0, noise, len(compute))
            found = scaling_fit.fit(list(zip(compute, losses, strict=True)), seed)
            low, high = found.interval("alpha")
            covered += low <= 0.3 <= high
        assert covered >= 9
        widths.append(high - low)
    assert widths[1] > 3 * widths[0]


def test_the_frontier_is_the_best_loss_so_far():
    points = [(1, 5.0), (2, 4.0), (2, 3.5), (3, 4.5), (4, 3.0), (5, 3.0)]
    assert scaling_fit.frontier(points) == [(1, 5.0), (2, 3.5), (4, 3.0)]
    assert scaling_fit.fit([(1, 2.0), (2, 1.0), (3, 0.5)]) is None


def test_a_curve_leaves_out_what_is_not_finite():
    validations = {
        "20": {"a": {"loss": 2.0}, "b": {"loss": None}},
        "10": {"a": {"loss": 3.0}, "b": {"loss": 1.0}},
    }
    points = scaling.curve(validations, 5.0)
    assert [(p["step"], p["flops"], p["loss"]) for p in points] == [
        (10, 50.0, 2.0),
        (20, 100.0, 2.0),
    ]
    for data in ((40, None), (10, 2000)):
        assert scaling._data_size(scaling_results.data_name(data)) == data
