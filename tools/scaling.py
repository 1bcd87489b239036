r"""Measures loss against compute for three sizes of the model and three of the data.

    python -m tools.scaling --data_dir=data
    python -m tools.scaling --sizes small large --data 10x2000 40xendless --seeds 0 1 2 \
        -- --gin.LEARNING_RATE=5e-4

A data size is NOUNSxSCENES: training scenes are composed on demand (`StreamedScenes`), so that
nothing but the vocabulary is built, and every run is validated on the same held-out scenes. Each
run trains an encoder (`tools.pretrain_encoder`) on its data and then all objectives, for the same
number of steps. Fits a power law with its uncertainty, and writes results/scaling.json, .md and
.svg after every run. A second call continues from the checkpoints; runs that are finished are not
repeated, and any number of these commands may run at once.
"""

import argparse
import dataclasses
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from ofa_jax.checkpoints import storage
from ofa_jax.training.run import FLOPS_PER_STEP, TRAINED_SECONDS
from ofa_jax.utils import files, progress, text_files
from ofa_jax.utils.locks import LockedError, directory_lock, waiting_lock

from . import output_folders, report_scenes, scaling_results, scenes_results
from .command import user_command

Call = Callable[[Sequence[str]], int]
_WAIT = 5.0
"""Seconds between two looks at runs that other processes make."""


@dataclasses.dataclass(frozen=True)
class Size:
    """A size of the model: layers of encoder and of decoder, and their width."""

    layers: int
    width: int


SIZES = {"small": Size(1, 64), "medium": Size(2, 128), "large": Size(3, 192)}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What all runs have in common.

    Attributes:
      data_dir: with the built scenes.
      runs_dir: where the run directories go.
      steps: of each run.
      encoder_steps: of the encoder that it begins with.
      gin_options: further options of the training.
    """

    data_dir: pathlib.Path
    runs_dir: pathlib.Path
    steps: int
    encoder_steps: int
    gin_options: tuple[str, ...] = ()

    @property
    def options(self) -> list[str]:
        """What must be the same for all runs that are compared."""
        steps = [f"steps={self.steps}", f"encoder_steps={self.encoder_steps}"]
        return [*steps, *self.gin_options]


@dataclasses.dataclass(frozen=True)
class Unit:
    """One run.

    Attributes:
      size: a key of SIZES.
      nouns: of its training scenes.
      scenes: how many there are; None for an endless stream.
      seed: of the run and its encoder.
    """

    size: str
    nouns: int
    scenes: int | None
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        data = scaling_results.data_name((self.nouns, self.scenes))
        return f"{self.size}_{data}_seed{self.seed}"

    def commands(self, plan: Plan) -> list[list[str]]:
        """Returns the commands that train it, without the interpreter."""
        folder, size = plan.runs_dir / self.name, SIZES[self.size]
        encoder = [
            "-m",
            "tools.pretrain_encoder",
            f"--data_dir={plan.data_dir}",
            f"--output={folder / 'encoder'}",
            f"--layers={size.layers}",
            f"--width={size.width}",
            f"--nouns={self.nouns}",
            f"--list_steps={plan.encoder_steps}",
            f"--seed={self.seed}",
        ]
        if self.scenes is not None:
            encoder.append(f"--num_scenes={self.scenes}")
        train = [
            "-m",
            "ofa_jax.train",
            "--gin_file=gin_configs/runs/scaling.gin",
            f"--gin.MODEL_DIR='{folder / 'run'}'",
            f"--gin.INITIAL_CHECKPOINT_PATH='{folder / 'encoder'}'",
            f"--gin.StreamedScenes.data_dir='{plan.data_dir}'",
            f"--gin.NUM_SCENES={self.scenes}",
            f"--gin.NOUNS={self.nouns}",
            f"--gin.SEED={self.seed}",
            f"--gin.TRAIN_STEPS={plan.steps}",
            f"--gin.VALIDATION_PERIOD={max(1, plan.steps // 10)}",
            f"--gin.model_config.encoder_layers={size.layers}",
            f"--gin.model_config.decoder_layers={size.layers}",
            f"--gin.model_config.width={size.width}",
            f"--gin.model_config.ffn_width={4 * size.width}",
            f"--gin.model_config.num_heads={size.width // 32}",
            *plan.gin_options,
        ]
        return [encoder, train]

    def record_path(self, plan: Plan) -> pathlib.Path:
        """Returns the file that appears when the run is finished."""
        return plan.runs_dir / f"{self.name}.json"

    def record(self, plan: Plan) -> dict[str, Any] | None:
        """Returns what the results say about the finished run; None before.

        Raises:
          ValueError: it was made with other options.
        """
        path = self.record_path(plan)
        if not path.exists():
            return None
        value = text_files.read_json(path)
        if not isinstance(value, dict) or "options" not in value:
            raise text_files.DamagedFileError(f"{path} is damaged: delete it and run this again.")
        _check_options(path, value.pop("options"), plan)
        return value

    def finish(self, plan: Plan) -> None:
        """Writes the record of a trained run.

        Raises:
          ValueError: it has no checkpoint or no validation.
        """
        model_dir = plan.runs_dir / self.name / "run"
        steps = storage.list_checkpoints(str(model_dir))
        validations = model_dir / "validations.json"
        if not steps or not validations.exists():
            raise ValueError(f"{model_dir} has no checkpoint or no validation: delete it.")
        metadata = storage.read_run_metadata(str(model_dir))
        flops, seconds = float(metadata[FLOPS_PER_STEP]), metadata.get(TRAINED_SECONDS)
        record = {
            **dataclasses.asdict(self),
            "parameters": storage.count_parameters(str(model_dir)),
            "flops_per_step": flops,
            "steps": max(steps),
            "minutes": None if seconds is None else seconds / 60,
            "commit": report_scenes.commit(),
            "curve": curve(text_files.read_json(validations), flops),
            "options": plan.options,
        }
        files.write_json(self.record_path(plan), record)


def curve(validations: Any, flops_per_step: float) -> list[dict[str, Any]]:
    """Returns the losses of a run after some compute.

    Args:
      validations: the content of a run's `validations.json`.
      flops_per_step: the operations of a step.
    """
    points = []
    for step in sorted(map(int, validations)):
        losses = {
            task: row["loss"]
            for task, row in validations[str(step)].items()
            if isinstance(row.get("loss"), float)
        }
        if losses:
            points.append(
                {
                    "step": step,
                    "flops": step * flops_per_step,
                    "loss": sum(losses.values()) / len(losses),
                    "losses": losses,
                }
            )
    return points


def _check_options(where: pathlib.Path, found: Sequence[str], plan: Plan) -> None:
    """Raises ValueError if runs were made with other options than the plan's."""
    if list(found) != plan.options:
        raise ValueError(
            f"{where} was made with the options {', '.join(found)}, not {', '.join(plan.options)}: "
            "give the same ones, or another --runs_dir and --results_dir."
        )


def _data_size(text: str) -> scaling_results.Data:
    """Parses NOUNSxSCENES."""
    found = re.fullmatch(r"(\d+)x(\d+|endless)", text)
    if not found or "0" in (found[1].lstrip("0") or "0", found[2].lstrip("0") or "0"):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no data size: give NOUNSxSCENES, e.g. 40x2000 or 40xendless"
        )
    return int(found[1]), None if found[2] == "endless" else int(found[2])


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data_dir", type=pathlib.Path, default=os.environ.get("OFA_DATA_DIR") or "data"
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument(
        "--data",
        nargs="+",
        type=_data_size,
        default=[(10, 2_000), (20, 20_000), (40, None)],
        metavar="NOUNSxSCENES",
        help="data sizes (default: 10x2000 20x20000 40xendless)",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=1500, help="of each run")
    parser.add_argument("--encoder_steps", type=int, default=450, help="of each encoder")
    parser.add_argument("--runs_dir", type=pathlib.Path, default="runs/scaling")
    parser.add_argument("--results_dir", type=pathlib.Path, default="results")
    parser.add_argument(
        "options", nargs="*", metavar="--gin.NAME=value", help="after --: options of the training"
    )
    options = parser.parse_args(arguments)
    if options.steps < 1 or options.encoder_steps < 1:
        raise ValueError("--steps and --encoder_steps must be at least 1.")
    return options


@user_command
def main(arguments: Sequence[str], call: Call = report_scenes.call_python) -> int:
    """Runs the command line; returns the exit code."""
    options = _parse(arguments)
    plan = Plan(
        options.data_dir,
        options.runs_dir,
        options.steps,
        options.encoder_steps,
        tuple(options.options),
    )
    output_folders.create(options.results_dir, "--results_dir")
    output_folders.create(options.runs_dir, "--runs_dir")
    units = [
        Unit(size, nouns, scenes, seed)
        for seed in dict.fromkeys(options.seeds)
        for nouns, scenes in dict.fromkeys(options.data)
        for size in dict.fromkeys(options.sizes)
    ]
    command = scenes_results.as_typed(["python", "-m", "tools.scaling", *arguments])
    runner = Runner(plan, units, options.results_dir, command, call)
    runner.check()  # raises before the training
    with progress.stage("scaling", len(units), "runs", has_terminal=False):
        code = runner.run()
    if code == 0:
        print(scaling_results.page(scaling_results.load(runner.path)))
    return code


class Runner:
    """Makes the runs that are missing, each one while no other process works on it."""

    def __init__(
        self,
        plan: Plan,
        units: Sequence[Unit],
        results_dir: pathlib.Path,
        command: str,
        call: Call,
    ):
        self._plan = plan
        self._units = units
        self._results_dir = results_dir
        self._command = command
        self._call = call
        self.path = results_dir / f"{scaling_results.NAME}.json"

    def check(self) -> None:
        """Raises ValueError if the results are damaged, or made with other options."""
        known = scaling_results.load(self.path)
        if known:
            _check_options(self.path, known["options"], self._plan)
        for unit in self._units:
            unit.record(self._plan)

    def run(self) -> int:
        """Makes all runs; returns 0, or the exit code of the first command that fails."""
        done: set[Unit] = set()
        while len(done) < len(self._units):
            before = len(done)
            for unit in self._units:
                if unit in done:
                    continue
                if unit.record(self._plan) is None and (code := self._make(unit)) != 0:
                    if code is None:
                        continue  # another process makes it
                    return code
                done.add(unit)
                self._publish()
                progress.advance()
            if len(done) == before:
                time.sleep(_WAIT)
        return 0

    def _make(self, unit: Unit) -> int | None:
        """Trains a run; returns the exit code, None if another process works on it."""
        folder = self._plan.runs_dir / unit.name
        folder.mkdir(exist_ok=True)
        try:
            with directory_lock(folder, "--runs_dir"):
                if unit.record(self._plan) is not None:
                    return 0
                for command in unit.commands(self._plan):
                    if (code := self._call(command)) != 0:
                        typed = scenes_results.as_typed(["python", *command])
                        print(
                            f"error: `{typed}` failed. Run this again to continue from there.",
                            file=sys.stderr,
                        )
                        return code
                unit.finish(self._plan)
        except LockedError:
            return None
        return 0

    def _publish(self) -> None:
        """Adds what has finished to the results, which other processes write as well."""
        finished = [record for unit in self._units if (record := unit.record(self._plan))]
        with waiting_lock(self._results_dir, "--results_dir"):
            known = scaling_results.load(self.path)
            runs = scaling_results.merge(known.get("runs", []), finished)
            results = {
                "command": self._command,
                "commit": report_scenes.commit(),
                "options": self._plan.options,
                "runs": runs,
            }
            scaling_results.save(self._results_dir, results)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
