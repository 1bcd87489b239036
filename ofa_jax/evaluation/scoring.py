"""Computes the metrics of written predictions; one that fails does not stop the others.

    predictions.jsonl ─▶ examples with a reference that the metric can use ─▶ metric ─▶ values

A test set may publish references for some of its examples, or for none: metrics are over those that
have one. Predictions are on the disk before any of this begins.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from ofa_jax.evaluation import postprocess
from ofa_jax.evaluation.eval_spec import EvalSpec, Metric
from ofa_jax.evaluation.metrics import inputs
from ofa_jax.evaluation.prediction_files import Line

_MAX_REASON = 500


@dataclasses.dataclass(frozen=True)
class Scores:
    """The metrics of a task's predictions.

    Attributes:
      metrics: name -> value, all finite.
      main_metric: the metric that selects the best checkpoint; None if there is none.
      scored: number of examples with a reference that at least one metric can use.
      undefined: names of values that are NaN or infinite for these predictions.
      failed: name of a metric that raised an exception, or that the spec asks for in vain -> why.
      unscored_reason: why no example was scored; None if some were.
    """

    metrics: Mapping[str, float]
    main_metric: str | None
    scored: int
    undefined: tuple[str, ...] = ()
    failed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unscored_reason: str | None = None


def compute_metrics(spec: EvalSpec, lines: Iterable[Line]) -> Scores:
    """Computes the metrics of written predictions; raises nothing for what a metric does."""
    lines = [line for line in lines if "error" not in line]
    predictions = [postprocess.from_json(spec.kind, line["prediction"]) for line in lines]
    values: dict[str, float] = {}
    undefined: list[str] = []
    failed: dict[str, str] = {}
    scored: set[int] = set()
    for metric in spec.metrics:
        usable = {
            index: reference
            for index, line in enumerate(lines)
            if (reference := inputs.usable_reference(metric, line["references"])) is not None
        }
        if not usable:
            continue
        try:
            found = metric(list(usable.values()), [predictions[index] for index in usable])
            numbers = {str(name): float(value) for name, value in found.items()}
        except inputs.NothingToScoreError:
            continue
        except (Exception, SystemExit) as error:  # noqa: BLE001  a metric may raise anything
            failed[_name(metric)] = _describe(error)
            numbers = {}
        scored.update(usable)
        values |= {name: value for name, value in numbers.items() if math.isfinite(value)}
        undefined += [name for name, value in numbers.items() if not math.isfinite(value)]
    main_metric = spec.main_metric
    if main_metric is None or main_metric not in values:
        if values and main_metric is not None and main_metric not in undefined and not failed:
            failed[main_metric] = f"it is the main metric, but the metrics give {', '.join(values)}"
        main_metric = next(iter(values), None)
    return Scores(
        values,
        main_metric,
        len(scored),
        tuple(undefined),
        failed,
        None if scored else _reason_unscored(spec, len(lines)),
    )


def _reason_unscored(spec: EvalSpec, examples: int) -> str:
    """Returns why no example was scored."""
    if not examples:
        return "every record is invalid"
    if not spec.metrics:
        return "the task has no metric"
    return f"none of its {examples} examples has a reference"


def _name(metric: Metric) -> str:
    """Returns the name of a metric in messages."""
    inner: Any = metric
    while not hasattr(inner, "__name__") and hasattr(inner, "func"):
        inner = inner.func  # functools.partial
    return str(getattr(inner, "__name__", type(inner).__name__))


def _describe(error: BaseException) -> str:
    """Returns the reason that an exception gives, in one line."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return reason if len(reason) <= _MAX_REASON else f"{reason[:_MAX_REASON]} ..."
