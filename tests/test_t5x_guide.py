"""The commands of docs/guides/t5x.md, as a reader runs them, with a small model; see `test_t5x`."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from ofa_jax import convert
from ofa_jax.checkpoints import storage, t5x_files
from ofa_jax.inference import loading

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "guides" / "t5x.md").read_text()
FOLDERS = os.environ.get("T5X_CHECKOUT", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDERS, reason="T5X_CHECKOUT names no checkout of t5x"),
]
SMALL = """
from __gin__ import dynamic_registration
from ofa_jax import model as ofa_model

BATCH_SIZE = 8
TRAIN_STEPS = 2
EVAL_PERIOD = 2
EVAL_STEPS = 1
ofa_model.OFAConfig:
  width = 16
  ffn_width = 32
  num_heads = 2
  encoder_layers = 1
  decoder_layers = 1
  resnet_width = 4
"""


def test_the_commands_of_the_page_run(small_scenes, tmp_path):
    (tmp_path / "small.gin").write_text(SMALL)
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```$", PAGE, re.S | re.M)
    (grouped,) = [text for text in blocks if "import" in text and "grouped_mixture" in text]
    (tmp_path / "grouped.gin").write_text(grouped)
    commands = [
        shlex.split(command)
        for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S)
        for command in block.replace("\\\n", " ").splitlines()
        if command.startswith("python -m ofa_jax.t5x")
    ]
    assert [words[3] for words in commands] == ["train", "eval", "infer", "train"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(ROOT), FOLDERS)),
        "OFA_DATA_DIR": str(small_scenes),
    }
    for words in commands:
        words = [
            word.replace("'runs/", f"'{tmp_path}/")
            .replace("checkpoint_1000", "checkpoint_2")
            .replace("='evaluation'", f"='{tmp_path}/evaluation'")
            .replace("='predictions'", f"='{tmp_path}/predictions'")
            .replace("=grouped.gin", f"={tmp_path}/grouped.gin")
            for word in words[1:]
        ]
        place = words.index(next(word for word in words if word.endswith("model.gin")))
        words.insert(place + 1, f"--gin_file={tmp_path}/small.gin")
        if words[2] == "train":
            words += [f"--gin.{name}=2" for name in ("TRAIN_STEPS", "EVAL_PERIOD")]
            words += ["--gin.BATCH_SIZE=8", "--gin.EVAL_STEPS=1"]
        done = subprocess.run(
            [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-5_000:]
    assert list((tmp_path / "evaluation").rglob("*.jsonl"))
    assert list((tmp_path / "predictions").rglob("*.jsonl*"))
    # t5x saves at the end, whatever its period; ours reads it, with the vocabulary beside it.
    convert.main([str(tmp_path / "t5x_pretraining"), str(tmp_path / "run")])
    assert list(storage.list_checkpoints(tmp_path / "run")) == [2]
    assert loading.load_processor(str(tmp_path / "run")).vocabulary.vocab_size > 800
    assert t5x_files.find(tmp_path / "t5x").name == "checkpoint_2"
