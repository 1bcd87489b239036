"""docs/new_task.md, followed as a new user would: its code, its two commands."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "new_task.md").read_text()
(CODE,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
INSPECT, TRAIN = re.findall(r"```bash\n(.*?)```", PAGE, re.S)


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_scenes):
    """Runs a command of the page in a folder that has the page's module."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "counting.py").write_text(CODE)

    def run(command, *more):
        words = shlex.split(command.replace("\\\n", " "))
        assert words[:2] == ["PYTHONPATH=.", "python"]
        return subprocess.run(
            [sys.executable, *words[2:], *more],
            cwd=folder,
            capture_output=True,
            text=True,
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join((".", str(ROOT))), "OFA_DATA_DIR": str(small_scenes)},
        )

    run.folder = folder
    return run


def test_it_is_under_thirty_lines():
    assert len([line for line in CODE.splitlines() if line.strip()]) < 30


def test_the_task_can_be_inspected(run):
    done = run(INSPECT, "--sample=20")
    assert done.returncode == 0, done.stderr
    assert "how many objects are a" in done.stdout
    assert "75.0%" in done.stdout and "25.0%" in done.stdout


@pytest.mark.slow
def test_the_task_trains_with_the_command_of_the_page(run):
    # A small model on small images, from no checkpoint: the rest is as it stands.
    done = run(
        TRAIN,
        "--gin.INITIAL_CHECKPOINT_PATH=None",
        "--gin.TRAIN_STEPS=2",
        "--gin.IMAGE_SIZE=64",
        "--gin.BATCH_SIZE=4",
        "--gin.train.settings=@scenes_settings()",
        "--gin.scenes_settings.image_size=64",
        "--gin.scenes_settings.code_image_size=32",
        "--gin.model_config.code_image_size=32",
        "--gin.model_config.width=16",
        "--gin.model_config.num_heads=2",
        "--gin.model_config.encoder_layers=1",
        "--gin.model_config.decoder_layers=1",
        "--gin.model_config.resnet_width=4",
        "--gin.train.validation_examples=4",
        "--gin.train.baseline_examples=8",
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((run.folder / "runs" / "counting" / "validation.json").read_text())
    assert set(results) == {"counting", "image_captioning"}
