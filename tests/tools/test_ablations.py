"""The ablations: the objectives that their files omit, and the command that runs them."""

import copy
import json
import pathlib

import gin
import pytest
from shown_progress import assert_shown, every_line
from test_train import SMALL

from ofa_jax import train
from ofa_jax.cli import gin_registry
from ofa_jax.model.named_config import model_config
from ofa_jax.preprocessing import objectives
from ofa_jax.training import loop
from ofa_jax.training.build import build_run
from tasks import pretraining
from tools import ablations, scenes_results

LEFT_OUT = {
    "full_model": set(),
    "no_text_infilling": {"text_infilling"},
    "no_image_infilling": {"image_infilling"},
    "no_detection": {"object_detection"},
    "no_regions": {"visual_grounding", "grounded_captioning"},
}
STAGES = ("1_nouns", "2_matching", "3_questions", "4_regions", "5_all")
STREAMS = ("pairs", "images", "text")
# Batches stay those of the files: they are looked at.
SIZES = [flag for flag in SMALL if "batch_size" not in flag and "TRAIN_STEPS" not in flag]


@pytest.fixture(scope="module")
def prepared(small_scenes, tmp_path_factory):
    """Returns {name: the run that a file configures}."""
    runs = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OFA_DATA_DIR", str(small_scenes))
        patch.chdir(pathlib.Path(__file__).parent.parent.parent)
        patch.setattr(loop, "train", lambda run: found.append(run))
        for name in LEFT_OUT:
            found = []
            gin.clear_config()
            train.main(
                [
                    f"--gin_file=gin_configs/ablations/{name}.gin",
                    *SIZES,
                    "--gin.INITIAL_RESNET_PATH=None",
                    f"--gin.MODEL_DIR='{tmp_path_factory.mktemp(name)}'",
                ]
            )
            (runs[name],) = found
        gin.clear_config()
    return runs


def test_there_is_a_file_for_every_ablation_and_the_full_model_comes_first():
    assert set(ablations.configurations()) == set(LEFT_OUT)
    assert ablations.configurations()[0] == "full_model"
    with pytest.raises(ValueError, match="no ablation no_captions .* choose from full_model, no_"):
        ablations.configurations(["no_captions"])


@pytest.mark.parametrize("name", LEFT_OUT)
def test_an_ablation_omits_the_objective_of_its_name_and_empty_streams(prepared, name):
    rates = prepared[name].run_fingerprint["rates"]
    trained = {task for rates_of_stream in rates.values() for task in rates_of_stream}
    assert trained == set(objectives.OBJECTIVES) - LEFT_OUT[name]
    assert all(rates.values())
    assert ("text" in rates) == (name != "no_text_infilling")


def examples_per_step(run):
    counts = {}
    for stream in run.run_fingerprint["streams"]:
        rates = run.run_fingerprint["rates"][stream["name"]]
        for task, rate in rates.items():
            counts[task] = stream["batch_size"] * rate / sum(rates.values())
    return counts


@pytest.mark.parametrize("name", LEFT_OUT)
def test_with_equal_steps_each_remaining_objective_has_equally_many_examples(prepared, name):
    full, run = prepared["full_model"], prepared[name]
    assert run.config == full.config and run.config.max_minutes is None
    expected = examples_per_step(full)
    assert examples_per_step(run) == pytest.approx(
        {task: expected[task] for task in expected if task not in LEFT_OUT[name]}
    )


@pytest.fixture(scope="module")
def stages():
    """Returns the bindings in the gin files of the full run."""
    found = {}
    for name in STAGES:
        gin.clear_config()
        gin_registry.register({"train": build_run, "model_config": model_config})
        gin.parse_config_file(f"gin_configs/runs/scenes_stage{name}.gin")
        wanted = (
            "LoopConfig.max_minutes",
            "train.model_dir",
            "train.initial_checkpoint_path",
            "scenes_settings.rates",
            "pairs/Stream.batch_size",
            "images/Stream.batch_size",
            *(f"{stream}/Stream.mixture_or_task_name" for stream in STREAMS),
        )
        # Copied, macros become their values.
        found[name] = {key: copy.deepcopy(gin.query_parameter(key)) for key in wanted}
    gin.clear_config()
    return found


def test_the_full_run_ends_within_90_minutes_and_each_stage_continues_from_the_one_before(stages):
    assert sum(bindings["LoopConfig.max_minutes"] for bindings in stages.values()) <= 84
    begins = [stages[name]["train.initial_checkpoint_path"] for name in STAGES]
    assert begins == [None, *(stages[name]["train.model_dir"] for name in STAGES[:-1])]


@pytest.mark.parametrize("name", STAGES)
def test_every_batch_of_the_full_run_has_as_many_of_each_objective(stages, name):
    bindings = stages[name]
    for stream in STREAMS:
        assert bindings[f"{stream}/Stream.mixture_or_task_name"] == f"ofa_pretrain_{stream}"
    rates = bindings["scenes_settings.rates"]
    for stream, own in (("pairs", pretraining.PAIR_RATES), ("images", pretraining.IMAGE_RATES)):
        shares = sum((own | {task: rates[task] for task in own if task in rates}).values())
        assert bindings[f"{stream}/Stream.batch_size"] % shares == 0


def fake(tmp_path, calls, fail=()):
    """Replaces training and evaluation."""

    def call(command):
        calls.append(command)
        (model_dir,) = [
            pathlib.Path(part.split("'")[1]) for part in command if "MODEL_DIR" in part
        ] or [pathlib.Path(command[2].removeprefix("--gin_file=")).parent]
        if model_dir.name in fail:
            return 3
        if "ofa_jax.train" in command:
            (model_dir / "checkpoints" / "40" / "state").mkdir(parents=True, exist_ok=True)
            return 0
        folder = model_dir / "evaluations" / "test"
        folder.mkdir(parents=True, exist_ok=True)
        numbers = {"visual_grounding": {"acc@0.5": 0.5}} if "no_r" not in model_dir.name else {}
        (folder / "metrics.json").write_text(
            json.dumps({"40": numbers | {"image_captioning": {"cider_d": 2.0, "bleu_1": 0.1}}})
        )
        return 0

    return call


def test_one_command_trains_evaluates_and_writes_the_table(tmp_path, capsys):
    calls = []
    arguments = [
        f"--runs_dir={tmp_path / 'runs'}",
        f"--results_dir={tmp_path / 'results'}",
        "--num_examples=5",
        "--only",
        "no_regions",
        "full_model",
        "--",
        "--gin.TRAIN_STEPS=40",
    ]
    scenes_results.save(tmp_path / "results", {"missing": ["kept"]})
    with every_line() as shown:
        assert ablations.main(arguments, fake(tmp_path, calls)) == 0
    assert_shown(shown, "ablations", "2 runs")
    assert [(command[1], "full_model" in command[2]) for command in calls] == [
        ("ofa_jax.train", True),
        ("ofa_jax.evaluate", True),
        ("ofa_jax.train", False),
        ("ofa_jax.evaluate", False),
    ]
    assert "--gin.TRAIN_STEPS=40" in calls[0] and "--gin.TRAIN_STEPS=40" not in calls[1]
    assert "--gin.NUM_EXAMPLES=5" in calls[1]
    results = scenes_results.load(tmp_path / "results" / "scenes.json")
    assert results["missing"] == ["kept"]
    assert [run["numbers"] for run in results["ablations"]["runs"]] == [
        {"image_captioning/cider_d": 2.0, "visual_grounding/acc@0.5": 0.5},
        {"image_captioning/cider_d": 2.0},
    ]
    assert "| visual grounding: acc@0.5 | 50.0 % | - |" in capsys.readouterr().out


def test_a_failed_run_ends_the_command_and_keeps_the_table_so_far(tmp_path, capsys):
    arguments = [f"--runs_dir={tmp_path / 'runs'}", f"--results_dir={tmp_path / 'results'}"]
    assert ablations.main(arguments, fake(tmp_path, [], fail=("no_detection",))) == 3
    assert "no_detection" in capsys.readouterr().err
    results = scenes_results.load(tmp_path / "results" / "scenes.json")
    assert [run["name"] for run in results["ablations"]["runs"]] == ["full_model"]
