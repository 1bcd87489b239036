"""Scaling and zero-shot for real: a small model is trained, fine-tuned and evaluated."""

import json
import pathlib

import gin
import pytest
import small_flags

from ofa_jax import evaluate, train
from tools import scaling, zero_shot

SIZES = [flag for flag in small_flags.SCENES if "code_targets" not in flag]


def call(command):
    """Runs a command in this process; the encoder, which is of another size, is left out."""
    if command[1] == "tools.pretrain_encoder":
        return 0
    gin.clear_config()
    try:
        {"ofa_jax.train": train.main, "ofa_jax.evaluate": evaluate.main}[command[1]](command[2:])
    finally:
        gin.clear_config()
    return 0


@pytest.mark.slow
def test_a_small_model_is_measured_from_beginning_to_end(small_scenes, tmp_path, monkeypatch):
    monkeypatch.chdir(pathlib.Path(__file__).parents[2])
    monkeypatch.setenv("OFA_DATA_DIR", str(small_scenes))
    folders = [f"--runs_dir={tmp_path / 'runs'}", f"--results_dir={tmp_path / 'results'}"]
    code = scaling.main(
        [
            f"--data_dir={small_scenes}",
            *folders,
            "--sizes",
            "small",
            "--data",
            "12x40",
            "40xendless",
            "--steps=10",
            "--",
            *SIZES,
            "--gin.INITIAL_CHECKPOINT_PATH=None",
            "--gin.train.validation_examples=4",
            "--gin.train.baseline_examples=8",
            "--gin.scenes_settings.prompts=@several_wordings()",
        ],
        call,
    )
    assert code == 0
    results = json.loads((tmp_path / "results" / "scaling.json").read_text())
    for run in results["runs"]:
        assert (
            run["steps"] == 10 and len(run["curve"]) == 10 and len(run["curve"][0]["losses"]) == 8
        )
    model_dir = tmp_path / "runs" / "small_40xendless_seed0" / "run"
    code = zero_shot.main(
        [
            f"--model_dir={model_dir}",
            *folders,
            "--split=validation",
            "--num_examples=4",
            "--examples=10",
            "--",
            "--gin.TRAIN_STEPS=2",
            "--gin.unseen/Stream.batch_size=4",
        ],
        call,
    )
    assert code == 0
    results = json.loads((tmp_path / "results" / "zero_shot.json").read_text())
    for name in zero_shot.TASKS:
        task = results["tasks"][name]
        assert task["count"] <= 4 and 0 <= task["majority"] <= 1
        assert 0 <= task["zero_shot"]["model"] <= 1
        assert task["fine_tuned"]["model"].keys() == {"0"}
    rows = results["wordings"]["model"]
    assert len(rows) == len(zero_shot.NUMBERS)
    assert all(None not in row.values() for row in rows.values())
