"""Results of the ablations: their JSON file, their statistics, and the paper's claims.

`results/ablations.json` is a list of runs:

    [{"name": "no_detection", "objectives_left_out": ["object_detection"],
      "equal": "steps", "seed": 0, "steps": 1500, "flops": ..., "minutes": ..., "commit": ...,
      "options": [...],                               of the command, which all runs share
      "pretraining": {objective: {"loss", "unigram_loss", ...}},
      "downstream": {"vqa": {"accuracy": 0.5, ...}, ...}}, ...]

Where `equal` is "compute", a run has as many steps as make the operations of the full model's run.
"""

import dataclasses
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from . import result_files

FULL = "full_model"
STEPS, COMPUTE = "steps", "compute"
LEFT_OUT: Mapping[str, tuple[str, ...]] = {
    FULL: (),
    "no_text_infilling": ("text_infilling",),
    "no_image_infilling": ("image_infilling",),
    "no_detection": ("object_detection",),
    "no_regions": ("grounded_captioning", "visual_grounding"),
    "no_region_aware": ("grounded_captioning", "object_detection", "visual_grounding"),
    "only_pairs": (
        "grounded_captioning",
        "image_infilling",
        "object_detection",
        "text_infilling",
        "visual_grounding",
    ),
}
"""Ablation -> the objectives that its pretraining leaves out."""

METRICS: Mapping[str, tuple[str, ...]] = {
    "classification": ("accuracy", "accuracy/known", "accuracy/new"),
    "captioning": ("cider_d", "noun_f1"),
    "vqa": ("accuracy",),
    "text_to_image": ("asked_noun", "fid", "token_accuracy"),
    "masked_words": ("word_accuracy",),
    "topics": ("accuracy",),
}
"""Downstream task -> the metrics that the page shows; the first one is that of the claims."""
_LOWER_IS_BETTER = frozenset(("fid",))
_PLAIN = frozenset(("cider_d", "fid"))
_QUANTILES = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
"""The 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom."""
_NORMAL = 1.959964

WORSE, BETTER, SAME = "worse", "better", "about the same"
AGREES, DISAGREES, NOISE = "agrees", "disagrees", "within noise"
NOT_MEASURED, TOO_FEW = "not measured yet", "one seed"


@dataclasses.dataclass(frozen=True)
class Claim:
    """What the paper says of a task after pretraining without some objectives.

    Attributes:
      name: of the ablation.
      task: downstream.
      without: whether the task is WORSE, BETTER or about the SAME without them.
    """

    name: str
    task: str
    without: str


CLAIMS = tuple(
    Claim(name, task, without)
    for name, effects in {
        "no_text_infilling": {
            "captioning": WORSE,
            "vqa": WORSE,
            "masked_words": WORSE,
            "topics": WORSE,
            "classification": BETTER,
            "text_to_image": BETTER,
        },
        "no_image_infilling": {
            "classification": WORSE,
            "text_to_image": WORSE,
            "captioning": BETTER,
            "vqa": BETTER,
        },
        "no_detection": {"captioning": WORSE, "vqa": WORSE, "text_to_image": SAME},
        "no_regions": {"captioning": WORSE, "vqa": WORSE, "text_to_image": SAME},
        "no_region_aware": {"captioning": WORSE, "vqa": WORSE, "text_to_image": SAME},
    }.items()
    for task, without in effects.items()
)
"""The statements of Wang et al. 2022 on multitask pretraining. It leaves detection and the region
tasks out separately; that both together help follows from what it says of each."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
      mean: of the values.
      error: its standard error; None for one value.
      count: number of seeds.
    """

    mean: float
    error: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate | None":
        """Computes the mean and its standard error; None without values."""
        if not values:
            return None
        error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if values[1:] else None
        return cls(float(np.mean(values)), error, len(values))

    @property
    def half_interval(self) -> float:
        """Half of the 95 % confidence interval of the mean, by Student's t; infinite for one."""
        if self.error is None:
            return math.inf
        return self.error * student_quantile(self.count - 1)

    @property
    def sign(self) -> int:
        """1 or -1 where the interval is above or below 0; 0 where it includes 0."""
        if abs(self.mean) <= self.half_interval:
            return 0
        return 1 if self.mean > 0 else -1


def student_quantile(freedom: int) -> float:
    """Returns the 97.5 % quantile of Student's t.

    From a table for up to ten degrees of freedom, then by the first terms of its expansion
    (Abramowitz and Stegun, 26.7.5), with three digits right.
    """
    if freedom <= len(_QUANTILES):
        return _QUANTILES[freedom - 1]
    z = _NORMAL
    first = (z**3 + z) / (4 * freedom)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    return z + first + second + third


def classify(without: str, difference: Estimate | None, metric: str) -> str:
    """Returns whether a difference agrees with a claim.

    Args:
      without: WORSE, BETTER or SAME.
      difference: of the metric, without the objectives less with them, paired by seed.
      metric: its name: of some, lower values are better.
    """
    if difference is None:
        return NOT_MEASURED
    if difference.count < 2:
        return TOO_FEW
    sign = -difference.sign if metric in _LOWER_IS_BETTER else difference.sign
    if without == SAME:
        return DISAGREES if sign else AGREES
    if not sign:
        return NOISE
    return AGREES if (sign > 0) == (without == BETTER) else DISAGREES


# ----------------------------------------------------------------------------------- the JSON file

Run = Mapping[str, Any]


def key(run: Run) -> tuple[int, int, int]:
    """Returns what identifies a run, in the order of the file."""
    names = list(LEFT_OUT)
    return (STEPS, COMPUTE).index(run["equal"]), names.index(run["name"]), int(run["seed"])


def load(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the runs; [] if there is no file.

    Raises:
      DamagedFileError: it is torn, or not what `save` writes.
    """
    return result_files.read(path, "the results of the ablations", _check, empty=[])


def _check(runs: Sequence[Mapping[str, Any]]) -> None:
    """Fails if these are not runs of the ablations."""
    if not isinstance(runs, list):
        raise TypeError("it is not a list of runs")
    for run in runs:
        key(run)
        if sorted(run["objectives_left_out"]) != sorted(LEFT_OUT[run["name"]]):
            raise ValueError(f"{run['name']} does not leave out what its name says")
        for values in run["downstream"].values():
            all(math.isfinite(float(value)) for value in values.values())
        if not run["steps"] > 0 or not run["flops"] > 0:
            raise ValueError("a run has no steps")
        list(run["options"])


def merge(old: Iterable[Run], new: Iterable[Run]) -> list[Run]:
    """Returns the runs of both, in the order of the file; new results count more than old ones."""
    merged: dict[tuple[int, int, int], Run] = {}
    for run in (*old, *new):
        before = merged.get(key(run), {})
        downstream = {**before.get("downstream", {}), **run["downstream"]}
        ordered = {task: downstream[task] for task in METRICS if task in downstream}
        merged[key(run)] = {**before, **run, "downstream": ordered}
    return [merged[place] for place in sorted(merged)]


# --------------------------------------------------------------------------------------- statistics


def values_of(
    runs: Sequence[Run], name: str, equal: str, task: str, metric: str
) -> dict[int, float]:
    """Returns seed -> the value of a metric. The full model's runs are those of both tables."""
    equal = STEPS if name == FULL else equal
    return {
        run["seed"]: float(run["downstream"][task][metric])
        for run in runs
        if (run["name"], run["equal"]) == (name, equal)
        and metric in run["downstream"].get(task, {})
    }


def difference_of(
    runs: Sequence[Run], name: str, equal: str, task: str, metric: str
) -> Estimate | None:
    """Returns the mean difference to the full model over the seeds that both have."""
    full = values_of(runs, FULL, equal, task, metric)
    own = values_of(runs, name, equal, task, metric)
    return Estimate.of([own[seed] - full[seed] for seed in sorted(own.keys() & full.keys())])


def verdict_of(runs: Sequence[Run], claim: Claim, equal: str) -> str:
    """Returns the verdict on a claim by the first metric of its task."""
    metric = METRICS[claim.task][0]
    difference = difference_of(runs, claim.name, equal, claim.task, metric)
    return classify(claim.without, difference, metric)


def shown(metric: str, value: float, signed: bool = False) -> str:
    """Formats a value: shares in per cent; with its sign if it is a difference."""
    sign = "+" if signed else ""
    return f"{value:{sign}.3f}" if metric in _PLAIN else f"{100 * value:{sign}.1f}"


def shown_estimate(metric: str, estimate: Estimate | None, signed: bool = False) -> str:
    """Formats a mean with its standard error."""
    if estimate is None:
        return "-"
    error = "" if estimate.error is None else f" ± {shown(metric, estimate.error)}"
    return shown(metric, estimate.mean, signed) + error
