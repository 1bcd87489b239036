"""Repeats the paper's ablation on Scenes: what each pretraining objective is worth downstream.

    python -m tools.ablations                                  # 3 seeds; hours, see docs/claims.md
    python -m tools.ablations --processes=2                    # two side by side, a core for each
    python -m tools.ablations --preset=quick --seeds 0 --runs_dir=runs/q --results_dir=runs/q
    python -m tools.ablations --only no_regions --tasks vqa -- --gin.TRAIN_STEPS=6000

Pretrains with all objectives and without some (gin_configs/ablations), fine-tunes each on every
downstream task (gin_configs/finetune_scenes), evaluates by generation, and writes
results/ablations.json, .md and .svg, and the table of docs/claims.md, after each of these runs. A
second table gives what an objective costs to the others: equal compute in place of equal steps.

It may be killed at any point: a second call continues from the checkpoints and repeats nothing. Any
number of these commands may run at once, also on several hosts with a common folder: each takes a
run that no other one works on.
"""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ofa_jax.checkpoints import storage
from ofa_jax.training.run import FLOPS_PER_STEP, TRAINED_SECONDS
from ofa_jax.utils import progress, text_files
from ofa_jax.utils.locks import LockedError, directory_lock, waiting_lock

from . import (
    ablation_pages,
    ablation_results,
    ablation_runs,
    output_folders,
    report_scenes,
    result_files,
    scenes_results,
)
from .ablation_results import COMPUTE, FULL, LEFT_OUT, METRICS, STEPS
from .ablation_runs import PRESETS, PRETRAINING, ROOT, Plan, Unit
from .command import user_command

CLAIMS_PAGE = ROOT / "docs" / "claims.md"
_WAIT_SECONDS = 10.0
Call = Callable[[Sequence[str]], int]


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.ablations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    path = pathlib.Path
    add = parser.add_argument
    add("--only", nargs="+", default=[], help=f"of {', '.join(LEFT_OUT)}; the full model always")
    add("--tasks", nargs="+", choices=tuple(METRICS), default=tuple(METRICS))
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    equal = "the tables; that of equal compute needs the runs of the other one"
    add("--equal", nargs="+", choices=(STEPS, COMPUTE), default=(STEPS, COMPUTE), help=equal)
    add("--preset", choices=tuple(PRESETS), default="small", help="how long all is trained")
    add("--num_examples", type=int, default=None, help="of each evaluation; as the preset if None")
    add("--split", default="test")
    add("--processes", type=int, default=1, help="runs at once, each on its share of the cores")
    add("--data_dir", type=path, default=path(os.environ.get("OFA_DATA_DIR") or "data"))
    add("--runs_dir", type=path, default=path("runs/ablations"))
    add("--results_dir", type=path, default=path("results"))
    add("--finetune_option", action="append", default=[], metavar="--gin.NAME=value")
    add("--keep_checkpoints", action="store_true", help="also those of the fine-tuned models")
    add(
        "options",
        nargs="*",
        metavar="--gin.NAME=value",
        help="after --: options of the pretraining runs",
    )
    options = parser.parse_args(arguments)
    for name in ("processes", "num_examples"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, not {value}.")
    if any(seed < 0 for seed in options.seeds):
        raise ValueError("--seeds must not be negative.")
    return options


def _plan_of(options: argparse.Namespace) -> Plan:
    """Returns what the options ask for."""
    preset = PRESETS[options.preset]
    if options.num_examples is not None:
        preset = dataclasses.replace(preset, num_examples=options.num_examples)
    return Plan(
        options.runs_dir,
        options.data_dir,
        preset,
        tuple(options.options),
        tuple(options.finetune_option),
        options.split,
    )


@user_command
def main(arguments: Sequence[str], call: Call = report_scenes.call_python) -> int:
    """Runs the command line; returns the exit code."""
    options = _parse(arguments)
    plan, names = _plan_of(options), ablation_runs.configurations(options.only)
    for folder, option in ((options.results_dir, "--results_dir"), (plan.runs_dir, "--runs_dir")):
        output_folders.create(folder, option)
    results = Results(plan, options.results_dir, _as_typed(arguments))
    results.check()  # raises before the training
    units = [
        *ablation_runs.units(
            names, sorted(set(options.seeds)), _in_order(options.tasks), options.equal
        )
    ]
    if options.processes > 1:
        code = _start_processes(arguments, options.processes)
    else:
        runner = Runner(plan, units, results, call, options.keep_checkpoints)
        with progress.stage("ablations", len(units), "runs", has_terminal=False):
            code = runner.run()
    if code == 0:
        print(ablation_pages.claims_table(results.load()))
    return code


def _in_order(tasks: Sequence[str]) -> list[str]:
    return [task for task in METRICS if task in tasks]


def _as_typed(arguments: Sequence[str]) -> str:
    """Returns the command without how many processes it has, which no result depends on."""
    kept = [part for part in arguments if not part.startswith("--processes=")]
    return scenes_results.as_typed(["python", "-m", "tools.ablations", *kept])


def _start_processes(arguments: Sequence[str], count: int) -> int:
    """Runs the command in several processes, each on its share of the cores."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    # The last value of an option counts.
    where = list(arguments).index("--") if "--" in arguments else len(arguments)
    own = [*arguments[:where], "--processes=1", *arguments[where:]]
    command, processes = [sys.executable, "-m", "tools.ablations", *own], []
    try:
        for number in range(count):
            processes.append(subprocess.Popen(command))
            if len(cores) >= count:
                os.sched_setaffinity(processes[-1].pid, cores[number::count])
        return max(process.wait() for process in processes)
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
                process.wait()


# ---------------------------------------------------------------------------------- results


class Results:
    """The files of results, which any number of processes write."""

    def __init__(self, plan: Plan, folder: pathlib.Path, command: str):
        """Stores the paths; nothing is read or written."""
        self._plan = plan
        self._folder = folder
        self._command = command
        self.path = folder / "ablations.json"

    def load(self) -> list[dict[str, Any]]:
        """Reads the runs."""
        return ablation_results.load(self.path)

    def check(self) -> None:
        """Raises ValueError if the results are damaged, or of other options."""
        for run in self.load():
            ablation_runs.check_options(self.path, run["options"], self._plan)

    def publish(self, units: Sequence[Unit]) -> None:
        """Adds what has finished to all files."""
        with waiting_lock(self._folder, "--results_dir"):
            runs = ablation_results.merge(self.load(), self._finished(units))
            page, plot = ablation_pages.page(runs, self._command), ablation_pages.plot(runs)
            result_files.write(self._folder, "ablations", runs, page, plot)
            if self._folder.resolve() == ROOT / "results" and CLAIMS_PAGE.exists():
                ablation_pages.fill_claims(CLAIMS_PAGE, runs)

    def _finished(self, units: Sequence[Unit]) -> Iterator[dict[str, Any]]:
        """Yields a run for each finished pretraining, with its finished downstream tasks."""
        for unit in units:
            if unit.task != PRETRAINING or (about := unit.record(self._plan)) is None:
                continue
            minutes, downstream = about["minutes"], {}
            for task in METRICS:
                tuned = dataclasses.replace(unit, task=task).record(self._plan)
                if tuned is not None:
                    downstream[task] = tuned["metrics"]
                    minutes += tuned["minutes"]
            yield {
                "name": unit.name,
                "objectives_left_out": sorted(LEFT_OUT[unit.name]),
                "equal": unit.equal,
                "seed": unit.seed,
                "steps": about["steps"],
                "flops": about["flops_per_step"] * about["steps"],
                "minutes": minutes,
                "commit": about["commit"],
                "options": self._plan.options,
                "pretraining": about["validation"],
                "downstream": downstream,
            }


# ----------------------------------------------------------------------------------- runs


class Runner:
    """Makes the runs that are missing, each one while no other process works on it."""

    def __init__(
        self,
        plan: Plan,
        units: Sequence[Unit],
        results: Results,
        call: Call,
        keep_checkpoints: bool = False,
    ):
        """Prepares to run; `call` runs a command of the interpreter and returns its exit code."""
        self._plan = plan
        self._units = units
        self._results = results
        self._call = call
        self._keep_checkpoints = keep_checkpoints
        self._done: set[Unit] = set()
        self._known: dict[tuple[int, int, int], Mapping[str, Any]] = {}

    def run(self) -> int:
        """Makes all runs; returns 0, or the exit code of the first command that fails."""
        while todo := self._unfinished():
            outcomes = []
            for unit in todo:
                if self._is_ready(unit):
                    outcomes.append(self._try(unit))
                    if outcomes[-1]:
                        return outcomes[-1]
            if 0 not in outcomes:  # all that is ready is under way elsewhere
                time.sleep(_WAIT_SECONDS)
        self._results.publish(self._units)
        return 0

    def _unfinished(self) -> list[Unit]:
        """Returns the runs that are still to be made."""
        self._known = {ablation_results.key(run): run for run in self._results.load()}
        for unit in reversed(self._units):  # a pretraining after its tasks
            if unit not in self._done and self._is_finished(unit):
                self._done.add(unit)
                progress.advance()
        return [unit for unit in self._units if unit not in self._done]

    def _is_finished(self, unit: Unit) -> bool:
        """Returns whether a run, or everything that is made of it, has results."""
        if unit.record(self._plan) is not None:
            return True
        if unit.task != PRETRAINING:
            known = self._known.get(_key(unit), {})
            return unit.task in known.get("downstream", {})
        tasks = [own for own in self._units if own != unit and own.pretraining == unit]
        return bool(tasks) and all(own in self._done for own in tasks)

    def _is_ready(self, unit: Unit) -> bool:
        """Returns whether all that a run needs has finished."""
        if unit.task != PRETRAINING:
            return unit.pretraining.record(self._plan) is not None
        return unit.equal == STEPS or None not in self._compute(unit)

    def _compute(self, unit: Unit) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
        """Returns steps and operations of the full model and of this one, with equal steps."""
        full = Unit(FULL, STEPS, unit.seed, PRETRAINING)
        own = Unit(unit.name, STEPS, unit.seed, PRETRAINING)
        return self._cost_of(full), self._cost_of(own)

    def _cost_of(self, unit: Unit) -> Mapping[str, Any] | None:
        """Returns steps and operations of a finished pretraining; None if it has not finished."""
        if (known := self._known.get(_key(unit))) is None:
            return unit.record(self._plan)
        return {"steps": known["steps"], "flops_per_step": known["flops"] / known["steps"]}

    def _try(self, unit: Unit) -> int | None:
        """Makes a run; returns None if another process works on it, else an exit code."""
        lock = unit.folder(self._plan) / ".locks" / unit.task
        lock.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(directory_lock(lock, "--runs_dir"))
                # Training goes on if only the command that started it was killed.
                if unit.model_dir(self._plan).exists():
                    with directory_lock(unit.model_dir(self._plan), "--runs_dir"):
                        pass
            except LockedError:
                return None
            if unit.record(self._plan) is not None:  # since the list was made
                return 0
            code = self._prepare() or self._make(unit)
        if code == 0:
            self._results.publish(self._units)
        return code

    def _prepare(self) -> int:
        """Builds the scenes and the encoder that all runs begin with, unless they are there."""
        data_dir = self._plan.data_dir
        with waiting_lock(self._plan.runs_dir, "--runs_dir"):
            if not (data_dir / "scenes" / "scenes.json").is_file():
                command = ["-m", "tools.build_scenes", f"--data_dir={data_dir}"]
                if code := self._run(command):
                    return code
            if not storage.list_checkpoints(str(self._plan.encoder)):
                command = ["-m", "tools.pretrain_encoder", f"--data_dir={data_dir}"]
                return self._run([*command, f"--output={self._plan.encoder}"])
        return 0

    def _make(self, unit: Unit) -> int:
        """Trains and, after pretraining, evaluates; returns the exit code."""
        plan, model_dir = self._plan, unit.model_dir(self._plan)
        command = ablation_runs.train_command(plan, unit, self._steps(unit))
        if code := self._run(command):
            return code
        step, wanted = ablation_runs.last_step(model_dir), _train_steps(command)
        if step < wanted:
            raise ValueError(
                f"{model_dir} ended with step {step} of {wanted}: run this again to continue."
            )
        metadata = storage.read_run_metadata(str(model_dir))
        minutes = float(metadata.get(TRAINED_SECONDS, 0.0)) / 60
        about: dict[str, Any] = {"steps": step, "minutes": minutes}
        if unit.task == PRETRAINING:
            path = model_dir / "validation.json"
            about["flops_per_step"] = float(metadata[FLOPS_PER_STEP])
            about["validation"] = text_files.read_json(path) if path.exists() else {}
        else:
            if code := self._run(ablation_runs.evaluate_command(plan, unit)):
                return code
            about["metrics"] = ablation_runs.metrics_of(model_dir, plan.split, step, unit.task)
        unit.finish(plan, about)
        if unit.task != PRETRAINING and not self._keep_checkpoints:
            shutil.rmtree(model_dir / "checkpoints", ignore_errors=True)
        return 0

    def _steps(self, unit: Unit) -> int | None:
        """Returns the steps that make the full model's compute; None for those of the preset."""
        if unit.equal == STEPS or unit.task != PRETRAINING:
            return None
        full, own = self._compute(unit)
        assert full is not None and own is not None
        return max(1, round(full["steps"] * full["flops_per_step"] / own["flops_per_step"]))

    def _run(self, command: Sequence[str]) -> int:
        """Runs a command; a failure is said with the command."""
        if (code := self._call(command)) != 0:
            typed = scenes_results.as_typed(["python", *command])
            message = f"error: `{typed}` failed. Run this again to continue from there."
            print(message, file=sys.stderr)
        return code


def _key(unit: Unit) -> tuple[int, int, int]:
    return ablation_results.key({"equal": unit.equal, "name": unit.name, "seed": unit.seed})


def _train_steps(command: Sequence[str]) -> int:
    """Returns the last TRAIN_STEPS of a command, which is the one that counts."""
    name = "--gin.TRAIN_STEPS="
    return [int(part.removeprefix(name)) for part in command if part.startswith(name)][-1]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
