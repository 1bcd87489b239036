"""The ablations' gin files: the objectives that they omit, and how many examples the others have.

test_ablations_command.py has the command that runs them.
"""

import copy
import pathlib

import gin
import pytest
from test_train import SMALL

from ofa_jax import train
from ofa_jax.cli import gin_registry
from ofa_jax.model.named_config import model_config
from ofa_jax.preprocessing import objectives
from ofa_jax.training import loop
from ofa_jax.training.build import build_run
from tasks import pretraining
from tools import ablation_results, ablation_runs

LEFT_OUT = {
    "full_model": set(),
    "no_text_infilling": {"text_infilling"},
    "no_image_infilling": {"image_infilling"},
    "no_detection": {"object_detection"},
    "no_regions": {"visual_grounding", "grounded_captioning"},
    "no_region_aware": {"visual_grounding", "grounded_captioning", "object_detection"},
    "only_pairs": {
        "visual_grounding",
        "grounded_captioning",
        "object_detection",
        "image_infilling",
        "text_infilling",
    },
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
                    "--gin.INITIAL_CHECKPOINT_PATH=None",
                    f"--gin.MODEL_DIR='{tmp_path_factory.mktemp(name)}'",
                ]
            )
            (runs[name],) = found
        gin.clear_config()
    return runs


def test_there_is_a_file_for_every_ablation_and_the_full_model_comes_first():
    assert set(ablation_runs.configurations()) == set(LEFT_OUT)
    assert {path.stem for path in ablation_runs.FOLDER.glob("*.gin")} == set(LEFT_OUT)
    assert {name: set(left) for name, left in ablation_results.LEFT_OUT.items()} == LEFT_OUT
    assert ablation_runs.configurations()[0] == "full_model"
    assert ablation_runs.configurations(["only_pairs"]) == ["full_model", "only_pairs"]
    with pytest.raises(ValueError, match="no ablation no_captions .* choose from full_model, no_"):
        ablation_runs.configurations(["no_captions"])


@pytest.mark.parametrize("name", LEFT_OUT)
def test_an_ablation_omits_the_objective_of_its_name_and_empty_streams(prepared, name):
    rates = prepared[name].run_fingerprint["rates"]
    trained = {task for rates_of_stream in rates.values() for task in rates_of_stream}
    assert trained == set(objectives.OBJECTIVES) - LEFT_OUT[name]
    assert all(rates.values())
    assert ("text" in rates) == (name not in ("no_text_infilling", "only_pairs"))
    assert ("images" in rates) == (name != "only_pairs")


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
