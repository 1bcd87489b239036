"""A run directory and a data set from before the renaming work with today's code.

The run was made by commit 08d1356, see tests/golden/run_08d1356/README.md.
"""

import json
import pathlib
import shutil
import tarfile

import gin
import numpy as np
import pytest
from PIL import Image

import ofa_jax
from ofa_jax import evaluate, train
from ofa_jax.checkpoints import storage
from ofa_jax.utils import renamed

ROOT = pathlib.Path(__file__).parent.parent.parent
RENAMED_IN_CONFIG = {
    "LoopConfig.stuck_seconds": "LoopConfig.watchdog_timeout_secs",
    "OptimizerConfig.trained": "OptimizerConfig.trainable_groups",
    "Partitioner.gather_once": "Partitioner.gather_params_once",
    "'activation_pictures'": "'activation_images'",
    "scenes_settings.picture_size": "scenes_settings.image_size",
    "train.only_answers": "train.restrict_to_candidates",
    "train.schedule": "train.loop",
}


@pytest.fixture(scope="module")
def old_data(small_scenes, tmp_path_factory):
    """Returns the folder of `small_scenes` under the names that commit 08d1356 gave its parts."""
    folder = tmp_path_factory.mktemp("old_data")
    shutil.copytree(small_scenes, folder, dirs_exist_ok=True)
    (folder / "scenes" / "images").rename(folder / "scenes" / "pictures")
    description = json.loads((folder / "scenes" / "scenes.json").read_text())
    old_names = {new: old for old, new in renamed.SCENES.items()}
    for part in ("options", "counts"):
        description[part] = renamed.with_new_names(description[part], old_names)
    assert "pictures" in description["counts"] and "picture_size" in description["options"]
    (folder / "scenes" / "scenes.json").write_text(json.dumps(description))
    return folder


@pytest.fixture
def old_run(golden, tmp_path):
    """Returns a copy of the old run directory."""
    with tarfile.open(golden / "run_08d1356" / "run.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "small"


@pytest.fixture(scope="module")
def expected():
    """Returns the numbers of the commit that made the run."""
    path = ROOT / "tests" / "golden" / "run_08d1356" / "expected.json"
    return json.loads(path.read_text())


@pytest.fixture
def clean_gin(old_data, monkeypatch):
    """Clears the configuration and selects the old data set."""
    monkeypatch.setenv("OFA_DATA_DIR", str(old_data))
    monkeypatch.chdir(ROOT)
    gin.clear_config()
    yield
    gin.clear_config()


def warnings(text):
    return [line for line in text.splitlines() if "is now called" in line]


def test_an_old_run_is_continued_from_its_own_config(clean_gin, old_run, expected, capsys):
    text = (old_run / "config.gin").read_text().splitlines()
    train.main(
        [f"--gin_file={old_run}/config.gin", f"--gin.MODEL_DIR='{old_run}'", "--gin.TRAIN_STEPS=4"]
    )
    output, errors = capsys.readouterr()
    assert "Resuming from step 3 of 4" in output
    assert sorted(storage.list_checkpoints(str(old_run)))[-1] == 4
    losses = json.loads((old_run / "validation.json").read_text())
    assert losses.keys() == expected["validation"].keys()
    for name, row in expected["validation"].items():
        assert losses[name] == pytest.approx(row, rel=1e-3), name
    # Each old name yields one sentence, which gives the new one and the line.
    found = warnings(errors)
    assert len(found) == len(RENAMED_IN_CONFIG)
    for old, new in RENAMED_IN_CONFIG.items():
        line = next(number for number, line in enumerate(text, 1) if old in line)
        sentence = f"{old} is now called {new}: rename it in {old_run}/config.gin, line {line}."
        assert f"warning: {sentence}" in found
    # What it wrote anew has the new names alone.
    config = (old_run / "config.gin").read_text()
    assert not any(old.strip("'") in config for old in RENAMED_IN_CONFIG)
    gin.clear_config()
    train.main([f"--gin_file={old_run}/config.gin"])
    output, errors = capsys.readouterr()
    assert "already complete" in output and not warnings(errors)


def test_an_old_run_is_evaluated_through_its_own_config(clean_gin, old_run, capsys):
    evaluate.main(
        [
            f"--gin_file={old_run}/config.gin",
            "--gin_file=runs/evaluate.gin",
            f"--gin.MODEL_DIR='{old_run}'",
            "--gin.NUM_EXAMPLES=2",
            "--gin.evaluate.tasks='visual_grounding'",
        ]
    )
    results = json.loads((old_run / "evaluations" / "validation" / "metrics.json").read_text())
    assert set(results) == {"3"} and set(results["3"]) == {"visual_grounding"}
    assert len(warnings(capsys.readouterr().err)) == len(RENAMED_IN_CONFIG)


def test_an_old_run_predicts_without_data_or_gin_files(old_run, expected):
    image = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3))
    predictor = ofa_jax.Predictor(old_run, source_lengths=[32], beam_size=2)
    for instruction, row in expected["predictions"].items():
        prediction = predictor.predict(image, instruction)
        assert prediction.text == row["text"]
        if row["boxes"] is not None:
            boxes = np.reshape(row["boxes"], (-1, 4))
            np.testing.assert_allclose(prediction.boxes, boxes, atol=1e-4)
        assert prediction.score == pytest.approx(row["score"], rel=1e-3)
