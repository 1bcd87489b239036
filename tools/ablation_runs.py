"""The runs of the ablations: which there are, where they are kept, and by which commands.

    RUNS_DIR/EQUAL/NAME/seed_0/pretraining       run directory, and pretraining.json when finished
    RUNS_DIR/EQUAL/NAME/seed_0/vqa               the same of each downstream task

A file NAME.json appears when its run is finished, with what the results say about it.
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from ofa_jax.checkpoints import storage
from ofa_jax.utils import files, text_files

from . import report_scenes
from .ablation_results import COMPUTE, FULL, LEFT_OUT, METRICS, STEPS

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "gin_configs" / "ablations"
DOWNSTREAM = ROOT / "gin_configs" / "finetune_scenes"
PRETRAINING = "pretraining"


@dataclasses.dataclass(frozen=True)
class Preset:
    """How long everything is trained.

    Attributes:
      pretraining, finetuning: factors of the steps in the gin files.
      num_examples: of each evaluation.
    """

    pretraining: float
    finetuning: float
    num_examples: int


PRESETS = {
    "quick": Preset(0.02, 0.05, 50),
    "small": Preset(1.0, 1.0, 500),
    "large": Preset(4.0, 2.0, 500),
}
"""Name -> preset. "quick" shows that all works, and measures nothing; "large" takes four times the
pretraining of "small"."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
      runs_dir: where the run directories go.
      data_dir: with the scenes and the encoder that all runs begin with.
      preset: how long everything is trained.
      gin_options: further options of the pretraining runs, e.g. "--gin.TRAIN_STEPS=500".
      finetune_options: of the fine-tuning runs.
      split: that is evaluated.
    """

    runs_dir: pathlib.Path
    data_dir: pathlib.Path
    preset: Preset
    gin_options: tuple[str, ...] = ()
    finetune_options: tuple[str, ...] = ()
    split: str = "test"

    @property
    def options(self) -> list[str]:
        """What must be the same for all runs that are compared."""
        preset = dataclasses.asdict(self.preset)
        return [
            *(f"{name}={value:g}" for name, value in preset.items()),
            f"split={self.split}",
            *self.gin_options,
            *(f"finetune:{option}" for option in self.finetune_options),
        ]

    @property
    def encoder(self) -> pathlib.Path:
        """The checkpoint that every pretraining begins with."""
        return self.data_dir / "scenes" / "encoder"


@dataclasses.dataclass(frozen=True)
class Unit:
    """One run directory: a pretraining, or its fine-tuning on a task.

    Attributes:
      name: of the ablation.
      equal: STEPS or COMPUTE.
      seed: of everything in the run.
      task: a key of METRICS, or PRETRAINING.
    """

    name: str
    equal: str
    seed: int
    task: str

    def folder(self, plan: Plan) -> pathlib.Path:
        """Returns the folder of the run."""
        return plan.runs_dir / self.equal / self.name / f"seed_{self.seed}"

    def model_dir(self, plan: Plan) -> pathlib.Path:
        """Returns the run directory."""
        return self.folder(plan) / self.task

    def record(self, plan: Plan) -> dict[str, Any] | None:
        """Returns what was written when the run had finished; None before.

        Raises:
          ValueError: it was made with other options.
        """
        path = self.folder(plan) / f"{self.task}.json"
        if not path.exists():
            return None
        value = text_files.read_json(path)
        if not isinstance(value, dict) or "options" not in value:
            raise text_files.DamagedFileError(
                f"{path} is damaged: delete it, and the run is finished again."
            )
        check_options(path, value["options"], plan)
        return value

    def finish(self, plan: Plan, value: dict[str, Any]) -> None:
        """Writes that the run has finished, and what the results say about it."""
        about = {"options": plan.options, "commit": report_scenes.commit()}
        files.write_json(self.folder(plan) / f"{self.task}.json", about | value)

    @property
    def pretraining(self) -> "Unit":
        """The pretraining that this run continues."""
        return dataclasses.replace(self, task=PRETRAINING)


def check_options(path: pathlib.Path, options: Sequence[str], plan: Plan) -> None:
    """Raises ValueError if runs were made with other options than those of a plan."""
    if list(options) != plan.options:
        raise ValueError(
            f"{path} is of runs with other options ({' '.join(options)}) than these "
            f"({' '.join(plan.options)}): give the same ones, or choose another --runs_dir and "
            "another --results_dir."
        )


def configurations(only: Sequence[str] = ()) -> list[str]:
    """Returns the names of the ablations, the full model first: it is always among them.

    Raises:
      ValueError: there is no ablation of that name.
    """
    if unknown := sorted(set(only) - set(LEFT_OUT)):
        raise ValueError(
            f"There is no ablation {', '.join(unknown)} in {FOLDER.name}/: choose from "
            f"{', '.join(LEFT_OUT)}."
        )
    return [name for name in LEFT_OUT if not only or name in only or name == FULL]


def units(
    names: Sequence[str], seeds: Sequence[int], tasks: Sequence[str], equals: Sequence[str]
) -> Iterator[Unit]:
    """Yields all runs: those with equal steps first, and one seed after the other."""
    for equal in (STEPS, COMPUTE):
        if equal not in equals and equal == COMPUTE:
            continue
        for seed in seeds:
            for name in names:
                if equal == COMPUTE and name == FULL:
                    continue  # it is that of equal steps
                for task in (PRETRAINING, *tasks):
                    yield Unit(name, equal, seed, task)


def steps_in(path: pathlib.Path) -> int:
    """Returns the TRAIN_STEPS that a gin file sets."""
    found = re.findall(r"^TRAIN_STEPS = (\d+)", path.read_text(encoding="utf-8"), re.M)
    if not found:
        raise ValueError(f"{path} sets no TRAIN_STEPS: add them.")
    return int(found[-1])


def scaled(steps: int, factor: float) -> int:
    """Returns steps times a factor, at least one."""
    return max(1, round(factor * steps))


def train_command(plan: Plan, unit: Unit, steps: int | None) -> list[str]:
    """Returns the command that trains a run, without the interpreter.

    Args:
      plan: of all runs.
      unit: the run.
      steps: of pretraining with equal compute; None for those of the preset.
    """
    common = [
        f"--gin.MODEL_DIR='{unit.model_dir(plan)}'",
        f"--gin.SEED={unit.seed}",
        f"--gin.Scenes.data_dir='{plan.data_dir}'",
    ]
    if unit.task == PRETRAINING:
        file = FOLDER / f"{unit.name}.gin"
        preset = scaled(steps_in(FOLDER / f"{FULL}.gin"), plan.preset.pretraining)
        own = [
            *common,
            f"--gin.INITIAL_CHECKPOINT_PATH='{plan.encoder}'",
            f"--gin.TRAIN_STEPS={preset}",
            *plan.gin_options,
            *(() if steps is None else (f"--gin.TRAIN_STEPS={steps}",)),
        ]
        return ["-m", "ofa_jax.train", f"--gin_file={file}", *_last_of_each(own)]
    file = DOWNSTREAM / f"{unit.task}.gin"
    features = f"--gin.FEATURE_CHECKPOINT='{plan.encoder}'"
    own = [
        *common,
        f"--gin.INITIAL_CHECKPOINT_PATH='{unit.pretraining.model_dir(plan)}'",
        f"--gin.TRAIN_STEPS={scaled(steps_in(file), plan.preset.finetuning)}",
        *((features,) if unit.task == "text_to_image" else ()),
        *plan.finetune_options,
    ]
    return ["-m", "ofa_jax.train", f"--gin_file={file}", *_last_of_each(own)]


def _last_of_each(options: Sequence[str]) -> list[str]:
    """Returns options without those that a later one of the same name replaces."""
    return list({option.partition("=")[0]: option for option in options}.values())


def evaluate_command(plan: Plan, unit: Unit) -> list[str]:
    """Returns the command that evaluates a fine-tuned run, without the interpreter."""
    return [
        *report_scenes.evaluation_command(unit.model_dir(plan), "evaluate", plan.split),
        f"--gin.NUM_EXAMPLES={plan.preset.num_examples}",
    ]


def last_step(model_dir: pathlib.Path) -> int:
    """Returns the step of the newest checkpoint.

    Raises:
      ValueError: there is none.
    """
    step = max(storage.list_checkpoints(str(model_dir)), default=None)
    if step is None:
        raise ValueError(f"There is no checkpoint in {model_dir}, though training has ended.")
    return step


def metrics_of(model_dir: pathlib.Path, split: str, step: int, task: str) -> dict[str, float]:
    """Returns the metrics that the page shows of a fine-tuned run."""
    path = model_dir / "evaluations" / split / "metrics.json"
    metrics = text_files.read_json(path)
    found = metrics.get(str(step)) if isinstance(metrics, dict) else None
    found = found.get(f"scenes_{task}") if isinstance(found, dict) else None
    if not isinstance(found, dict):
        raise text_files.DamagedFileError(
            f"{path} has no metrics of step {step}: delete it and run this again."
        )
    return {name: float(found[name]) for name in METRICS[task] if name in found}
