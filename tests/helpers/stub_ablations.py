"""Stands in for training and evaluation in the ablations; as a program it runs the whole command.

python stub_ablations.py LOG ARGUMENT ...        LOG gets a line for each command
"""

import json
import pathlib
import sys
import time
import zlib

COMMIT = "0123456789ab"
SLEEP = 0.02
TEXT_FLOPS, OTHER_FLOPS = 1.0e6, 4.0e6


class Stub:
    """Writes what training and evaluation would: numbers that follow from the run's name."""

    def __init__(self, fail=(), stop_at=None, log=None):
        self.calls = []
        self._fail = fail
        self._stop_at = stop_at
        self._log = log

    def __call__(self, command):
        self.calls.append(list(command))
        if self._log is not None:
            with self._log.open("a") as file:
                file.write(" ".join(command[:2]) + "\n")
            time.sleep(SLEEP)
        stops = len(self.calls) == self._stop_at
        if stops and len(self.calls) % 2:
            raise KeyboardInterrupt  # before anything of it is there
        code = self._run(command)
        if stops:
            raise KeyboardInterrupt  # when all of it is there, and nobody knows
        return code

    def _run(self, command):
        if "ofa_jax.train" not in command and "ofa_jax.evaluate" not in command:
            return self._make_data(command)
        model_dir = _model_dir(command)
        if any(name in str(model_dir) for name in self._fail):
            return 3
        if "ofa_jax.train" in command:
            _train(model_dir, command)
        else:
            _evaluate(model_dir)
        return 0

    def _make_data(self, command):
        options = dict(part.lstrip("-").split("=", 1) for part in command if "=" in part)
        scenes = pathlib.Path(options["data_dir"]) / "scenes"
        if "tools.build_scenes" in command:
            scenes.mkdir(parents=True)
            (scenes / "scenes.json").write_text("{}")
        else:
            (pathlib.Path(options["output"]) / "checkpoints" / "0" / "state").mkdir(parents=True)
        return 0


def _model_dir(command):
    for part in command:
        if part.startswith("--gin.MODEL_DIR="):
            return pathlib.Path(part.split("'")[1])
    return pathlib.Path(command[2].removeprefix("--gin_file=")).parent


def _train(model_dir, command):
    steps = [part.split("=")[1] for part in command if part.startswith("--gin.TRAIN_STEPS=")][-1]
    folder = model_dir / "checkpoints" / steps
    for part in ("state", "run"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    flops = OTHER_FLOPS - TEXT_FLOPS * ("no_text_infilling" in str(model_dir))
    metadata = {"trained_seconds": 60.0, "flops_per_step": flops}
    (folder / "run" / "metadata").write_text(json.dumps(metadata))
    if model_dir.name == "pretraining":
        row = {"loss": 0.5, "unigram_loss": 2.0, "token_accuracy": 0.8, "majority_accuracy": 0.25}
        (model_dir / "validation.json").write_text(json.dumps({"image_captioning": row}))


def _evaluate(model_dir):
    (step,) = (path.name for path in (model_dir / "checkpoints").iterdir())
    equal, name, seed, task = model_dir.parts[-4:]
    value = 0.5 + zlib.crc32(f"{seed}/{task}".encode()) / 2**34
    if name != "full_model":
        value -= 0.1 + zlib.crc32(f"{equal}/{name}/{seed}/{task}".encode()) / 2**38
    metrics = ("accuracy", "cider_d", "noun_f1", "asked_noun", "fid", "word_accuracy", "unknown")
    folder = model_dir / "evaluations" / "test"
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {step: {f"scenes_{task}": dict.fromkeys(metrics, value)}}
    (folder / "metrics.json").write_text(json.dumps(numbers))


if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
    from tools import ablations, report_scenes

    report_scenes.commit = lambda: COMMIT
    ablations._WAIT_SECONDS = 0.05
    sys.exit(ablations.main(sys.argv[2:], Stub(log=pathlib.Path(sys.argv[1]))))
