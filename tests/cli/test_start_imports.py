"""What a run has loaded when it takes its first step: nothing that it does not need."""

import os
import pathlib
import subprocess
import sys

import small_flags

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOT_NEEDED = {
    *("tensorflow", "tensorflow_text", "tensorflow_datasets", "seqio", "keras", "clu", "torch"),
    *("pandas", "sklearn", "scipy", "matplotlib", "plotly", "jinja2", "tensorboard"),
}

# Everything before the first step, and its batches, as `ofa_jax.train` has it.
BUILD = """
import sys
from absl import logging
from rich.console import Console
from ofa_jax.checkpoints.resume import ResumePoint
from ofa_jax.cli import train_command
from ofa_jax.training import loop
from ofa_jax.training.preemption import Preemption
from ofa_jax.training.terminal import Progress
from ofa_jax.training.watchdog import Watchdog
from absl import flags
flags.FLAGS(["train"])
run = train_command._build("", sys.argv[1:])
train_command._describe(run)
with Progress(run.console) as progress, Preemption() as preemption, Watchdog(None) as watchdog:
    trainer = loop.Trainer(run, ResumePoint(), progress, preemption, watchdog)
    with trainer.closing():
        batches = next(run.batches(0))
print(*batches, *run.task_names)
print(*sys.modules, sep=",")
"""


def loaded_by(program, *arguments, cwd=ROOT, **given):
    """Runs a program; returns its lines, and the modules that its last line names."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **given},
    )
    assert done.returncode == 0, done.stderr
    *lines, modules = done.stdout.splitlines()
    return lines, set(modules.split(","))


def test_a_scenes_run_builds_loader_and_trainer_without_tensorflow(small_scenes, tmp_path):
    lines, loaded = loaded_by(
        BUILD,
        "--gin_file=gin_configs/runs/scenes_first_run.gin",
        "--gin.INITIAL_CHECKPOINT_PATH=None",
        f"--gin.MODEL_DIR='{tmp_path / 'run'}'",
        *small_flags.SCENES,
        OFA_DATA_DIR=str(small_scenes),
    )
    names = lines[-1].split()
    assert names[:3] == ["pairs", "images", "text"] and len(names) == 3 + 8
    assert "ofa_jax.training.loop" in loaded
    assert not sorted(NOT_NEEDED & loaded)


COMMANDS = """
import sys
from ofa_jax.cli import evaluate_command, infer_command
import tasks.captioning, tasks.classification, tasks.entailment, tasks.glue, tasks.grounding
import tasks.image_generation, tasks.pretraining, tasks.reworded, tasks.scenes_downstream
import tasks.scenes_negative_controls, tasks.scenes_unseen, tasks.summarization, tasks.vqa
print(*sys.modules, sep=",")
"""


def test_evaluation_inference_and_all_tasks_are_imported_without_tensorflow():
    _, loaded = loaded_by(COMMANDS)
    assert {"ofa_jax.evaluation.build", "ofa_jax.inference.build", "tasks.vqa"} <= loaded
    assert not sorted(NOT_NEEDED & loaded)
